"""How long a node that is down is left alone. Pure.

Invariants: the time grows by half with each failure, up to `longest`, so that it is about a third of the time
that the node has been down; what all nodes together are asked per second is bounded too, however many are
down; and the jitter is a fifth either way, so that many routers do not ask at the same moments.
"""

from __future__ import annotations

__all__ = ["JITTER", "pause"]

_GROWTH = 1.5
_MOST_FAILURES = 20  # beyond any use of the power
# While its shard lacks a node it is asked at least this often, as a multiple of the first pause.
_NEEDED = 2.0
# Attempts per second at all nodes that are needed so. A refused one costs the router 0.3 ms.
_ATTEMPTS = 100.0
JITTER = 0.2


def pause(failures: int, *, first: float, longest: float, needed: bool, down: int) -> float:
    """Seconds until it is tried again, before jitter.

    Args:
        failures: in a row, at least 1.
        first: the pause after one failure.
        needed: no node of its shard is up, or no primary.
        down: how many nodes of all shards are.
    """
    grown = first * _GROWTH ** (min(failures, _MOST_FAILURES) - 1)
    longest = max(longest, first)
    if needed:
        longest = min(longest, max(_NEEDED * first, down / _ATTEMPTS))
    return min(grown, longest)
