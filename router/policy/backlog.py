"""The queue in front of a node: which item is next, and which others may be taken along with it.

Items are served in the order of their turns. The turn of an item is the moment of its arrival, but a caller
that already has n items waiting gets for its next one the turn of an item that arrives n spacings later. So a
batch lets single searches go between its own, as in VirtualClock (Zhang, SIGCOMM 1990), except that a caller
is not held back later for what it used of an idle node. An admitted batch, of which few items wait at a time,
has one turn in each spacing although its next item comes only when another has been answered: else it would
stand behind all others again and again. A turn never changes and later arrivals get later turns, so that
every item is served in the end, however many others come.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, Protocol, TypeVar

from router.policy.batches import AdmittedBatch

__all__ = ["Backlog", "Waiting"]

# Seconds. A node answers a search in some tenths of a millisecond: a batch that has filled the queue delays a
# single search by a statement or two, and a batch that is alone is not slowed down at all.
_SPACING = 0.001
# Times the time that a search takes at the moment, where that is more than the spacing: were turns closer
# than searches take, all turns of a batch would have come before its first was answered, and a single search
# would wait for all of them. Twice as far apart, a batch leaves half of the node to others.
_SHARE = 2.0


class Waiting(Protocol):
    """An item of a backlog.

    `key` is what items have in common that may be taken together; `caller` what those of one batch
    have, None for a search of its own; `left` says that nobody wants the item any more.
    """

    @property
    def key(self) -> Hashable: ...
    @property
    def caller(self) -> Hashable | None: ...
    @property
    def left(self) -> bool: ...


T = TypeVar("T", bound=Waiting)


class Backlog(Generic[T]):
    """Items by key, those of one key in the order of their turns.

    An item that has left stays until its turn comes, and is dropped then.
    """

    def __init__(self) -> None:
        self._queues: dict[Hashable, list[tuple[float, int, T]]] = {}
        self._numbers = count()  # equal turns go by arrival
        self._callers: dict[Hashable, int] = {}

    def __repr__(self) -> str:
        return f"<Backlog {sum(map(len, self._queues.values()))} of {len(self._queues)} keys>"

    def add(self, item: T, now: float, pace: float = 0.0) -> None:
        """Queue an item; `pace` is the seconds that each one takes at the moment."""
        turn = now
        if item.caller is not None:
            ahead = self._callers.get(item.caller, 0)
            self._callers[item.caller] = ahead + 1
            spacing = max(_SPACING, _SHARE * pace)
            turn += ahead * spacing
            if isinstance(item.caller, AdmittedBatch):
                turn = item.caller.turn(self, turn, spacing)
        heappush(self._queues.setdefault(item.key, []), (turn, next(self._numbers), item))

    def take(self, most: Callable[[T], int]) -> list[T]:
        """The item whose turn it is and more of its key, up to `most` of it; nothing if all have left."""
        while self._queues:
            key = min(self._queues, key=lambda key: self._queues[key][0][:2])
            queue = self._queues[key]
            items: list[T] = []
            first = queue[0][2]
            if first.left:
                # It gives its turn to nobody: the next may be another key's.
                self._gone(heappop(queue))
            else:
                room = most(first)
                while queue and len(items) < room:
                    item = self._gone(heappop(queue))
                    if not item.left:
                        items.append(item)
            if not queue:
                del self._queues[key]
            if items:
                return items
        return []

    def remove(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Drop what has left, and what is `unwanted`, which is returned; the others keep their turns."""
        removed: list[T] = []
        for key, queue in list(self._queues.items()):
            kept: list[tuple[float, int, T]] = []
            for entry in queue:
                if not entry[2].left and not unwanted(entry[2]):
                    kept.append(entry)
                elif not self._gone(entry).left:
                    removed.append(entry[2])
            if kept:
                heapify(kept)
                self._queues[key] = kept
            else:
                del self._queues[key]
        return removed

    def clear(self) -> list[T]:
        """All that had not left, in the order of their turns; nothing waits any more."""
        entries = [entry for queue in self._queues.values() for entry in queue]
        self._queues.clear()
        self._callers.clear()
        return [item for _, _, item in sorted(entries, key=lambda entry: entry[:2]) if not item.left]

    def _gone(self, entry: tuple[float, int, T]) -> T:
        item = entry[2]
        if item.caller is not None:
            self._callers[item.caller] -= 1
            if not self._callers[item.caller]:
                del self._callers[item.caller]
        return item
