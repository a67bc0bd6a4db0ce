"""L2: answers in Redis, shared by all routers that use it.

Each collection has a random token in Redis, and an entry counts only while the token that it was
stored under is still there. A write puts a new one in its place after it has committed, whatever answers
were being computed meanwhile. Because tokens never repeat, an evicted one cannot bring old entries back.

That is not enough where an answer comes from a replica that is behind the write: its search may begin
after the write, under the new token. So an entry says which log positions it rests on, and is stored only
if they hold every write that any router had told of before (`router.freshness.token`):

    A commits at 100, puts token T2 with {s0: 100}
    B reads T2, asks a replica that has replayed up to 90   -> 90 < 100: not stored
    A restarts and knows of nothing it wrote                -> what it finds under T2 holds 100

The positions beside a token are lost with it, when Redis evicts it or is emptied. What comes next is of
another lineage, and B stores nothing before its probes have found where each primary's log ends: at or
beyond every write told of until then, and the answer has to reach that as well.

    A commits at 100, puts T2; Redis evicts it; B puts T3; a probe finds the primary at 100 or beyond
    B asks a replica that has replayed up to 90             -> not stored

How old an entry is, is told by no router's clock: an entry counts under one token only, which expires at a
fixed time, so its age is by how much the token's time to live (PTTL) has become less since the search that
it was stored for began. What L2 and L1 keep one after the other is together no older than the TTL.

What was written through this router's workers is compared once more when an entry is read, which keeps
out what a Redis restarted from an old snapshot brings back. While a write is pending towards Redis
(`router.freshness.freshness`), this router trusts no entry of that collection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import msgspec

from router.freshness import token
from router.freshness.freshness import Freshness
from router.freshness.lookups import UNKNOWN, Lookups
from router.freshness.redis_link import RedisLink
from router.query.composition import Account
from router.query.types import Answer, Coverage, Found, Position, SearchQuery, Shortfall
from router.stages.stage import Figures, Stage
from shard_config.model import Collection, ShardMap

__all__ = ["Log", "SharedCache"]

# Stores run behind the answer; more than this many at once would be a queue towards a slow Redis.
_STORES = 64

# As Position has them, by shard; plain tuples are decoded faster.
_Positions: TypeAlias = dict[str, tuple[int, int]]


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    token: str
    hits: bytes
    count: int
    coverage: Coverage
    short: Shortfall | None
    positions: _Positions
    left_ms: int  # of its token, when its search began
    account: Account | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Entry)


class Log(Protocol):
    """What is known of a shard's write-ahead log."""

    @property
    def timeline(self) -> int:
        """The latest that a primary was seen on, 0 if none was."""
        ...

    def head(self, since: float) -> Position | None:
        """Where it ended when probed after `since`, by the loop's clock; None if that is not known."""
        ...


class _SeenToken:
    """A token as this stage has seen it.

    `since` is when the stage first saw the token's lineage, `heads` where the shards' logs ended after that,
    and `floor` the positions that an answer must reach to be stored; None as long as that is not known.
    """

    def __init__(self, value: bytes, now: float, before: _SeenToken | None) -> None:
        self.value = value
        self.token = token.decode(value)
        self.since = now
        self.heads: dict[str, Position] | None = None
        self.floor: dict[str, Position] | None = None
        if before is not None and before.token.lineage == self.token.lineage:
            self.since = before.since
            if before.heads is not None:
                self.found(before.heads)

    def found(self, heads: dict[str, Position]) -> None:
        self.heads = heads
        self.floor = token.floors(self.token.written, heads)

    def forget(self, now: float) -> None:
        self.since, self.heads, self.floor = now, None, None


# The token to store under, the milliseconds until it expires, and the answer if there is one.
_Looked: TypeAlias = tuple[_SeenToken | None, int, Found | None]
_NOTHING: _Looked = (None, UNKNOWN, None)


class SharedCache:
    """Looks in Redis before it asks its inner stage, and stores behind the answer."""

    def __init__(
        self,
        inner: Stage[SearchQuery, Found],
        link: RedisLink,
        freshness: Freshness,
        shard_map: ShardMap,
        namespace: str,
        logs: Mapping[str, Log],
        probe: Callable[[str], None],
        max_entry_bytes: int,
    ) -> None:
        """
        Args:
            namespace: stands for the shard map: its version, nodes and collections.
            logs: by shard.
            probe: asks a shard's nodes soon how far they are.
        """
        self.hits = 0
        self.misses = 0
        self.unanswered = 0  # Redis was off, late, or had to be told of a write first
        self._inner = inner
        self._link = link
        self._freshness = freshness
        self._map = shard_map
        self._namespace = namespace
        self._logs = logs
        self._probe = probe
        self._max_entry_bytes = max_entry_bytes
        self._lookups = Lookups(link)
        self._seen: dict[str, _SeenToken] = {}  # by collection
        self._stores: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        counts = f"{self.hits} hits, {self.misses} misses, {len(self._stores)} stores"
        return f"<SharedCache {counts}, {self._link!r}>"

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        collection = query.collection
        if not query.cached or collection.cache.ttl <= 0:
            return await self._inner.search(query, deadline)
        # In braces stands what Redis Cluster places keys by: an entry and its token are on one server.
        key = f"pgscatter:{{{token.key_of(collection.name)}}}:{self._namespace}:{query.digest.hex()}"
        seen, left_ms, found = await self._look_up(collection, key)
        if found is not None:
            self.hits += 1
            return found
        if seen is None:
            self.unanswered += 1
            return await self._inner.search(query, deadline)
        self.misses += 1
        # Before the search starts: what is read may be of this timeline though a later one is seen meanwhile.
        timelines = self._timelines(collection)
        self._set_floor(seen, timelines)
        found = await self._inner.search(query, deadline)
        if found.answer.cacheable and len(self._stores) < _STORES:
            reports = found.answer.reports
            positions = {one.shard: (timelines[one.shard], one.lsn) for one in reports}
            if seen.floor is not None and token.reaches(positions, seen.floor):
                self._store(key, seen.token.token, left_ms, found.answer, positions, collection.cache.ttl)
        return found

    def describe(self) -> Figures:
        own: Figures = {
            "l2_enabled": True,
            "l2_hits": self.hits,
            "l2_misses": self.misses,
            "l2_unanswered": self.unanswered,
            "l2_failures": self._link.failures,
            "l2_on": self._link.on,
            "l2_writable": self._link.refusal is None,
        }
        if not self._link.on:
            own |= {"l2_cause": self._link.cause or "other", "l2_reason": self._link.reason or ""}
        elif self._link.refusal is not None:
            own |= {"l2_cause": self._link.refusal_cause or "other", "l2_reason": self._link.refusal}
        own |= {f"l2_errors_{cause}": count for cause, count in self._link.errors.items()}
        return own | self._inner.describe()

    async def read_tokens(self) -> None:
        """To be called before nodes are probed for the first time, so that the first answer can be stored."""
        names = [name for name, one in self._map.collections.items() if one.cache.ttl > 0]
        await asyncio.gather(*map(self._read_token, names))

    async def close(self) -> None:
        await self._lookups.close()
        for task in self._stores:
            task.cancel()
        await asyncio.gather(*self._stores, return_exceptions=True)

    async def _read_token(self, collection: str) -> None:
        read = await self._lookups.get(token.key_of(collection))
        if read is None:
            return
        (value,), left_ms = read
        if value is not None and left_ms == UNKNOWN:
            await self._freshness.let_expire(collection)
        await self._note_token(collection, value)

    async def _look_up(self, collection: Collection, key: str) -> _Looked:
        """What Redis has, if it can be used now.

        The token is read before the search starts: a write that commits later replaces it.
        """
        name = collection.name
        if not await self._freshness.publish(name):
            return _NOTHING
        # Both in one command: an entry that was read before a write counts under the token from before it.
        read = await self._lookups.get(token.key_of(name), key)
        if read is None:
            return _NOTHING
        (value, data), left_ms = read
        if value is None:
            left_ms = self._freshness.token_ttl_ms(name)  # of the one that is made now
        seen = await self._note_token(name, value)
        if data is None or seen is None:
            return seen, left_ms, None
        return seen, left_ms, self._found(seen, left_ms, data, collection.cache.ttl)

    async def _note_token(self, collection: str, value: bytes | None) -> _SeenToken | None:
        """The token in `value`; where there is none, one of ours, unless another router was faster."""
        if value is None:
            value = await self._freshness.new_token(collection)
            if value is None:
                return None
        seen = self._seen.get(collection)
        if seen is None or seen.value != value:
            seen = self._seen[collection] = _SeenToken(value, asyncio.get_running_loop().time(), seen)
            # Where a shard has lost what was written through another router, or before this one was started.
            for shard in self._map.shards_of(self._map.collections[collection]):
                if (position := seen.token.written.get(shard)) is not None:
                    self._freshness.acknowledged.note(shard, position)
        return seen

    def _found(self, seen: _SeenToken, left_ms: int, data: bytes, ttl: float) -> Found | None:
        """The answer in an entry, if it counts; where its age is not known, it is the longest possible."""
        try:
            entry = _decoder.decode(data)
        except msgspec.DecodeError:
            return None
        positions, written = entry.positions, seen.token.written
        if entry.token != seen.token.token or not token.holds(positions, written):
            return None
        if not self._freshness.contains(positions):
            return None
        answer = Answer(
            msgspec.Raw(entry.hits),
            entry.count,
            entry.coverage,
            entry.short,
            cacheable=True,
            account=entry.account,
        )
        known = left_ms >= 0 and entry.left_ms >= left_ms
        return Found(answer, "l2", (entry.left_ms - left_ms) / 1000 if known else ttl)

    def _timelines(self, collection: Collection) -> dict[str, int]:
        return {shard: self._logs[shard].timeline for shard in self._map.shards_of(collection)}

    def _set_floor(self, seen: _SeenToken, timelines: Mapping[str, int]) -> None:
        """Find out what an answer must reach to be stored, as soon as probes have told it."""
        if seen.floor is not None:
            if all(timeline <= seen.floor[shard].timeline for shard, timeline in timelines.items()):
                return
            # On a later timeline the log may be shorter; what it lacks was lost with the earlier one.
            seen.forget(asyncio.get_running_loop().time())
        heads: dict[str, Position] = {}
        for shard in timelines:
            head = self._logs[shard].head(seen.since)
            if head is None:
                self._probe(shard)
            else:
                heads[shard] = head
        if len(heads) == len(timelines):
            seen.found(heads)

    def _store(
        self, key: str, name: str, left_ms: int, answer: Answer, positions: _Positions, ttl: float
    ) -> None:
        if answer.size_bytes > self._max_entry_bytes:
            return
        hits = bytes(answer.whole)
        entry = _Entry(
            name, hits, answer.count, answer.coverage, answer.short, positions, left_ms, answer.account
        )
        data = _encoder.encode(entry)
        if len(data) > self._max_entry_bytes:
            return

        async def send() -> None:
            await self._link.call(lambda client: client.set(key, data, px=max(1, int(ttl * 1000))))

        task = asyncio.create_task(send(), name="store in Redis")
        self._stores.add(task)
        task.add_done_callback(self._stores.discard)
