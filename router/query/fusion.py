"""Ranked lists become one. Pure.

By reciprocal ranks, a row counts 1 / (k + rank) in each list that has it (Cormack, Clarke and Büttcher,
"Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods", SIGIR 2009). By scores,
it counts where its score lies between the worst (0) and the best (1) that the list has brought. Either way
lists have weights, and a list that lacks a row adds nothing to it.

Invariant: the result depends on the lists alone. Rows of equal score go by their ids, and the terms of a
score are summed exactly, so that the order of lists decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from router.query.composition import Fusion, FusionMethod
from router.query.ranked import Ranked

__all__ = ["Fused", "fuse", "scaled"]


class Fused(NamedTuple):
    """A row of the fused list.

    Attributes:
        score: the larger, the better.
        ranks: its place in each list, from 1; None where the list lacks it.
        distances: by what each list ranked it: a distance, or a negated score.
        model_score: what a re-ranking model has said of it, if one has.
    """

    id: Any
    shard: str
    score: float
    ranks: tuple[int | None, ...]
    distances: tuple[float | None, ...]
    model_score: float | None = None


def fuse(lists: Sequence[Sequence[Ranked]], weights: Sequence[float], fusion: Fusion) -> list[Fused]:
    """All rows of `lists`, best first; each list ascends by distance and holds an id at most once.

    A single list keeps its order, and its rows' scores are their negated distances.
    """
    if len(lists) == 1:
        return [
            Fused(row[0], shard, -row[1], (rank,), (row[1],)) for rank, (row, shard) in enumerate(lists[0], 1)
        ]
    parts = [
        _reciprocal_ranks(ranked, weight, fusion.k)
        if fusion.method is FusionMethod.RRF
        else _scaled(ranked, weight)
        for ranked, weight in zip(lists, weights, strict=True)
    ]
    found: dict[Any, tuple[str, list[float], list[int | None], list[float | None]]] = {}
    for place, (ranked, terms) in enumerate(zip(lists, parts, strict=True)):
        for i, (row, shard) in enumerate(ranked):
            # While rows move, an id may stand on two shards: that of the first list which has it will do.
            entry = found.get(row[0])
            if entry is None:
                entry = found[row[0]] = (shard, [], [None] * len(lists), [None] * len(lists))
            entry[1].append(terms[i])
            entry[2][place] = i + 1
            entry[3][place] = row[1]
    fused = [
        Fused(id_, shard, math.fsum(terms), tuple(ranks), tuple(distances))
        for id_, (shard, terms, ranks, distances) in found.items()
    ]
    fused.sort(key=lambda one: (-one.score, one.id))
    return fused


def scaled(values: Sequence[float]) -> list[float]:
    """Each of `values` between the least (0) and the largest (1) of them; all are 1 where they are equal.

    Infinite ones stand at the ends, and have no part in where these are.
    """
    finite = [value for value in values if math.isfinite(value)]
    least, largest = min(finite, default=0.0), max(finite, default=0.0)
    span = largest - least
    return [
        (1.0 if value > 0 else 0.0) if math.isinf(value) else ((value - least) / span if span > 0.0 else 1.0)
        for value in values
    ]


def _reciprocal_ranks(ranked: Sequence[Ranked], weight: float, k: float) -> list[float]:
    return [weight / (k + rank) for rank in range(1, len(ranked) + 1)]


def _scaled(ranked: Sequence[Ranked], weight: float) -> list[float]:
    return [weight * value for value in scaled([-row[1] for row, _ in ranked])]
