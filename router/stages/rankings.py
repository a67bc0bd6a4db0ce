"""Where rankings are kept for their pages: in this process's memory, and in Redis for all who share it.

Invariants: a cursor that is given out can be followed, by whichever worker of this router it reaches, until
its ranking's time is over, memory is needed for others, or what keeps it dies; where that cannot be, none is
given out. Nothing is kept longer than its time, and no more bytes than the operator allows. A ranking is
told only to its owner, and only for its own collection and shard map.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from cachetools import TLRUCache

from router.query import ranking as rankings
from router.query.errors import AnswerTooLargeError, ExpiredError, InvalidError, UnavailableError
from router.query.ranking import Ranking
from router.stages.stage import Figures
from shard_config.model import Collection

if TYPE_CHECKING:
    from router.freshness.redis_link import RedisLink

__all__ = ["Kept", "RankingStore", "Rankings"]

# What an entry takes beside its bytes: its key and the store's own bookkeeping.
_ENTRY_BYTES = 500
# One ranking may take at most this share of the memory; a larger one would push out many others.
_LARGEST_SHARE = 8

_Key: TypeAlias = tuple[str, bytes]  # what stands for the shard map, and the id


class _Entry(NamedTuple):
    data: bytes
    ttl: float
    shared: bool  # also in Redis


class Kept(NamedTuple):
    """A ranking, its id, and where it is: see `router.query.paging.Page.kept`."""

    id: bytes
    ranking: Ranking
    kept: Literal["l1", "l2"] | None
    tier: Literal["l1", "l2", "bypass"]  # what it was found in; `bypass`: it was made just now


class RankingStore:
    """Rankings in memory, by age and use; it outlives the stages of one shard map."""

    def __init__(self, max_bytes: int, timer: Callable[[], float] = monotonic) -> None:
        self.max_bytes = max_bytes
        self._entries: TLRUCache[_Key, _Entry] = TLRUCache(
            maxsize=max_bytes,
            ttu=lambda _, entry, now: now + entry.ttl,
            timer=timer,
            getsizeof=lambda entry: _ENTRY_BYTES + len(entry.data),
        )

    def __repr__(self) -> str:
        return f"<RankingStore {len(self)} entries, {self.size_bytes}/{self.max_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        return int(self._entries.currsize)

    def get(self, key: _Key) -> tuple[bytes, bool] | None:
        """The bytes, and whether Redis has them too."""
        entry = self._entries.get(key)
        return None if entry is None else (entry.data, entry.shared)

    def put(self, key: _Key, data: bytes, ttl: float, *, shared: bool) -> bool:
        """Keep `data` for `ttl` seconds; False if it is too large."""
        if ttl <= 0 or _ENTRY_BYTES + len(data) > self.max_bytes // _LARGEST_SHARE:
            return False
        self._entries[key] = _Entry(data, ttl, shared)
        return True

    def expire(self) -> None:
        """Drop what is over its time now, and not when room is needed."""
        self._entries.expire()


class Rankings:
    """`keep` gives a ranking an id, `find` finds it by that."""

    def __init__(
        self,
        store: RankingStore,
        link: RedisLink | None,
        namespace: str,
        *,
        ttl: float,
        max_shared_bytes: int,
        several: bool,
        patience: float = 0.5,
    ) -> None:
        """
        Args:
            link: None for a router without Redis.
            namespace: stands for the shard map: its version, nodes and collections.
            ttl: seconds for which a ranking is kept, from when it was made.
            max_shared_bytes: the largest that Redis gets.
            several: there may be workers beside this one, which do not see its memory.
            patience: seconds that Redis gets where nothing goes without it. What is there for speed alone
                gives it less, and does without one that was slow once.
        """
        self.found = {"l1": 0, "l2": 0, "none": 0, "unanswered": 0}
        self.ttl = ttl
        self._store = store
        self._link = link
        self._namespace = namespace
        self._max_shared_bytes = max_shared_bytes
        self._several = several
        self._patience = patience

    def __repr__(self) -> str:
        return f"<Rankings {self._store!r}, {self._link!r}>"

    def require(self) -> None:
        """To be called before a ranking is made that has to be kept.

        Raises:
            InvalidError: this router can keep none.
            UnavailableError: it cannot now.
        """
        if self._link is None:
            if self._several:
                raise InvalidError.at(
                    "cursor",
                    "this router has several workers, which do not see each other's memory: to keep a ranking"
                    " for all of them it needs Redis (--redis); without it, take `offset`, or start one",
                )
            if not self._store.max_bytes:
                raise InvalidError.at("cursor", "this router keeps no rankings (--ranking-bytes 0)")
        elif self._several and not (self._link.on or self._link.slow):
            raise self._away("keep a ranking for all workers")

    async def keep(self, ranking: Ranking) -> Kept:
        """Keep it where all can find it that may be asked for its next page.

        Raises:
            AnswerTooLargeError: it is too large to be kept.
            UnavailableError: Redis does not take it, and this process's memory would not do.
        """
        data, id_ = rankings.encode(ranking), secrets.token_bytes(16)
        shared = await self._share(id_, data)
        # Beside what Redis has, it spares the next pages the way there; they need not find it here.
        local = self._store.put((self._namespace, id_), data, self.ttl, shared=shared)
        if shared:
            return Kept(id_, ranking, "l2", "bypass")
        if local and not self._several:
            return Kept(id_, ranking, "l1", "bypass")
        fits_redis = self._link is not None and len(data) <= self._max_shared_bytes
        if not fits_redis:
            raise AnswerTooLargeError(
                f"the ranking takes {len(data)} bytes, which is more than --ranking-bytes or, where workers"
                " or memory make it need Redis, --l2-max-entry-bytes let be kept of one: take `offset`"
            )
        raise self._away("keep the ranking for its next pages")

    async def find(self, id_: bytes, collection: Collection, owner: str) -> Kept:
        """The ranking that `owner` has had kept.

        Raises:
            ExpiredError: there is none of this id, or it is another's, or of another collection or map.
            UnavailableError: it might be in Redis, which cannot be asked now.
        """
        key = self._namespace, id_
        tier: Literal["l1", "l2"] = "l1"
        kept = self._store.get(key)
        if kept is None:
            tier = "l2"
            kept = await self._shared(key)
        ranking = None if kept is None else rankings.decode(kept[0])
        if kept is None or ranking is None or (ranking.collection, ranking.owner) != (collection.name, owner):
            self.found["none"] += 1
            # One text for all, so that nobody learns of another's.
            raise ExpiredError(
                f"cursor: its ranking is not kept, or not any more; it is for {self.ttl:g} s, while there is"
                " memory, for the caller who asked for it, on its collection and shard map: search anew with"
                ' "cursor": "*"'
            )
        self.found[tier] += 1
        return Kept(id_, ranking, "l2" if kept[1] else "l1", tier)

    def describe(self) -> Figures:
        self._store.expire()
        own: Figures = {"rankings": len(self._store), "rankings_bytes": self._store.size_bytes}
        return own | {f"rankings_found_{where}": count for where, count in self.found.items()}

    async def _share(self, id_: bytes, data: bytes) -> bool:
        """Whether Redis has taken it."""
        if self._link is None or len(data) > self._max_shared_bytes:
            return False
        key, ttl_ms = self._name(id_), max(1, int(self.ttl * 1000))
        # A worker that is alone can keep it itself.
        needed = self._several or not self._store.max_bytes
        budget = self._patience if needed else None
        return bool(
            await self._link.call(lambda client: client.set(key, data, px=ttl_ms), budget, patient=needed)
        )

    async def _shared(self, key: _Key) -> tuple[bytes, bool] | None:
        """What Redis has, kept here too for as long as there.

        Raises:
            UnavailableError
        """
        if self._link is None:
            return None
        # Where nothing needs it, a router does without the client of Redis.
        from router.freshness.redis_link import exchange

        name = self._name(key[1])
        commands = [("MGET", name), ("PTTL", name)]
        replies = await self._link.call(
            lambda client: exchange(client, commands), self._patience, kind="read", patient=True
        )
        if replies is None:
            self.found["unanswered"] += 1
            raise self._away("tell whether it has the ranking of this cursor")
        (data,), left_ms = replies
        if data is None:
            return None
        # One who may not ask for it keeps no ranking of Redis here.
        if isinstance(left_ms, int):
            self._store.put(key, data, left_ms / 1000, shared=True)
        return data, True

    def _name(self, id_: bytes) -> str:
        return f"pgscatter:ranking:{self._namespace}:{id_.hex()}"

    def _away(self, what: str) -> UnavailableError:
        assert self._link is not None
        reason = self._link.reason if not self._link.on else self._link.refusal
        error = UnavailableError(f"Redis is needed to {what}, and {reason or 'did not answer in time'}")
        return error.hidden(f"Redis is needed to {what}, and cannot be used now")
