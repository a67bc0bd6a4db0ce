from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from router.http import protocol
from router.settings import Settings
from tests.http.wire import SECONDS, wire

REQUEST = b"GET /livez HTTP/1.1\r\nhost: router\r\n\r\n"
NO_TARGET = "no valid HTTP request: its target is neither a path nor a URL of HTTP"
UPLOAD = (
    b"POST /v1/collections/documents/search HTTP/1.1\r\nhost: router\r\n"
    b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
)


@asynccontextmanager
async def connection(
    settings: Settings = Settings(),  # noqa: B008 - frozen
    keep_alive: int = 5,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to an application that is served in this loop."""
    async with wire(settings, keep_alive=keep_alive) as running:
        reader, writer = await running.connect()
        try:
            yield reader, writer
        finally:
            writer.close()


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SECONDS)
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head.split(b"\r\n")[0] + b" " + await reader.readexactly(length)


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nhost:", REQUEST + b"GET /li"])
async def test_a_head_that_does_not_end_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(protocol, "_HEAD_SECONDS", 0.5)
    async with connection() as (reader, writer):
        writer.write(sent)
        received = await asyncio.wait_for(reader.read(), SECONDS)
        assert received.count(b"HTTP/1.1 200 OK") == sent.count(REQUEST)


async def test_requests_that_end_are_not_hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_HEAD_SECONDS", 0.8)
    async with connection(keep_alive=75) as (reader, writer):
        # Idle time between requests is the keep-alive's business, not the head's.
        for idle in (1.0, 0.0):
            writer.write(REQUEST)
            assert await answer(reader) == b'HTTP/1.1 200 OK {"status":"ok"}'
            await asyncio.sleep(idle)


async def test_a_connection_without_a_request_may_send_one_when_the_router_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have been taken just now, and the request be on its way."""
    monkeypatch.setattr(protocol, "_FIRST_REQUEST_SECONDS", 1.0)
    async with wire() as running:
        connections = [await running.connect() for _ in range(2)]
        async with asyncio.timeout(SECONDS):
            while len(running.state.connections) < 2:
                await asyncio.sleep(0.001)
        for server in list(running.state.connections):
            server.shutdown()
        (reader, writer), (silent, other) = connections
        writer.write(REQUEST)
        assert b"200 OK" in await answer(reader)
        assert await asyncio.wait_for(silent.read(), SECONDS) == b""
        assert len(running.state.connections) == 1
        writer.close()
        other.close()


@pytest.mark.parametrize(
    ("request_", "status", "more"),
    [
        (REQUEST, b"200", b"\r\n"),
        (REQUEST.replace(b"GET", b"POST").replace(b"host", b"content-length: 9\r\nhost"), b"405", b"x"),
    ],
)
async def test_bytes_that_are_no_request_do_not_hold_a_connection(
    request_: bytes, status: bytes, more: bytes
) -> None:
    async with connection(keep_alive=1) as (reader, writer):
        writer.write(request_)
        assert status in await answer(reader)
        for _ in range(3):
            writer.write(more)
            await asyncio.sleep(0.2)
        # If it was closed before our last bytes, they are answered with a reset.
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), SECONDS) == b""


async def test_a_request_whose_head_began_before_the_last_answer_is_not_cut_short() -> None:
    async with connection(Settings(max_timeout=2.0), keep_alive=1) as (reader, writer):
        writer.write(REQUEST + UPLOAD[:20])
        assert b"200 OK" in await answer(reader)
        writer.write(UPLOAD[20:] + b"1\r\nx\r\n")
        assert b"408 Request Timeout" in await answer(reader)


@pytest.mark.parametrize("sent", [b"", b"expect: 100-continue\r\n"])
async def test_a_short_rest_of_a_body_is_skipped_unless_it_may_not_come(sent: bytes) -> None:
    async with connection() as (reader, writer):
        upload = b"POST /livez HTTP/1.1\r\nhost: router\r\ncontent-length: 2\r\n" + sent
        writer.write(upload + b"\r\n")
        assert b"405 Method Not Allowed" in await answer(reader)
        writer.write(b"{}" + REQUEST)
        if sent:
            assert await asyncio.wait_for(reader.read(), SECONDS) == b""
        else:
            assert b"200 OK" in await answer(reader)


@pytest.mark.parametrize(("limit", "seconds"), [(1000, 60.0), (1 << 60, 0.3)])
async def test_a_long_rest_of_a_body_is_not_read(
    monkeypatch: pytest.MonkeyPatch, limit: int, seconds: float
) -> None:
    monkeypatch.setattr(protocol, "_LINGER_BYTES", limit)
    monkeypatch.setattr(protocol, "_LINGER_SECONDS", seconds)
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    async with connection(Settings(max_body_bytes=1000)) as (reader, writer):
        writer.write(UPLOAD + chunk)
        received = await asyncio.wait_for(reader.read(), SECONDS)
        assert received.startswith(b"HTTP/1.1 413 ") and received.count(b"connection: close\r\n") == 1
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(SECONDS):
                while True:
                    writer.write(chunk)
                    await writer.drain()
                    await asyncio.sleep(0.01)


async def test_a_head_may_be_long_but_not_endless() -> None:
    async with connection() as (reader, writer):
        filler = b"x-filler: " + b"x" * 1000 + b"\r\n"
        writer.write(b"GET /livez HTTP/1.1\r\nhost: router\r\n" + filler * 60 + b"\r\n")
        assert b"200 OK" in await answer(reader)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: router\r\n" + filler * 70 + b"\r\n")
        refused = await answer(reader)
        assert b"431 Request Header Fields Too Large" in refused
        assert b"the head of the request is larger than 65536 bytes" in refused
        assert await asyncio.wait_for(reader.read(), SECONDS) == b""


@pytest.mark.parametrize(
    ("sent", "status", "detail"),
    [
        (b"\x16\x03\x01\x02\x00", 400, "no valid HTTP request: Invalid method encountered"),
        (
            b"GET / HTTP/1.1\r\nhost: router\r\nno header\r\n\r\n",
            400,
            "no valid HTTP request: Invalid header token",
        ),
        (b"GET http://[?secret HTTP/1.1\r\nhost: router\r\n\r\n", 400, NO_TARGET),
        (UPLOAD + b"many\r\n", 400, "no valid HTTP request: Invalid character in chunk size"),
        (
            b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
            414,
            "the target of the request is longer than 65536 bytes",
        ),
        (
            b"GET / HTTP/1.1\r\nx-filler: " + b"x" * 70_000,
            431,
            "the head of the request is larger than 65536 bytes",
        ),
    ],
)
async def test_what_is_no_request_is_answered_like_one_and_logged(
    caplog: pytest.LogCaptureFixture, sent: bytes, status: int, detail: str
) -> None:
    async with connection() as (reader, writer):
        writer.write(sent)
        head, _, body = (await asyncio.wait_for(reader.read(), SECONDS)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/problem+json" in head and b"connection: close" in head
    problem = json.loads(body)
    assert (problem["status"], problem["detail"]) == (status, detail)
    (line,) = [vars(record) for record in caplog.records if record.getMessage() == "request refused"]
    assert (line["client"], line["status"], line["reason"]) == ("127.0.0.1", status, detail)
    assert f"x-request-id: {line['request_id']}".encode() in head


async def test_what_follows_a_request_and_is_none_does_not_take_its_answer() -> None:
    async with connection() as (reader, writer):
        writer.write(REQUEST + REQUEST + b"garbage\r\n\r\n")
        received = await asyncio.wait_for(reader.read(), SECONDS)
        assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"200"]
        assert received.count(b"connection: close") == 1


async def test_a_pipelined_second_request_has_a_head_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_BYTES", 100)
    async with connection() as (reader, writer):
        writer.write(REQUEST * 5)
        answers: list[Any] = [await answer(reader) for _ in range(5)]
        assert answers == [b'HTTP/1.1 200 OK {"status":"ok"}'] * 5


async def test_an_answer_comes_in_one_piece() -> None:
    async with connection() as (reader, writer):
        for _ in range(20):
            writer.write(REQUEST)
            # What one system call brings: uvicorn's two writes would come as a head without its body.
            received = await asyncio.wait_for(reader.read(1 << 16), SECONDS)
            assert received.endswith(b'\r\n\r\n{"status":"ok"}')


@pytest.mark.parametrize(
    ("request_", "end", "closes"),
    [
        (REQUEST.replace(b"GET", b"HEAD"), b"\r\n\r\n", False),
        (REQUEST.replace(b"host", b"connection: close\r\nhost"), b'{"status":"ok"}', True),
        (REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0"), b'{"status":"ok"}', True),
    ],
)
async def test_answers_that_are_not_plain_are_left_to_uvicorn(
    request_: bytes, end: bytes, closes: bool
) -> None:
    async with connection() as (reader, writer):
        writer.write(request_)
        received = b""
        while not received.endswith(end):
            received += await asyncio.wait_for(reader.read(1 << 16), SECONDS)
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
        assert (b"connection: close" in received) == closes
        if closes:
            assert await asyncio.wait_for(reader.read(), SECONDS) == b""


async def test_pipelined_answers_come_in_order_whoever_writes_them() -> None:
    head = REQUEST.replace(b"GET", b"HEAD")
    upload = b"POST /livez HTTP/1.1\r\nhost: router\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n{}"
    async with connection() as (reader, writer):
        writer.write(
            REQUEST + head + REQUEST + upload + REQUEST.replace(b"host", b"connection: close\r\nhost")
        )
        received = await asyncio.wait_for(reader.read(), SECONDS)
        statuses = re.findall(rb"HTTP/1.1 (\d+)", received)
        assert statuses == [b"200", b"200", b"200", b"405", b"200"]
        assert received.count(b'{"status":"ok"}') == 3


async def test_requests_leave_no_cycles_of_references() -> None:
    """A collection stops every request; 3,000 searches once made 43,000 objects for it to find."""
    async with connection() as (reader, writer):
        gc.collect()
        gc.disable()
        try:
            for _ in range(200):
                writer.write(REQUEST)
                await answer(reader)
            assert gc.collect() < 200
        finally:
            gc.enable()
