"""How much of the exact answer an answer holds, and what that says of all answers. Pure.

Equal distances are equally good: a row counts as found if it lies no farther away than the exact answer's
last one, because of several rows at that distance none is the right one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["CONFIDENCE", "best_bound", "lower_bound", "queries_for", "recall"]

CONFIDENCE = 0.95

# The same distance, computed by two servers, may differ in the last bits of a float32.
_SLACK = 1e-6
_DRAWS = 4000
_DRAWS_AT_ONCE = 250


def recall(found: Sequence[float], exact: Sequence[float]) -> float | None:
    """The share of the exact answer's rows that were found, or as good ones; None if it has no rows.

    Args:
        found, exact: distances, ascending, of answers to the same search.
    """
    if not exact:
        return None
    farthest = exact[-1]
    if math.isfinite(farthest):
        farthest += _SLACK * abs(farthest)
    return min(1.0, sum(distance <= farthest for distance in found) / len(exact))


def lower_bound(recalls: Sequence[float]) -> float:
    """What the mean recall of all queries is at least, with 95 % confidence, after a sample's `recalls`.

    Gaffke's bound for the mean of values in [0, 1] ("Three test statistics for a nonparametric one-sided
    hypothesis on the mean of a nonnegative variable", Mathematical Methods of Statistics 14, 2005): the
    5 % quantile of the sample's mean under random weights, uniform on the simplex, with one more value
    of 0 in the sample. For recalls of 0 and 1 alone it is the bound of Clopper and Pearson. A normal
    approximation would call a sample without a miss certain; here that value of 0 stands for the bad
    queries that the sample happens not to hold. Weights are drawn with a fixed seed: equal samples give
    equal bounds.
    """
    values = np.array([0.0, *recalls])
    rng = np.random.default_rng(0)
    means: list[float] = []
    for _ in range(_DRAWS // _DRAWS_AT_ONCE):
        weights = rng.standard_exponential((_DRAWS_AT_ONCE, len(values)))
        means += (weights @ values / weights.sum(axis=1)).tolist()
    return float(np.quantile(means, 1 - CONFIDENCE))


def best_bound(queries: int) -> float:
    """The highest `lower_bound` that this many queries can give: that of a sample without a miss."""
    return float((1 - CONFIDENCE) ** (1 / queries))


def queries_for(target: float) -> int:
    """How many queries without a miss prove a recall of `target`."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(target))
