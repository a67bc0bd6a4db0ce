"""When a node is left out although probes find it well, and when it is tried again. Pure.

A node that keeps silent costs each search that goes there a hedge, or its deadline. After a few in a row it
is left out, each time for twice as long; then one request tries it, which readmits it or leaves it out again
(outlier detection as in Envoy). Where no request comes that could try it, time alone readmits it. No more
than a share of a set's nodes is left out at once, and one that is left out is only ranked last: where no
other node can answer, it is asked all the same.
"""

from __future__ import annotations

__all__ = ["TRIAL_SECONDS", "Ejection", "has_room"]

# Failures in a row: errors, or no answer in time. One may be chance; each costs somebody a hedge.
_STRIKES = 3
# From one trial to the next. A trial is a copy of a search that another node answers: nobody waits for it.
_FIRST_SECONDS, _LONGEST_SECONDS = 1.0, 5.0
# After which a trial has failed; longer where such requests usually take longer.
TRIAL_SECONDS = 1.0
# So long after it could be tried, one that no request has tried is no longer left out.
_UNTRIED_SECONDS = 10.0
# After so long without a failure, a node that is left out again waits as briefly as the first time.
_FORGET_SECONDS = 60.0


def has_room(ejected: int, nodes: int, share: float) -> bool:
    """Whether one more of so many nodes may be left out."""
    return ejected + 1 <= share * nodes


class Ejection:
    """Whether one node is left out, and until when; all times are by the caller's clock.

    Attributes:
        count: how many times it was left out, ever.
        out: whether it is left out, or on trial.
    """

    def __init__(self) -> None:
        self.count = 0
        self.out = False
        self._strikes = 0
        self._until: float | None = None
        self._level = 0
        self._last = float("-inf")

    def __repr__(self) -> str:
        return f"<Ejection {'out' if self.out else 'in'}, {self._strikes} strikes, {self.count} before>"

    def due(self, now: float) -> bool:
        """Whether it is left out and may be tried."""
        return self._until is not None and now >= self._until

    def untried(self, now: float) -> bool:
        """Whether it is left out, and for a while no request has come that could have tried it."""
        return self._until is not None and now >= self._until + _UNTRIED_SECONDS

    def tried(self, until: float) -> None:
        """A request was sent to try it; the next may be at `until`, if that one has not ended before."""
        self._until = until

    def returned(self, now: float) -> None:
        """A probe has found it well after it was down: it may be tried at once."""
        if self._until is not None:
            self._until = now
            self._level = 0

    def answered(self) -> None:
        """It has answered a request, in time."""
        self._strikes = 0
        self._until = None
        self.out = False

    def struck(self, now: float, *, room: bool = True) -> bool:
        """A request failed there; returns whether the node is left out now and was not before.

        Without `room`, too many of its set are left out already, and it stays.
        """
        self._strikes += 1
        if self._until is None and (self._strikes < _STRIKES or not room):
            return False
        fresh = self._until is None
        if fresh:
            self.count += 1
            if now - self._last > _FORGET_SECONDS:
                self._level = 0
        self._last = now
        self.out = True
        self._until = now + min(_FIRST_SECONDS * 2**self._level, _LONGEST_SECONDS)
        self._level = min(self._level + 1, 10)
        return fresh
