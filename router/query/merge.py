"""Rows of many shards become one ordered list of hits.

Invariant: the result depends on the rows alone, not on which shard answered first. Order is by
(distance, id); an id that stands on two shards, as it may while rows move between them, counts once
and with its nearest row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from operator import itemgetter

from router.query.types import Row

__all__ = ["merge", "within"]


def merge(rows: Mapping[str, Sequence[Row]], offset: int, k: int) -> list[tuple[Row, str]]:
    """The rows from `offset` to `offset + k` of all shards' rows, each with its shard's name.

    A row begins with its id and its distance; each shard's rows are ascending by (distance, id).
    Sorting the concatenated runs is a k-way merge: Timsort finds the runs and merges them, in C.
    """
    pairs = list(chain.from_iterable(zip(part, repeat(name), strict=False) for name, part in rows.items()))
    pairs.sort(key=_rank)
    end = offset + k
    kept: list[tuple[Row, str]] = []
    seen: set[object] = set()
    for pair in pairs:
        id_ = pair[0][0]
        if id_ in seen:
            continue
        seen.add(id_)
        kept.append(pair)
        if len(kept) == end:
            break
    return kept[offset:]


_by_distance_and_id = itemgetter(1, 0)


def _rank(pair: tuple[Row, str]) -> tuple[float, object]:
    rank: tuple[float, object] = _by_distance_and_id(pair[0])
    return rank


def within(ranked: list[tuple[Row, str]], max_distance: float | None) -> list[tuple[Row, str]]:
    """The leading rows that lie no farther than `max_distance`; all of them if it is None."""
    if max_distance is None:
        return ranked
    return ranked[: bisect_right(ranked, max_distance, key=lambda pair: float(pair[0][1]))]
