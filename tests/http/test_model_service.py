"""The model service behind its real protocol, on a real socket."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from router.http.life import Life, Phase
from router.logs import AccessLog
from router.model_service.edge import Edge
from router.model_service.errors import NotServingError
from router.model_service.limits import Limits
from router.model_service.metrics import Metrics
from router.model_service.service import ModelService
from router.model_service.static import WordLlamaEmbedder, WordLlamaReranker
from tests.http.fake import LogLines
from tests.http.wire import SECONDS, Wire, wire
from tests.unit.gated_models import GatedModel, GatedReranker

EMBED = "/v1/embeddings"


class Running:
    """A running service; `log` has its access log."""

    def __init__(self, running: Wire, client: httpx.AsyncClient, life: Life, log: LogLines) -> None:
        self.wire = running
        self.client = client
        self.life = life
        self.log = log

    def posts(self, *texts: str) -> list[asyncio.Task[httpx.Response]]:
        """A request under way for each text."""
        return [asyncio.create_task(self.client.post(EMBED, json={"input": text})) for text in texts]

    async def metric(self, name: str, **labels: str) -> float:
        text = (await self.client.get("/metrics")).text
        wanted = ",".join(f'{label}="{value}"' for label, value in labels.items())
        found = re.search(rf"^pgscatter_models_{name}(?:\{{{wanted}\}})? (\S+)$", text, re.MULTILINE)
        assert found is not None, text
        return float(found[1])

    async def until(self, name: str, value: float, **labels: str) -> None:
        async with asyncio.timeout(SECONDS):
            while await self.metric(name, **labels) != value:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def service(
    embedders: dict[str, Any] | None = None,
    rerankers: dict[str, Any] | None = None,
    key: str | None = None,
    **limits: Any,
) -> AsyncIterator[Running]:
    life, log = Life(), LogLines()
    models = {"m": GatedModel()} if embedders is None else embedders
    edge = Edge(models, rerankers or {}, Limits(**limits), life, AccessLog(log), key)
    async with edge._run(None), wire(app=edge) as running:
        base_url = f"http://127.0.0.1:{running.port}"
        limit = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=base_url, timeout=SECONDS, limits=limit) as client:
            try:
                yield Running(running, client, life, log)
            finally:
                for model in models.values():
                    if isinstance(model, GatedModel):
                        model.gate.set()


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.json().keys() == {"error"} and response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "code", "param"}
    return error


async def test_texts_become_vectors_in_openais_form() -> None:
    async with service({"wordllama": WordLlamaEmbedder()}) as running:
        asked = {"model": "wordllama", "input": ["sort a list", "open a file"]}
        response = await running.client.post(EMBED, json=asked)
        answer = response.json()
        assert response.status_code == 200 and response.headers["x-request-id"]
        assert [len(one["embedding"]) for one in answer["data"]] == [256, 256]
        assert answer["usage"]["total_tokens"] == 6
        shorter = (await running.client.post(EMBED, json={**asked, "dimensions": 64})).json()
        assert [len(one["embedding"]) for one in shorter["data"]] == [64, 64]
        error = error_of(await running.client.post(EMBED, json={**asked, "dimensions": 65}))
        assert error["message"] == "dimensions: model 'wordllama' has 256, or 64, 128, got 65"
        assert error["param"] == "dimensions"
        # A vector that the same text has in every request.
        alone = await running.client.post(EMBED, json={"input": "open a file"})
        assert alone.json()["data"][0]["embedding"] == answer["data"][1]["embedding"]


async def test_texts_are_ranked_in_both_forms() -> None:
    embedder = WordLlamaEmbedder()
    async with service({"e": embedder}, {"r": WordLlamaReranker(embedder)}) as running:
        texts = ["open a file for reading", "sorted() returns a sorted list", "the weather"]
        asked = {
            "model": "r",
            "query": "sort a list",
            "documents": texts,
            "top_n": 2,
            "return_documents": True,
        }
        results = (await running.client.post("/v1/rerank", json=asked)).json()["results"]
        assert results[0]["index"] == 1 and results[0]["document"] == {"text": texts[1]} and len(results) == 2
        answer = await running.client.post("/rerank", json={"query": "sort a list", "texts": texts})
        assert answer.json()[0]["index"] == 1 and len(answer.json()) == 3


async def test_models_are_listed_and_found_by_names_with_a_slash() -> None:
    async with service({"a/b": GatedModel()}, {"r": GatedReranker()}) as running:
        models = (await running.client.get("/v1/models")).json()
        assert [(one["id"], one["kind"]) for one in models["data"]] == [
            ("a/b", "embedder"),
            ("r", "reranker"),
        ]
        assert models["data"][0]["dimensions"] == 2 and models["data"][0]["shorter_dimensions"] == [1]
        for path in ("/v1/models/a/b", "/v1/models/a%2Fb"):
            assert (await running.client.get(path)).json() == models["data"][0]
        assert (
            error_of(await running.client.get("/v1/models/x"))["message"] == "no model 'x'; there are a/b, r"
        )


async def test_a_model_that_is_not_there_is_404_with_those_that_are() -> None:
    async with service({"a": GatedModel(), "b": GatedModel()}) as running:
        response = await running.client.post(EMBED, json={"model": "x", "input": "a"})
        error = error_of(response)
        assert (
            response.status_code == 404 and error["code"] == "model_not_found" and error["param"] == "model"
        )
        assert error["message"] == "no embedder 'x'; there are a, b"
        response = await running.client.post(EMBED, json={"input": "a"})
        assert response.status_code == 422
        assert error_of(response)["message"] == "model: required, since there are a, b"
        response = await running.client.post("/v1/rerank", json={"query": "a", "documents": ["b"]})
        assert response.status_code == 404 and "--reranker" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/", 404, None),
        ("POST", "/v1/completions", 404, None),
        ("GET", EMBED, 405, "POST"),
        ("POST", "/readyz", 405, "GET, HEAD"),
        ("DELETE", "/v1/models/m", 405, "GET, HEAD"),
        ("HEAD", "/livez", 200, None),
    ],
)
async def test_what_is_no_route_is_said_to_be_none(
    method: str, path: str, status: int, allow: str | None
) -> None:
    async with service() as running:
        response = await running.client.request(method, path)
        assert response.status_code == status and response.headers.get("allow") == allow
        if status != 200:
            assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "malformed_body"),
        (b"{", 400, "malformed_body"),
        (b"[" * 50_000, 400, "malformed_body"),
        (b"[]", 422, "invalid_value"),
        (b'{"input": "\xff"}', 400, "malformed_body"),
        (b'{"input": [1, 2]}', 422, "invalid_value"),
        (b'{"input": ["a", "unknown"]}', 422, "invalid_value"),
        (b'{"input": NaN}', 422, "invalid_value"),
        (b'{"input": "' + b"x" * 3000 + b'"}', 422, "invalid_value"),
        (b'{"input": "' + b"x" * 200_000 + b'"}', 413, "body_too_large"),
        (json.dumps({"input": ["a"] * 20_000}).encode(), 422, "invalid_value"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_bad_bodies_get_their_status_and_nothing_is_computed(
    content: bytes, status: int, code: str, chunked: bool
) -> None:
    model = GatedModel()
    async with service({"m": model}, max_body_bytes=150_000, max_text_chars=2048) as running:

        async def pieces() -> AsyncIterator[bytes]:
            for begin in range(0, len(content), 50_000):
                yield content[begin : begin + 50_000]

        response = await running.client.post(EMBED, content=pieces() if chunked else content)
        assert response.status_code == status and error_of(response)["code"] == code
        if b"unknown" not in content:
            assert model.calls == []
        # The service goes on.
        assert (await running.client.post(EMBED, json={"input": "a"})).status_code == 200


async def test_a_compressed_body_is_not_taken_for_a_broken_one() -> None:
    async with service() as running:
        response = await running.client.post(EMBED, content=b"x", headers={"content-encoding": "gzip"})
        assert response.status_code == 422 and "Content-Encoding" in error_of(response)["message"]


async def test_a_body_that_does_not_come_is_given_up() -> None:
    async with service(request_timeout=0.05) as running:
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
        reader, writer = await running.wire.connect()
        writer.write(head)
        assert (await asyncio.wait_for(reader.readline(), SECONDS)).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_requests_that_come_during_a_call_are_one_batch() -> None:
    model = GatedModel(closed=True)
    async with service({"m": model}) as running:
        posts = running.posts("first")
        assert await asyncio.to_thread(model.called.acquire, timeout=SECONDS)
        posts += running.posts("ccc", "a", "bb")
        await running.until("waiting_texts", 3, model="m")
        model.gate.set()
        assert {response.status_code for response in await asyncio.gather(*posts)} == {200}
        assert model.calls == [["first"], ["a", "bb", "ccc"]]
        assert await running.metric("batch_texts_count", model="m") == 2
        assert await running.metric("texts_total", model="m") == 4


async def test_a_full_queue_is_429_with_when_to_come_again() -> None:
    model = GatedModel(closed=True)
    async with service({"m": model}, queue_texts=2) as running:
        posts = running.posts("a")
        assert await asyncio.to_thread(model.called.acquire, timeout=SECONDS)
        posts.append(asyncio.create_task(running.client.post(EMBED, json={"input": ["b", "c"]})))
        await running.until("waiting_texts", 2, model="m")
        response = await running.client.post(EMBED, json={"input": "d"})
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
        assert error_of(response)["code"] == "too_many_requests"
        assert await running.metric("rejected_requests_total", reason="queue") == 1
        model.gate.set()
        assert {response.status_code for response in await asyncio.gather(*posts)} == {200}
        assert (await running.client.post(EMBED, json={"input": "d"})).status_code == 200


async def test_too_many_requests_at_once_are_429_while_health_is_answered() -> None:
    model = GatedModel(closed=True)
    async with service({"m": model}, max_concurrent=2) as running:
        posts = running.posts("a", "a")
        await running.until("in_flight_requests", 3)  # the scrape is one of them
        response = await running.client.post(EMBED, json={"input": "b"})
        assert response.status_code == 429 and "2 requests" in error_of(response)["message"]
        assert response.headers["retry-after"] == "1"
        assert (await running.client.get("/readyz")).status_code == 200
        model.gate.set()
        assert {response.status_code for response in await asyncio.gather(*posts)} == {200}
        assert await running.metric("rejected_requests_total", reason="concurrency") == 1


async def test_nothing_is_computed_for_a_client_that_has_left() -> None:
    model = GatedModel(closed=True)
    async with service({"m": model}) as running:
        first = asyncio.create_task(running.client.post(EMBED, json={"input": "first"}))
        assert await asyncio.to_thread(model.called.acquire, timeout=SECONDS)
        body = json.dumps({"input": ["left"] * 10}).encode()
        _, writer = await running.wire.connect()
        writer.write(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        await running.until("waiting_texts", 10, model="m")
        writer.transport.abort()
        await running.until("waiting_texts", 0, model="m")
        model.gate.set()
        assert (await first).status_code == 200
        assert (await running.client.post(EMBED, json={"input": "next"})).status_code == 200
        assert model.calls == [["first"], ["next"]]
        assert await running.metric("abandoned_requests_total", model="m") == 1
        assert await running.metric("requests_total", route=EMBED, status="499") == 1


async def test_a_model_that_fails_is_500_for_the_request_to_blame() -> None:
    model = GatedModel(closed=True)
    async with service({"m": model}) as running:
        posts = running.posts("first")
        assert await asyncio.to_thread(model.called.acquire, timeout=SECONDS)
        posts += running.posts("poison", "good", "nan")
        await running.until("waiting_texts", 3, model="m")
        model.gate.set()
        found = await asyncio.gather(*posts)
        assert [response.status_code for response in found] == [200, 500, 200, 500]
        assert all(error_of(found[n])["code"] == "model_failed" for n in (1, 3))
        assert "poison" not in found[1].text


async def test_an_answer_that_takes_too_long_is_503_and_the_service_not_ready() -> None:
    model = GatedModel(closed=True)
    async with service({"m": model}, request_timeout=0.2) as running:
        response = await running.client.post(EMBED, json={"input": "a"})
        assert response.status_code == 503 and "within 0.2 s" in error_of(response)["message"]
        async with asyncio.timeout(SECONDS):
            while (ready := await running.client.get("/readyz")).status_code == 200:
                await asyncio.sleep(0.01)
        assert ready.json() == {"ready": False, "models": {"m": False}}
        assert (await running.client.get("/livez")).status_code == 200
        model.gate.set()
        async with asyncio.timeout(SECONDS):
            while (await running.client.get("/readyz")).status_code == 503:
                await asyncio.sleep(0.01)


async def test_a_service_that_ends_is_not_ready_but_answers() -> None:
    async with service() as running:
        running.life.advance(Phase.DRAINING)
        assert (await running.client.get("/readyz")).status_code == 503
        assert (await running.client.post(EMBED, json={"input": "a"})).status_code == 200


async def test_a_key_is_asked_for_where_there_is_one() -> None:
    async with service(key="sécret") as running:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "sécret".encode()},
            {"api-key": ""},
        ):
            for response in (
                await running.client.post(EMBED, json={"input": "a"}, headers=headers),
                await running.client.get("/v1/models", headers=headers),
                await running.client.post("/rerank", json={}, headers=headers),
            ):
                assert response.status_code == 401 and error_of(response)["code"] == "invalid_api_key"
        for headers in ({"authorization": b"Bearer s\xc3\xa9cret"}, {"api-key": "sécret".encode()}):
            response = await running.client.post(EMBED, json={"input": "a"}, headers=headers)
            assert response.status_code == 200
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await running.client.get(path)).status_code == 200


async def test_each_request_leaves_one_line_without_its_texts() -> None:
    async with service() as running:
        await running.client.post(EMBED, json={"input": "a secret"}, headers={"x-request-id": "mine"})
        await running.client.post(EMBED, json={"input": []})
        lines = await running.log.lines()
        assert [(line["route"], line["status"]) for line in lines] == [(EMBED, 200), (EMBED, 422)]
        assert lines[0]["request_id"] == "mine" and "secret" not in json.dumps(lines)


async def test_many_requests_at_once_all_get_their_own_vectors() -> None:
    async with service({"w": WordLlamaEmbedder()}, max_concurrent=1000) as running:
        texts = [[f"text {n} {'word ' * (n * m % 17)}" for m in range(1 + n % 7)] for n in range(100)]
        posts = [running.client.post(EMBED, json={"input": some}) for some in texts]
        answers = await asyncio.gather(*posts)
        embedder = WordLlamaEmbedder()
        for some, answer in zip(texts, answers, strict=True):
            found = [one["embedding"] for one in answer.json()["data"]]
            assert np.array(found, np.float32).tobytes() == embedder.run(some).values.tobytes()


async def test_a_call_that_does_not_end_holds_up_the_end_for_a_bounded_time() -> None:
    model = GatedModel(closed=True)
    metrics = Metrics()
    running = ModelService({"m": model}, {"r": GatedReranker()}, Limits(), metrics)
    asking = asyncio.create_task(running.embeddings(b'{"input": "a"}'))
    assert await asyncio.to_thread(model.called.acquire, timeout=SECONDS)
    late = asyncio.create_task(running.embeddings(b'{"input": "late"}'))
    async with asyncio.timeout(SECONDS):
        while running.waiting["m"] != 1:
            await asyncio.sleep(0.001)
    assert await running.close(0.01) == ["m"]
    with pytest.raises(NotServingError):
        await late
    model.gate.set()
    assert json.loads(await asking)["model"] == "m"
    assert await running.close(SECONDS) == []
