from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from router.query.errors import DeadlineError, OverloadedError, Problem, UnavailableError
from router.query.types import Consistency, Unsettled
from router.settings import Settings
from tests.http.fake import FakeBackend, application

SEARCH = "/v1/collections/documents/search"
VECTOR = [0.1, 0.2, 0.3]


async def put(client: httpx.AsyncClient, *ids: int) -> None:
    documents = [{"id": i, "vector": [float(i), 0.0, 1.0]} for i in ids]
    response = await client.put("/v1/collections/documents/documents", json={"documents": documents})
    assert response.status_code == 200, response.text


def paths(response: httpx.Response) -> list[str]:
    assert response.headers["content-type"] == "application/problem+json"
    return [error["path"] for error in response.json()["errors"]]


async def test_a_search_answers_with_hits_coverage_and_the_map_version(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await put(client, 1, 2, 3)
    response = await client.post(SEARCH, json={"vector": [1, 0, 1], "k": 2})
    assert response.status_code == 200
    body = response.json()
    assert [hit["id"] for hit in body["hits"]] == [1, 2]
    assert body.keys() == {"hits", "took_ms", "cache", "coverage", "map_version"}
    assert body["coverage"] == {
        "full": True,
        "shards": {"total": 2, "queried": 2, "ok": 2, "skipped": 0, "timed_out": 0, "failed": 0},
        "failures": [],
    }
    assert (body["cache"], body["map_version"]) == ("miss", 12)
    assert backend.queries[0].vector == struct.pack("<3f", 1, 0, 1)


async def test_fewer_hits_than_asked_for_are_explained(client: httpx.AsyncClient) -> None:
    await put(client, 1)
    body = (await client.post(SEARCH, json={"vector": VECTOR, "k": 5})).json()
    assert body["short"] == {"asked": 5, "returned": 1, "reason": "exhausted"}


async def test_shards_that_had_no_time_to_settle_the_answer_are_named(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await put(client, 1)
    backend.unsettled = (Unsettled("s1", "ties"),)
    body = (await client.post(SEARCH, json={"vector": VECTOR, "k": 1})).json()
    assert body["unsettled"] == [{"shard": "s1", "reason": "ties"}]


async def test_everything_a_search_can_say_reaches_the_query(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = {
        "vector": VECTOR,
        "k": 7,
        "offset": 3,
        "filter": {"category": "tech"},
        "include": ["content", "metadata", "vector", "price"],
        "max_distance": 0.4,
        "ef_search": 100,
        "exact": True,
        "timeout_ms": 1500,
        "allow_partial": False,
        "consistency": "strong",
        "cache": False,
        "explain_plan": True,
    }
    before = asyncio.get_running_loop().time()
    response = await client.post(SEARCH, json=body)
    query = backend.queries[0]
    assert (query.k, query.offset, query.max_distance, query.ef_search) == (7, 3, 0.4, 100)
    assert query.include == {"content", "metadata", "vector", "price"}
    assert (query.exact, query.allow_partial, query.cache, query.plan) == (True, False, False, True)
    assert query.consistency is Consistency.STRONG
    assert query.filter is not None
    assert before + 1.5 <= backend.deadlines[0] <= asyncio.get_running_loop().time() + 1.5
    reports = response.json()["explain"]["shards"]
    assert [report["plan"] for report in reports] == ["Limit", "Limit"]


async def test_an_explanation_names_the_nodes_that_are_not_up(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = {"vector": VECTOR, "explain": True}
    assert (await client.post(SEARCH, json=body)).json()["explain"]["nodes"] == []
    backend.down = {"s1"}
    shown = (await client.get("/v1/nodes")).json()["nodes"]
    explained = (await client.post(SEARCH, json=body)).json()["explain"]["nodes"]
    assert explained == [node for node in shown if node["shard"] == "s1"] != []
    assert {"state", "reason", "since"} <= explained[0].keys()
    assert "explain" not in (await client.post(SEARCH, json={"vector": VECTOR})).json()


async def test_defaults_come_from_the_collection(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    before = asyncio.get_running_loop().time()
    await client.post(SEARCH, json={"vector": VECTOR})
    query = backend.queries[0]
    assert (query.k, query.ef_search, query.cache, query.allow_partial) == (10, None, True, True)
    assert before + 2.0 <= backend.deadlines[0] <= asyncio.get_running_loop().time() + 2.0


async def test_a_vector_may_be_base64_of_float32(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    raw = np.array(VECTOR, dtype="<f4").tobytes()
    response = await client.post(SEARCH, json={"vector": base64.b64encode(raw).decode()})
    assert response.status_code == 200
    assert backend.queries[0].vector == raw


async def test_a_text_becomes_a_vector_by_the_collections_model(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    response = await client.post(SEARCH, json={"text": "abcd"})
    assert response.status_code == 200
    assert np.frombuffer(backend.queries[0].vector, "<f4")[0] == 4.0
    embedding = response.json()["embedding"]
    assert (embedding["model"], embedding["cached"]) == ("minilm", False)
    assert f", embed;dur={embedding['ms']:.3f}" in response.headers["server-timing"]
    plain = await client.post(SEARCH, json={"vector": VECTOR})
    assert "embedding" not in plain.json()
    assert "embed" not in plain.headers["server-timing"]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, ""),
        ({"vector": VECTOR, "text": "x"}, "text"),
        ({"text": "x" * 8193}, "text"),
        ({"text": "  "}, "text"),
        ({"vector": [1, 2]}, "vector"),
        ({"vector": []}, "vector"),
        ({"vector": [0, 0, 0]}, "vector"),
        ({"vector": [1, 2, 1e39]}, "vector[2]"),
        ({"vector": [3e38, 0, 0]}, "vector"),
        ({"vector": [1, 2, "x"]}, "vector[2]"),
        ({"vector": [1, 2, True]}, "vector[2]"),
        ({"vector": [1, 2, None]}, "vector[2]"),
        ({"vector": "AAAA"}, "vector"),
        ({"vector": "not base64!"}, "vector"),
        ({"vector": None}, ""),
        ({"vector": VECTOR, "k": 0}, "k"),
        ({"vector": VECTOR, "k": 10**9}, "k"),
        ({"vector": VECTOR, "k": 10**300}, "k"),
        ({"vector": VECTOR, "k": 10**400}, "k"),
        ({"vector": VECTOR, "k": -(10**400)}, "k"),
        ({"vector": VECTOR, "offset": 10**400}, "offset"),
        ({"vector": VECTOR, "k": "10"}, "k"),
        ({"vector": VECTOR, "k": 1.5}, "k"),
        ({"vector": VECTOR, "offset": -1}, "offset"),
        ({"vector": VECTOR, "offset": 10**6}, "offset"),
        ({"vector": VECTOR, "ef_search": 1001}, "ef_search"),
        ({"vector": VECTOR, "ef_search": 0}, "ef_search"),
        ({"vector": VECTOR, "timeout_ms": 0}, "timeout_ms"),
        ({"vector": VECTOR, "timeout_ms": 10**9}, "timeout_ms"),
        ({"vector": VECTOR, "consistency": "maybe"}, "consistency"),
        ({"vector": VECTOR, "include": ["nothing"]}, "include[0]"),
        ({"vector": VECTOR, "filter": {"nothing": 1}}, "filter.nothing"),
        ({"vector": VECTOR, "filter": [1]}, "filter"),
        ({"vector": VECTOR, "unknown": 1}, "unknown"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_searched(
    client: httpx.AsyncClient, backend: FakeBackend, body: dict[str, Any], path: str
) -> None:
    response = await client.post(SEARCH, json=body)
    assert response.status_code == 422, response.text
    assert paths(response) == [path]
    assert backend.queries == []


async def test_several_problems_are_told_at_once(client: httpx.AsyncClient) -> None:
    body = {"vector": [1], "k": 0, "offset": -1, "filter": {"a": 1}, "include": ["b"]}
    response = await client.post(SEARCH, json=body)
    assert sorted(paths(response)) == ["filter.a", "include[0]", "k", "offset", "vector"]
    wrong_types = {"vector": {}, "k": "x", "exact": 1, "extra": 0}
    response = await client.post(SEARCH, json=wrong_types)
    assert sorted(paths(response)) == ["exact", "extra", "k", "vector"]


async def test_messages_say_what_which_and_the_limit(client: httpx.AsyncClient) -> None:
    response = await client.post(SEARCH, json={"vector": VECTOR, "k": 5000})
    assert response.json()["detail"] == "k: k=5000 exceeds 1000 for collection documents"
    response = await client.post(SEARCH, json={"vector": [1, 2]})
    assert response.json()["detail"] == "vector: has 2 dimensions, but the collection has 3"


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity"])
async def test_what_python_writes_for_non_numbers_is_named(client: httpx.AsyncClient, value: bytes) -> None:
    response = await client.post(
        SEARCH, content=b'{"vector": [1, ' + value + b", 2]}", headers={"content-type": "application/json"}
    )
    assert response.status_code == 422
    assert response.json()["errors"] == [
        {"path": "vector[1]", "message": f"{value.decode()} is no number in JSON"}
    ]


async def test_non_finite_components_in_base64_are_named(client: httpx.AsyncClient) -> None:
    for value, shown in ((np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")):
        raw = np.array([1, value, 2], dtype="<f4").tobytes()
        response = await client.post(SEARCH, json={"vector": base64.b64encode(raw).decode()})
        assert response.status_code == 422
        error = {"path": "vector[1]", "message": f"{shown} is not a finite number"}
        assert response.json()["errors"] == [error]


async def test_halfvec_has_a_smaller_range(client: httpx.AsyncClient) -> None:
    url = "/v1/collections/halves/search"
    assert (await client.post(url, json={"vector": [65504, 1, 1]})).status_code == 200
    response = await client.post(url, json={"vector": [1, 65520, 1]})
    assert paths(response) == ["vector[1]"]


@pytest.mark.parametrize("vector", [[1, 65520, 1], [1, -1e10, 1]])
async def test_an_index_of_halves_has_a_smaller_range_than_its_vectors(
    client: httpx.AsyncClient, vector: list[float]
) -> None:
    url = "/v1/collections/coarse"
    response = await client.post(f"{url}/search", json={"vector": vector})
    assert response.status_code == 422
    shown = f"{vector[1]:g} exceeds 65504, the limit of the index's halfvec"
    assert response.json()["errors"] == [{"path": "vector[1]", "message": shown}]
    assert (await client.post(f"{url}/search", json={"vector": vector, "exact": True})).status_code == 200
    response = await client.put(f"{url}/documents", json={"documents": [{"id": 1, "vector": vector}]})
    assert paths(response) == ["documents[0].vector[1]"]


async def test_what_is_zero_in_an_index_of_halves_has_no_direction(client: httpx.AsyncClient) -> None:
    url = "/v1/collections/coarse/search"
    assert paths(await client.post(url, json={"vector": [1e-9, 0, 0]})) == ["vector"]
    assert (await client.post(url, json={"vector": [1e-9, 0, 0], "exact": True})).status_code == 200


async def test_include_knows_only_what_the_collection_has(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/v1/collections/halves/search", json={"vector": VECTOR, "include": ["content"]}
    )
    assert paths(response) == ["include[0]"]


async def test_a_collection_without_model_refuses_text(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/collections/notes/search", json={"text": "x"})
    assert response.status_code == 422
    assert response.json()["detail"] == "text: collection notes has no embedder; send a vector"


async def test_a_partial_answer_is_200_and_says_so(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.down = {"s1"}
    body = (await client.post(SEARCH, json={"vector": VECTOR})).json()
    assert body["coverage"]["full"] is False
    assert body["coverage"]["failures"] == [
        {"shard": "s1", "state": "failed", "error": "no node is up", "cause": "unavailable"}
    ]


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (OverloadedError("the queue is full", 2.4), "429", "3"),
        (UnavailableError("0 of 2 shards answered", [Problem("shards.s0", "down")]), "503", "1"),
        (DeadlineError("0 of 2 shards answered in time"), "504", None),
    ],
)
async def test_errors_of_the_router_have_their_status(
    client: httpx.AsyncClient, backend: FakeBackend, error: Exception, status: str, retry: str | None
) -> None:
    backend.error = error
    response = await client.post(SEARCH, json={"vector": VECTOR})
    assert str(response.status_code) == status
    assert response.headers.get("retry-after") == retry
    assert response.json()["detail"] == str(error)


async def test_an_unexpected_error_is_500_without_internals(
    client: httpx.AsyncClient, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.error = RuntimeError("password=hunter2")
    response = await client.post(SEARCH, json={"vector": VECTOR})
    assert response.status_code == 500
    assert "hunter2" not in response.text
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "hunter2" in caplog.text


async def test_a_fault_in_telling_of_an_error_is_500_as_well(
    client: httpx.AsyncClient, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.error = UnavailableError("no shard")
    backend.error.detail = "\ud800"  # past what the constructor would have made of it
    response = await client.post(SEARCH, json={"vector": VECTOR})
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "surrogates not allowed" in caplog.text


async def test_server_timing_tells_of_the_slowest_shard(client: httpx.AsyncClient) -> None:
    response = await client.post(SEARCH, json={"vector": VECTOR})
    timing = response.headers["server-timing"]
    assert timing.startswith("total;dur=")
    assert 'queue;dur=0.100;desc="s0", execute;dur=1.500;desc="s0"' in timing


async def test_a_batch_answers_each_search_on_its_own(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await put(client, 1, 2)
    searches = [{"vector": [1, 0, 1], "k": 1}, {"vector": [1]}, {"vector": [2, 0, 1], "k": 1}, "x", {"k": 1}]
    response = await client.post(f"{SEARCH}/batch", json={"searches": searches})
    assert response.status_code == 200
    results = response.json()["results"]
    assert [results[i]["hits"][0]["id"] for i in (0, 2)] == [1, 2]
    assert [results[i]["error"]["status"] for i in (1, 3, 4)] == [422, 422, 422]
    assert results[1]["error"]["errors"][0]["path"] == "searches[1].vector"


async def test_a_batch_runs_a_few_searches_at_a_time(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    for seconds, at_once in ((0.0, 4), (0.001, 64), (0.5, 2)):
        backend.gate, backend.seconds_each = asyncio.Event(), seconds
        backend.queries.clear()
        task = asyncio.create_task(
            client.post(f"{SEARCH}/batch", json={"searches": [{"vector": VECTOR}] * 100})
        )
        for _ in range(500):
            await asyncio.sleep(0)
        assert len(backend.queries) == at_once
        backend.gate.set()
        assert len((await task).json()["results"]) == 100


async def test_a_batch_is_refused_as_a_whole_before_its_first_search(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.seconds_each = 1.0
    searches = [{"vector": VECTOR, "k": i % 5 + 1} for i in range(100)]
    refused = await client.post(f"{SEARCH}/batch", json={"searches": searches})
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert "100 searches would take about 100 s" in refused.json()["detail"]
    assert backend.queries == []
    (sample,) = backend.samples
    assert 4 <= len(sample) <= 8
    # What is wrong is told in its turn.
    backend.seconds_each = 0.0
    response = await client.post(
        f"{SEARCH}/batch", json={"searches": [{"k": 0}, {"text": "x"}, *searches[:3]]}
    )
    assert response.status_code == 200 and len(response.json()["results"]) == 5
    assert len(backend.samples[1]) == 4
    assert backend.batches.seconds == 0.0 and repr(backend.batches).startswith("<Batches 0 admitted")


async def test_a_batch_has_a_limit(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    response = await client.post(f"{SEARCH}/batch", json={"searches": [{}] * 1001})
    assert response.status_code == 422
    assert response.json()["detail"] == "searches: 1001 searches exceed 1000 per batch"
    assert (await client.post(f"{SEARCH}/batch", json={"searches": []})).json() == {"results": []}


async def test_the_limit_on_concurrent_requests_answers_at_once(
    backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    client = connect(application(backend, Settings(max_concurrent=2)))
    backend.gate = asyncio.Event()
    waiting = [asyncio.create_task(client.post(SEARCH, json={"vector": VECTOR})) for _ in range(2)]
    while len(backend.queries) < 2:
        await asyncio.sleep(0)
    response = await client.post(SEARCH, json={"vector": VECTOR})
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert (await client.get("/livez")).status_code == 200
    backend.gate.set()
    assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]
    assert (await client.post(SEARCH, json={"vector": VECTOR})).status_code == 200


async def test_searches_that_take_long_leave_a_line_in_the_log_also_of_a_batch(
    backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient], caplog: pytest.LogCaptureFixture
) -> None:
    for path, body in ((SEARCH, {"vector": VECTOR}), (f"{SEARCH}/batch", {"searches": [{"vector": VECTOR}]})):
        client = connect(application(backend, Settings(slow_search=1e-9)))
        assert (await client.post(path, json=body)).status_code == 200
        (line,) = [record for record in caplog.records if record.message == "slow search"]
        assert vars(line)["collection"] == "documents"
        caplog.clear()
