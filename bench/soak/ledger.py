"""What may be read of each tracked document, by what its writer was told: pure.

A document is written by one client alone, one write after the other, and each write has a version of its
own, which the document shows. From the beginning of a write until its end the old and the new version may
be read. Afterwards only the new one may if it was acknowledged, only the old one if it was refused, and
either for ever if its end is unknown: such a document is not written again, because a late write could
replace a later one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Literal

__all__ = ["End", "Ledger", "Version"]

# None: there is no such document.
Version = int | None
End = Literal["acknowledged", "unknown", "refused"]

# Of a document; a read that is older than all of them allows what the oldest does.
_KEPT_CHANGES = 32


class _Document:
    def __init__(self, owner: int) -> None:
        self.owner = owner
        self.changes: deque[tuple[float, frozenset[Version]]] = deque(maxlen=_KEPT_CHANGES)

    @property
    def allowed(self) -> frozenset[Version]:
        return self.changes[-1][1] if self.changes else frozenset([None])


class Ledger:
    """Changed by writers through `begin` and `end`, and by `restarted`; times are of one monotonic clock.

    `catching_up` is for how long a router that has just started may read what it did not write itself as
    it was before.
    """

    def __init__(self, catching_up: float) -> None:
        self.counts: dict[End, int] = {"acknowledged": 0, "unknown": 0, "refused": 0}
        self._catching_up = catching_up
        self._restarts: list[float] = []
        self._documents: dict[int, _Document] = {}

    def __repr__(self) -> str:
        return f"<Ledger of {len(self._documents)} documents, {self.counts}>"

    def __len__(self) -> int:
        return len(self._documents)

    def begin(self, id_: int, owner: int, version: Version, now: float) -> None:
        """`version` is about to be sent for this document of `owner`."""
        document = self._documents.setdefault(id_, _Document(owner))
        document.changes.append((now, document.allowed | {version}))

    def end(self, id_: int, version: Version, end: End, before: Version, now: float) -> None:
        """What the writer was told of the write that has begun, when `before` was stored."""
        self.counts[end] += 1
        if end != "unknown":
            stored = version if end == "acknowledged" else before
            self._documents[id_].changes.append((now, frozenset([stored])))

    def restarted(self, now: float) -> None:
        """The router was: the new one knows nothing of what the old one wrote."""
        self._restarts.append(now)

    def allowed(self, id_: int, start: float, end: float) -> frozenset[Version]:
        """What a read that was sent at `start` and answered at `end` may show of a document."""
        document = self._documents.get(id_)
        if document is None or not document.changes:
            return frozenset([None])
        for restart in self._restarts:
            if restart < end and start < restart + self._catching_up:
                start = min(start, restart - self._catching_up)
        found: frozenset[Version] = frozenset()
        for at, versions in reversed(document.changes):
            if at <= end:
                found |= versions
                if at <= start:
                    return found
        return found | {None} if len(document.changes) < _KEPT_CHANGES else found

    def wrong(
        self, shown: Mapping[int, Version], asked: Collection[int], start: float, end: float
    ) -> list[str]:
        """What is wrong about an answer that shows these documents, and had to show those of `asked`."""
        found = []
        for id_ in {*shown, *asked}:
            allowed, version = self.allowed(id_, start, end), shown.get(id_)
            if version not in allowed:
                found.append(f"document {id_} is shown as {_named([version])}, may be {_named(allowed)}")
        return found

    def wrong_number(
        self, owner: int, number: int, start: float, end: float, most: int | None = None
    ) -> list[str]:
        """What is wrong about this number of documents of one owner, of which at most `most` are told."""
        sets = [self.allowed(id_, start, end) for id_, one in self._documents.items() if one.owner == owner]
        least, possible = sum(None not in one for one in sets), sum(one != {None} for one in sets)
        if most is not None:
            least, possible = min(least, most), min(possible, most)
        if least <= number <= possible:
            return []
        return [f"{number} documents of owner {owner}, may be {least} to {possible}"]

    def certain(self) -> Iterator[tuple[int, Version]]:
        """Each document of which it is known what is stored, and that."""
        for id_, document in self._documents.items():
            if len(document.allowed) == 1:
                yield id_, next(iter(document.allowed))

    def uncertain(self) -> set[int]:
        return {id_ for id_, document in self._documents.items() if len(document.allowed) > 1}

    def compare(self, held: Iterable[tuple[int, Version]]) -> list[str]:
        """What is wrong about the rows that all shards hold in the end, each named by id and version."""
        rows: dict[int, list[Version]] = {}
        for id_, version in held:
            rows.setdefault(id_, []).append(version)
        found = []
        for id_ in {*rows, *self._documents}:
            stored = rows.get(id_, [None])
            known = self._documents.get(id_)
            allowed = known.allowed if known is not None else frozenset[Version]([None])
            if len(stored) > 1 or stored[0] not in allowed:
                found.append(f"document {id_} is stored as {_named(stored)}, must be {_named(allowed)}")
        return found


def _named(versions: Iterable[Version]) -> str:
    return " or ".join(sorted("none" if one is None else f"v{one}" for one in versions))
