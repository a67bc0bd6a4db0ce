"""Vectors of texts that were searched for before: in this process (L1) and in Redis (L2).

Keys are made of what decides a vector, the model and the text, not of the map's version. Invariants: L1 is
bounded in bytes and time; Redis never costs more than its budget, and nothing while it is off; what it brings
is checked like a service's answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from cachetools import TTLCache

from router.models.messages import is_vector

# Where nothing needs it, a router does without the client of Redis, a fifth of its start.
if TYPE_CHECKING:
    from router.freshness.redis_link import RedisLink

__all__ = ["VectorCache"]

# What an entry weighs beside its vector: the key and the cache's own bookkeeping.
_ENTRY_BYTES = 400
_PREFIX = b"pgscatter:embedding:"
# Stores run behind the answer; more than this many at once would be a queue towards a slow Redis.
_STORES = 64


class VectorCache:
    """Both tiers; keys are short and of any bytes."""

    def __init__(
        self, max_bytes: int, ttl: float, link: RedisLink | None, timer: Callable[[], float] = monotonic
    ) -> None:
        """`ttl` in seconds, of both tiers; 0 keeps nothing."""
        self._ttl = ttl
        self._link = link
        self._entries: TTLCache[bytes, bytes] = TTLCache(
            maxsize=max_bytes, ttl=ttl, timer=timer, getsizeof=lambda vector: _ENTRY_BYTES + len(vector)
        )
        self._stores: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<VectorCache {len(self._entries)} entries, {self._entries.currsize} bytes>"

    def get(self, key: bytes) -> bytes | None:
        """What L1 has."""
        return self._entries.get(key)

    def put(self, key: bytes, vector: bytes) -> None:
        """Keep it in L1."""
        if self._ttl > 0 and _ENTRY_BYTES + len(vector) <= self._entries.maxsize:
            self._entries[key] = vector

    async def shared(self, key: bytes, dimensions: int) -> bytes | None:
        """What Redis has, if it answers in time."""
        if self._link is None or self._ttl <= 0 or not self._link.on:
            return None
        name = _PREFIX + key.hex().encode()
        found = await self._link.call(lambda client: client.get(name), kind="read")
        return found if isinstance(found, bytes) and is_vector(found, dimensions) else None

    def share(self, key: bytes, vector: bytes) -> None:
        """Keep it in Redis as well, behind the answer."""
        if self._link is None or self._ttl <= 0 or not self._link.on or len(self._stores) >= _STORES:
            return
        task = asyncio.ensure_future(self._store(self._link, key, vector))
        self._stores.add(task)
        task.add_done_callback(self._stores.discard)

    async def _store(self, link: RedisLink, key: bytes, vector: bytes) -> None:
        name = _PREFIX + key.hex().encode()
        milliseconds = max(1, round(self._ttl * 1000))
        await link.call(lambda client: client.set(name, vector, px=milliseconds), kind="optional")

    async def close(self) -> None:
        for task in self._stores:
            task.cancel()
        await asyncio.gather(*self._stores, return_exceptions=True)
