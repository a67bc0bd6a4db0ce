"""How long to wait for shards, of the time that a request has. Pure."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ends_of", "stop_before"]

# What is kept back to merge, encode and report what is missing: a tenth of short times, 10 ms of long ones.
_MARGIN_SHARE = 0.1
_MARGIN_MOST = 0.010


def stop_before(deadline: float, now: float) -> float:
    """When to stop waiting, so that the answer still leaves by `deadline`."""
    return deadline - min(_MARGIN_MOST, _MARGIN_SHARE * max(deadline - now, 0.0))


def ends_of(shares: Sequence[float], deadline: float, now: float) -> list[float]:
    """When each of several steps, one after the other, has to end, so that those behind it get their share.

    A step that ends early leaves its time to the next ones. The last ends as `stop_before` says.
    """
    left, total = stop_before(deadline, now) - now, sum(shares)
    done, ends = 0.0, []
    for share in shares:
        done += share
        ends.append(now + left * done / total)
    return ends
