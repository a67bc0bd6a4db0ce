"""Whether an error may be its connection's own fault, so that a new one is worth a try. Pure.

A session keeps what the server has changed since: the numbers of types, prepared statements, the rights and
settings it began with. No list of errors tells these from a request that is wrong for good, but time does: an
error that a newer connection has too is not the connection's. So one that is refused for good is replaced,
once, and the statement run again.

Invariant: requests that fail on every connection replace each connection of the pool no more than once per
second, beside `_BURST` times at first and once after each loss of a connection.
"""

from __future__ import annotations

from math import inf

__all__ = ["Renewal"]

_BURST = 8.0
_PER_SECOND = 1.0


class Renewal:
    """For the connections of one pool; `since`: when the last was found worth replacing, or was lost."""

    def __init__(self) -> None:
        self.since = -inf
        self._tokens = _BURST
        self._refilled = 0.0

    def __repr__(self) -> str:
        return f"<Renewal {self._tokens:.1f} of {_BURST:g}>"

    def due(self, opened: float, now: float) -> bool:
        """Whether a connection of this age, on which a statement has failed for good, is to be replaced."""
        if opened < self.since:
            return True
        self._tokens = min(_BURST, self._tokens + (now - self._refilled) * _PER_SECOND)
        self._refilled = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        self.since = now
        return True
