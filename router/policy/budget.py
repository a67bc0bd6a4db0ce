"""Limits hedges and retries to a share of the requests that came. Pure.

A token bucket that requests fill, not time (as Finagle's retry budget and gRPC's retry throttling): with a
share of 5 %, twenty requests allow one more. So the extra work stays a fixed share of the load; one filled by
time could double the work of a node whose overload lets few requests through.
"""

from __future__ import annotations

__all__ = ["Budget"]


class Budget:
    """Each request brings `share` of a token; at most `burst` tokens are kept, all of them there at first."""

    def __init__(self, share: float, burst: float = 10.0) -> None:
        self.denied = 0
        self._share = share
        self._burst = burst if share > 0 else 0.0
        self._tokens = self._burst

    def __repr__(self) -> str:
        return f"<Budget {self._tokens:.1f} of {self._burst:g}, {self.denied} denied>"

    def earn(self) -> None:
        """A request has come."""
        if self._tokens < self._burst:
            self._tokens = min(self._burst, self._tokens + self._share)

    def try_spend(self, *, urgent: bool = True) -> bool:
        """Take one token, if there is one; if not `urgent`, only of the upper half of the bucket."""
        if self._tokens < (1.0 if urgent else 1.0 + self._burst / 2):
            self.denied += 1
            return False
        self._tokens -= 1.0
        return True
