"""How long a node has recently taken for a search of each kind; the wait in its queue is estimated from it.

Kinds are kept apart, because a node that has just answered slow searches is not slow for others. An
estimate without new measurements decays towards 0, so that an idle node is taken to be fast: too low an
estimate refuses a search a little late, while too high a one refuses a search that would have been answered.
Pure.
"""

from __future__ import annotations

from collections.abc import Hashable

__all__ = ["SearchCost"]

# Of the newest search in the moving average; one slow search, on a cold cache perhaps, says little.
_WEIGHT = 0.1
_HALF_LIFE_SECONDS = 1.0
_MOST_KINDS = 256


class SearchCost:
    """Recent seconds per search on one node, by kind; all times are by the caller's clock."""

    def __init__(self) -> None:
        # Seconds, and when they were found; ascending by the latter. Changed by `took` alone, for each
        # statement: a plain dictionary takes a third of an LRU cache's time.
        self._kinds: dict[Hashable, tuple[float, float]] = {}

    def __repr__(self) -> str:
        return f"<SearchCost of {len(self._kinds)} kinds>"

    def took(self, kind: Hashable, seconds: float, now: float) -> None:
        """A search of this kind has taken `seconds` of the node: its share, where several ran at once."""
        known = self.of(kind, now)
        self._kinds.pop(kind, None)
        self._kinds[kind] = (known + _WEIGHT * (seconds - known), now)
        if len(self._kinds) > _MOST_KINDS:
            del self._kinds[next(iter(self._kinds))]

    def of(self, kind: Hashable, now: float) -> float:
        """Seconds; 0 where nothing is known."""
        seconds, since = self._kinds.get(kind, (0.0, now))
        return float(seconds * 0.5 ** ((now - since) / _HALF_LIFE_SECONDS))
