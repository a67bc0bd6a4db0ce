"""Callers over keep-alive and new connections that count each request without an answer.

A router that ends waits a while for what its open connections say, and no longer. So a request that its
caller sends later than it meant to, because this process was held up, counts as `late` if it fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

__all__ = ["Callers", "calling"]

# Less than a router that ends waits for a first request; a caller means to send each within milliseconds.
_LATE_SECONDS = 0.3
_REQUEST = b"GET /livez HTTP/1.1\r\nhost: router\r\n\r\n"


class Callers:
    """What became of the requests; changed by the callers only."""

    def __init__(self) -> None:
        self.answered = 0
        self.told_to_close = 0
        self.late = 0
        self.failures: list[str] = []


@contextlib.asynccontextmanager
async def calling(port: int, *, kept: int = 16, new: int = 8) -> AsyncIterator[Callers]:
    """Call during the block, on `kept` connections used again and again and by `new` callers without."""
    callers, over = Callers(), asyncio.Event()

    async def call(keep: bool) -> None:
        while not over.is_set():
            if not await _one_connection(port, keep, callers, over):
                await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(call(i < kept)) for i in range(kept + new)]
    try:
        yield callers
    finally:
        over.set()
        await asyncio.gather(*tasks)


async def _one_connection(port: int, keep: bool, callers: Callers, over: asyncio.Event) -> bool:
    """Whether each request on it was answered."""
    loop = asyncio.get_running_loop()
    since, late = loop.time(), False
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while not over.is_set():
                since, late = loop.time(), loop.time() - since > _LATE_SECONDS
                writer.write(_REQUEST)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
                assert head.startswith(b"HTTP/1.1 200 "), head
                callers.answered += 1
                if b"connection: close" in head.lower():
                    callers.told_to_close += 1
                    break
                if not keep:
                    break
                await asyncio.sleep(0.002)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    except (OSError, asyncio.IncompleteReadError) as exc:
        if late:
            callers.late += 1
        else:
            callers.failures.append(f"{'kept' if keep else 'new'}: {type(exc).__name__} {exc}")
        return False
    return True
