"""Which connection is opened next, when many are wanted at once. Pure.

To open one costs the router milliseconds and the server more, so a thousand at once end no sooner than one
after the other, and all of them too late. Invariants: at most `at_once` are being opened that have begun
lately, and at most `_MOST` times as many together, since one whose server says nothing takes no processor's
time; whoever waits is overtaken only by those that are more urgent and came within `_HEAD_START` of it, so
that nobody waits for ever.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from enum import IntEnum
from math import inf

__all__ = ["Opening", "Openings", "Urgency"]

# An opening takes tens of milliseconds; one that takes this long waits for the network or for its server.
_LATE_SECONDS = 1.0
_MOST = 4


class Urgency(IntEnum):
    """What a connection is wanted for."""

    REQUEST = 0  # a search or a write waits for it
    SHARD = 1  # to probe a node of a shard of which no node is up
    NODE = 2  # to probe another node
    SPARE = 3  # for later


# By how many seconds each overtakes the next less urgent.
_HEAD_START = (0.0, 0.5, 2.0, 5.0)


class Opening:
    """One connection that is wanted. `urgency` is asked again when its turn has come."""

    __slots__ = ("asked", "left", "started", "urgency")

    def __init__(self, urgency: Callable[[], Urgency], now: float) -> None:
        self.urgency = urgency
        self.asked = now
        self.started: float | None = None
        self.left = False  # nobody wants it any more

    def __repr__(self) -> str:
        return f"<Opening {self.urgency().name}, asked {self.asked:g}, started {self.started}>"

    @property
    def due(self) -> float:
        return self.asked + _HEAD_START[self.urgency()]


class Openings:
    """Those that wait and those that have begun; every time is of one clock."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._waiting: list[tuple[float, int, Opening]] = []
        self._numbers = itertools.count()
        self._begun: dict[Opening, float] = {}  # in the order of their beginnings
        self._left = 0  # of those that wait

    def __repr__(self) -> str:
        return f"<Openings {len(self._begun)} under way, {self.waiting} waiting>"

    @property
    def waiting(self) -> int:
        return len(self._waiting) - self._left

    def ask(self, opening: Opening) -> None:
        heapq.heappush(self._waiting, (opening.due, next(self._numbers), opening))

    def begin(self, now: float) -> Opening | None:
        """The next one, which begins now; None if it has to wait, or nobody waits."""
        while self._waiting and self._room(now):
            due, _, opening = heapq.heappop(self._waiting)
            if opening.left:
                self._left -= 1
                continue
            if opening.due > due:
                # It is less urgent by now, such as when another node of its shard has come back.
                self.ask(opening)
                if self._waiting[0][2] is not opening:
                    continue
                heapq.heappop(self._waiting)
            opening.started = now
            self._begun[opening] = now
            return opening
        return None

    def end(self, opening: Opening) -> None:
        """It is open, has failed, or is not wanted any more."""
        if self._begun.pop(opening, None) is None and not opening.left:
            opening.left = True
            self._left += 1

    def room_at(self) -> float:
        """When the next one may begin although none has ended; infinite if that does not come."""
        if not self.waiting or len(self._begun) >= _MOST * self._at_once:
            return inf
        lately = list(self._begun.values())[-self._at_once :]
        return lately[0] + _LATE_SECONDS if len(lately) == self._at_once else inf

    def _room(self, now: float) -> bool:
        if len(self._begun) < self._at_once:
            return True
        if len(self._begun) >= _MOST * self._at_once:
            return False
        lately = list(self._begun.values())[-self._at_once]
        return now - lately >= _LATE_SECONDS
