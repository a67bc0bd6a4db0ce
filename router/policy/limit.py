"""How many statements a host is given at once: as few as keep it at its most productive.

Up to the point where its cores are busy, a further statement adds to what a PostgreSQL server gets done per
second; past it, to how long each takes; and as what waits leaves together, fewer statements carry more
searches, which costs less. The limit climbs that hill: while searches wait, it works with two limits in
turn, the one that it holds and one beside it, and moves when the other answers more searches per second,
or hardly fewer with fewer statements. Where nothing waits there is nothing to learn, and the limit stays.

After Heiss and Wagner, "Adaptive Load Control in Transaction Processing Systems" (VLDB 1991): incremental
steps on throughput, which by Little's law is what is in flight over its latency. What Vegas and the
gradients of Netflix's concurrency-limits compare, the latency now and the latency of an idle server, cannot
be had here: most of what a router under load measures of a short statement is its own event loop's delay
(3.6 ms for statements that take 0.4), so that a limit after Vegas went to five statements per node where one
answers 6 to 18 % more (60,000 x 784, four nodes on two cores, 64 and 16 clients). Turns take out what the
machine, other routers and the mix of searches do meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from statistics import fmean, stdev

__all__ = ["Limit"]

# The first steps double; later ones are small, because the hill is flat at its top.
_FAR, _NEAR = 2.0, 1.25
# More searches per second that a step up must bring, and those that a step down may cost, by the step's
# logarithm: a step of 1.25 up has to bring 1.8 %.
_GAIN, _LOSS = 0.08, 0.04
# A turn ends when this long has passed and this many statements have been answered.
_TURN_SECONDS, _TURN_STATEMENTS = 0.1, 16
# A step up is tried if this share of the statements had as many beside them as may be; one down only if
# this share left searches waiting, since fewer statements would otherwise do as much, only later.
_FULL, _WAITS = 0.25, 0.75
# Pairs of turns: with fewer, nothing is decided; with more, no doubt is left to settle.
_LEAST_PAIRS, _MOST_PAIRS = 3, 8
# What a mean of few pairs is trusted to, at best.
_LEAST_ERROR = 0.01
# At the top, it looks around this often.
_REST_SECONDS = 10.0


class Limit:
    """A number between `least` and `most` times `nodes`; changed by `observe` and `refused` alone.

    Attributes:
        value: statements that may be in flight now, on all nodes together.
        in_flight: those that are.
        pumps: of the nodes that share it; each sends what waits there, as far as there is room.
    """

    def __init__(self, least: int, most: int, nodes: int = 1) -> None:
        self.value = least * nodes
        self.in_flight = 0
        self.pumps: list[Callable[[], None]] = []
        self._taken = self.value  # by statements, and by what nodes may still have of their least
        self._own_least, self._own_most = least, most
        self._least, self._most = least * nodes, most * nodes
        self._held = self.value
        self._upwards, self._factor = True, _FAR
        self._refusals = 0  # of steps, one after the other
        self._trial: _Trial | None = None
        self._rests_until = 0.0
        self._turn = _Turn(0)

    def __repr__(self) -> str:
        return f"<Limit {self.value} of {self._least}..{self._most}, {self.in_flight} in flight>"

    @property
    def room(self) -> bool:
        """Whether any node may have one more than its least."""
        return self._taken < self.value

    def admits(self, own: int) -> bool:
        """Whether a node with `own` statements may have one more; each always gets its least."""
        return own < self._own_least or (own < self._own_most and self._taken < self.value)

    def start(self, own: int) -> None:
        """A statement leaves for a node that has `own` others."""
        self.in_flight += 1
        self._taken += own >= self._own_least

    def end(self, own: int) -> None:
        """A statement has ended on a node that has `own` others."""
        self.in_flight -= 1
        self._taken -= own >= self._own_least

    def observe(self, searches: int, now: float, *, waiting: bool) -> None:
        """A statement of `searches` has been answered; whether others wait for its node."""
        turn = self._turn
        turn.add(searches, now, waits=waiting, full=waiting or self.in_flight >= self.value)
        if not turn.over(now, max(_TURN_STATEMENTS, 2 * self.value)):
            return
        enough = turn.full >= _FULL if self._upwards else turn.waits >= _WAITS
        if enough or self.value != self._held:
            self._compare(turn.rate(now), now)
        else:
            self._trial = None
            self._go_to(self._held)

    def refused(self) -> None:
        """The node had no room for what it was given."""
        self._held = max(self._least, self._held // 2)
        self._trial = None
        self._go_to(self._held)

    def _compare(self, rate: float, now: float) -> None:
        if self._trial is None and now >= self._rests_until:
            self._trial = self._next_trial()
        if self._trial is None:
            self._go_to(self._held)
            return
        self._trial.add(rate)
        better = self._trial.verdict()
        if better is None:
            self._go_to(self._trial.next)
        else:
            self._decide(self._trial.other, better, now)

    def _decide(self, other: int, better: bool, now: float) -> None:
        self._trial = None
        if better:
            self._held = other
            self._refusals = 0
        else:
            self._turn_round()
        if self._refusals >= 2:
            self._rests_until = now + _REST_SECONDS
            self._refusals = 0
        self._go_to(self._held)

    def _next_trial(self) -> _Trial | None:
        """The next step; one that a bound forbids counts as refused."""
        for _ in range(2):
            other = self._stepped()
            if other != self._held:
                share = abs(log(other / self._held))
                return _Trial(self._held, other, _GAIN * share if other > self._held else -_LOSS * share)
            self._turn_round()
        return None

    def _stepped(self) -> int:
        held = self._held
        if self._upwards:
            return min(self._most, max(held + 1, round(held * self._factor)))
        return max(self._least, min(held - 1, round(held / self._factor)))

    def _turn_round(self) -> None:
        self._upwards = not self._upwards
        self._factor = _NEAR
        self._refusals += 1

    def _go_to(self, value: int) -> None:
        # What is in flight started under the old limit.
        self._turn = _Turn(max(self.in_flight, value) if value != self.value else 0)
        self.value = value


class _Turn:
    """Some time under one limit, which begins after `settling` statements."""

    def __init__(self, settling: int) -> None:
        self._settling = settling
        self._since: float | None = None
        self._last = 0.0
        self._searches = self._statements = self._waits = self._full = 0

    @property
    def full(self) -> float:
        """The share of the statements that had as many beside them as may be."""
        return self._full / self._statements

    @property
    def waits(self) -> float:
        """The share of the statements that left searches waiting."""
        return self._waits / self._statements

    def add(self, searches: int, now: float, *, waits: bool, full: bool) -> None:
        if self._settling > 0:
            self._settling -= 1
        elif self._since is None or now - self._last > _TURN_SECONDS:
            # It begins, or begins again after a time when there was nothing to do.
            self._since = now
            self._searches = self._statements = self._waits = self._full = 0
        else:
            self._searches += searches
            self._statements += 1
            self._waits += waits
            self._full += full
        self._last = now

    def over(self, now: float, statements: int) -> bool:
        if self._since is None or self._statements < statements:
            return False
        return now - self._since >= _TURN_SECONDS

    def rate(self, now: float) -> float:
        """Searches per second."""
        assert self._since is not None, "a turn has a rate when it is over"
        return self._searches / (now - self._since)


class _Trial:
    """Two limits in turn: held, other, other, held, held, other, ... so that a trend favours neither.

    `threshold` is what the other has to bring, as a logarithm.
    """

    def __init__(self, held: int, other: int, threshold: float) -> None:
        self.other = other
        self._held = held
        self._threshold = threshold
        self._rates: list[float] = []

    @property
    def next(self) -> int:
        """The limit whose turn it is."""
        return self.other if len(self._rates) % 4 in (1, 2) else self._held

    def add(self, rate: float) -> None:
        self._rates.append(rate)

    def verdict(self) -> bool | None:
        """Whether the other is better; None while that is open."""
        rates = self._rates
        pairs, half = divmod(len(rates), 2)
        if half or pairs < _LEAST_PAIRS:
            return None
        gains = [log(rates[i + 1] / rates[i]) * (-1 if i % 4 else 1) for i in range(0, len(rates), 2)]
        mean = fmean(gains)
        error = max(stdev(gains) / pairs**0.5, _LEAST_ERROR)
        if abs(mean - self._threshold) > error:
            return mean > self._threshold
        if pairs < _MOST_PAIRS:
            return None
        # More statements have to prove that they are worth it.
        return self.other < self._held and mean > self._threshold
