"""L1: answers in this process's memory, bounded in bytes and in time.

A key carries the collection's version, so a write makes everything cached before it unreachable at
once; the LRU order sees to the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TypeAlias

import msgspec
from cachetools import TLRUCache

from router.query.types import Answer, Found, SearchQuery
from router.stages.stage import Figures, Stage

__all__ = ["LocalCache", "Store"]

# What an entry weighs beside its hits: key, answer, coverage and the cache's own bookkeeping.
_ENTRY_BYTES = 1500
# One answer may take at most this share of the cache; a larger one would empty it for little.
_LARGEST_SHARE = 8

_Key: TypeAlias = tuple[str, str, int, bytes]


class _Entry(msgspec.Struct, frozen=True):
    answer: Answer
    ttl: float


class Store:
    """The entries themselves; they outlive the stages of one shard map."""

    def __init__(self, max_bytes: int, timer: Callable[[], float] = monotonic) -> None:
        self.hits = 0
        self.misses = 0
        self.max_bytes = max_bytes
        self._entries: TLRUCache[_Key, _Entry] = TLRUCache(
            maxsize=max_bytes,
            ttu=lambda _, entry, now: now + entry.ttl,
            timer=timer,
            getsizeof=lambda entry: _ENTRY_BYTES + entry.answer.size_bytes,
        )

    def __repr__(self) -> str:
        return f"<Store {len(self)} entries, {self.size_bytes}/{self.max_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        return int(self._entries.currsize)

    def get(self, key: _Key) -> Answer | None:
        try:
            entry = self._entries[key]  # where `get` would look twice, and four times at the clock
        except KeyError:
            self.misses += 1
            return None
        self.hits += 1
        return entry.answer

    def put(self, key: _Key, answer: Answer, ttl: float) -> None:
        """Keep a complete answer for `ttl` seconds; without the reports, which tell of another run.

        What it keeps counts here and nowhere else.
        """
        if ttl <= 0 or _ENTRY_BYTES + answer.size_bytes > self.max_bytes // _LARGEST_SHARE:
            return
        self._entries[key] = _Entry(msgspec.structs.replace(answer, reports=(), reservation=None), ttl)


class LocalCache:
    """Outermost of the stages, so that a hit costs neither a task nor a wait."""

    def __init__(
        self, inner: Stage[SearchQuery, Found], store: Store, namespace: str, version: Callable[[str], int]
    ) -> None:
        """`namespace` stands for the shard map: its version alone may be another map's as well."""
        self._inner = inner
        self._store = store
        self._namespace = namespace
        self._version = version

    def __repr__(self) -> str:
        return f"<LocalCache {self._store!r}>"

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        if not query.cached:
            return await self._inner.search(query, deadline)
        # Read before the search starts: a write that lands meanwhile makes the entry unreachable.
        collection = query.collection
        key = (collection.name, self._namespace, self._version(collection.name), query.digest)
        answer = self._store.get(key)
        if answer is not None:
            return Found(answer, "l1")
        found = await self._inner.search(query, deadline)
        if found.answer.cacheable:
            self._store.put(key, found.answer, collection.cache.ttl - found.age)
        return found

    def describe(self) -> Figures:
        store = self._store
        own: Figures = {
            "l1_entries": len(store),
            "l1_bytes": store.size_bytes,
            "l1_hits": store.hits,
            "l1_misses": store.misses,
        }
        return own | self._inner.describe()
