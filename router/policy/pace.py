"""How long a node takes for searches of one kind, lately: what a queue in front of it will cost. Pure.

Kinds are kept apart, because a node that has just answered slow searches is not slow for others. What
is not confirmed fades, so that a node at rest is thought to be fast until it proves otherwise: a search
that waits in vain is refused a little later, but one that is refused for nothing is lost.
"""

from __future__ import annotations

from collections.abc import Hashable

__all__ = ["Pace"]

# Of one statement in the mean; a single slow one, on a cold cache perhaps, says little.
_WEIGHT = 0.1
_HALF_LIFE_SECONDS = 1.0
_MOST_KINDS = 256


class Pace:
    """Of one node; all times by the caller's clock."""

    def __init__(self) -> None:
        # Seconds, and when they were found; ascending by the latter. Changed by `took` alone, for each
        # statement: a plain dictionary takes a third of an LRU cache's time.
        self._kinds: dict[Hashable, tuple[float, float]] = {}

    def __repr__(self) -> str:
        return f"<Pace of {len(self._kinds)} kinds>"

    def took(self, kind: Hashable, seconds: float, now: float) -> None:
        """A search of this kind has cost the node so many seconds, its company considered."""
        known = self.of(kind, now)
        self._kinds.pop(kind, None)
        self._kinds[kind] = (known + _WEIGHT * (seconds - known), now)
        if len(self._kinds) > _MOST_KINDS:
            del self._kinds[next(iter(self._kinds))]

    def of(self, kind: Hashable, now: float) -> float:
        """Seconds; 0 where nothing is known."""
        seconds, since = self._kinds.get(kind, (0.0, now))
        return float(seconds * 0.5 ** ((now - since) / _HALF_LIFE_SECONDS))
