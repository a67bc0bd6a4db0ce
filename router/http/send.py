"""Sends a reply: a small one at once, a large one in pieces, as fast as the client reads them.

Invariant: the memory of an answer is free again after a bounded time, however slowly its client reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.types import Scope, Send

from router.http.compression import LEAST_BYTES, Coding, gzipped, gzipped_pieces
from router.http.message import ABORT, SEND_RESPONSE, Reply

__all__ = ["send_at_once", "send_reply"]

_VARY = (b"vary", b"accept-encoding")
_GZIP = (b"content-encoding", b"gzip")


def send_at_once(reply: Reply, headers: list[tuple[bytes, bytes]], scope: Scope) -> bool:
    """Send a small reply as it is, without waiting; False where `send_reply` has to.

    Most answers take this way; one coroutine more would cost a hundredth of an L1 hit.
    """
    size = len(reply.body)
    if size >= LEAST_BYTES or reply.more:
        return False
    respond = scope.get("extensions", {}).get(SEND_RESPONSE)
    if respond is None:
        return False
    headers.append((b"content-length", b"%d" % size))
    if respond(reply.status, headers, reply.body):
        return True
    headers.pop()
    return False


async def send_reply(
    reply: Reply, headers: list[tuple[bytes, bytes]], coding: Coding, scope: Scope, send: Send, seconds: float
) -> None:
    """Send `reply` with `headers` and those that its body calls for; a large one within `seconds`.

    Raises:
        ClientDisconnect: it was not taken in that time, and the connection is cut.
    """
    # Taken out of the scope: they hold the server's request cycle, which holds the scope, and such a circle
    # is freed by the garbage collector alone.
    extensions = scope.pop("extensions", None) or {}
    body, more = reply.body, reply.more
    size = len(body) + sum(map(len, more)) if more else len(body)
    if size >= LEAST_BYTES:
        headers.append(_VARY)
    compressed = (coding == "gzip" and size >= LEAST_BYTES) or (coding == "must" and size > 0)
    if more and scope["http_version"] == "1.0":
        compressed = False  # HTTP/1.0 has no chunks, and the length is not known before all is compressed
    if compressed:
        headers.append(_GZIP)
    if more:
        if not compressed:
            headers.append((b"content-length", b"%d" % size))
        async with _bounded(seconds, extensions):
            await _send_pieces(reply, headers, compressed, send)
        return
    if compressed:
        body = await gzipped(body)
    headers.append((b"content-length", b"%d" % len(body)))
    respond = extensions.get(SEND_RESPONSE)
    if respond is not None and respond(reply.status, headers, body):
        return
    async with _bounded(seconds, extensions):
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _send_pieces(
    reply: Reply, headers: list[tuple[bytes, bytes]], compressed: bool, send: Send
) -> None:
    pieces: Iterable[bytes] = (piece for piece in (reply.body, *reply.more) if piece)
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    async for piece in gzipped_pieces(pieces) if compressed else _each(pieces):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def _bounded(seconds: float, extensions: Mapping[str, Callable[[], object]]) -> AsyncIterator[None]:
    """Cut the connection after `seconds`: `send` waits for as long as the client does not read."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as exc:
        abort = extensions.get(ABORT)
        if abort is not None:
            abort()
            await asyncio.sleep(0)  # in this turn the server learns that the connection is lost
        raise ClientDisconnect from exc


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
