"""How many statements a host is given at once: as many as it runs side by side, hardly more.

Past the point where its cores are busy, a further statement adds nothing to what a PostgreSQL server
gets done per second and something to how long each takes. The limit finds that point by comparing what
a statement takes in company with what it would take alone.

After TCP Vegas (Brakmo and Peterson, SIGCOMM 1994), as Netflix's concurrency-limits applies it to
requests: of `limit` statements `limit * (1 - alone / now)` wait inside the server rather than run. Three
changes. Statements carry many searches, so what one would take alone is a line over their number, known
for each kind from statements of one search and of many. The nodes of a host share its cores, so their
statements are counted together. And the time alone is a mean of measurements at the least limit, renewed
now and then by going back there for a moment, as BBR does for its round trip (Cardwell et al., ACM Queue
2016): a minimum would take the luckiest search for the usual one. Means are geometric, because times have
long tails.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import exp, log

__all__ = ["Limit"]

# Fewer waiting inside a server than the first: give it more; more than the second: less. They grow with
# the limit, as Netflix's do, because the error of `limit * (1 - alone / now)` does.
_ALPHA, _BETA = 0.5, 1.0
_ALPHA_SHARE, _BETA_SHARE = 1 / 16, 1 / 8
# Until it is known: a statement costs this many searches beside those it carries (60,000 x 784,
# ef_search 16: 0.28 ms of PostgreSQL's time alone, 0.20 ms for each of sixteen together).
_FIXED = 0.5
_START = 2
_WINDOW = 8  # statements per decision
_RENEW = 15.0  # seconds between looks at the time alone
_WEIGHT = 0.2  # of a new measurement of it
_KINDS = 64


class Limit:
    """A number between `least` and `most` times `nodes`; changed by `observe` and `refused` alone.

    Attributes:
        value: statements that may be in flight now, on all nodes together.
        in_flight: those that are.
    """

    def __init__(self, least: int, most: int, nodes: int = 1) -> None:
        self.value = least * nodes
        self.in_flight = 0
        self._own_least, self._own_most = least, most
        self._least, self._most = least * nodes, most * nodes
        # where a look at the time alone returns to
        self._goal = min(max(self._least, _START), self._most)
        self._alone: dict[Hashable, _Alone] = {}
        self._renewed: float | None = None
        self._turn = 0
        self._changed = 0.0
        self._sum = 0.0
        self._count = 0
        self._full = False

    def __repr__(self) -> str:
        return f"<Limit {self.value} of {self._least}..{self._most}, {self.in_flight} in flight>"

    def admits(self, own: int) -> bool:
        """Whether a node with `own` statements may have one more; each always gets its least."""
        return own < self._own_least or (own < self._own_most and self.in_flight < self.value)

    def together(self, most: int) -> int:
        """How many searches the next statement may carry, `most` or fewer.

        While it looks at the time alone, every other statement carries one, so that the cost of a
        statement and that of a search can be told apart.
        """
        if self.value >= self._goal:
            return most
        self._turn += 1
        return 1 if self._turn % 2 else most

    def start(self) -> int:
        """A statement leaves for a node; returns how many are in flight, itself included."""
        self.in_flight += 1
        return self.in_flight

    def end(self) -> None:
        self.in_flight -= 1

    def observe(self, kind: Hashable, seconds: float, searches: int, in_flight: int, now: float) -> None:
        """A statement of `searches` searches of one kind, still counted, took `seconds`.

        `in_flight` is what `start` said.
        """
        # Others may have come since it started.
        quiet = max(in_flight, self.in_flight) <= self._least
        if quiet:
            self._learn(kind, searches, seconds)
            self._renewed = now
        if self.value < self._goal:
            self._count += quiet
            if self._count >= _WINDOW:
                self._go_to(self._goal, now)
            return
        alone = self._alone.get(kind)
        if alone is None:
            if self._renewed is None or now - self._renewed > _RENEW:
                self._go_to(self._least, now)
            return
        if now - seconds < self._changed:
            return  # of the time before the last decision
        self._sum += log(max(seconds, 1e-6) / alone.expected(searches))
        self._count += 1
        self._full = self._full or in_flight >= self.value
        if self._count >= max(_WINDOW, self.value):
            self._decide(now)

    def refused(self) -> None:
        """The node had no room for what it was given."""
        self._goal = max(self._least, self._goal // 2)
        self._go_to(self._goal, self._changed)

    def _learn(self, kind: Hashable, searches: int, seconds: float) -> None:
        known = self._alone.get(kind)
        if known is None:
            if len(self._alone) >= _KINDS:
                del self._alone[next(iter(self._alone))]
            known = self._alone[kind] = _Alone()
        known.learn(searches, max(seconds, 1e-6))

    def _decide(self, now: float) -> None:
        if self._renewed is None or now - self._renewed > _RENEW:
            self._go_to(self._least, now)
            return
        value = self.value
        waiting = value * (1 - exp(-self._sum / self._count))
        if waiting < max(_ALPHA, _ALPHA_SHARE * value) and self._full:
            self._goal = min(self._most, value + 1)
        elif waiting > max(_BETA, _BETA_SHARE * value):
            self._goal = max(self._least, value - 1)
        self._go_to(self._goal, now)

    def _go_to(self, value: int, now: float) -> None:
        if value != self.value:
            self._changed = now
        self.value = value
        self._sum = 0.0
        self._count = 0
        self._full = False


class _Alone:
    """What statements of one kind take alone: seconds as a line over the searches in them."""

    __slots__ = ("_many", "_one", "_size")

    def __init__(self) -> None:
        self._one: float | None = None  # logarithm of the seconds of one search
        self._many: float | None = None  # of the seconds per search of several
        self._size = 0.0  # how many those were

    def learn(self, searches: int, seconds: float) -> None:
        cost = log(seconds / searches)
        if searches == 1:
            self._one = cost if self._one is None else self._one + _WEIGHT * (cost - self._one)
        elif self._many is None:
            self._many, self._size = cost, float(searches)
        else:
            self._many += _WEIGHT * (cost - self._many)
            self._size += _WEIGHT * (searches - self._size)

    def expected(self, searches: int) -> float:
        """Seconds."""
        if self._one is None:
            assert self._many is not None, "something has been learnt before anything is expected"
            each = exp(self._many) * self._size / (self._size + _FIXED)
            return each * (searches + _FIXED)
        one = exp(self._one)
        each = one / (1 + _FIXED)
        if self._many is not None:
            each = (exp(self._many) * self._size - one) / (self._size - 1)
            # A search costs something, and a statement no less than its searches.
            each = min(max(each, one / 10), one)
        return one + each * (searches - 1)
