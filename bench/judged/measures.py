"""How good a ranking is, and whether one is better than another by more than chance. Pure.

Every measure is between 0 and 1, of one query; a system's figure is the mean over the queries, each of which
counts alike. Two systems are compared on the same queries, since queries differ far more than systems do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from bench.interleave import Spread

__all__ = ["difference", "ndcg", "recall", "reciprocal_rank"]

# Enough for the second digit of a 95 % interval (Efron and Tibshirani 1993, 14.2).
_RESAMPLES = 5000
_INTERVAL = (2.5, 97.5)


def ndcg(ranked: Sequence[int], relevant: Collection[int], depth: int) -> float:
    """Normalised discounted cumulative gain of the first `depth` (Järvelin and Kekäläinen 2002).

    A relevant document gains 1 / log2(rank + 1); 1 is what the best order would gain.
    """
    gains = [1 / math.log2(rank + 1) for rank in range(1, depth + 1)]
    gained = sum(gain for gain, found in zip(gains, ranked, strict=False) if found in relevant)
    return gained / sum(gains[: len(relevant)])


def reciprocal_rank(ranked: Sequence[int], relevant: Collection[int], depth: int) -> float:
    """1 / rank of the first relevant document, 0 if there is none among the first `depth`."""
    return next((1 / rank for rank, found in enumerate(ranked[:depth], 1) if found in relevant), 0.0)


def recall(ranked: Sequence[int], relevant: Collection[int], depth: int) -> float:
    """The share of the relevant documents that is among the first `depth`."""
    return len(set(ranked[:depth]) & set(relevant)) / len(relevant)


def difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Spread:
    """The mean of `ours` minus that of `theirs`, query by query, with its 95 % interval.

    The interval is a paired bootstrap's: queries are drawn with replacement, each with both its figures.

    Raises:
        ValueError: there are no queries, or not the same number on both sides.
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} queries against {len(theirs)}")
    # How often each query is drawn: counts need less memory than figures.
    draws = np.random.default_rng(seed).multinomial(len(ours), [1 / len(ours)] * len(ours), _RESAMPLES)
    more = np.asarray(ours) - np.asarray(theirs)
    low, high = np.percentile(draws @ more / len(ours), _INTERVAL)
    return Spread(float(more.mean()), float(low), float(high), len(ours))
