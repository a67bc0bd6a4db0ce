"""Documents that come as text: what becomes of each, whatever the model's service does."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from router.documents.types import Document, UpsertOutcome
from router.http.keys_file import parse
from router.query.errors import (
    DeadlineError,
    InvalidError,
    MisconfiguredError,
    OverloadedError,
    Problem,
    RouterError,
    UnavailableError,
)
from router.settings import Settings
from shard_config.model import Collection, EmbeddingService
from tests.http.fake import FakeBackend, application
from tests.http.test_documents import NDJSON, lines

ARTICLES = "/v1/collections/articles/documents"
KEYS = """
keys:
  - {name: app, key: app, scopes: [write]}
  - {name: op, key: op, scopes: [admin, write]}
"""
# What fails is not sent again, which the tests of `embed_repeatedly` are about.
AT_ONCE = Settings(model_patience=0)
SECRET = "http://10.0.0.9:8200/v1"
KINDS: dict[str, tuple[type[RouterError], str]] = {
    "down": (UnavailableError, "unavailable"),
    "busy": (OverloadedError, "unavailable"),
    "late": (DeadlineError, "unavailable"),
    "wrong": (MisconfiguredError, "misconfigured"),
}


def refused(kind: str) -> RouterError:
    """What the client of services says of a text that it has no vector for."""
    detail = f"the embedding service letters ({SECRET}) does not: {kind}"
    told = f"the embedding service letters does not: {kind}"
    if kind == "long":
        error: RouterError = InvalidError(f"text: {detail}", [Problem("text", detail)])
        return error.hidden(f"text: {told}", [Problem("text", told)])
    return KINDS[kind][0](detail).hidden(told)


def expected(text: str) -> list[float]:
    """The vector that `Model` makes of `text`."""
    return [float(len(text)), float(sum(map(ord, text)) % 97), 1.0]


class Model:
    """Makes a vector of each text, but for those that begin with the name of a failure."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.deadlines: list[float] = []
        self.gate: asyncio.Event | None = None
        self.cancelled = 0

    async def __call__(
        self, service: EmbeddingService, texts: Sequence[str], deadline: float
    ) -> list[bytes | RouterError]:
        assert service.name == "letters"
        self.calls.append(list(texts))
        self.deadlines.append(deadline)
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return [self.vector(text.lstrip()) for text in texts]

    def vector(self, text: str) -> bytes | RouterError:
        word = text.split(" ")[0]
        if word in KINDS or word == "long":
            return refused(word)
        if word == "zero":
            return bytes(12)
        if word == "short":
            return bytes(8)
        return np.array(expected("\n" + text), "<f4").tobytes()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def texts(
    backend: FakeBackend, model: Model, connect: Callable[[Any], httpx.AsyncClient]
) -> httpx.AsyncClient:
    return connect(application(backend, AT_ONCE, embed_texts=model))


def vectors(backend: FakeBackend) -> dict[object, list[float]]:
    stored = backend.documents["articles"]
    return {id_: np.frombuffer(each.vector, "<f4").tolist() for id_, each in stored.items()}


async def put(client: httpx.AsyncClient, documents: Sequence[Any], *, stream: bool = False) -> httpx.Response:
    if stream:
        return await client.put(ARTICLES, content=lines(*documents), headers=NDJSON)
    return await client.put(ARTICLES, json={"documents": list(documents)})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_text_is_stored_with_its_vector_and_a_vector_is_kept(
    texts: httpx.AsyncClient, backend: FakeBackend, model: Model, stream: bool
) -> None:
    documents = [
        {"id": 1, "title": "t", "content": "c", "metadata": {"a": 1}, "year": 7},
        {"id": 2, "vector": [1, 2, 3], "content": "has one"},
        {"id": 3, "vector": None, "content": "has none"},
    ]
    response = await put(texts, documents, stream=stream)
    assert response.status_code == 200, response.text
    body = response.json()
    assert (body["stored"], body["failed"], body["embedded"]) == (3, 0, 2)
    assert model.calls == [["t\nc", "\nhas none"]]
    assert vectors(backend) == {1: expected("\nt\nc"), 2: [1, 2, 3], 3: expected("\nhas none")}
    assert [each.id for each in backend.upserts[0]] == [1, 2, 3]
    first = backend.documents["articles"][1]
    assert (first.content, first.columns) == ("c", {"title": "t", "year": 7})
    assert json.loads(first.metadata or "") == {"a": 1}


async def test_where_every_document_has_a_vector_no_model_is_asked(
    texts: httpx.AsyncClient, model: Model
) -> None:
    body = (await put(texts, [{"id": 1, "vector": [1, 2, 3], "content": "c"}])).json()
    assert (body["stored"], model.calls, "embedded" in body) == (1, [], False)


async def test_all_documents_are_checked_before_any_is_embedded(
    texts: httpx.AsyncClient, backend: FakeBackend, model: Model
) -> None:
    documents = [
        {"id": 1, "content": "fine"},
        {"id": 2, "content": " ", "title": "\t"},
        {"id": 3, "content": "x", "colour": "red"},
        {"id": 1, "content": "again"},
    ]
    response = await put(texts, documents)
    assert response.status_code == 422
    assert [error["path"] for error in response.json()["errors"]] == [
        *("documents[1].vector", "documents[2].colour", "documents[3].id")
    ]
    message = "required, but missing; there is no text in title and content to make it of"
    assert response.json()["errors"][0]["message"] == message
    assert (model.calls, backend.upserts) == ([], [])


async def test_a_collection_without_an_embedder_says_that_it_has_none(
    texts: httpx.AsyncClient, backend: FakeBackend
) -> None:
    url = "/v1/collections/coarse/documents"
    response = await texts.put(url, json={"documents": [{"id": 1}]})
    assert response.status_code == 422
    assert response.json()["errors"] == [
        {
            "path": "documents[0].vector",
            "message": "required, but missing; collection coarse has no embedder to make it of a text",
        }
    ]
    streamed = await texts.put(url, content=lines({"id": 1}), headers=NDJSON)
    assert "line 1: vector: required, but missing; collection coarse" in streamed.text
    assert backend.upserts == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seed", range(4))
async def test_each_document_is_stored_with_its_vector_or_told_of(
    texts: httpx.AsyncClient, backend: FakeBackend, seed: int, stream: bool
) -> None:
    rng = random.Random(seed)
    kinds = [*KINDS, "long", "zero", "short", "good", "good", "vector"]
    chosen = [rng.choice(kinds) for _ in range(600)]
    backend.conflicts = set(rng.sample(range(600), 30))
    documents = [
        {"id": i, "content": f"{kind} {i}", **({"vector": [i + 1, 0, 0]} if kind == "vector" else {})}
        for i, kind in enumerate(chosen)
    ]
    body = (await put(texts, documents, stream=stream)).json()
    failures = {failure["id"]: failure for failure in body["failures"]}
    reasons = {kind: reason for kind, (_, reason) in KINDS.items()} | dict.fromkeys(
        ("long", "zero", "short"), "invalid"
    )
    assert body["stored"] + body["failed"] == 600
    assert body["embedded"] == chosen.count("good")
    for i, kind in enumerate(chosen):
        failure = failures.get(i)
        if kind in reasons:
            assert failure is not None
            assert (failure["index"], failure["reason"]) == (i, reasons[kind])
            assert (failure["shard"], i in backend.documents["articles"]) == (None, False)
        elif i in backend.conflicts:
            assert failure is not None
            assert failure["reason"] == "conflict"
    assert list(failures) == sorted(failures)
    wanted = {
        i: [float(i + 1), 0, 0] if kind == "vector" else expected(f"\n{kind} {i}")
        for i, kind in enumerate(chosen)
        if i not in failures
    }
    assert vectors(backend) == wanted


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kinds", "status", "said"),
    [
        (["down"], 503, "none of 1 documents was stored: their texts could not be embedded"),
        (["late", "wrong"], 503, "none of 2 documents was stored: their texts could not be embedded"),
        (
            ["wrong", "long"],
            500,
            "their texts cannot be embedded until somebody mends the map or the model's",
        ),
        (["long", "zero"], 422, "each is invalid"),
    ],
)
async def test_where_no_text_gets_a_vector_the_status_says_what_to_do(
    texts: httpx.AsyncClient, backend: FakeBackend, kinds: list[str], status: int, said: str, stream: bool
) -> None:
    documents = [{"id": i, "content": kind} for i, kind in enumerate(kinds)]
    response = await put(texts, documents, stream=stream)
    assert response.status_code == status
    assert said in response.json()["detail"]
    assert response.json()["failed"] == len(kinds)
    assert backend.upserts == []


async def test_texts_and_shards_that_fail_together_are_both_named(
    texts: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.down = {"s0", "s1"}
    response = await put(texts, [{"id": 1, "content": "down"}, {"id": 2, "content": "good"}])
    assert response.status_code == 503
    assert response.json()["detail"].endswith(
        ": their shards could not be written, or their texts could not be embedded"
    )


async def test_a_busy_service_says_when_to_try_again(
    backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    async def busy(
        service: EmbeddingService, texts: Sequence[str], deadline: float
    ) -> list[bytes | RouterError]:
        return [OverloadedError("too much to do", 1.0), OverloadedError("too much to do", 6.2)]

    client = connect(application(backend, AT_ONCE, embed_texts=busy))
    response = await put(client, [{"id": 1, "content": "a"}, {"id": 2, "content": "b"}])
    assert (response.status_code, response.headers["retry-after"]) == (503, "7")


@pytest.mark.parametrize("stream", [False, True])
async def test_who_may_not_see_the_inside_reads_no_address_of_a_service(
    backend: FakeBackend, model: Model, connect: Callable[[Any], httpx.AsyncClient], stream: bool
) -> None:
    keys = parse(KEYS, {}, "keys.yaml")
    client = connect(application(backend, AT_ONCE, keys=keys, embed_texts=model))
    documents = [{"id": i, "content": f"{kind} x"} for i, kind in enumerate([*KINDS, "long"])]
    for name, sees in (("app", False), ("op", True)):
        client.headers["x-api-key"] = name
        response = await put(client, documents, stream=stream)
        assert (SECRET in response.text) is sees
        for failure, kind in zip(response.json()["failures"], [*KINDS, "long"], strict=True):
            assert failure["message"].startswith("the embedding service letters")
            assert failure["message"].endswith(f"does not: {kind}")


@pytest.mark.parametrize("stream", [False, True])
async def test_texts_may_take_no_more_than_leaves_time_to_store_what_has_a_vector(
    model: Model, connect: Callable[[Any], httpx.AsyncClient], stream: bool
) -> None:
    ends: list[float] = []

    class Noting(FakeBackend):
        async def upsert(
            self, collection: Collection, documents: Sequence[Document], deadline: float
        ) -> UpsertOutcome:
            ends.append(deadline)
            return await super().upsert(collection, documents, deadline)

    client = connect(application(Noting(), AT_ONCE, embed_texts=model))
    body = await put(client, [{"id": 1, "content": "late"}, {"id": 2, "vector": [1, 2, 3]}], stream=stream)
    assert (body.json()["stored"], body.json()["failures"][0]["reason"]) == (1, "unavailable")
    # A quarter of the time, which is shorter by as much as this machine was slow.
    left = ends[0] - model.deadlines[0]
    assert 0.2 * AT_ONCE.write_timeout < left < 0.3 * AT_ONCE.write_timeout


async def test_texts_of_a_stream_are_embedded_while_the_batch_before_is_stored_and_no_further(
    backend: FakeBackend, model: Model
) -> None:
    backend.gate = asyncio.Event()
    pulled = 0

    async def receive() -> dict[str, Any]:
        nonlocal pulled
        pulled += 1
        line = lines({"id": pulled, "content": "good"})
        return {"type": "http.request", "body": line, "more_body": pulled < 2000}

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    task = asyncio.create_task(application(backend, AT_ONCE, embed_texts=model)(scope(), receive, send))
    for _ in range(5000):
        await asyncio.sleep(0)
    assert ([len(call) for call in model.calls], len(backend.upserts), pulled) == ([500, 500], 1, 1000)
    backend.gate.set()
    await task
    assert sent[0]["status"] == 200
    assert [[each.id for each in batch] for batch in backend.upserts] == [
        list(range(first, first + 500)) for first in (1, 501, 1001, 1501)
    ]
    assert len(vectors(backend)) == 2000


async def test_a_patch_of_what_is_embedded_says_that_vectors_stay(
    texts: httpx.AsyncClient, model: Model
) -> None:
    await put(texts, [{"id": 1, "content": "c", "title": "t", "year": 1}])
    for changes, kept in (({"content": "new"}, True), ({"title": "new"}, True), ({"year": 2}, False)):
        one = (await texts.patch(f"{ARTICLES}/1", json={"set": changes})).json()
        many = (await texts.post(f"{ARTICLES}/patch", json={"ids": [1], "set": changes})).json()
        assert (one.get("vectors"), many.get("vectors")) == (("kept", "kept") if kept else (None, None))
    assert len(model.calls) == 1


async def test_the_later_text_of_an_id_stays(texts: httpx.AsyncClient, backend: FakeBackend) -> None:
    documents = [{"id": 1, "content": "old"}, {"id": 2, "content": "x"}, {"id": 1, "content": "new"}]
    assert (await put(texts, documents, stream=True)).json()["stored"] == 3
    assert vectors(backend)[1] == expected("\nnew")


async def test_what_stops_a_stream_is_told_with_all_that_was_stored(
    backend: FakeBackend, model: Model, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    client = connect(application(backend, Settings(max_stream_bytes=30_000), embed_texts=model))

    async def pieces() -> AsyncIterator[bytes]:
        for i in range(10_000):
            yield lines({"id": i, "content": "good"})

    response = await client.put(ARTICLES, content=pieces(), headers=NDJSON)
    assert response.status_code == 413
    stored = len(vectors(backend))
    assert stored and stored % 500 == 0
    assert response.json()["stored"] == stored
    backend.error = OverloadedError("the queue is full")
    documents = [{"id": i, "content": "good"} for i in range(600)]
    response = await put(client, documents[:10], stream=True)
    assert (response.status_code, response.json()["stored"]) == (429, 0)
    response = await put(client, documents, stream=True)
    assert (response.status_code, response.json()["stored"]) == (429, 0)


async def test_a_client_that_leaves_while_its_texts_are_embedded_stores_nothing(
    backend: FakeBackend, model: Model
) -> None:
    model.gate = asyncio.Event()
    messages = iter(
        [{"type": "http.request", "body": lines({"id": 1, "content": "good"}), "more_body": False}]
    )

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: dict[str, Any]) -> None:
        raise AssertionError("nobody is there to answer")

    task = asyncio.create_task(application(backend, AT_ONCE, embed_texts=model)(scope(), receive, send))
    while not model.calls:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (model.cancelled, backend.upserts) == (1, [])


async def test_a_stream_that_is_cancelled_leaves_no_store_behind(backend: FakeBackend, model: Model) -> None:
    backend.gate = asyncio.Event()
    first = True

    async def receive() -> dict[str, Any]:
        nonlocal first
        if not first:
            await asyncio.Event().wait()
        first = False
        body = lines(*({"id": i, "content": "good"} for i in range(500)))
        return {"type": "http.request", "body": body, "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        raise AssertionError("nobody is there to answer")

    before = asyncio.all_tasks()
    task = asyncio.create_task(application(backend, AT_ONCE, embed_texts=model)(scope(), receive, send))
    while not backend.upserts:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert asyncio.all_tasks() == before
    assert vectors(backend) == {}


def scope() -> dict[str, Any]:
    return {
        "type": "http",
        "method": "PUT",
        "path": ARTICLES,
        "query_string": b"",
        "headers": [(b"content-type", b"application/x-ndjson")],
    }
