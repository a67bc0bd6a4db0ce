"""Checked searches by the bodies that they were decoded from.

An application that repeats a search sends the same bytes again. A search that L1 answers spends most of its
time on decoding and checking them: 25 of 53 µs (784 dimensions in base64). So the checked search is kept, if
a cache may answer it and it has no text, whose vector would change with its model.

Invariant: `get` returns what decoding and checking the body again would give. Both depend on the collection,
which is compared as an object, since a new map has new ones, and on settings, which last as long as the
process. No header may change what a body means, and a route that reads bodies differently needs a cache of
its own.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from router.http.texts import EmbeddingView
from router.query.types import SearchQuery
from shard_config.model import Collection

__all__ = ["BodyCache", "CheckedSearch"]

# An entry's objects beside the body and its vector.
_ENTRY_BYTES = 600
# The same for each ranked list of a search that has several.
_LEG_BYTES = 300

_Key: TypeAlias = tuple[str, bytes]  # the collection's name, and the body


class CheckedSearch(msgspec.Struct, frozen=True):
    """A search's body, decoded and checked, and the seconds that it gets.

    `reusable` says that a cache may answer it and that its body will be decoded to the same search again.
    `embedding` is of its text, if it has one.
    """

    query: SearchQuery
    timeout: float
    reusable: bool
    embedding: EmbeddingView | None = None


class BodyCache:
    """Bounded in bytes. The oldest are dropped first, since a dict keeps that order without further work."""

    def __init__(self, max_bytes: int) -> None:
        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._entries: dict[_Key, CheckedSearch] = {}

    def __repr__(self) -> str:
        return f"<BodyCache {len(self._entries)} entries, {self.size_bytes}/{self._max_bytes} bytes>"

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, collection: Collection, body: bytes) -> CheckedSearch | None:
        """The search that `body` asks of this very collection."""
        checked = self._entries.get((collection.name, body))
        return checked if checked is not None and checked.query.collection is collection else None

    def put(self, body: bytes, checked: CheckedSearch) -> None:
        key = (checked.query.collection.name, body)
        size = _size(key, checked)
        if size > self._max_bytes:
            return
        replaced = self._entries.pop(key, None)
        if replaced is not None:
            self.size_bytes -= _size(key, replaced)
        self._entries[key] = checked
        self.size_bytes += size
        while self.size_bytes > self._max_bytes:
            oldest = next(iter(self._entries))
            self.size_bytes -= _size(oldest, self._entries.pop(oldest))


def _size(key: _Key, checked: CheckedSearch) -> int:
    # A decoded filter takes a few times the bytes that it has in the body.
    size = _ENTRY_BYTES + 3 * len(key[1]) + len(checked.query.vector)
    composition = checked.query.composition
    if composition is not None:
        size += sum([_LEG_BYTES + len(leg.vector) for leg in composition.legs])
    return size
