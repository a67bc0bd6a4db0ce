"""Identical searches in flight share one execution.

Invariant: a caller joins only a flight that started at the present version, so that no caller gets an answer
from before a write that it knows of. What becomes of a flight whose callers leave, see `router.flights`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from router.flights import Flights
from router.query.errors import DeadlineError
from router.query.types import Found, Room, SearchQuery
from router.stages.stage import Figures, Stage

__all__ = ["Coalesced"]

# A flight that ends this share of a caller's remaining time earlier than the caller must is still
# worth joining. One that ends later is not: it would cost the caller the partial answer it is due.
_EARLIER_SHARE = 0.1

# Searches of one batch share what their answers may take, and nobody else has a part in that.
_Key: TypeAlias = tuple[int, bytes, bool, Room | None]


class Coalesced:
    """Starts its inner stage once for all who ask the same at the same time."""

    def __init__(self, inner: Stage[SearchQuery, Found], version: Callable[[str], int]) -> None:
        self._inner = inner
        self._version = version
        self._flights: Flights[_Key, Found] = Flights(_worth_joining)

    def __repr__(self) -> str:
        return f"<Coalesced {self._flights!r}>"

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        if not query.cached:
            return await self._inner.search(query, deadline)
        key = (self._version(query.collection.name), query.digest, query.allow_partial, query.room)
        return await self._flights.result(key, partial(self._inner.search, query, deadline), deadline, _late)

    def describe(self) -> Figures:
        return {"coalesced": self._flights.joined} | self._inner.describe()


def _late() -> DeadlineError:
    return DeadlineError("the search did not finish in time")


def _worth_joining(flight_deadline: float, deadline: float, now: float) -> bool:
    return deadline - _EARLIER_SHARE * (deadline - now) <= flight_deadline <= deadline
