"""Identical searches in flight share one execution.

Invariants: a caller joins only a flight that started at the present version, so that no caller gets
an answer from before a write that it knows of; one caller's cancellation does not touch the others;
when the last caller has left, the flight is cancelled and awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from router.query.errors import DeadlineError
from router.query.types import Found, Room, SearchQuery
from router.stages.stage import Figures, Stage

__all__ = ["Coalesced"]

# A flight that ends this share of a caller's remaining time earlier than the caller must is still
# worth joining. One that ends later is not: it would cost the caller the partial answer it is due.
_EARLIER_SHARE = 0.1

# Searches of one batch share what their answers may take, and nobody else has a part in that.
_Key: TypeAlias = tuple[int, bytes, bool, Room | None]


class _Flight:
    def __init__(self, task: asyncio.Task[Found], deadline: float) -> None:
        self.task = task
        self.deadline = deadline
        self.waiting = 0


class Coalesced:
    """Starts its inner stage once for all who ask the same at the same time."""

    def __init__(self, inner: Stage[SearchQuery, Found], version: Callable[[str], int]) -> None:
        self.joined = 0
        self._inner = inner
        self._version = version
        self._flights: dict[_Key, _Flight] = {}

    def __repr__(self) -> str:
        return f"<Coalesced {len(self._flights)} in flight, {self.joined} joined>"

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        if not query.cached:
            return await self._inner.search(query, deadline)
        key = (self._version(query.collection.name), query.digest, query.allow_partial, query.room)
        return await self._wait(key, self._flight(key, query, deadline), deadline)

    def _flight(self, key: _Key, query: SearchQuery, deadline: float) -> _Flight:
        """One to wait for, which may be under way already."""
        flight = self._flights.get(key)
        if flight is None or not _worth_joining(flight.deadline, deadline):
            return self._start(key, query, deadline)
        self.joined += 1
        return flight

    def describe(self) -> Figures:
        return {"coalesced": self.joined} | self._inner.describe()

    def _start(self, key: _Key, query: SearchQuery, deadline: float) -> _Flight:
        flight = _Flight(asyncio.create_task(self._inner.search(query, deadline)), deadline)
        self._flights[key] = flight

        flight.task.add_done_callback(lambda _: self._forget(key, flight))
        return flight

    def _forget(self, key: _Key, flight: _Flight) -> None:
        """Nobody may join `flight` any more."""
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _wait(self, key: _Key, flight: _Flight, deadline: float) -> Found:
        flight.waiting += 1
        try:
            await asyncio.wait([flight.task], timeout=max(0.0, deadline - asyncio.get_running_loop().time()))
            if not flight.task.done():
                raise DeadlineError("the search did not finish in time")
            return flight.task.result()
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._forget(key, flight)
                flight.task.cancel()
                await asyncio.gather(flight.task, return_exceptions=True)
            elif not flight.waiting and not flight.task.cancelled():
                flight.task.exception()  # seen, if it failed in the turn in which its last caller left
            # An error holds the frames that it passes, and this one would hold it in turn.
            del flight


def _worth_joining(flight_deadline: float, deadline: float) -> bool:
    remaining = deadline - asyncio.get_running_loop().time()
    return deadline - _EARLIER_SHARE * remaining <= flight_deadline <= deadline
