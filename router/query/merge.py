"""Rows of many shards become one ordered list of hits, and a page of it.

Invariant: the result depends on the rows alone, not on which shard answered first. Order is by
(distance, id); an id that stands on two shards, as it may while rows move between them, counts once
and with its nearest row.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from router.query.ranked import Ranked
from router.query.types import Row

__all__ = ["merge", "merge_by_id", "page", "within"]


def merge(rows: Mapping[str, Sequence[Row]], limit: int) -> list[Ranked]:
    """The nearest `limit` of all shards' rows, each with its shard's name.

    A row begins with its id and its distance; each shard's rows are ascending by (distance, id).
    Sorting the concatenated runs is a k-way merge: Timsort finds the runs and merges them, in C.
    """
    ranked: list[tuple[Any, Any, str, Row]] = []
    for name, part in rows.items():
        ranked += [(row[1], row[0], name, row) for row in part]
    # Two rows of one id and distance stand on two shards, so that names end every comparison.
    ranked.sort()
    merged: list[Ranked] = []
    seen: set[object] = set()
    for _, id_, name, row in ranked:
        if id_ in seen:
            continue
        seen.add(id_)
        merged.append((row, name))
        if len(merged) == limit:
            break
    return merged


def page(found: Sequence[tuple[int, list[Ranked]]], offset: int, k: int) -> list[Ranked]:
    """Rows `offset` to `offset + k` of the one list that searches of rising depths make, nearest first.

    The list's first rows are those of the shallowest search, as many as its depth. Each deeper search
    prolongs the list to its own depth, by its nearest rows that are not in it yet, and the list ends where
    one cannot. So a page neither repeats nor misses a row of another, however much the searches differ, as
    long as each gives the same rows whenever it is repeated.

    Args:
        found: a depth and the rows found, ascending by (distance, id), for each search that the page needs.
    """
    if len(found) == 1:
        return found[0][1][offset : offset + k]
    listed: list[Ranked] = []
    seen: set[object] = set()
    for depth, ranked in found:
        for pair in ranked:
            if len(listed) == depth:
                break
            if pair[0][0] not in seen:
                seen.add(pair[0][0])
                listed.append(pair)
        if len(listed) < depth:
            break
    # A deeper search may have found a row that is nearer than the list's end so far.
    return sorted(listed[offset : offset + k], key=lambda pair: (pair[0][1], pair[0][0]))


def within(ranked: list[Ranked], max_distance: float | None) -> list[Ranked]:
    """The leading rows that lie no farther than `max_distance`; all of them if it is None."""
    if max_distance is None:
        return ranked
    return ranked[: bisect_right(ranked, max_distance, key=lambda pair: float(pair[0][1]))]


def merge_by_id(rows: Mapping[str, Sequence[Row]], limit: int) -> list[Ranked]:
    """The `limit` lowest ids of all shards' rows, ascending, each with its shard's name.

    A row begins with its id. Where each shard brings its `limit` lowest ids, or all that it has, none is left
    out. An id that stands on two shards counts once, with the row of the shard that comes first.
    """
    first: dict[Any, Ranked] = {}
    for name, part in rows.items():
        for row in part:
            first.setdefault(row[0], (row, name))
    return [first[id_] for id_ in sorted(first)[:limit]]
