"""How long to wait for shards, of the time that a request has. Pure."""

from __future__ import annotations

__all__ = ["stop_before"]

# What is kept back to merge, encode and report what is missing: a tenth of short times, 10 ms of long ones.
_MARGIN_SHARE = 0.1
_MARGIN_MOST = 0.010


def stop_before(deadline: float, now: float) -> float:
    """When to stop waiting, so that the answer still leaves by `deadline`."""
    return deadline - min(_MARGIN_MOST, _MARGIN_SHARE * max(deadline - now, 0.0))
