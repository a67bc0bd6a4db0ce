"""How many statements a node is given at once: as many as it runs side by side, hardly more.

Past the point where its cores are busy, a further statement adds nothing to what a PostgreSQL server
gets done per second and something to how long each takes. The limit finds that point by comparing what
a search costs in company with what the same kind of search costs alone.

After TCP Vegas (Brakmo and Peterson, SIGCOMM 1994), as Netflix's concurrency-limits applies it to
requests: of `limit` statements `limit * (1 - alone / now)` wait inside the server rather than run. Two
changes. Times are compared per search, since a statement may carry many, and per kind. And the time
alone is a mean of measurements at the least limit, renewed now and then by going back there for a
moment, as BBR does for its round trip (Cardwell et al., ACM Queue 2016): a minimum would take the
luckiest search for the usual one. Means are geometric, because times have long tails.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import exp, log

__all__ = ["Limit"]

# Fewer waiting inside a server than the first: give it more; more than the second: less.
_ALPHA = 0.5
_BETA = 1.0
# A statement costs this many searches beside those it carries (60,000 x 784, ef_search 16: 0.28 ms of
# PostgreSQL's time alone, 0.20 ms for each of sixteen together).
_FIXED = 0.5
_START = 2
_WINDOW = 8  # statements per decision
_RENEW = 15.0  # seconds between looks at the time alone
_WEIGHT = 0.2  # of a new measurement of it
_KINDS = 64


class Limit:
    """A number between `least` and `most`; changed by `observe` and `refused` alone.

    Attributes:
        value: statements that may be in flight now.
    """

    def __init__(self, least: int, most: int) -> None:
        self.value = least
        self._least = least
        self._most = most
        self._goal = min(max(least, _START), most)  # where a look at the time alone returns to
        self._alone: dict[Hashable, float] = {}  # logarithm of seconds per search
        self._renewed: float | None = None
        self._sum = 0.0
        self._count = 0
        self._full = False

    def __repr__(self) -> str:
        return f"<Limit {self.value} of {self._least}..{self._most}>"

    def observe(self, kind: Hashable, seconds: float, searches: int, in_flight: int, now: float) -> None:
        """A statement of `searches` searches of one kind took `seconds`.

        `in_flight` counts the node's statements when it started, itself included.
        """
        cost = log(max(seconds, 1e-6) / (searches + _FIXED))
        if in_flight <= self._least:
            self._learn(kind, cost)
            self._renewed = now
        if self.value < self._goal:
            if in_flight <= self._least:
                self._count += 1
                if self._count >= _WINDOW:
                    self._go_to(self._goal)
            return
        alone = self._alone.get(kind)
        if alone is None:
            if self._renewed is None or now - self._renewed > _RENEW:
                self._go_to(self._least)
            return
        self._sum += cost - alone
        self._count += 1
        self._full = self._full or in_flight >= self.value
        if self._count >= _WINDOW:
            self._decide(now)

    def refused(self) -> None:
        """The node had no room for what it was given."""
        self._goal = max(self._least, self._goal // 2)
        self._go_to(self._goal)

    def _learn(self, kind: Hashable, cost: float) -> None:
        known = self._alone.get(kind)
        if known is None and len(self._alone) >= _KINDS:
            del self._alone[next(iter(self._alone))]
        self._alone[kind] = cost if known is None else known + _WEIGHT * (cost - known)

    def _decide(self, now: float) -> None:
        if self._renewed is None or now - self._renewed > _RENEW:
            self._go_to(self._least)
            return
        waiting = self.value * (1 - exp(-self._sum / self._count))
        if waiting < _ALPHA and self._full:
            self._goal = min(self._most, self.value + 1)
        elif waiting > _BETA:
            self._goal = max(self._least, self.value - 1)
        self._go_to(self._goal)

    def _go_to(self, value: int) -> None:
        self.value = value
        self._sum = 0.0
        self._count = 0
        self._full = False
