"""Reads from Redis that wait together: one MGET at a time, and what is asked for meanwhile leaves next.

With it goes a PTTL of each collection's token, which tells the ages of entries without anybody's clock; see
`router.stages.shared_cache`.

Under load most of a GET is the client library's and the event loop's time, not Redis's, so many keys in one
command cost little more than one. A read alone leaves at once. Invariant: a read is answered within the
link's budget, the wait for the one before it included.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple, TypeAlias

from router.freshness.redis_link import RedisLink, exchange

__all__ = ["UNKNOWN", "Lookups", "Values"]

# What PTTL says of a key that never expires; also where it may not be asked.
UNKNOWN = -1

# Entries are a few kB each, so that one answer of Redis stays well below a megabyte.
_MAX_READS = 64


# Values of the keys, and in how many milliseconds the first of them expires.
Values: TypeAlias = tuple[Sequence[bytes | None], int]


class _Read(NamedTuple):
    keys: tuple[str, ...]
    asked: float
    answer: asyncio.Future[Values | None]


class Lookups:
    """`get` reads keys at one moment of Redis's time, or says None."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._waiting: deque[_Read] = deque()
        self._sender: asyncio.Task[None] | None = None  # while anything waits or is under way

    def __repr__(self) -> str:
        return f"<Lookups {len(self._waiting)} waiting, {'one' if self._sender else 'none'} under way>"

    async def get(self, *keys: str) -> Values | None:
        """The keys' values, as of one moment; None if Redis is off, late or wrong."""
        if not self._link.on:
            return None
        answer: asyncio.Future[Values | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Read(keys, perf_counter(), answer))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send(), name="read from Redis")
        return await answer

    async def close(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)

    async def _send(self) -> None:
        try:
            while self._waiting:
                reads = [self._waiting.popleft() for _ in range(min(_MAX_READS, len(self._waiting)))]
                await self._answer([read for read in reads if not read.answer.done()])
        finally:
            self._sender = None
            _answer_all(self._waiting, {}, {})
            self._waiting.clear()

    async def _answer(self, reads: list[_Read]) -> None:
        # Most have a key in common: the collection's token.
        keys = list(dict.fromkeys(key for read in reads for key in read.keys))
        if not keys:
            return
        first = list(dict.fromkeys([read.keys[0] for read in reads]))
        commands = [("MGET", *keys), *[("PTTL", key) for key in first]]
        found: dict[str, bytes | None] = {}
        left: dict[str, int] = {}
        try:
            budget = self._link.budget - (perf_counter() - reads[0].asked)
            replies = await self._link.call(lambda client: exchange(client, commands), budget, kind="read")
            if replies is not None:
                found = dict(zip(keys, replies[0], strict=True))
                # One who may not ask for it keeps no answer of Redis any longer.
                left = {
                    key: reply if isinstance(reply, int) else UNKNOWN
                    for key, reply in zip(first, replies[1:], strict=True)
                }
        finally:
            _answer_all(reads, found, left)


def _answer_all(
    reads: Sequence[_Read] | deque[_Read], found: dict[str, bytes | None], left: dict[str, int]
) -> None:
    for read in reads:
        if not read.answer.done():
            values = [found[key] for key in read.keys] if found else None
            read.answer.set_result(None if values is None else (values, left[read.keys[0]]))
