"""Which of the waiting texts go into a model's next call. Pure.

Requests take turns: a turn fills what room the batch has left, and a request that is not finished then goes
behind the others (deficit round robin with a quantum of one batch, Shreedhar and Varghese 1995). So a
request of thousands of texts delays one of a single text by a batch, not by all of its own, while requests
that fit into one batch are answered in the order in which they came.

Invariant: a batch holds at least one text if any waits, at most `most_items`, and no more characters than
`most_chars` unless it holds one text only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

__all__ = ["Turns", "take_batch"]

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """The items of one request, shortest first, of which some have been taken.

    Texts of one batch are padded to the longest of them by most models, so neighbours in length belong
    together.
    """

    __slots__ = ("_order", "_taken", "items", "sizes")

    def __init__(self, items: Sequence[Item], sizes: Sequence[int]) -> None:
        self.items = items
        self.sizes = sizes
        self._order = sorted(range(len(items)), key=sizes.__getitem__)
        self._taken = 0

    def __repr__(self) -> str:
        return f"<Turns {self._taken}/{len(self.items)}>"

    @property
    def waiting(self) -> int:
        """Items that have not been taken."""
        return len(self.items) - self._taken

    @property
    def waiting_chars(self) -> int:
        return sum(self.sizes[index] for index in self._order[self._taken :])

    @property
    def next_size(self) -> int:
        return self.sizes[self._order[self._taken]]

    def take(self) -> int:
        """The index of the next item."""
        self._taken += 1
        return self._order[self._taken - 1]


T = TypeVar("T", bound="Turns[Any]")


def take_batch(waiting: deque[T], most_items: int, most_chars: int) -> list[tuple[T, list[int]]]:
    """Take the next batch out of `waiting`, which keeps only requests that are not finished.

    Returns each request of it with the indices of its items that belong to the batch.
    """
    batch: list[tuple[T, list[int]]] = []
    room, chars = most_items, 0
    while waiting and room:
        turns = waiting[0]
        indices: list[int] = []
        while turns.waiting and room and (chars + turns.next_size <= most_chars or room == most_items):
            chars += turns.next_size
            indices.append(turns.take())
            room -= 1
        if indices:
            batch.append((turns, indices))
        if turns.waiting:
            # The batch is full. The turn is over if it brought anything; otherwise it is still to come.
            if indices:
                waiting.rotate(-1)
            break
        waiting.popleft()
    return batch
