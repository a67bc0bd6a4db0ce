"""How long a node has recently taken for a search of each kind; the wait in its queue is estimated from it.

Kinds are kept apart, because a node that has just answered slow searches is not slow for others. An
estimate without new measurements decays towards 0, so that an idle node is taken to be fast: too low an
estimate refuses a search a little late, while too high a one refuses a search that would have been answered.
Pure.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import NamedTuple

__all__ = ["SearchCost"]

# Of the newest search in the moving average; one slow search, on a cold cache perhaps, says little.
_WEIGHT = 0.1
_HALF_LIFE_SECONDS = 1.0
# An old mean may be that of a cold cache or of a missing index; and a batch that is refused by it measures
# nothing, so that it would be refused for ever.
_MEAN_HALF_LIFE_SECONDS = 10.0
# In so short a time an estimate decays by less than a hundredth, which is not worth computing.
_NO_AGE = 0.01
_LEAST_SECONDS = 1e-6
_MOST_KINDS = 256


class _Known(NamedTuple):
    """Of one kind: the estimate, which decays from `since` on, and what was measured in the mean.

    The mean is geometric, of which one slow search among many fast ones does not make a multiple.
    """

    estimate: float
    since: float
    log_mean: float
    measured: int


class SearchCost:
    """Recent seconds per search on one node, by kind; all times are by the caller's clock."""

    def __init__(self) -> None:
        # Ascending by `since`. Changed by `took` alone, for each statement: a plain dictionary takes a third
        # of an LRU cache's time.
        self._kinds: dict[Hashable, _Known] = {}

    def __repr__(self) -> str:
        return f"<SearchCost of {len(self._kinds)} kinds>"

    def took(self, kind: Hashable, seconds: float, now: float) -> None:
        """A search of this kind has taken `seconds` of the node: its share, where several ran at once."""
        estimate = self.of(kind, now)
        known = self._kinds.pop(kind, None)
        mean, count = (0.0, 0) if known is None else (known.log_mean, known.measured)
        mean += max(_WEIGHT, 1.0 / (count + 1)) * (math.log(max(seconds, _LEAST_SECONDS)) - mean)
        self._kinds[kind] = _Known(estimate + _WEIGHT * (seconds - estimate), now, mean, count + 1)
        if len(self._kinds) > _MOST_KINDS:
            del self._kinds[next(iter(self._kinds))]

    def of(self, kind: Hashable, now: float) -> float:
        """Seconds, for refusals; 0 where nothing is known."""
        known = self._kinds.get(kind)
        if known is None:
            return 0.0
        age = now - known.since
        return known.estimate if age < _NO_AGE else float(known.estimate * 0.5 ** (age / _HALF_LIFE_SECONDS))

    def usual(self, kind: Hashable, now: float) -> float:
        """Seconds that one has lately taken in the mean; 0 where nothing is known.

        For what a search will take once it is sent. It decays more slowly than `of`: there, too high an
        estimate costs little.
        """
        known = self._kinds.get(kind)
        if known is None:
            return 0.0
        age, mean = now - known.since, math.exp(known.log_mean)
        return mean if age < _NO_AGE else mean * float(0.5 ** (age / _MEAN_HALF_LIFE_SECONDS))
