"""Whether a service that keeps failing is asked at all. Pure.

    closed   every request goes; `failures` failed ones in a row open it
    open     none goes, for a pause that doubles each time, up to `longest`
    trial    the pause is over: one request goes, and its outcome closes or opens again

Invariants: a service that answers is asked by everybody; one that does not is asked by one request per pause;
after a trial whose outcome is not known the next request is one. See M. Nygard, Release It!, "Circuit
Breaker".
"""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["Circuit", "CircuitState", "Leave"]

CircuitState: TypeAlias = Literal["closed", "open", "trial"]
# A request that may go: as any other, or as the one that tries.
Leave: TypeAlias = Literal["free", "trial"]

_MOST_DOUBLINGS = 30


class Circuit:
    """Changed by `admit` and by the outcome of what it admitted; `now` is of any one clock."""

    def __init__(self, failures: int, pause: float, longest: float) -> None:
        """`pause` and `longest` in seconds."""
        self._limit = failures
        self._pause = pause
        self._longest = max(longest, pause)
        self._failed = 0  # in a row, while closed
        self._openings = 0  # in a row
        self._until: float | None = None  # None while closed
        self._trying = False

    def __repr__(self) -> str:
        state = "closed" if self._until is None else "trial" if self._trying else "open"
        return f"<Circuit {state}, {self._failed} failures, {self._openings} openings>"

    def state(self) -> CircuitState:
        if self._until is None:
            return "closed"
        return "trial" if self._trying else "open"

    def admit(self, now: float) -> Leave | None:
        """Whether a request may go now; its outcome must be told, with what is returned here."""
        if self._until is None:
            return "free"
        if self._trying or now < self._until:
            return None
        self._trying = True
        return "trial"

    def wait(self, now: float) -> float:
        """Seconds until a request may go, as far as is known."""
        return 0.0 if self._until is None else max(0.0, self._until - now)

    def succeeded(self, leave: Leave) -> bool:
        """The service has answered. Returns whether that has closed it."""
        closed = self._until is not None
        self._failed = self._openings = 0
        self._until, self._trying = None, False
        return closed

    def failed(self, leave: Leave, now: float) -> bool:
        """The service has not answered, or nothing of use. Returns whether that has opened it."""
        if leave == "trial":
            if not self._trying:
                return False  # another request has closed it meanwhile
            self._open(now)
            return False
        if self._until is not None:
            return False  # it began before the circuit opened
        self._failed += 1
        if self._failed < self._limit:
            return False
        self._open(now)
        return True

    def released(self, leave: Leave) -> None:
        """The request ended, and says nothing of the service: its caller has left, for instance."""
        if leave == "trial":
            self._trying = False

    def _open(self, now: float) -> None:
        grown = self._pause * 2.0 ** min(self._openings, _MOST_DOUBLINGS)
        self._until = now + min(grown, self._longest)
        self._openings += 1
        self._failed = 0
        self._trying = False
