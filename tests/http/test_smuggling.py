"""Requests that two servers could read differently: one effect and one answer, or none and a refusal.

Most bodies here are themselves a request that deletes document 1, which therefore has to stay.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from router.documents.types import Document
from router.http import protocol
from router.http.head import HEAD_BYTES
from tests.http.wire import SECONDS, Wire, wire

C = b"/v1/collections/documents"
HOST = b"host: router\r\n"
JSON = b"content-type: application/json\r\n"
NDJSON = b"content-type: application/x-ndjson\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
SEARCH = b"POST " + C + b"/search HTTP/1.1\r\n"
DELETE = b"DELETE " + C + b"/documents/1 HTTP/1.1\r\n" + HOST + b"\r\n"
LIVE = b"GET /livez HTTP/1.1\r\n" + HOST
QUERY = json.dumps({"vector": [1, 0, 0], "k": 1}).encode()
LINES = b"".join(b'{"id": %d, "vector": [1, 0, 0]}\n' % i for i in range(10, 13))
OK = (200, {"status": "ok"})


@pytest.fixture
async def router(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Wire]:
    # The rest of what was refused comes in many small packets, each of which takes its time.
    monkeypatch.setattr(protocol, "_LINGER_SECONDS", 60.0)
    async with wire() as running:
        vector = np.array([1, 0, 0], "<f4").tobytes()
        running.backend.documents["documents"][1] = Document(0, 1, vector, None, None, {})
        yield running
        assert 1 in running.backend.documents["documents"], "a body was read as a request"


def sized(body: bytes) -> bytes:
    return b"content-length: %d\r\n\r\n" % len(body) + body


def chunked(body: bytes) -> bytes:
    return CHUNKED + b"\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"


OFFERS = [
    # As curl --http2 and Java's HttpClient send it.
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
    b"upgrade: TLS/1.0, h2c, anything\r\nConnection: keep-alive\r\nConnection: Upgrade\r\n",
    b"connection: upgrade\r\nupgrade: h2c\r\nupgrade: websocket\r\nexpect: 100-continue\r\n",
]


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("frame", [sized, chunked])
async def test_an_offer_to_upgrade_is_ignored_and_the_body_read(
    router: Wire, offer: bytes, frame: Any
) -> None:
    search = SEARCH + HOST + JSON + offer + frame(QUERY)
    put = b"PUT " + C + b"/documents HTTP/1.1\r\n" + HOST + NDJSON + offer + frame(LINES)
    found, stored, live = await router.say(search + put + LIVE + b"\r\n")
    assert (found[0], found[1]["hits"][0]["id"]) == (200, 1)
    assert (stored[0], stored[1]["stored"], live) == (200, 3, OK)


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("frame", [sized, chunked])
async def test_a_body_behind_such_an_offer_is_no_request(router: Wire, offer: bytes, frame: Any) -> None:
    request = SEARCH + HOST + JSON + offer + frame(DELETE)
    head, _, body = request.partition(b"\r\n\r\n")
    for packets in ([request], [head + b"\r\n\r\n", body], [bytes([byte]) for byte in request]):
        ((status, problem),) = await router.say(*packets)
        assert (status, problem["type"]) == (400, "urn:pgscatter:problem:malformed")
    ((status, _), live) = await router.say(request + LIVE + offer + b"\r\n")
    assert (status, live) == (400, OK)


async def test_a_request_without_a_body_may_offer_an_upgrade_too(router: Wire) -> None:
    offering = LIVE + OFFERS[0] + b"\r\n"
    assert await router.say(offering * 3 + LIVE + b"\r\n") == [OK] * 4
    assert await router.say(LIVE + OFFERS[0] + b"connection: close\r\n\r\n" + DELETE) == [OK]


def framed(*fields: bytes, body: bytes = DELETE, version: bytes = b"1.1") -> bytes:
    head = b"POST " + C + b"/search HTTP/" + version + b"\r\n" + HOST + JSON
    return head + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


SIZE = b"content-length: %d" % len(DELETE)
TE = b"transfer-encoding: "
ONE_CHUNK = b"%x\r\n" % len(DELETE) + DELETE + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        # The length twice, or in two ways.
        (framed(SIZE, TE + b"chunked", body=b"0\r\n\r\n" + DELETE), 400),
        (framed(TE + b"chunked", SIZE, body=b"0\r\n\r\n" + DELETE), 400),
        (framed(TE + b"chunked", b"content-length: 0", body=ONE_CHUNK), 400),
        (framed(SIZE, b"content-length: 0"), 400),
        (framed(SIZE, SIZE), 400),
        (framed(SIZE + b", %d" % len(DELETE)), 400),
        # Lengths that are none.
        *(
            (framed(b"content-length: " + value), 400)
            for value in (b"+5", b"-5", b"0x5", b"5 5", b"5,", b"5;", b"1e1", b"", b"five", b"5_0", b"\xb2")
        ),
        (framed(b"content-length: 18446744073709551616"), 400),
        (framed(b"content-length: 99999999999999999999999"), 400),
        (framed(b"content-length: 18446744073709551615"), 413),
        (framed(b"content-length:\r\n %d" % len(DELETE)), 400),
        # Codings of the body.
        *(
            (framed(TE + value, body=ONE_CHUNK), status)
            for value, status in (
                (b"identity", 400),
                (b"xchunked", 400),
                (b"chunked;q=1", 400),
                (b'"chunked"', 400),
                (b"chunked, identity", 400),
                (b"chunked,", 400),
                (b"chunked, chunked", 400),
                (b"\x0bchunked", 400),
                (b"", 400),
                (b"\r\n chunked", 400),
                (b"gzip, chunked", 501),
                (b",chunked", 501),
                (b"chunked\r\ntransfer-encoding: identity", 400),
                (b"chunked\r\ntransfer-encoding: chunked", 400),
                (b"identity\r\ntransfer-encoding: chunked", 501),
            )
        ),
        (framed(TE + b"chunked", body=ONE_CHUNK, version=b"1.0"), 400),
        (framed(TE + b"chunked", b"connection: keep-alive", body=ONE_CHUNK, version=b"1.0"), 400),
        # Fields that are none.
        (framed(b"content-length : 5"), 400),
        (framed(b"transfer-encoding : chunked", body=ONE_CHUNK), 400),
        (framed(b"transfer-encoding\x00: chunked", body=ONE_CHUNK), 400),
        (framed(b"transfer\xffencoding: chunked", body=ONE_CHUNK), 400),
        (framed(b": chunked", body=ONE_CHUNK), 400),
        (framed(b"x: a\x00b", SIZE), 400),
        (framed(b"x: a\x7fb", SIZE), 400),
        (framed(b"x: a\r\n folded", SIZE), 400),
        (framed(b"x: a\r\n\tcontent-length: 0", SIZE), 400),
        (framed(b" content-length: 0", SIZE), 400),
        # Line ends that are none.
        (framed(b"x: a\ncontent-length: 0", SIZE), 400),
        (framed(b"x: a\rcontent-length: 0", SIZE), 400),
        (framed(SIZE).replace(b"\r\n", b"\n"), 400),
        (framed(SIZE).replace(b"\r\n", b"\r"), 400),
        (framed(b"x: y\r", SIZE), 400),
        (framed(SIZE).replace(b"\r\n\r\n", b"\r\n\n", 1), 400),
    ],
)
async def test_a_head_that_could_end_elsewhere_is_refused_and_the_connection_closed(
    router: Wire, request_: bytes, status: int
) -> None:
    answers = await router.say(request_ + LIVE + b"\r\n")
    assert [got for got, _ in answers] == [status]
    assert answers[0][1]["status"] == status
    ((got, _),) = await router.say(*[request_[i : i + 7] for i in range(0, len(request_), 7)])
    assert got == status
    assert not router.backend.queries


DATA = b"%x\r\n" % len(DELETE) + DELETE


@pytest.mark.parametrize(
    "body",
    [
        b"0x" + DATA + b"\r\n0\r\n\r\n",
        b"+" + DATA + b"\r\n0\r\n\r\n",
        b"-" + DATA + b"\r\n0\r\n\r\n",
        b" " + DATA + b"\r\n0\r\n\r\n",
        DATA.replace(b"\r\n", b" \r\n", 1) + b"\r\n0\r\n\r\n",
        DATA.replace(b"\r\n", b"\t\r\n", 1) + b"\r\n0\r\n\r\n",
        DATA.replace(b"\r\n", b"\n", 1) + b"\r\n0\r\n\r\n",
        DATA.replace(b"\r\n", b"\r", 1) + b"\r\n0\r\n\r\n",
        b"1" + b"0" * 16 + DATA[1:] + b"\r\n0\r\n\r\n",
        b"\r\n" + DATA + b"\r\n0\r\n\r\n",
        b"g\r\n" + DELETE,
        DATA + b"\n0\r\n\r\n",
        DATA + b"0\r\n\r\n",
        DATA + b"XX0\r\n\r\n",
        DATA.replace(b"\r\n", b";a=\nb\r\n", 1) + b"\r\n0\r\n\r\n",
        DATA.replace(b"\r\n", b";\n", 1) + b"\r\n0\r\n\r\n",
        DATA.replace(b"\r\n", b";a\rb\r\n", 1) + b"\r\n0\r\n\r\n",
        DATA.replace(b"\r\n", b';a="b\r\n', 1) + b"\r\n0\r\n\r\n",
        DATA + b"\r\n0\r\nno field\r\n\r\n",
        DATA + b"\r\n0\r\nx: y\r\n folded\r\n\r\n",
        DATA + b"\r\n0\r\nx: y\n\r\n",
        DATA + b"\r\n0\r\ncontent-length: 0\r\n\r\n",
        DATA + b"\r\n0\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
async def test_chunks_that_could_end_elsewhere_are_refused_and_the_connection_closed(
    router: Wire, body: bytes
) -> None:
    request = SEARCH + HOST + JSON + CHUNKED + b"\r\n"
    for packets in ([request + body + LIVE + b"\r\n"], [request, body, LIVE + b"\r\n"]):
        assert [status for status, _ in await router.say(*packets)] == [400]


async def test_a_request_whose_body_is_none_has_no_effect(router: Wire) -> None:
    for fields in (CHUNKED + b"\r\nnone\r\n", b"transfer-encoding: xchunked\r\n\r\n"):
        ((status, _),) = await router.say(DELETE[:-2] + fields)
        assert status == 400


@pytest.mark.parametrize("extension", [b";a", b";a=b;c", b';a="b;\\"c"', b";=", b";" + b"a" * 1000])
async def test_short_chunk_extensions_are_read_past(router: Wire, extension: bytes) -> None:
    body = b"%x%s\r\n%s\r\n0%s\r\n\r\n" % (len(QUERY), extension, QUERY, extension)
    answers = await router.say(SEARCH + HOST + JSON + CHUNKED + b"\r\n" + body + LIVE + b"\r\n")
    if extension == b";=":
        assert answers[0][0] in (200, 400)
    else:
        assert [status for status, _ in answers] == [200, 200]


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (b"1;", b"a" * 1000),
        (b"1\r\n{\r\n0\r\n", b"x-filler: " + b"x" * 1000 + b"\r\n"),
        (b"1\r\n{\r\n0\r\nx-filler: ", b"x" * 1000),
        (b"", b"1;" + b"a" * 1000 + b"\r\n \r\n"),
        (b"", b"0" * 1000),
    ],
)
async def test_what_stands_around_a_body_is_bounded_in_bytes(router: Wire, first: bytes, more: bytes) -> None:
    reader, writer = await router.connect()
    writer.write(SEARCH + HOST + JSON + CHUNKED + b"\r\n" + first)
    await writer.drain()
    sent = 0
    # What was sent last may not have been read yet when the answer to what came before it is here.
    while not reader._buffer and sent < 1.2 * protocol._FRAMING_BYTES:  # type: ignore[attr-defined]
        writer.write(more)
        await writer.drain()
        sent += len(more)
        await router.log.lines()
    assert (await asyncio.wait_for(reader.read(), SECONDS)).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_a_body_in_many_small_chunks_is_read(router: Wire) -> None:
    body = QUERY + b" " * (3 * protocol._FRAMING_BYTES)
    small = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    request = SEARCH + HOST + JSON + CHUNKED + b"\r\n" + small
    size = 10_000
    packets = [request[i : i + size] for i in range(0, len(request), size)]
    assert [status for status, _ in await router.say(*packets)] == [200]


async def test_trailers_are_no_headers(router: Wire) -> None:
    trailers = b"content-type: application/json\r\nx-request-id: trailer\r\nhost: other\r\nx: y\r\n"
    body = b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(QUERY), QUERY, trailers)
    received = await router.exchange(SEARCH + HOST + CHUNKED + b"\r\n" + body + LIVE + b"\r\n")
    assert received.startswith(b"HTTP/1.1 415 ") and b"trailer" not in received
    assert received.count(b"HTTP/1.1 200 OK") == 1


@pytest.mark.parametrize(
    ("line", "statuses"),
    [
        # The path of a whole URL is looked for; its host is not, as of Host neither.
        (b"GET http://other.example:80/livez?x=1 HTTP/1.1", [200, 200]),
        (b"GET HTTPS://other/livez HTTP/1.1", [200, 200]),
        (b"GET http://router HTTP/1.1", [404, 200]),
        (b"GET http://router?x=/livez HTTP/1.1", [404, 200]),
        (b"GET http://[::1]:8080/livez HTTP/1.1", [200, 200]),
        (b"GET http://user:password@router/livez HTTP/1.1", [400]),
        (b"GET http:///livez HTTP/1.1", [400]),
        (b"GET http://:80/livez HTTP/1.1", [400]),
        (b"GET http://router:65536/livez HTTP/1.1", [400]),
        (b"GET http://[1:2]/livez HTTP/1.1", [400]),
        (b"GET ftp://router/livez HTTP/1.1", [400]),
        (b"GET router/livez HTTP/1.1", [400]),
        (b"GET //livez HTTP/1.1", [404, 200]),
        (b"GET /livez#top HTTP/1.1", [400]),
        (b"GET http://router/livez#top HTTP/1.1", [400]),
        (b"GET /liv\xe9 HTTP/1.1", [400]),
        (b"OPTIONS * HTTP/1.1", [404, 200]),
        (b"GET * HTTP/1.1", [400]),
        (b"CONNECT router:80 HTTP/1.1", [501]),
        (b"PRI * HTTP/2.0", [505]),
        # Methods are in capitals; one that is known and not taken is another matter.
        (b"get /livez HTTP/1.1", [400]),
        (b"Get /livez HTTP/1.1", [400]),
        (b"BREW /livez HTTP/1.1", [400]),
        (b"PROPFIND /livez HTTP/1.1", [405, 200]),
        # Versions.
        (b"GET /livez HTTP/1.9", [200, 200]),
        (b"GET /livez HTTP/0.9", [505]),
        (b"GET /livez HTTP/2.0", [505]),
        (b"GET /livez HTTP/3.0", [505]),
        (b"GET /livez HTTP/1.10", [400]),
        (b"GET /livez HTTP/11", [400]),
        (b"GET /livez http/1.1", [400]),
        (b"GET /livez", [505]),
        (b"GET /livez HTTP/1.1 ", [400]),
        (b"GET\t/livez\tHTTP/1.1", [400]),
        (b" GET /livez HTTP/1.1", [400]),
        # HTTP/1.0 keeps no connection here.
        (b"GET /livez HTTP/1.0", [200]),
        (b"GET /livez HTTP/1.0\r\nconnection: keep-alive", [200]),
    ],
)
async def test_request_lines_are_read_as_the_standard_says(
    router: Wire, line: bytes, statuses: list[int]
) -> None:
    request = line + b"\r\n" + (HOST if b"HTTP/" in line else b"") + b"\r\n"
    answers = await router.say(request + LIVE + b"\r\n")
    assert [status for status, _ in answers] == statuses
    assert b"password" not in router.log.getvalue().encode()


@pytest.mark.parametrize(
    ("hosts", "version", "status"),
    [
        ([], b"1.1", 400),
        ([], b"1.0", 200),
        ([b""], b"1.1", 200),
        ([b"router:8080"], b"1.1", 200),
        ([b"[2001:db8::1]:8080"], b"1.1", 200),
        ([b"router", b"router"], b"1.1", 400),
        ([b"router", b"other"], b"1.0", 400),
        ([b"router, other"], b"1.1", 400),
        ([b"router,other"], b"1.1", 400),
        ([b"user@router"], b"1.1", 400),
        ([b"router/path"], b"1.1", 400),
        ([b"router:port"], b"1.1", 400),
        ([b"http://router"], b"1.1", 400),
        # Siblings of those: of the address, the port, and the characters.
        ([b"[::1]"], b"1.1", 200),
        ([b"[::ffff:10.0.0.1]:80"], b"1.1", 200),
        ([b"[::1"], b"1.1", 400),
        ([b"::1"], b"1.1", 400),
        ([b"[1:2]"], b"1.1", 400),
        ([b"[:::1]"], b"1.1", 400),
        ([b"[10.0.0.1]"], b"1.1", 400),
        ([b"[fe80::1%25eth0]"], b"1.1", 400),
        ([b"router:"], b"1.1", 200),
        ([b"router:65535"], b"1.1", 200),
        ([b"router:65536"], b"1.1", 400),
        ([b"router:0000000000000000080"], b"1.1", 400),
        ([b"router:-1"], b"1.1", 400),
        ([b"router:80:80"], b"1.1", 400),
        ([b"r%6Futer"], b"1.1", 200),
        ([b"r%6outer"], b"1.1", 400),
        ([b"r%"], b"1.1", 400),
        ([b"ro uter"], b"1.1", 400),
        ([b"router\t:80"], b"1.1", 400),
        ([b"router?x"], b"1.1", 400),
        ([b"router#x"], b"1.1", 400),
        ([b"router\\x"], b"1.1", 400),
        ([b"<script>"], b"1.1", 400),
        ([b'"router"'], b"1.1", 400),
        ([b"r\xc3\xb6uter"], b"1.1", 400),
        ([b"router", b""], b"1.1", 400),
        ([b"", b""], b"1.1", 400),
        ([b"user@router"], b"1.0", 400),
    ],
)
async def test_a_request_names_its_host_once(
    router: Wire, hosts: list[bytes], version: bytes, status: int
) -> None:
    fields = b"".join(b"host: %s\r\n" % host for host in hosts)
    answers = await router.say(b"GET /livez HTTP/" + version + b"\r\n" + fields + b"\r\n")
    assert [got for got, _ in answers] == [status]


async def test_what_is_wrong_behind_a_request_under_way_does_not_overtake_its_answer(router: Wire) -> None:
    router.backend.gate = asyncio.Event()
    search = SEARCH + HOST + JSON + sized(QUERY)
    for wrong in (SEARCH + HOST + JSON + CHUNKED + b"\r\nnone\r\n", b"none\r\n\r\n", SEARCH + b"\r\n"):
        reader, writer = await router.connect()
        router.backend.gate.clear()
        writer.write(search + LIVE + b"\r\n")
        await asyncio.sleep(0.05)
        writer.write(wrong + LIVE + b"\r\n")
        await asyncio.sleep(0.3)
        router.backend.gate.set()
        received = await asyncio.wait_for(reader.read(), SECONDS)
        assert received.startswith(b"HTTP/1.1 200 OK") and received.endswith(b'{"status":"ok"}')
        assert received.count(b"HTTP/1.1 ") == 2
        writer.close()


async def test_expectations_of_http_1_0_are_ignored(router: Wire) -> None:
    head = b"POST " + C + b"/search HTTP/1.%d\r\n" + HOST + JSON + b"expect: 100-continue\r\n"
    for minor in (0, 1):
        reader, writer = await router.connect()
        writer.write(head % minor + b"content-length: %d\r\n\r\n" % len(QUERY))
        if minor:
            received = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SECONDS)
            assert received == b"HTTP/1.1 100 Continue\r\n\r\n"
        else:
            await asyncio.sleep(0.05)
        writer.write(QUERY)
        writer.write_eof()
        received = await asyncio.wait_for(reader.read(), SECONDS)
        assert received.startswith(b"HTTP/1.1 200 OK\r\n") and received.count(b"HTTP/1.1 ") == 1
        writer.close()


async def test_blanks_around_a_field_are_none_of_its_value(router: Wire) -> None:
    fields = b"host: router \t\r\ncontent-type:\t application/json \r\ncontent-length: %d \r\n" % len(QUERY)
    assert [status for status, _ in await router.say(SEARCH + fields + b"\r\n" + QUERY)] == [200]


async def test_zeros_before_a_length_count_for_nothing(router: Wire) -> None:
    long = b"content-length: " + b"0" * 5000 + b"%d\r\n\r\n"
    search = SEARCH + HOST + JSON + long % len(QUERY) + QUERY
    unread = b"POST /livez HTTP/1.1\r\n" + HOST + long % 2
    statuses = [status for status, _ in await router.say(search + unread + b"{}" + LIVE + b"\r\n")]
    assert statuses == [200, 405, 200]
    ((status, _),) = await router.say(SEARCH + HOST + JSON + long % (1 << 40))
    assert status == 413
    # In a packet of its own, the body of what was refused by its head is skipped.
    assert [status for status, _ in await router.say(unread, b"{}", LIVE + b"\r\n")] == [405, 200]


async def test_a_refused_body_is_answered_with_its_requests_id(router: Wire) -> None:
    head = SEARCH + HOST + JSON + b"x-request-id: mine\r\n" + CHUNKED + b"\r\n"
    ((status, problem),) = await router.say(head + b"none\r\n")
    assert (status, problem["request_id"]) == (400, "mine")


async def test_the_head_is_as_bounded_with_an_offer_to_upgrade(router: Wire) -> None:
    filler = b"x-filler: " + b"x" * 1000 + b"\r\n"
    long = LIVE + OFFERS[0] + filler * (HEAD_BYTES // 1000 + 1) + b"\r\n"
    assert [status for status, _ in await router.say(long)] == [431]
    assert [status for status, _ in await router.say(long[:50_000], long[50_000:])] == [431]


async def test_a_bad_host_is_refused_on_a_connection_that_named_a_good_one(router: Wire) -> None:
    for bad in (b"host: user@router\r\n", b"", HOST + HOST, b"host: other\r\n" + HOST):
        request = b"GET /livez HTTP/1.1\r\n" + bad + b"\r\n"
        answers = await router.say(LIVE + b"\r\n", request + LIVE + b"\r\n")
        assert [status for status, _ in answers] == [200, 400]


async def test_a_host_comes_back_in_no_answer(router: Wire) -> None:
    for path in (b"/openapi.json", b"/docs", b"/docs/", b"/nothing"):
        received = await router.exchange(b"GET " + path + b" HTTP/1.1\r\nhost: evil.example:81\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 ") and b"evil.example" not in received
