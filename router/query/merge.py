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
    ranked = list(
        chain.from_iterable(
            zip(map(_distance, part), map(_id, part), repeat(name), part, strict=False)
            for name, part in rows.items()
        )
    )
    # Two rows of one id and distance stand on two shards, so that names end every comparison.
    ranked.sort()
    end = offset + k
    kept: list[tuple[Row, str]] = []
    seen: set[object] = set()
    for _, id_, name, row in ranked:
        if id_ in seen:
            continue
        seen.add(id_)
        kept.append((row, name))
        if len(kept) == end:
            break
    return kept[offset:]


_distance = itemgetter(1)
_id = itemgetter(0)


def within(ranked: list[tuple[Row, str]], max_distance: float | None) -> list[tuple[Row, str]]:
    """The leading rows that lie no farther than `max_distance`; all of them if it is None."""
    if max_distance is None:
        return ranked
    return ranked[: bisect_right(ranked, max_distance, key=lambda pair: float(pair[0][1]))]
