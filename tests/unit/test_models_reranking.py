"""Scores by services that speak as Cohere's or as TEI's do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from router.models.reranking import Reranking
from router.query.errors import UnavailableError
from router.settings import Settings
from shard_config.model import RerankingApi
from tests.unit.fake_services import Answer, FakeService, Received, cohere, tei

TEXTS = ["aa", "aaaa", "a"]


@pytest.mark.parametrize(
    ("api", "usual", "sent"),
    [
        (RerankingApi.COHERE, cohere, {"model": "model", "query": "q", "documents": TEXTS, "top_n": 3}),
        (RerankingApi.TEI, tei, {"query": "q", "texts": TEXTS, "truncate": True}),
    ],
)
def test_scores_come_in_the_order_of_the_texts(
    api: RerankingApi, usual: Callable[[Received], Any], sent: dict[str, Any]
) -> None:
    async def test() -> None:
        async with FakeService(usual) as fake:
            reranking = Reranking(Settings())
            deadline = asyncio.get_running_loop().time() + 30
            service = fake.reranker(api=api, api_key="k3y")
            assert await reranking.scores(service, "q", TEXTS, deadline) == [0.25, 0.5, 0.125]
            assert await reranking.scores(service, "q", [], deadline) == []
            (request,) = fake.requests
            assert (request.path, request.json) == ("/v1/rerank", sent)
            assert request.headers["authorization"] == "bearer k3y"
            (status,) = reranking.statuses([service])
            assert (status.name, status.kind, status.requests, status.failures) == ("r", "reranking", 1, 0)
            await reranking.close()

    asyncio.run(test())


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[]", "no list of scores"),
        ({"results": [{"index": 0, "relevance_score": 1}]}, "1 scores to 3 texts"),
        ({"results": [{"index": 0, "relevance_score": 1}] * 3}, "places of its answers"),
        ({"results": [{"index": i + 1, "relevance_score": 1} for i in range(3)]}, "places of its answers"),
        (b'{"results": [{"index": 0, "relevance_score": 1e999}]}', "no list of scores"),
        ({"results": [{"index": i, "relevance_score": None} for i in range(3)]}, "no list of scores"),
    ],
)
def test_what_are_no_scores_is_an_error(body: Any, says: str) -> None:
    async def test() -> None:
        async with FakeService(cohere) as fake:
            reranking = Reranking(Settings())
            fake.answers.append(Answer(body=body))
            deadline = asyncio.get_running_loop().time() + 30
            with pytest.raises(UnavailableError, match=f"reranking service r .*{says}"):
                await reranking.scores(fake.reranker(), "q", TEXTS, deadline)
            await reranking.close()

    asyncio.run(test())
