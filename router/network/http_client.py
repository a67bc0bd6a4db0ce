"""HTTP requests by httpcore, over the router's own names and sockets and asyncio's transports as they are.

httpcore's own connections look names up in a few threads that all share, and go through a library that
speaks for several event loops, which costs more than all the rest of a small request.

Invariants: what was read ahead is bounded; a connection on which anything has come, its end included, while
nobody was waiting for it counts as readable, so that httpcore does not use it again.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Any

import httpcore

from router.network.dial import Network

__all__ = ["Connections", "TooLargeError"]

# What may be read ahead of whoever reads; one turn of the loop may bring 64 KiB more.
_AHEAD_BYTES = 1 << 18
# What is written is held back until as much has come together, or an answer is waited for: head and body of a
# small request leave in one system call.
_TOGETHER_BYTES = 1 << 16


class TooLargeError(Exception):
    """An answer has more bytes than are taken; nothing of it is kept."""


class Connections:
    """Connections to the server of `url`, kept open between requests; whoever calls bounds how many at once.

    httpcore's own pool loses one of its places for ever when a request is cancelled in the moment in which it
    is given a connection, and a search may be cancelled at any.
    """

    def __init__(self, url: str, network: Network, tls: ssl.SSLContext | None, idle_seconds: float) -> None:
        """`tls` for a URL of https; an idle connection is used again for `idle_seconds`."""
        self._url = url
        self._network = network
        self._tls = tls
        self._idle_seconds = idle_seconds
        self._idle: deque[httpcore.AsyncHTTP11Connection] = deque()  # the latest used last
        self._closed = False

    def __repr__(self) -> str:
        return f"<Connections to {self._url}: {len(self._idle)} idle>"

    async def request(
        self, method: str, headers: Sequence[tuple[bytes, bytes]], content: bytes, most: int
    ) -> tuple[httpcore.Response, bytes]:
        """The response and its body.

        Raises:
            TooLargeError: the body has more than `most` bytes.
            OSError, ValueError, and httpcore's errors
        """
        url = httpcore.URL(self._url)
        own = [(b"host", _host(url)), *headers, (b"content-length", b"%d" % len(content))]
        request = httpcore.Request(method, url, headers=own, content=content)
        connection = await self._take(url.origin)
        try:
            response = await connection.handle_async_request(request)
            body = await _whole(response, most, bodiless=method == "HEAD")
            # What came behind the answer would be read as the answer to the next request.
            more, _ = connection._h11_state.trailing_data
            await response.aclose()
        except BaseException:
            await connection.aclose()
            raise
        if more or self._closed or not connection.is_idle() or connection.has_expired():
            await connection.aclose()
        else:
            self._idle.append(connection)
        return response, body

    async def close(self) -> None:
        """Keep no connection from now on; that of a request under way ends with it."""
        self._closed = True
        while self._idle:
            await self._idle.pop().aclose()

    async def _take(self, origin: httpcore.Origin) -> httpcore.AsyncHTTP11Connection:
        """One that is idle, or else a new one."""
        while self._idle and self._idle[0].has_expired():
            await self._idle.popleft().aclose()
        while self._idle:
            connection = self._idle.pop()
            if not connection.has_expired():
                return connection
            await connection.aclose()
        host = origin.host.decode()
        stream: httpcore.AsyncNetworkStream = await _connect(self._network, host, origin.port)
        if self._tls is not None:
            stream = await stream.start_tls(self._tls, host)
        return httpcore.AsyncHTTP11Connection(origin, stream, keepalive_expiry=self._idle_seconds)


async def _connect(network: Network, host: str, port: int) -> _Stream:
    """Whoever calls bounds the time.

    Raises:
        httpcore.ConnectError
    """
    try:
        sock, _ = await network.dial(host, port)
    except OSError as exc:
        raise httpcore.ConnectError(exc.strerror or str(exc)) from exc
    received = _Received()
    try:
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: received, sock=sock)
    except BaseException:
        sock.close()
        raise
    return _Stream(transport, received)


async def _whole(response: httpcore.Response, most: int, *, bodiless: bool) -> bytes:
    """
    Args:
        bodiless: what the head says of a body is of another request's.

    Raises:
        TooLargeError
    """
    lengths = (value for name, value in response.headers if name.lower() == b"content-length")
    if not bodiless and int(next(lengths, b"0")) > most:
        raise TooLargeError
    body = bytearray()
    async for part in response.aiter_stream():
        body += part
        if len(body) > most:
            body.clear()  # an error holds the frames that it passes
            raise TooLargeError
    return bytes(body)


def _host(url: httpcore.URL) -> bytes:
    host = b"[%s]" % url.host if b":" in url.host else url.host
    return host if url.port is None else b"%s:%d" % (host, url.port)


class _Received(asyncio.Protocol):
    """What has come on a connection and was not read yet."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False
        self.error: Exception | None = None
        self.writable = asyncio.Event()
        self.writable.set()
        self._reader: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "pause_reading")
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.data += data
        if len(self.data) > _AHEAD_BYTES and self._transport is not None and not self._paused:
            self._transport.pause_reading()
            self._paused = True
        self._wake()

    def eof_received(self) -> bool:
        self.ended = True
        self._wake()
        return False  # nothing is sent on a connection whose other end has gone

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended, self.error = True, exc
        self.writable.set()
        self._wake()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    async def read(self, most: int) -> bytes:
        """Some bytes, or none at the end."""
        if not self.data and not self.ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if not self.data and self.error is not None:
            raise httpcore.ReadError(str(self.error) or type(self.error).__name__) from self.error
        taken = bytes(self.data[:most])
        del self.data[:most]
        if self._paused and len(self.data) <= _AHEAD_BYTES and self._transport is not None:
            self._transport.resume_reading()
            self._paused = False
        return taken

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, transport: asyncio.Transport, received: _Received) -> None:
        self._transport = transport
        self._received = received
        self._unsent = bytearray()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await self._send()
        return await self._received.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._received.ended:
            raise httpcore.WriteError("the other end has closed the connection")
        self._unsent += buffer
        if len(self._unsent) >= _TOGETHER_BYTES:
            await self._send()

    async def _send(self) -> None:
        if self._unsent:
            self._transport.write(bytes(self._unsent))
            self._unsent.clear()
            await self._received.writable.wait()

    async def aclose(self) -> None:
        # What is not sent yet is of no use to anybody, and waiting for it would have no bound.
        self._transport.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        received = _Received()
        try:
            transport = await asyncio.get_running_loop().start_tls(
                self._transport, received, ssl_context, server_hostname=server_hostname
            )
        except (OSError, ssl.SSLError) as exc:
            self._transport.abort()
            raise httpcore.ConnectError(getattr(exc, "verify_message", None) or str(exc)) from exc
        except BaseException:
            self._transport.abort()
            raise
        if transport is None:
            raise httpcore.ConnectError("the other end has closed the connection")
        received.connection_made(transport)
        return _Stream(transport, received)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return bool(self._received.data) or self._received.ended
        if info == "ssl_object":
            return self._transport.get_extra_info("ssl_object")
        return None
