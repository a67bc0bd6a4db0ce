"""A keep-alive HTTP/1.1 connection that costs the generator little: requests are bytes made beforehand.

Invariant: one request at a time per connection, so that an answer cannot meet another's request.
"""

from __future__ import annotations

import asyncio
from typing import cast
from urllib.parse import urlsplit

import httptools

from bench.errors import SearchError

__all__ = ["Connections", "request_bytes"]

_CONNECT_SECONDS = 10.0
# No request that a bench sends has as long at the router.
_ANSWER_SECONDS = 120.0


def request_bytes(url: str, body: bytes = b"", method: str = "POST") -> bytes:
    """A whole request with a JSON body."""
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connections:
    """As many connections to the server of `url` as there are requests at the same time.

    Changed by `send`, `ask` and `close`. An answer that takes more than `answer_seconds` is given up. Headers
    are read only if that is wanted.
    """

    def __init__(self, url: str, *, answer_seconds: float = _ANSWER_SECONDS, headers: bool = False) -> None:
        self._kind = _WithHeaders if headers else _Connection
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._answer_seconds = answer_seconds
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()

    def __repr__(self) -> str:
        return f"<Connections to {self._host}:{self._port}: {len(self._idle)} idle, {len(self._busy)} busy>"

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer.

        Raises:
            SearchError: no connection, it ended before the answer did, or there was none in time.
        """
        status, body, _ = await self.ask(request)
        return status, body

    async def ask(self, request: bytes) -> tuple[int, bytes, dict[str, str]]:
        """The same, and what was asked for of the headers, their names in lower case."""
        connection = await self._take()
        self._busy.add(connection)
        try:
            return await connection.exchange(request, self._answer_seconds)
        except BaseException:
            # Cancelled or broken: what comes next on it would be the answer to this request.
            connection.reusable = False
            raise
        finally:
            self._busy.discard(connection)
            if connection.reusable:
                self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()

    async def _take(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, made = await loop.create_connection(self._kind, self._host, self._port)
        except OSError as exc:  # TimeoutError is one
            raise SearchError(f"no connection: {exc or 'timed out'}") from exc
        return made


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.reusable = False
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes, dict[str, str]]] | None = None
        self._parts: list[bytes] = []
        self._headers: dict[str, str] = {}

    async def exchange(self, request: bytes, seconds: float) -> tuple[int, bytes, dict[str, str]]:
        assert self._transport is not None
        self._answer = self._loop.create_future()
        self._transport.write(request)
        timer = self._loop.call_later(seconds, self._fail, f"no answer within {seconds:g} s")
        try:
            return await self._answer
        finally:
            timer.cancel()

    def close(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.reusable = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._fail(f"no HTTP: {exc}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        self._fail(f"connection lost: {exc or 'closed by the server'}")

    # -- httptools

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)

    def on_message_complete(self) -> None:
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self.reusable = self.reusable and self._parser.should_keep_alive()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), body, self._headers))

    def _fail(self, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(SearchError(reason))


class _WithHeaders(_Connection):
    def on_message_begin(self) -> None:
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")
