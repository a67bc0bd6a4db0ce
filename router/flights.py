"""Equal questions in flight share one execution.

Invariants: a caller joins only a flight that lasts about as long as it would wait itself; one caller's
leaving does not touch the others; when the last has left, the flight is cancelled and awaited. As in
`router.stages.coalesce`, for values of any kind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["Flights"]

T = TypeVar("T")

# A flight that ends earlier than a caller by no more than this share of its time is joined all the same.
_EARLIER_SHARE = 0.2
# A flight ends by its own deadline, and says better why.
_GRACE = 0.01


class _Flight(Generic[T]):
    def __init__(self, task: asyncio.Future[T], deadline: float) -> None:
        self.task = task
        self.deadline = deadline
        self.waiting = 0


class Flights(Generic[T]):
    """What is under way, by key."""

    def __init__(self) -> None:
        self.joined = 0
        self._flights: dict[bytes, _Flight[T]] = {}

    def __repr__(self) -> str:
        return f"<Flights {len(self._flights)} under way, {self.joined} joined>"

    async def result(
        self, key: bytes, start: Callable[[], Awaitable[T]], deadline: float, late: Callable[[], Exception]
    ) -> T:
        """What the flight of this key brings; `start` begins one, if there is none to join.

        Raises:
            Exception: whatever the flight raises; `late()`, if it takes longer than until `deadline`.
        """
        loop = asyncio.get_running_loop()
        flight = self._flights.get(key)
        if flight is None or flight.task.done() or not _worth_joining(flight.deadline, deadline, loop.time()):
            flight = self._flights[key] = _Flight(asyncio.ensure_future(start()), deadline)
        else:
            self.joined += 1
        flight.waiting += 1
        try:
            await asyncio.wait([flight.task], timeout=max(0.0, deadline + _GRACE - loop.time()))
            if not flight.task.done():
                raise late()
            return flight.task.result()
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                await self._end(key, flight)
            # An error holds the frames that it passes, and this one would hold it in turn.
            del flight

    async def _end(self, key: bytes, flight: _Flight[T]) -> None:
        """Nobody waits for `flight` any more."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.task.done():
            flight.task.cancel()
            await asyncio.gather(flight.task, return_exceptions=True)
        elif not flight.task.cancelled():
            flight.task.exception()  # seen, if it failed in the turn in which its last caller left


def _worth_joining(flight_deadline: float, deadline: float, now: float) -> bool:
    return flight_deadline >= deadline - _EARLIER_SHARE * (deadline - now)
