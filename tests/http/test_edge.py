from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import date
from typing import Any

import httpx
import msgspec
import pytest

from router.http.life import Life, Phase
from router.query.filter import Compare
from router.recall.sampling import RecallSeen
from router.schema.findings import Finding, Severity
from router.schema.watch import SchemaState
from router.settings import Settings
from shard_config.model import Tuned
from tests.http.fake import FakeBackend, LogLines, application

SEARCH = "/v1/collections/documents/search"
JSON = {"content-type": "application/json"}
VECTOR = [0.1, 0.2, 0.3]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


async def test_a_request_id_is_echoed_or_made(client: httpx.AsyncClient) -> None:
    response = await client.get("/livez", headers={"x-request-id": "abc-123"})
    assert response.headers["x-request-id"] == "abc-123"
    for bad in ("x" * 129, "ü".encode(), b"a\x01b", ""):
        made = (await client.get("/livez", headers={"x-request-id": bad})).headers["x-request-id"]
        assert len(made) == 32


async def test_a_trace_is_continued(client: httpx.AsyncClient) -> None:
    given = f"00-{TRACE}-00f067aa0ba902b7-01"
    returned = (await client.get("/livez", headers={"traceparent": given})).headers["traceparent"]
    version, trace, span, flags = returned.split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert span != "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "given",
    [
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{TRACE}-00f067aa0ba902b7-01-more",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        "x",
    ],
)
async def test_an_invalid_trace_is_dropped(client: httpx.AsyncClient, given: str) -> None:
    assert "traceparent" not in (await client.get("/livez", headers={"traceparent": given})).headers


async def test_an_unknown_path_is_404_in_the_one_shape(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/nothing")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json() == {
        "type": "urn:pgscatter:problem:not-found",
        "title": "Not found",
        "status": 404,
        "detail": "there is no such path; see /docs",
        "errors": [],
        "request_id": response.headers["x-request-id"],
    }


async def test_a_wrong_method_is_405_with_those_that_are_right(client: httpx.AsyncClient) -> None:
    response = await client.get(SEARCH)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    response = await client.put("/v1/collections/documents/documents/1")
    assert response.headers["allow"] == "DELETE, GET, HEAD, PATCH"
    response = await client.put("/v1/collections/documents/documents/delete")
    assert response.headers["allow"] == "DELETE, GET, HEAD, PATCH, POST"


async def test_an_unknown_collection_is_404_with_those_that_exist(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/collections/nothing/search", json={"vector": VECTOR})
    assert response.status_code == 404
    assert (
        response.json()["detail"]
        == "no collection 'nothing'; there are documents, halves, coarse, articles, notes"
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("GET", "documents%2Fcount", 404, "no collection 'documents/count'; there are "),
        ("POST", "documents%2Fsearch", 405, "this path takes GET, HEAD"),
        ("POST", "documents%2fsearch/search", 404, "no collection 'documents/search'; there are "),
        ("POST", "documents%252Fsearch/search", 404, "no collection 'documents%2Fsearch'; there are "),
        ("POST", "%64ocuments/se%61rch", 422, "a search needs a vector or a text"),
    ],
)
async def test_an_encoded_slash_is_part_of_a_name(
    client: httpx.AsyncClient, method: str, path: str, status: int, detail: str
) -> None:
    response = await client.request(method, f"/v1/collections/{path}", json={} if method == "POST" else None)
    assert (response.status_code, response.json()["detail"][: len(detail)]) == (status, detail)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "malformed JSON: the body is empty"),
        (b"{", "malformed JSON: Expecting property name enclosed in double quotes at line 1, column 2"),
        (b'{"k": 1,\n "vector": }', "malformed JSON: Expecting value at line 2, column 12"),
        (b'{"k": "\xff"}', "malformed JSON: invalid UTF-8 at byte 7"),
        (b'{"filter": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001, "malformed JSON: nested too deeply"),
        (b'{"k": "x", "offset": }', "malformed JSON: Expecting value at line 1, column 22"),
        (b'{"text": "\\ud800"}', "malformed JSON: a \\u escape is half of a surrogate pair"),
        (b'{"\\ud800": NaN}', "malformed JSON: a \\u escape is half of a surrogate pair"),
        (b'{"filter": {"a": ' + b"9" * 5000 + b"}}", None),
    ],
)
async def test_broken_json_is_400_with_its_place(
    client: httpx.AsyncClient, backend: FakeBackend, body: bytes, detail: str | None
) -> None:
    response = await client.post(SEARCH, content=body, headers=JSON)
    if detail is None:
        assert response.status_code in (400, 422), response.text
    else:
        assert (response.status_code, response.json()["detail"]) == (400, detail)
    assert backend.queries == []


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/x-ndjson"},
        {},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_another_content_type_is_415(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    response = await client.post(SEARCH, content=b'{"vector": [1, 2, 3]}', headers=headers)
    assert response.status_code == 415
    assert response.headers["accept"] == "application/json"


async def test_json_may_say_its_charset(client: httpx.AsyncClient) -> None:
    headers = {"content-type": 'Application/JSON; Charset="UTF-8"'}
    assert (await client.post(SEARCH, content=b'{"vector": [1, 2, 3]}', headers=headers)).status_code == 200


async def test_a_body_over_the_limit_is_413_however_it_comes(
    backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    client = connect(application(backend, Settings(max_body_bytes=1000)))
    response = await client.post(SEARCH, content=b" " * 1001, headers=JSON)
    assert (response.status_code, response.json()["detail"]) == (413, "the body is larger than 1000 bytes")

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b" " * 100

    assert (await client.post(SEARCH, content=pieces(), headers=JSON)).status_code == 413


async def test_a_body_that_does_not_come_is_408(
    backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.01)
            yield b" "

    client = connect(application(backend, Settings(max_timeout=0.05)))
    response = await client.post(SEARCH, content=trickle(), headers=JSON)
    assert response.status_code == 408
    assert response.json()["detail"] == "the body came too slowly: it was not here after 0.05 s"


async def test_a_client_that_goes_away_is_not_answered(backend: FakeBackend) -> None:
    log = LogLines()

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    assert await answered(application(backend, log=log), receive) is None
    assert (await log.lines())[0]["status"] == 499


async def answered(app: Any, receive: Any) -> int | None:
    """The status of a search whose body `receive` gives."""
    statuses = []

    async def send(message: dict[str, Any]) -> None:
        statuses.append(message.get("status"))

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": SEARCH, "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    return statuses[0] if statuses else None


async def test_a_request_leaves_one_line_in_the_log_without_its_content(
    backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    log = LogLines()
    client = connect(application(backend, log=log))
    headers = {"x-request-id": "r1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-api-key": "secret"}
    await client.post(SEARCH, json={"vector": VECTOR, "filter": {"category": "private"}}, headers=headers)
    (line,) = await log.lines()
    assert line.pop("took_ms") >= 0
    assert line.pop("ts").endswith("+00:00")
    assert line == {
        "level": "info",
        "event": "request",
        "request_id": "r1",
        "trace_id": TRACE,
        "method": "POST",
        "route": "/v1/collections/{collection}/search",
        "path": SEARCH,
        "status": 200,
        "client": "127.0.0.1",
        "cache": "miss",
        "coverage": "full",
    }


async def test_the_logged_path_has_no_query(
    backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    log = LogLines()
    client = connect(application(backend, log=log))
    await client.get("/v1/collections/documents/count", params={"filter": '{"category": "private"}'})
    (line,) = await log.lines()
    assert line["path"].endswith("/count")
    assert "private" not in log.getvalue()


async def test_inspection_shows_the_map_without_passwords(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/shard-map")
    assert response.json()["version"] == 12
    assert "hunter2" not in response.text
    listed = (await client.get("/v1/collections")).json()["collections"]
    assert [each["name"] for each in listed] == ["documents", "halves", "coarse", "articles", "notes"]
    one = (await client.get("/v1/collections/documents")).json()
    assert one == listed[0]
    assert one["vector"] == {"type": "vector", "dimensions": 3, "metric": "cosine"}
    assert one["sharding"] == {"strategy": "hash", "buckets": 4, "key": "id", "shards": ["s0", "s1"]}
    nodes = (await client.get("/v1/nodes")).json()["nodes"]
    assert [(node["name"], node["state"]) for node in nodes] == [("s0-a", "up"), ("s1-a", "up")]


async def test_a_collection_shows_the_recall_that_was_measured(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    url = "/v1/collections/documents"
    assert "recall" not in (await client.get(url)).json()
    backend.measured["documents"] = RecallSeen(0.98765432, 132)
    documents = backend.shard_map.collections["documents"]
    tuned = Tuned(0.99, 0.995, 0.991, 10, 500, 3, 2, date(2026, 1, 31))
    search = msgspec.structs.replace(documents.search, target_recall=0.99, tuned=tuned)
    changed = msgspec.structs.replace(documents, search=search)
    backend.shard_map = msgspec.structs.replace(backend.shard_map, collections={"documents": changed})
    one = (await client.get(url)).json()
    assert one["recall"] == {"at_k": 0.9877, "samples": 132}
    assert (one["search"]["target_recall"], one["search"]["tuned"]["at"]) == (0.99, "2026-01-31")


async def test_a_key_is_located(client: httpx.AsyncClient) -> None:
    body = (await client.get("/v1/collections/documents/locate?key=42")).json()
    assert (body["key"], body["bucket"]) == (42, 0xAFD30D9A116A5A62 % 4)
    assert body["shard"] == ("s0" if body["bucket"] < 2 else "s1")
    url = "/v1/collections/notes/locate"
    assert (await client.get(f"{url}?key=acme")).json()["shard"] == "s0"
    assert (await client.get(f"{url}?key=nobody")).status_code == 404
    assert (await client.get(url)).json()["errors"] == [{"path": "key", "message": "required, but missing"}]
    assert (await client.get("/v1/collections/documents/locate?key=x")).status_code == 422


async def test_a_router_that_is_about_to_end_is_not_ready_though_all_is_well(
    connect: Callable[[Any], httpx.AsyncClient],
) -> None:
    life = Life()
    client = connect(application(FakeBackend(), life=life))
    assert (await client.get("/readyz")).status_code == 200
    life.advance(Phase.DRAINING)
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["ready"], answer.json()["draining"]) == (503, False, True)
    assert (await client.get("/livez")).status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/openapi.json", "/docs"])
async def test_what_is_open_takes_no_notice_of_parameters(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(f"{path}?cache=1&cache=2&%FF")).status_code == 200


async def test_a_field_given_twice_means_the_last(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = b'{"vector": [1, 2, 3], "k": 3, "filter": {"price": 1, "price": 2}, "k": 4}'
    assert (await client.post(SEARCH, content=body, headers=JSON)).status_code == 200
    (query,) = backend.queries
    assert query.k == 4
    assert isinstance(query.filter, Compare) and query.filter.value == 2


async def test_probes_tell_whether_to_send_traffic(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert (await client.get("/livez?verbose")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).json() == {"ready": True, "shards": {"s0": True, "s1": True}}
    health = (await client.get("/health")).json()
    assert (health["status"], health["map_version"], health["caches"]["l1_entries"]) == ("ok", 12, 2)
    backend.down = {"s1"}
    assert (await client.get("/health")).json()["status"] == "degraded"
    backend.down = set()
    many = tuple(Finding(f"s{i % 2}", Severity.WARNING, f"lacks index {i}", "documents") for i in range(300))
    backend.schema_state = SchemaState(many)
    assert (await client.get("/health")).json()["status"] == "ok"
    backend.schema_state = SchemaState((*many, Finding("s1", Severity.ERROR, "lacks table public.documents")))
    health = (await client.get("/health")).json()
    assert (health["status"], health["schema"]["error"], health["schema"]["warning"]) == ("degraded", 1, 300)
    assert [one["severity"] for one in health["schema"]["findings"]] == ["error"] + 99 * ["warning"]
    backend.is_ready = False
    response = await client.get("/readyz")
    assert (response.status_code, response.json()["ready"]) == (503, False)
    assert (await client.get("/health")).json()["status"] == "unavailable"


async def test_a_websocket_is_closed(backend: FakeBackend) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    await application(backend)({"type": "websocket"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1000}]
