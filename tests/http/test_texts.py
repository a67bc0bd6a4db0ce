"""Searches by text at the edge: what their answers say, and how a service that fails is told of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from router.http.backend import Embedded, ServiceStatus
from router.http.keys_file import parse
from router.http.metrics import Metrics
from router.models.status import RefusedError
from router.query.errors import (
    DeadlineError,
    InvalidError,
    MisconfiguredError,
    OverloadedError,
    Problem,
    RouterError,
    UnavailableError,
)
from shard_config import parse as parse_map
from shard_config.model import Collection
from tests.http.fake import MAP, FakeBackend, application

SEARCH = "/v1/collections/documents/search"
URL = "http://10.0.0.5:8200/v1/embeddings"
KEYS = """
keys:
  - {name: app, key: app, scopes: [read, write]}
  - {name: operator, key: operator, scopes: [admin]}
"""
APP, OPERATOR = ({"Authorization": f"Bearer {key}"} for key in ("app", "operator"))


class Service:
    """What the edge asks; `error` is what it gets, if anything."""

    def __init__(self) -> None:
        self.error: RouterError | None = None
        self.vector = [1.0, 2.0, 3.0]
        self.tier: Any = "miss"

    async def __call__(self, collection: Collection, text: str, deadline: float) -> Embedded:
        if self.error is not None:
            raise self.error
        return Embedded(np.array(self.vector, "<f4").tobytes(), "minilm", self.tier)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def guarded(
    backend: FakeBackend, service: Service, connect: Callable[[Any], httpx.AsyncClient]
) -> httpx.AsyncClient:
    return connect(application(backend, keys=parse(KEYS, {}, "keys.yaml"), embed=service))


async def test_an_answer_says_whether_the_vector_was_known(
    guarded: httpx.AsyncClient, service: Service
) -> None:
    for tier, cached in (("miss", False), ("l1", True), ("l2", True)):
        service.tier = tier
        answer = (await guarded.post(SEARCH, json={"text": "a"}, headers=APP)).json()
        assert answer["embedding"].keys() == {"model", "cached", "ms"}
        assert answer["embedding"]["cached"] is cached
        assert 0 <= answer["embedding"]["ms"] <= answer["took_ms"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnavailableError(f"m ({URL}) cannot be reached", retry_after=7).hidden("m cannot answer"), 503),
        (DeadlineError(f"m ({URL}) did not answer").hidden("m did not answer in time"), 504),
        (OverloadedError(f"m ({URL}) has too much to do", 7).hidden("m has too much to do"), 429),
        (MisconfiguredError(f"m ({URL}) does not take the key").hidden("m is not set up for this"), 500),
        (
            RefusedError(f"text: m ({URL}) answers 400", [Problem("text", f"m ({URL}) answers 400")]).hidden(
                "text: m does not take it", [Problem("text", "m does not take it")]
            ),
            422,
        ),
        (InvalidError.at("text", "m"), 422),
    ],
)
async def test_a_service_that_fails_is_named_and_its_address_is_for_operators(
    guarded: httpx.AsyncClient, service: Service, error: RouterError, status: int
) -> None:
    service.error = error
    batch = {"searches": [{"vector": [1, 2, 3]}, {"text": "a"}]}
    for headers in (APP, OPERATOR):
        inside = headers is OPERATOR and error.outside is not None
        single = await guarded.post(SEARCH, json={"text": "a"}, headers=headers)
        assert (single.status_code, URL in single.text) == (status, inside)
        assert ("retry-after" in single.headers) == (status in (429, 503))
        member = (await guarded.post(f"{SEARCH}/batch", json=batch, headers=headers)).json()["results"][1]
        assert (member["error"]["status"], URL in str(member)) == (status, inside)
        if status == 422:
            assert [one["path"] for one in single.json()["errors"]] == ["text"]
            assert [one["path"] for one in member["error"]["errors"]] == ["searches[1].text"]
            assert member["error"]["detail"].startswith("searches[1].text: m")


async def test_a_vector_that_the_metric_does_not_take_is_refused_at_the_text(
    guarded: httpx.AsyncClient, service: Service
) -> None:
    service.vector = [0.0, 0.0, 0.0]
    answer = await guarded.post(SEARCH, json={"text": "a"}, headers=APP)
    assert answer.status_code == 422
    assert [one["path"] for one in answer.json()["errors"]] == ["text"]


async def test_health_tells_of_services_and_one_that_is_down_leaves_the_router_ready(
    guarded: httpx.AsyncClient, backend: FakeBackend
) -> None:
    def state(circuit: Any) -> ServiceStatus:
        return ServiceStatus(
            "m", "embedding", "mini", circuit, 1, 2, 10, 3, URL, f"cannot be reached at {URL}"
        )

    backend.service_states = [state("closed")]
    assert (await guarded.get("/health", headers=OPERATOR)).json()["status"] == "ok"
    backend.service_states = [state("open")]
    health = (await guarded.get("/health", headers=OPERATOR)).json()
    assert health["status"] == "degraded"
    assert health["services"] == [
        {
            "name": "m",
            "kind": "embedding",
            "model": "mini",
            "circuit": "open",
            "in_flight": 1,
            "waiting": 2,
            "requests": 10,
            "failures": 3,
            "url": URL,
            "reason": f"cannot be reached at {URL}",
        }
    ]
    outside = await guarded.get("/health", headers=APP)
    assert URL not in outside.text
    assert outside.json()["services"][0]["circuit"] == "open"
    assert (await guarded.get("/readyz")).status_code == 200
    scrape = (await guarded.get("/metrics", headers=OPERATOR)).text
    assert 'pgscatter_model_circuit_open{kind="embedding",service="m"} 1.0' in scrape


def test_requests_to_services_are_counted(backend: FakeBackend) -> None:
    metrics = Metrics()
    metrics.service_answered("embedding", "m", 0.003)
    metrics.service_failed("embedding", "m", "timeout")
    metrics.text_embedded("m", "l1")
    found = metrics.render(backend).decode()
    for line in (
        'pgscatter_model_requests_total{kind="embedding",outcome="ok",service="m"} 1.0',
        'pgscatter_model_requests_total{kind="embedding",outcome="timeout",service="m"} 1.0',
        'pgscatter_model_seconds_bucket{kind="embedding",le="0.005",service="m"} 1.0',
        'pgscatter_texts_embedded_total{cache="l1",service="m"} 1.0',
    ):
        assert line in found


async def test_a_collection_says_which_model_and_words_it_has(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    with_words = MAP.replace(
        "embedder: letters", "embedder: minilm\n    template: '{category}: {content}'", 1
    )
    service = "  minilm: {url: 'http://10.0.0.5/v1', dimensions: 3, api_key: k3y}\n"
    backend.shard_map = parse_map(with_words.replace("models:\n", f"models:\n{service}", 1), env={})
    found = (await client.get("/v1/collections/documents")).json()
    assert (found["text"], found["embedder"]) == (True, "minilm")
    assert found["fulltext"] == {"columns": ["content"], "language": "english"}
    assert (found["template"], found["rerankers"]) == ("{category}: {content}", ["ce"])
    other = (await client.get("/v1/collections/notes")).json()
    assert other["text"] is False and not {"embedder", "template", "fulltext"} & other.keys()
    shown = await client.get("/v1/shard-map")
    assert "k3y" not in shown.text
    assert shown.json()["models"]["minilm"]["api_key"] == "***"
