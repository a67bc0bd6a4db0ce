"""Bodies of searches that came before, each with the checked search that it was decoded to.

An application that repeats a search sends the same bytes again. A search that L1 answers spends most
of its time on decoding and checking them: 25 of 53 µs (784 dimensions in base64). So the checked search
is kept, if a cache may answer it and it has no text, whose vector would change with its model.

Invariant: what `get` returns is what decoding and checking the body again would give.
"""

from __future__ import annotations

import msgspec

from router.query.types import SearchQuery
from shard_config.model import Collection

__all__ = ["CheckedBodies", "CheckedSearch"]

# An entry's objects beside the body and its vector.
_ENTRY_BYTES = 600


class CheckedSearch(msgspec.Struct, frozen=True):
    """A search's body, decoded and checked, and the seconds that it gets.

    `reusable` says that a cache may answer it and that its body will be decoded to the same search again.
    """

    query: SearchQuery
    timeout: float
    reusable: bool


class CheckedBodies:
    """Checked searches by their bodies, within `max_bytes`.

    The oldest are dropped first: a dict keeps the order of arrival for nothing, that of use would cost.
    """

    def __init__(self, max_bytes: int) -> None:
        self.size_bytes = 0
        self._most = max_bytes
        self._entries: dict[bytes, CheckedSearch] = {}

    def __repr__(self) -> str:
        return f"<CheckedBodies {len(self._entries)} entries, {self.size_bytes}/{self._most} bytes>"

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, body: bytes, collection: Collection) -> CheckedSearch | None:
        """The search that `body` asks of this very collection; a new map has new collections."""
        checked = self._entries.get(body)
        return checked if checked is not None and checked.query.collection is collection else None

    def put(self, body: bytes, checked: CheckedSearch) -> None:
        size = _size(body, checked)
        if size > self._most:
            return
        replaced = self._entries.pop(body, None)
        if replaced is not None:
            self.size_bytes -= _size(body, replaced)
        self._entries[body] = checked
        self.size_bytes += size
        while self.size_bytes > self._most:
            oldest = next(iter(self._entries))
            self.size_bytes -= _size(oldest, self._entries.pop(oldest))


def _size(body: bytes, checked: CheckedSearch) -> int:
    # A decoded filter takes a few times the bytes that it has in the body.
    return _ENTRY_BYTES + 3 * len(body) + len(checked.query.vector)
