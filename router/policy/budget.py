"""What may be done beside the requests that came: a share of them, and a few at once. Pure.

A token bucket that requests fill, not time, so that it cannot feed an overload: with a share of 5 %, twenty
requests pay for one more (as Finagle's retry budget and gRPC's retry throttling).
"""

from __future__ import annotations

__all__ = ["Budget"]


class Budget:
    """Each request brings `share` of a token; `burst` are kept, and there at first."""

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

    def spend(self, *, urgent: bool = True) -> bool:
        """Whether one more may be sent; if so, it is paid for. Half of the burst is kept for the urgent."""
        if self._tokens < (1.0 if urgent else 1.0 + self._burst / 2):
            self.denied += 1
            return False
        self._tokens -= 1.0
        return True
