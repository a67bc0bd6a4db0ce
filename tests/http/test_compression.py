from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect

from router.http.compression import negotiate
from router.http.message import ABORT, Reply
from router.http.send import send_reply
from router.settings import Settings
from tests.http.fake import FakeBackend, application

SEARCH = "/v1/collections/documents/search"
DOCUMENTS = "/v1/collections/documents/documents"

Connect = Callable[[Any], httpx.AsyncClient]


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (b"gzip", "gzip"),
        (b"gzip, deflate, br, zstd", "gzip"),
        (b"GZip;q=0.5", "gzip"),
        (b"x-gzip", "gzip"),
        (b"deflate, br", "identity"),
        (b"", "identity"),
        (b"gzip;q=0", "identity"),
        (b"gzip; q=0.0, *", "identity"),
        (b"*", "gzip"),
        (b"*;q=0.1, gzip;q=0", "identity"),
        (b"identity", "identity"),
        (b"identity;q=1, gzip;q=0.5", "identity"),
        (b"identity;q=0.5, gzip;q=1", "gzip"),
        (b"identity;q=0, gzip", "must"),
        (b"*;q=0, gzip", "must"),
        (b"identity;q=0", "none"),
        (b"*;q=0", "none"),
        (b"*;q=0, identity", "identity"),
        (b"br, *;q=0", "none"),
        (b"gzip;q=nonsense", "identity"),
        (b"gzip;q=2", "identity"),
    ],
)
def test_a_coding_is_chosen_as_rfc_9110_says(header: bytes, coding: str) -> None:
    assert negotiate(header) == coding


async def raw(client: httpx.AsyncClient, method: str, path: str, accepted: str | None, **rest: Any) -> Any:
    """The response with its body as it was sent."""
    headers = {} if accepted is None else {"accept-encoding": accepted}
    request = client.build_request(method, path, **rest)
    request.headers.pop("accept-encoding", None)
    request.headers.update(headers)
    response = await client.send(request, stream=True)
    body = b"".join([part async for part in response.aiter_raw()])
    await response.aclose()
    return response, body


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/metrics"])
async def test_a_body_is_compressed_for_those_who_take_it(client: httpx.AsyncClient, path: str) -> None:
    plain, whole = await raw(client, "GET", path, None)
    assert "content-encoding" not in plain.headers and plain.headers["vary"] == "accept-encoding"
    packed, body = await raw(client, "GET", path, "gzip, br")
    assert packed.headers["content-encoding"] == "gzip" and packed.headers["vary"] == "accept-encoding"
    assert int(packed.headers["content-length"]) == len(body) < len(whole) / 2
    if path != "/metrics":
        assert gzip.decompress(body) == whole
    assert gzip.decompress(body)


async def test_a_small_body_is_sent_as_it_is_unless_it_may_not(client: httpx.AsyncClient) -> None:
    response, body = await raw(client, "GET", "/livez", "gzip")
    assert body == b'{"status":"ok"}' and "vary" not in response.headers
    response, body = await raw(client, "GET", "/livez", "gzip, identity;q=0")
    assert response.headers["content-encoding"] == "gzip" and gzip.decompress(body) == b'{"status":"ok"}'


async def test_a_client_that_takes_nothing_is_refused_before_anything_is_done(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    document = {"documents": [{"id": 1, "vector": [1, 2, 3]}]}
    response, body = await raw(client, "PUT", DOCUMENTS, "identity;q=0", json=document)
    assert response.status_code == 406 and b"not-acceptable" in body
    assert not backend.upserts


async def test_problems_are_compressed_as_well(client: httpx.AsyncClient) -> None:
    wrong = {"documents": [{"id": i} for i in range(100)]}
    response, body = await raw(client, "PUT", DOCUMENTS, "gzip", json=wrong)
    assert response.status_code == 422 and response.headers["content-encoding"] == "gzip"
    assert b"required, but missing" in gzip.decompress(body)


async def large(connect: Connect) -> httpx.AsyncClient:
    """A router whose batches are larger than what leaves as one."""
    client = connect(application(FakeBackend(), Settings(max_body_bytes=64 << 20)))
    documents = [{"id": i, "vector": [1, 2, 3 + i]} for i in range(400)]
    assert (await client.put(DOCUMENTS, json={"documents": documents})).status_code == 200
    return client


async def test_a_large_batch_is_the_same_whole_in_pieces_and_compressed(connect: Connect) -> None:
    client = await large(connect)
    batch = {"searches": [{"vector": [1, 2, 3], "k": 400}] * 40}
    plain, whole = await raw(client, "POST", f"{SEARCH}/batch", None, json=batch)
    assert int(plain.headers["content-length"]) == len(whole) > 1 << 18
    packed, body = await raw(client, "POST", f"{SEARCH}/batch", "gzip", json=batch)
    assert packed.headers["content-encoding"] == "gzip" and "content-length" not in packed.headers
    # But for the times.
    assert len(body) < len(whole) / 3 and gzip.decompress(body)[:200] == whole[:200]
    results = httpx.Response(200, content=gzip.decompress(body)).json()["results"]
    assert len(results) == 40 and all(len(result["hits"]) == 400 for result in results)


async def test_a_client_that_does_not_read_loses_its_connection_in_bounded_time() -> None:
    cut: list[str] = []
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == 3:
            await asyncio.Event().wait()

    scope = {"type": "http", "http_version": "1.1", "extensions": {ABORT: lambda: cut.append("cut")}}
    with pytest.raises(ClientDisconnect):
        await send_reply(Reply(b"a" * 9, more=[b"b", b"c"]), [], "identity", scope, send, 0.05)
    assert cut == ["cut"] and len(sent) == 3
