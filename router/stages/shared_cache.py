"""L2: answers in Redis, shared by all routers that use it.

Each collection has a random token in Redis, and an entry counts only while the token that it was
stored under is still there. A write deletes the token after it has committed, whatever answers were
being computed meanwhile; the next search puts a new one. Deleting needs no memory, so it works on a
full Redis as well, and because tokens never repeat, an evicted one cannot bring old entries back.

Another router knows nothing of how far our writes have come, and may store an answer from a replica
behind them. So an entry says which log positions it rests on, and counts only where they hold all that
was written here. The same keeps out what a Redis restarted from an old snapshot brings back.

While a deletion has not reached Redis, this router trusts no entry of that collection.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping

import msgspec

from router.query.types import Answer, Coverage, Found, SearchQuery, Shortfall
from router.redis_link import RedisLink
from router.shared import Shared
from router.stages.lookups import Lookups
from router.stages.stage import Stage

__all__ = ["Invalidations", "SharedCache"]

_TOKEN_BYTES = 12
# Stores run behind the answer; more than this many at once would be a queue towards a slow Redis.
_STORES = 64


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    token: bytes
    hits: bytes
    count: int
    coverage: Coverage
    short: Shortfall | None
    positions: dict[str, int]
    stored: float  # wall-clock time: as true as the routers' clocks agree


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Entry)


def _token_key(collection: str) -> str:
    return f"pgscatter:token:{collection}"


class Invalidations:
    """Tells Redis of writes; what it could not tell yet stands in memory shared by all workers."""

    def __init__(self, link: RedisLink, shared: Shared) -> None:
        self._link = link
        self._shared = shared

    def __repr__(self) -> str:
        return f"<Invalidations through {self._link!r}>"

    def owe(self, collection: str) -> None:
        """After a write: every answer of `collection` stored so far is worthless."""
        self._shared.owe(collection)

    async def settled(self, collection: str) -> bool:
        """Whether Redis knows of all the workers' writes to `collection`; tells it of ours if not."""
        if not self._shared.owed(collection):
            return True
        ours = self._shared.owed_here(collection)
        if ours:
            told = await self._link.call(lambda client: client.delete(_token_key(collection)))
            # A write that ended while the command was under way is not paid for with it.
            if told is not None:
                self._shared.paid(collection, ours)
        return not self._shared.owed(collection)

    def reflected(self, positions: Mapping[str, int]) -> bool:
        """Whether an answer from shards at `positions` holds every write of this router's workers."""
        return all(self._shared.position(shard) <= position for shard, position in positions.items())


class SharedCache:
    """Looks in Redis before it asks its inner stage, and stores behind the answer."""

    def __init__(
        self,
        inner: Stage,
        link: RedisLink,
        invalidations: Invalidations,
        namespace: str,
        max_entry_bytes: int,
    ) -> None:
        """`namespace` names the shard map: its version, nodes and collections."""
        self.hits = 0
        self.misses = 0
        self._inner = inner
        self._link = link
        self._invalidations = invalidations
        self._namespace = namespace
        self._max_entry_bytes = max_entry_bytes
        self._lookups = Lookups(link)
        self._stores: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        counts = f"{self.hits} hits, {self.misses} misses, {len(self._stores)} stores"
        return f"<SharedCache {counts}, {self._link!r}>"

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        if not query.cached or query.collection.cache.ttl <= 0:
            return await self._inner.search(query, deadline)
        key = f"pgscatter:{self._namespace}:{query.collection.name}:{query.digest.hex()}"
        token, found = await self._look(query.collection.name, key)
        if found is not None:
            self.hits += 1
            return found
        self.misses += 1
        found = await self._inner.search(query, deadline)
        if token is not None and found.answer.cacheable and len(self._stores) < _STORES:
            self._store(key, token, found.answer, query.collection.cache.ttl)
        return found

    async def close(self) -> None:
        await self._lookups.close()
        for task in self._stores:
            task.cancel()
        await asyncio.gather(*self._stores, return_exceptions=True)

    async def _look(self, collection: str, key: str) -> tuple[bytes | None, Found | None]:
        """The token to store under, if Redis can be used now, and the answer if there is one.

        The token is read before the search starts: a write that commits later deletes it.
        """
        if not await self._invalidations.settled(collection):
            return None, None
        values = await self._lookups.get(_token_key(collection), key)
        if values is None:
            return None, None
        token, data = values
        if token is None:
            return await self._new_token(collection), None
        if data is None:
            return token, None
        try:
            entry = _decoder.decode(data)
        except msgspec.DecodeError:
            return token, None
        if entry.token != token or not self._invalidations.reflected(entry.positions):
            return token, None
        answer = Answer(msgspec.Raw(entry.hits), entry.count, entry.coverage, entry.short, cacheable=True)
        return token, Found(answer, "l2", max(0.0, time.time() - entry.stored))

    async def _new_token(self, collection: str) -> bytes | None:
        """A token of ours, unless another router was faster: then this search does without."""
        token = secrets.token_bytes(_TOKEN_BYTES)
        placed = await self._link.call(lambda client: client.set(_token_key(collection), token, nx=True))
        return token if placed else None

    def _store(self, key: str, token: bytes, answer: Answer, ttl: float) -> None:
        if answer.size_bytes > self._max_entry_bytes:
            return
        positions = {report.shard: report.lsn for report in answer.reports}
        hits = b"".join((answer.hits, *answer.more))
        entry = _Entry(token, hits, answer.count, answer.coverage, answer.short, positions, time.time())
        data = _encoder.encode(entry)
        if len(data) > self._max_entry_bytes:
            return

        async def send() -> None:
            await self._link.call(lambda client: client.set(key, data, px=max(1, int(ttl * 1000))))

        task = asyncio.create_task(send(), name="store in Redis")
        self._stores.add(task)
        task.add_done_callback(self._stores.discard)
