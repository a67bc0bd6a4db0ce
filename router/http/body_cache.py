"""Searches that were checked before, by their bodies.

An application that asks the same again sends the same bytes again. A search that L1 answers spends most
of its time on decoding and checking them: 25 of 53 µs (784 dimensions in base64). So the checked search is
kept, for bodies that a cache may answer. (A text means what its model makes of it, which may change.)

Invariant: a body means the same each time for one collection, as long as that is the same object: a new map
has new ones, and settings last as long as the process. Headers must not change what a body means, and other
routes, which may read the same body differently, need a cache of their own.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from router.query.types import SearchQuery
from shard_config.model import Collection

__all__ = ["BodyCache", "CheckedSearch"]

# An entry's objects beside the body and its vector.
_ENTRY_BYTES = 600

_Key: TypeAlias = tuple[str, bytes]  # the collection's name, and the body


class CheckedSearch(msgspec.Struct, frozen=True):
    """A checked search, and the seconds that it gets.

    `reusable` says that its body will mean the same again, and that a cache may answer it.
    """

    query: SearchQuery
    timeout: float
    reusable: bool


class BodyCache:
    """Bounded in bytes; the oldest make room, since order of arrival costs nothing to keep."""

    def __init__(self, max_bytes: int) -> None:
        self.size_bytes = 0
        self._most = max_bytes
        self._entries: dict[_Key, CheckedSearch] = {}

    def __repr__(self) -> str:
        return f"<BodyCache {len(self._entries)} entries, {self.size_bytes}/{self._most} bytes>"

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, collection: Collection, body: bytes) -> CheckedSearch | None:
        """What `body` means for this very collection."""
        checked = self._entries.get((collection.name, body))
        return checked if checked is not None and checked.query.collection is collection else None

    def put(self, body: bytes, checked: CheckedSearch) -> None:
        key = (checked.query.collection.name, body)
        size = _size(key, checked)
        if size > self._most:
            return
        replaced = self._entries.pop(key, None)
        if replaced is not None:
            self.size_bytes -= _size(key, replaced)
        self._entries[key] = checked
        self.size_bytes += size
        while self.size_bytes > self._most:
            oldest = next(iter(self._entries))
            self.size_bytes -= _size(oldest, self._entries.pop(oldest))


def _size(key: _Key, checked: CheckedSearch) -> int:
    # A filter holds at most what the body does, some times over.
    return _ENTRY_BYTES + 3 * len(key[1]) + len(checked.query.vector)
