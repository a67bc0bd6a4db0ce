"""Equal questions in flight share one execution.

Invariants: a caller joins only a flight that lasts as long as whoever made the flights says is worth it; one
caller's leaving does not touch the others; when the last has left, the flight is cancelled and awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

__all__ = ["Flights"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class _Flight(Generic[T]):
    def __init__(self, task: asyncio.Task[T], deadline: float) -> None:
        self.task = task
        self.deadline = deadline
        self.waiting = 0


class Flights(Generic[K, T]):
    """What is under way, by key."""

    def __init__(self, worth_joining: Callable[[float, float, float], bool], grace: float = 0.0) -> None:
        """
        Args:
            worth_joining: whether a flight that ends by the first time is worth joining for a caller who has
                until the second, when it is the third.
            grace: seconds by which a caller outwaits its deadline, for flights that end by themselves then.
        """
        self.joined = 0
        self._worth_joining = worth_joining
        self._grace = grace
        self._flights: dict[K, _Flight[T]] = {}

    def __repr__(self) -> str:
        return f"<Flights {len(self._flights)} in flight, {self.joined} joined>"

    async def result(
        self,
        key: K,
        start: Callable[[], Coroutine[Any, Any, T]],
        deadline: float,
        late: Callable[[], Exception],
    ) -> T:
        """What the flight of this key brings; `start` begins one, if there is none to join.

        Raises:
            Exception: whatever the flight raises; `late()`, if it takes longer than until `deadline`.
        """
        now = asyncio.get_running_loop().time()
        flight = self._flights.get(key)
        if flight is None or flight.task.done() or not self._worth_joining(flight.deadline, deadline, now):
            flight = self._flights[key] = _Flight(asyncio.create_task(start()), deadline)
        else:
            self.joined += 1
        flight.waiting += 1
        try:
            await asyncio.wait([flight.task], timeout=max(0.0, deadline + self._grace - now))
            if not flight.task.done():
                raise late()
            return flight.task.result()
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                await self._end(key, flight)
            # An error holds the frames that it passes, and this one would hold it in turn.
            del flight

    async def _end(self, key: K, flight: _Flight[T]) -> None:
        """Nobody waits for `flight` any more."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.task.done():
            flight.task.cancel()
            await asyncio.gather(flight.task, return_exceptions=True)
        elif not flight.task.cancelled():
            flight.task.exception()  # seen, if it failed in the turn in which its last caller left
