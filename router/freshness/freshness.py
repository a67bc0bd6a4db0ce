"""What this router's workers have written: writers tell it, caches and reads ask it.

Three facts about a write keep older answers away, each in another place:

1. L1 and searches in flight are found by the collection's `version`: a write makes it larger.
2. Replicas are read only once they have replayed up to the shard's `position`.
3. L2 counts only under the collection's token in Redis, which a write replaces. While that has not been
   done, the write is pending, and no worker of this router uses L2 for the collection.

Invariants: once `wrote` has returned, no search that begins, through any worker, gets an answer from before
the write; once `publish` has said True, nor does one through another router that shares the Redis, but for
what that router keeps in its own L1. `version` and `position` never decrease.

The order of the changes is forced by workers that read between any two of them:

    A commits at 100                B searches
    A raises the version
                                    B reads the new version and the old position, 90
                                    B asks a replica that has replayed up to 90
                                    B keeps that under the new version, for good
    A raises the position to 100    -> too late: so `committed` comes before `wrote`

    A raises the version
                                    B finds nothing in L1, and nothing pending
                                    B takes the old answer from L2, keeps it under the new version
    A marks the write as pending    -> too late: so `wrote` marks first
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from router.freshness import token
from router.freshness.acknowledged import Acknowledged
from router.freshness.worker_counters import WorkerCounters
from router.query.types import Position
from shard_config.model import ShardMap

if TYPE_CHECKING:
    from router.freshness.redis_link import RedisLink

__all__ = ["Freshness"]

# A token expires after this many times the TTL of its entries, but not within an hour. If it never did, a
# shard that was restored to an earlier log position, and is not written to, would have its answers refused
# for ever, because they lie below the positions that Redis was told of.
_TOKEN_TTL_FACTOR, _TOKEN_TTL_LEAST = 10, 3600.0


class Freshness:
    """Versions and positions of all workers, and this worker's line of writes towards Redis.

    Attributes:
        version: of a collection, how many writes to it the workers have finished.
        position: of a shard, a log position that holds everything written through any worker.
        acknowledged: of a shard, how far its log is known to have reached, with the timeline.
        counters: what the workers share, for others than writes.
    """

    def __init__(
        self, shard_map: ShardMap, link: RedisLink | None = None, counters_path: Path | None = None
    ) -> None:
        """
        Args:
            link: None for a router without L2; nothing is ever pending then.
            counters_path: the file that the workers of this router share; None for one worker alone.

        Raises:
            RuntimeError: too many workers share the file.
        """
        self._counters = WorkerCounters(shard_map, counters_path)
        # The counters' own methods: every search asks several times, and a call in between would cost it.
        self.version: Callable[[str], int] = self._counters.version
        self.position: Callable[[str], int] = self._counters.position
        self.acknowledged = Acknowledged()
        self.counters = self._counters
        self._link = link
        self._token_ttls = {
            name: max(_TOKEN_TTL_FACTOR * one.cache.ttl, _TOKEN_TTL_LEAST)
            for name, one in shard_map.collections.items()
        }
        # Of this worker's commits, by collection and shard. They stand in its memory alone: if it dies, the
        # worker that follows tells Redis of the writes without them.
        self._unsent: dict[str, dict[str, Position]] = {name: {} for name in self._token_ttls}
        self._refused_until = dict.fromkeys(self._token_ttls, 0.0)  # by the loop's clock
        self._publishing: set[asyncio.Task[bool]] = set()

    def __repr__(self) -> str:
        return f"<Freshness {self._counters!r}, {len(self._publishing)} publishing, {self._link!r}>"

    def committed(self, collection: str, shard: str, position: Position) -> None:
        """A write to `collection` is in the log of `shard` up to `position`; to be called before `wrote`."""
        self._counters.note(shard, position.lsn)
        self.acknowledged.note(shard, position)
        if self._link is not None:
            unsent = self._unsent[collection]
            unsent[shard] = max(position, unsent.get(shard, position))

    def wrote(self, collection: str) -> None:
        """A write has ended, well or not: every answer of `collection` kept so far is worthless."""
        if self._link is not None:
            self._counters.mark_pending(collection)
        self._counters.bump(collection)

    def lost(self, shard: str, end: Position) -> None:
        """The log of `shard` ends at `end`, before what was acknowledged: what is cached shows lost rows.

        Redis gets the lower position too, so that it is not refused for ever.
        """
        self.acknowledged.forget(shard)
        for collection in self._token_ttls:
            if self._link is not None:
                self._unsent[collection][shard] = end
                self._publish_soon(collection)
            self.wrote(collection)

    @asynccontextmanager
    async def writing(self, collection: str) -> AsyncIterator[None]:
        """Around a write, however it ends: when this is left, `wrote` has been called, and Redis been told.

        A caller that leaves, by being cancelled, waits for nothing more; Redis hears of what may have been
        committed all the same.
        """
        try:
            try:
                yield
            finally:
                self.wrote(collection)
            await self.publish(collection)
        except (asyncio.CancelledError, Exception):
            self._publish_soon(collection)
            raise

    async def publish(self, collection: str) -> bool:
        """Tell Redis of pending writes, within the link's budget; whether L2 may be used for `collection`.

        What Redis could not be told stays pending. Whoever asks next tries again, so that a Redis that was
        away cannot come back with answers from before; one that has refused is asked again after a pause,
        since each search would wait for it in vain. Of another worker's pending writes only that worker can
        tell, or the one that follows it.
        """
        if self._link is None or not self._counters.pending(collection):
            return True
        # Read before the command leaves: a write that ends while it is under way stays pending.
        number = self._counters.own_pending(collection)
        now = asyncio.get_running_loop().time()
        if number and now >= self._refused_until[collection]:
            if await self._replace_token(self._link, collection):
                self._counters.mark_sent(collection, number)
            elif self._link.on and self._link.refusal is not None:
                self._refused_until[collection] = now + self._link.pause
        return not self._counters.pending(collection)

    async def new_token(self, collection: str) -> bytes | None:
        """A token for a collection that Redis has none of; it expires after `token_ttl_ms`.

        None if Redis does not take it: it is away, or another router was faster.
        """
        if self._link is None:
            return None
        key, value = token.key_of(collection), token.encode(token.random_token())
        ttl_ms = self.token_ttl_ms(collection)
        # Only where there is none still: a write may have put one there, with its positions, meanwhile.
        put = await self._link.call(lambda client: client.set(key, value, nx=True, px=ttl_ms))
        return value if put else None

    async def let_expire(self, collection: str) -> None:
        """Give a token that never expires, as earlier versions made them, the time of others."""
        key, ttl_ms = token.key_of(collection), self.token_ttl_ms(collection)
        if self._link is not None:
            await self._link.call(lambda client: client.pexpire(key, ttl_ms), kind="optional")

    def token_ttl_ms(self, collection: str) -> int:
        return int(self._token_ttls[collection] * 1000)

    def contains(self, positions: Mapping[str, tuple[int, int]]) -> bool:
        """Whether rows read at `positions`, (timeline, position) by shard, hold all that was written."""
        written = self.position
        return all([written(shard) <= lsn for shard, (_, lsn) in positions.items()])

    async def close(self) -> None:
        """End what is under way; nothing may be asked or told afterwards."""
        for task in self._publishing:
            task.cancel()
        await asyncio.gather(*self._publishing, return_exceptions=True)
        self._counters.close()

    def _publish_soon(self, collection: str) -> None:
        task = asyncio.create_task(self.publish(collection), name=f"publish {collection}")
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def _replace_token(self, link: RedisLink, collection: str) -> bool:
        """Put a new token in the place of the old one, with the positions that Redis was not told of yet."""
        key, ttl_ms = token.key_of(collection), self.token_ttl_ms(collection)
        unsent = dict(self._unsent[collection])
        args = [token.random_token(), str(ttl_ms), *token.script_args(unsent)]
        told = await link.call(lambda client: client.eval(token.REPLACE_TOKEN, 1, key, *args), kind="script")
        if told is None:
            # Where scripts are not allowed, entries can be made worthless all the same.
            return await link.call(lambda client: client.delete(key)) is not None
        for shard, position in unsent.items():
            # A commit that came while the command was under way has a later position, which stays.
            if self._unsent[collection].get(shard) == position:
                del self._unsent[collection][shard]
        return True
