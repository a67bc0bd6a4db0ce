from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import httpx
import numpy as np
import pytest

from router.query.errors import OverloadedError
from router.query.filter import And, Compare
from router.settings import Settings
from tests.http.fake import FakeBackend, application

DOCUMENTS = "/v1/collections/documents/documents"
JSON = {"content-type": "application/json"}
NDJSON = {"content-type": "application/x-ndjson"}


def document(id_: object, **fields: Any) -> dict[str, Any]:
    return {"id": id_, "vector": [1.0, 2.0, 3.0], **fields}


def lines(*documents: Any) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in documents)


async def test_documents_are_stored_with_all_their_fields(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    full = document(
        7,
        content="text",
        metadata={"lang": "en", "n": 12345678901234567890123, "ü": [None, True]},
        category="tech",
        price=1.5,
        created_at="2026-01-31T12:00:00Z",
        amount="12.30",
    )
    response = await client.put(DOCUMENTS, json={"documents": [full, document(8)]})
    assert response.status_code == 200
    body = response.json()
    assert (body["stored"], body["failed"], body["failures"], body["unlisted"]) == (2, 0, [], 0)
    assert sum(shard["rows"] for shard in body["shards"].values()) == 2
    stored = backend.upserts[0][0]
    assert (stored.index, stored.id, stored.content) == (0, 7, "text")
    assert json.loads(stored.metadata or "") == full["metadata"]
    assert stored.columns.keys() == {"category", "price", "created_at", "amount"}
    assert np.frombuffer(stored.vector, "<f4").tolist() == [1.0, 2.0, 3.0]
    assert (backend.upserts[0][1].metadata, backend.upserts[0][1].columns) == (None, {})


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        (document("7"), "documents[1].id"),
        (document(1.5), "documents[1].id"),
        (document(None), "documents[1].id"),
        ({"id": 7}, "documents[1].vector"),
        ({"vector": [1, 2, 3]}, "documents[1].id"),
        ({"id": 7, "vector": [1, 2]}, "documents[1].vector"),
        ({"id": 7, "vector": [0, 0, 0]}, "documents[1].vector"),
        (document(7, colour="red"), "documents[1].colour"),
        (document(7, price="dear"), "documents[1].price"),
        (document(7, created_at="2026-01-31"), "documents[1].created_at"),
        (document(7, content="a\0b"), "documents[1].content"),
        (document(7, content=1), "documents[1].content"),
        (document(7, metadata=[1]), "documents[1].metadata"),
        (document(7, metadata={"a": ["\0"]}), "documents[1].metadata"),
        (document(7, metadata={"\0": 1}), "documents[1].metadata"),
        (document(2**63), "documents[1].id"),
        (document(1), "documents[1].id"),
        ([], "documents[1]"),
        ("x", "documents[1]"),
    ],
)
async def test_one_invalid_document_and_nothing_is_stored(
    client: httpx.AsyncClient, backend: FakeBackend, wrong: Any, path: str
) -> None:
    response = await client.put(DOCUMENTS, json={"documents": [document(1), wrong]})
    assert response.status_code == 422, response.text
    assert [error["path"] for error in response.json()["errors"]] == [path]
    assert backend.upserts == []


async def test_deep_metadata_is_refused(client: httpx.AsyncClient) -> None:
    def nested(depth: int) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = {"a": value}
        return value

    assert (await client.put(DOCUMENTS, json={"documents": [document(1, metadata=nested(32))]})).is_success
    response = await client.put(DOCUMENTS, json={"documents": [document(1, metadata=nested(33))]})
    assert response.json()["errors"] == [
        {"path": "documents[0].metadata", "message": "nested deeper than 32 levels"}
    ]


async def test_each_invalid_document_has_its_problem(client: httpx.AsyncClient) -> None:
    response = await client.put(DOCUMENTS, json={"documents": [document("a"), document(2), document("b")]})
    assert [error["path"] for error in response.json()["errors"]] == ["documents[0].id", "documents[2].id"]
    assert response.json()["detail"].startswith("2 of 3 documents are invalid, so none was stored")


async def test_the_number_of_documents_in_a_body_is_limited(
    backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    client = connect(application(backend, Settings(max_documents=2)))
    response = await client.put(DOCUMENTS, json={"documents": [document(i) for i in range(3)]})
    assert response.json()["detail"] == "documents: 3 documents exceed 2 per request"


async def test_a_key_without_a_place_is_refused(client: httpx.AsyncClient) -> None:
    url = "/v1/collections/notes/documents"
    missing = {"id": "a", "vector": [1, 2]}
    response = await client.put(
        url, json={"documents": [missing, {**missing, "id": "b", "tenant": "nobody"}]}
    )
    assert [error["path"] for error in response.json()["errors"]] == [
        "documents[0].tenant",
        "documents[1].tenant",
    ]


async def test_decimals_are_stored_and_compared_digit_by_digit(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    digits = "12345678901234567890.123456789"
    for amount in (digits, f'"{digits}"'):
        line = f'{{"id": 1, "vector": [1, 2, 3], "price": 0.1, "amount": {amount}}}'.encode()
        json_body = b'{"documents": [' + line + b"]}"
        for content, headers in ((line, NDJSON), (json_body, JSON)):
            assert (await client.put(DOCUMENTS, content=content, headers=headers)).status_code == 200
            assert backend.upserts.pop()[0].columns == {"price": 0.1, "amount": Decimal(digits)}
        filter_ = f'{{"amount": {amount}, "price": 0.1, "metadata.a": 0.1}}'
        body = f'{{"vector": [1, 2, 3], "filter": {filter_}}}'.encode()
        await client.post("/v1/collections/documents/search", content=body, headers=JSON)
        await client.post(f"{DOCUMENTS}/delete", content=f'{{"filter": {filter_}}}'.encode(), headers=JSON)
        await client.get("/v1/collections/documents/count", params={"filter": filter_})
        for tree in (backend.queries.pop().filter, backend.filters.pop(), backend.filters.pop()):
            assert isinstance(tree, And)
            values = [part.value for part in tree.parts if isinstance(part, Compare)]
            assert values == [Decimal(digits), 0.1, 0.1]
            assert [type(value) for value in values] == [Decimal, float, float]


@pytest.mark.parametrize(
    "amount",
    [
        "1e99999999999999999999",
        "-1e99999999999999999999",
        "1e-99999999999999999999",
        "true",
        "[]",
        '"x"',
        '"1_000"',
        '" 1"',
        '"１"',
        '"0x10"',
    ],
)
async def test_what_is_no_decimal_is_refused(client: httpx.AsyncClient, amount: str) -> None:
    body = f'{{"documents": [{{"id": 1, "vector": [1, 2, 3], "amount": {amount}}}]}}'
    response = await client.put(DOCUMENTS, content=body.encode(), headers=JSON)
    assert response.status_code == 422
    assert response.json()["errors"][0]["path"] == "documents[0].amount"
    filter_ = f'{{"amount": {amount}}}'
    response = await client.get("/v1/collections/documents/count", params={"filter": filter_})
    assert response.status_code == 422


def nulls_sent_for(fields: list[str], rest: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(fields) | rest


async def test_null_for_an_optional_field_is_leaving_it_out(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    search = {"vector": [1, 2, 3]}
    rest = [
        *("text", "k", "filter", "include", "offset", "max_distance", "ef_search", "exact", "timeout_ms"),
        *("allow_partial", "consistency", "cache", "explain", "explain_plan"),
    ]
    path = "/v1/collections/documents/search"
    for body in (search, nulls_sent_for(rest, search), nulls_sent_for(["k"], {**search, "filter": {}})):
        assert (await client.post(path, json=body)).status_code == 200
    plain, with_nulls, _ = backend.queries
    assert with_nulls == plain
    batch = await client.post(f"{path}/batch", json={"searches": [nulls_sent_for(rest, search)]})
    assert "error" not in batch.json()["results"][0]
    text = await client.post(path, json={"text": "words", "vector": None})
    assert text.status_code == 200
    for body in ({"ids": [1], "filter": None}, {"ids": None, "filter": {"category": "a"}}):
        assert (await client.post(f"{DOCUMENTS}/delete", json=body)).status_code == 200
    full = document(7, content=None, metadata=None, category=None, price=None, amount=None)
    assert (await client.put(DOCUMENTS, json={"documents": [full]})).status_code == 200
    stored = backend.upserts[0][0]
    assert (stored.content, stored.metadata, stored.columns) == (None, None, {})


@pytest.mark.parametrize(
    ("path", "body", "problem"),
    [
        ("/search", {"vector": None}, ""),
        ("/search", {"vector": [1, 2, 3], "unknown": None}, "unknown"),
        ("/search", {"vector": [1, 2, 3], "k": None, "offset": "x"}, "offset"),
        ("/search", {"vector": [1, 2, 3], "include": [None]}, "include[0]"),
        ("/search/batch", {"searches": None}, "searches"),
        ("/documents/delete", {"ids": None, "filter": None}, ""),
    ],
)
async def test_null_is_refused_where_a_value_is_needed(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], problem: str
) -> None:
    response = await client.post(f"/v1/collections/documents{path}", json=body)
    assert response.status_code == 422
    assert [each["path"] for each in response.json()["errors"]] == [problem]


async def test_a_null_that_is_left_out_leaves_the_digits_of_the_rest(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    digits = "12345678901234567890.12345678901234567890"
    body = f'{{"k": null, "vector": [1, 2, 3], "filter": {{"amount": {digits}}}}}'
    response = await client.post("/v1/collections/documents/search", content=body.encode(), headers=JSON)
    assert response.status_code == 200
    found = backend.queries[0].filter
    assert isinstance(found, Compare)
    assert found.value == Decimal(digits)


async def test_what_a_read_or_a_search_shows_is_a_document(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    for extra in (
        {"shard": "s0"},
        {"shard": "elsewhere", "distance": 0.5},
        {"distance": "Infinity", "shard": None},
    ):
        response = await client.put(DOCUMENTS, json={"documents": [document(7, content="x", **extra)]})
        assert response.status_code == 200
        streamed = await client.put(DOCUMENTS, content=lines(document(8, **extra)), headers=NDJSON)
        assert streamed.json()["stored"] == 1
    assert backend.documents["documents"][7].columns == {}


async def test_metadata_keeps_each_digit_it_was_sent_with(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    text = '{"n": 0.12345678901234567890, "m": 1E+400, "i": 123456789012345678901234567890, "s": "1.0"}'
    body = f'{{"documents": [{{"id": 1, "vector": [1, 2, 3], "metadata": {text}}}]}}'
    assert (await client.put(DOCUMENTS, content=body.encode(), headers=JSON)).status_code == 200
    assert backend.upserts[0][0].metadata == text
    for number in ("1e1001", "-1e-1002", "1e99999999999999999999", "NaN"):
        refused = await client.put(DOCUMENTS, content=body.replace("1E+400", number).encode(), headers=JSON)
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["path"].startswith("documents[0].metadata")


async def test_some_failures_are_reported_with_200(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.conflicts = {2}
    response = await client.put(DOCUMENTS, json={"documents": [document(1), document(2)]})
    assert response.status_code == 200
    body = response.json()
    assert (body["stored"], body["failed"]) == (1, 1)
    failure = body["failures"][0]
    assert (failure["index"], failure["id"], failure["reason"], failure["message"]) == (
        1,
        2,
        "conflict",
        "moved",
    )


async def test_nothing_stored_because_of_conflicts_is_409(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.conflicts = {1, 2}
    response = await client.put(DOCUMENTS, json={"documents": [document(1), document(2)]})
    assert response.status_code == 409
    assert (response.json()["stored"], response.json()["failed"]) == (0, 2)


async def test_nothing_stored_because_shards_are_down_is_503(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.down = {"s0", "s1"}
    response = await client.put(DOCUMENTS, json={"documents": [document(1)]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    body = response.json()
    assert body["failures"][0]["reason"] == "unavailable"
    assert body["shards"]["s0"] == {"ok": False, "rows": 0, "error": "down"}


async def test_a_shard_that_does_not_answer_may_have_stored(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.silent, backend.down = {"s0"}, {"s1"}
    response = await client.put(DOCUMENTS, json={"documents": [document(i) for i in range(8)]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    body = response.json()
    perhaps = sum(failure["reason"] == "unknown" for failure in body["failures"])
    assert 0 < perhaps < body["failed"] == 8
    assert body["detail"] == (
        f"none of 8 documents is known to be stored; {perhaps} may be, and sending them again is safe"
    )
    assert body["shards"] == {
        "s0": {"ok": False, "rows": 0, "error": "no answer", "unknown": True},
        "s1": {"ok": False, "rows": 0, "error": "down"},
    }


async def test_what_a_stream_may_have_stored_before_its_end_is_told(
    backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    backend.silent = {"s0", "s1"}

    async def pieces() -> AsyncIterator[bytes]:
        for i in range(10_000):
            if i == 600:
                backend.silent = set()
            yield lines(document(i))

    client = connect(application(backend, Settings(max_stream_bytes=60_000)))
    body = (await client.put(DOCUMENTS, content=pieces(), headers=NDJSON)).json()
    assert body["stored"]
    assert body["detail"].endswith(
        f"{body['stored']} documents were stored before that, and 500 more may have been"
    )
    assert body["shards"]["s0"]["unknown"] is True


async def test_no_documents_are_no_error(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    response = await client.put(DOCUMENTS, json={"documents": []})
    assert (response.status_code, response.json()["stored"]) == (200, 0)
    assert backend.upserts == []


async def test_a_stream_is_stored_in_batches(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = lines(*(document(i) for i in range(1200)))
    response = await client.put(DOCUMENTS, content=body, headers=NDJSON)
    assert response.status_code == 200
    assert response.json()["stored"] == 1200
    assert [len(batch) for batch in backend.upserts] == [500, 500, 200]
    assert [batch[0].index for batch in backend.upserts] == [0, 500, 1000]


async def test_a_stream_may_come_in_any_pieces(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = lines(document(1), document(2)) + b"\r\n  \n" + json.dumps(document(3)).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for i in range(0, len(body), 7):
            yield body[i : i + 7]

    response = await client.put(DOCUMENTS, content=pieces(), headers=NDJSON)
    assert response.json()["stored"] == 3
    assert [each.id for each in backend.upserts[0]] == [1, 2, 3]


async def test_a_repeated_id_in_a_stream_is_stored_twice_in_order(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = lines(document(1, content="old"), document(2), document(1, content="new"))
    response = await client.put(DOCUMENTS, content=body, headers=NDJSON)
    assert response.json()["stored"] == 3
    assert [[each.id for each in batch] for batch in backend.upserts] == [[1, 2], [1]]
    assert backend.documents["documents"][1].content == "new"


async def test_bad_lines_fail_alone_and_are_numbered(
    backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    client = connect(application(backend, Settings(max_line_bytes=100)))
    body = lines(document(1)) + b"{broken\n" + b'{"a": "' + b"x" * 100 + b'"}\n\n' + lines(document("x"))
    response = await client.put(DOCUMENTS, content=body + b'"\xff"\n', headers=NDJSON)
    assert response.status_code == 200
    answer = response.json()
    assert (answer["stored"], answer["failed"]) == (1, 4)
    messages = [failure["message"] for failure in answer["failures"]]
    assert messages[0].startswith("line 2: malformed JSON")
    assert messages[1] == "line 3: longer than 100 bytes"
    assert messages[2].startswith("line 5: id: expected an integer")
    assert messages[3] == "line 6: malformed JSON: invalid UTF-8 at byte 1"
    assert [failure["index"] for failure in answer["failures"]] == [1, 2, 3, 4]


async def test_a_line_that_no_answer_can_repeat_fails_alone(client: httpx.AsyncClient) -> None:
    body = lines(document(1)) + b'{"\\ud800": NaN}\n'
    response = await client.put(DOCUMENTS, content=body, headers=NDJSON)
    assert response.status_code == 200
    assert (response.json()["stored"], response.json()["failed"]) == (1, 1)
    assert response.json()["failures"][0]["message"].endswith("half of a surrogate pair")


async def test_failures_of_a_stream_are_counted_beyond_those_listed(client: httpx.AsyncClient) -> None:
    response = await client.put(DOCUMENTS, content=b"x\n" * 1500, headers=NDJSON)
    assert response.status_code == 422
    body = response.json()
    assert (body["failed"], len(body["failures"]), body["unlisted"]) == (1500, 1000, 500)


async def test_a_stream_that_is_too_long_says_how_much_was_stored(
    backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    client = connect(application(backend, Settings(max_stream_bytes=60_000)))

    async def pieces() -> AsyncIterator[bytes]:
        for i in range(10_000):
            yield lines(document(i))

    response = await client.put(DOCUMENTS, content=pieces(), headers=NDJSON)
    assert response.status_code == 413
    stored = len(backend.documents["documents"])
    assert stored and stored % 500 == 0
    assert response.json()["stored"] == stored
    assert f"{stored} documents were stored before that" in response.json()["detail"]
    response = await client.put(DOCUMENTS, content=b"x" * 60_001, headers=NDJSON)
    assert response.status_code == 413


async def test_a_stream_stops_where_the_router_is_overloaded(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.error = OverloadedError("the queue is full")
    response = await client.put(DOCUMENTS, content=lines(document(1)), headers=NDJSON)
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert response.json()["stored"] == 0


async def test_a_stream_is_not_read_while_a_batch_is_written(backend: FakeBackend) -> None:
    backend.gate = asyncio.Event()
    pulled = 0

    async def receive() -> dict[str, Any]:
        nonlocal pulled
        pulled += 1
        return {"type": "http.request", "body": lines(document(pulled)), "more_body": pulled < 2000}

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    task = asyncio.create_task(application(backend)(scope(), receive, send))
    for _ in range(3000):
        await asyncio.sleep(0)
    assert pulled == 500
    backend.gate.set()
    await task
    assert sent[0]["status"] == 200


async def test_a_client_that_goes_away_ends_its_stream(backend: FakeBackend) -> None:
    messages = iter(
        [
            {"type": "http.request", "body": lines(document(1)), "more_body": True},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: dict[str, Any]) -> None:
        raise AssertionError("nobody is there to answer")

    await application(backend)(scope(), receive, send)
    assert backend.upserts == []


def scope() -> dict[str, Any]:
    return {
        "type": "http",
        "method": "PUT",
        "path": DOCUMENTS,
        "query_string": b"",
        "headers": [(b"content-type", b"application/x-ndjson")],
    }


async def test_a_document_is_read_by_its_id(client: httpx.AsyncClient) -> None:
    await client.put(DOCUMENTS, json={"documents": [document(7, content="c", price=2, metadata={"a": 1})]})
    assert (await client.get(f"{DOCUMENTS}/7")).json() == {
        "id": 7,
        "content": "c",
        "metadata": {"a": 1},
        "price": 2.0,
    }
    body = (await client.get(f"{DOCUMENTS}/7?include=vector,price")).json()
    assert body == {"id": 7, "vector": [1.0, 2.0, 3.0], "price": 2.0}
    assert (await client.get(f"{DOCUMENTS}/8")).status_code == 404
    for wrong in ("x", "7.5", "7/8", "99999999999999999999", ""):
        assert (await client.get(f"{DOCUMENTS}/{wrong}")).status_code == 422
    response = await client.get(f"{DOCUMENTS}/7?include=colour")
    assert response.json()["errors"][0]["path"] == "include"
    assert (await client.get(f"{DOCUMENTS}/7?colour=red")).status_code == 422


async def test_a_document_that_may_be_old_says_so_beside_its_fields(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await client.put(DOCUMENTS, json={"documents": [document(7)]})
    fresh = await client.get(f"{DOCUMENTS}/7")
    backend.stale = "s1"
    stale = await client.get(f"{DOCUMENTS}/7")
    assert ("x-stale-shard" in fresh.headers, stale.headers["x-stale-shard"]) == (False, "s1")
    assert stale.json() == fresh.json()
    described = (await client.get("/openapi.json")).json()["paths"]
    answers = described["/v1/collections/{collection}/documents/{id}"]["get"]["responses"]
    assert {status for status in answers if "X-Stale-Shard" in answers[status]["headers"]} == {"200"}


@pytest.mark.parametrize("id_", ["a/b", "delete", "ü %2F?#", "a\nb", "", "..", "%00"])
async def test_text_ids_may_hold_anything_that_can_be_escaped(
    client: httpx.AsyncClient, backend: FakeBackend, id_: str
) -> None:
    url = "/v1/collections/notes/documents"
    body = {"documents": [{"id": id_, "vector": [1, 2], "tenant": "acme"}]}
    assert (await client.put(url, json=body)).status_code == 200
    escaped = "".join(f"%{byte:02X}" for byte in id_.encode())
    assert (await client.get(f"{url}/{escaped}")).json() == {"id": id_, "tenant": "acme"}
    assert (await client.delete(f"{url}/{escaped}")).json()["deleted"] == 1
    assert (await client.delete(f"{url}/{escaped}")).status_code == 404


async def test_an_id_that_is_not_utf8_is_malformed(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/collections/notes/documents/%FF")).status_code == 400
    assert (await client.get("/v1/collections/notes/documents/%00")).status_code == 422


async def test_documents_are_deleted_by_ids_or_by_filter(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await client.put(DOCUMENTS, json={"documents": [document(1), document(2)]})
    url = f"{DOCUMENTS}/delete"
    response = await client.post(url, json={"ids": [1, 2, 2, 3]})
    assert response.json() == {"deleted": 2, "shards": {"s0": {"ok": True, "rows": 2, "error": None}}}
    assert (await client.post(url, json={"filter": {"price": {"$gt": 1}}})).json()["deleted"] == 2
    assert len(backend.filters) == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ids": [1], "filter": {"price": 1}},
        {"filter": {}},
        {"filter": {"$and": [{}, {}]}},
        {"filter": {"$or": [{"price": 1}, {}]}},
        {"filter": {"$not": {"$not": {}}}},
        {"filter": {"$not": {"price": {"$in": []}}}},
        {"filter": {"price": {"$nin": []}}},
        {"filter": {"$or": [{"price": 1}, {"$not": {"$and": [{"price": 1}, {"metadata.a": {"$in": []}}]}}]}},
        {"ids": ["x"]},
        {"ids": 1},
        {"ids": [1] * 10_001},
        {"filter": None},
    ],
)
async def test_a_careless_delete_is_refused(
    client: httpx.AsyncClient, backend: FakeBackend, body: dict[str, Any]
) -> None:
    assert (await client.post(f"{DOCUMENTS}/delete", json=body)).status_code == 422
    assert backend.filters == []


async def test_a_delete_that_reached_no_shard_is_503(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.down = {"s0"}
    response = await client.delete(f"{DOCUMENTS}/1")
    assert response.status_code == 503
    assert response.json()["errors"] == [{"path": "shards.s0", "message": "down"}]


async def test_a_delete_without_an_answer_may_have_deleted(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.silent = {"s0"}
    response = await client.delete(f"{DOCUMENTS}/1")
    assert response.status_code == 503
    assert response.json()["detail"].endswith("on 1 of them documents may have been deleted")
    assert response.json()["errors"] == [{"path": "shards.s0", "message": "unknown: no answer"}]


async def test_documents_are_counted(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    await client.put(DOCUMENTS, json={"documents": [document(1)]})
    url = "/v1/collections/documents/count"
    body = (await client.get(url)).json()
    assert (body["count"], body["coverage"]["full"]) == (1, True)
    await client.get(url, params={"filter": '{"price": {"$lt": 3}}'})
    assert backend.filters[0] is None and backend.filters[1] is not None
    assert (await client.get(url, params={"filter": '{"nothing": 3}'})).status_code == 422
    assert (await client.get(url, params={"filter": "{"})).status_code == 400
    assert (await client.get(url, params={"filter": '{"\\ud800":NaN}'})).status_code == 400
    assert (await client.get(url, params={"filter": "[]"})).status_code == 422
    assert (await client.get(f"{url}?filter=%FF")).status_code == 400
    assert (await client.get(f"{url}?filter={{}}&filter={{}}")).status_code == 422


@pytest.mark.parametrize("kind", ["conflicts", "down", "silent"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refused_upsert_has_its_reasons_in_errors(
    client: httpx.AsyncClient, backend: FakeBackend, kind: str, stream: bool
) -> None:
    setattr(backend, kind, {1, 2} if kind == "conflicts" else {"s0", "s1"})
    documents = [document(1), document(2)]
    if stream:
        lines = "\n".join(json.dumps(one) for one in documents)
        response = await client.put(
            DOCUMENTS, content=lines, headers={"content-type": "application/x-ndjson"}
        )
    else:
        response = await client.put(DOCUMENTS, json={"documents": documents})
    body = response.json()
    assert response.status_code == (409 if kind == "conflicts" else 503)
    reasons = {"conflicts": "conflict: moved", "down": "unavailable: down", "silent": "unknown: no answer"}
    assert [error["path"] for error in body["errors"]] == ["documents[0]", "documents[1]"]
    for error, failure in zip(body["errors"], body["failures"], strict=True):
        assert error["message"] == f"{reasons[kind]} (shard {failure['shard']})"


async def test_a_stream_of_wrong_lines_has_its_reasons_in_errors_up_to_a_bound(
    client: httpx.AsyncClient,
) -> None:
    content = "\n".join(["nonsense"] * 1200)
    response = await client.put(DOCUMENTS, content=content, headers={"content-type": "application/x-ndjson"})
    errors = response.json()["errors"]
    assert (response.status_code, len(errors)) == (422, 1000)
    assert errors[2]["path"] == "documents[2]" and errors[2]["message"].startswith("invalid: line 3: ")
