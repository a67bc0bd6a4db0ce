"""Attributes for the rows of a data set, and filters over them that keep a known share of the rows.

Some attributes have nothing to do with the vectors, some follow them closely: what an index scan finds
behind a filter depends on that. Invariant: the same data set and seed give the same attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.datasets import Dataset, Vectors

__all__ = ["COLUMNS", "HAND_MADE", "METADATA_INDEXES", "SHARES", "Attributes", "Case", "cases"]

SHARES = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0)
# `random` and `other` have nothing to do with the vectors nor with each other; `near` is how near a row is to
# one of them; both count from 0 to _LEVELS - 1. `kind` is skewed; the rows of a `cluster` are neighbours.
COLUMNS = {"random": "int", "other": "int", "near": "int", "kind": "text", "cluster": "text"}
# The map's indexes on the metadata, and what an application would have there for its own statements.
METADATA_INDEXES = {"kind": "text", "tags": "array"}
HAND_MADE = "CREATE INDEX ON {table} ((metadata->>'kind')); ANALYZE {table}"
_LEVELS = 10_000
_VALUES = {"k50": 0.5, "k10": 0.1, "k5": 0.05, "k1": 0.01, "k0.1": 0.001, "k0.01": 0.0001}

Mask = NDArray[np.bool_]


class Attributes(msgspec.Struct, frozen=True, eq=False):
    """A value per row for each of `COLUMNS`."""

    random: NDArray[np.int64]
    other: NDArray[np.int64]
    near: NDArray[np.int64]
    kind: NDArray[np.str_]
    cluster: NDArray[np.str_]

    def metadata(self, row: int) -> dict[str, Any]:
        kind = str(self.kind[row])
        return {"kind": kind, "tags": [kind, f"t{self.other[row] % 7}"], "title": f"row {row}"}

    @classmethod
    def of(cls, dataset: Dataset, seed: int = 0) -> Attributes:
        rng = np.random.default_rng(seed)
        rows = len(dataset.base)
        distances = _squares(dataset.base, dataset.base[rng.integers(rows)])
        return cls(
            random=_levels(rng.permutation(rows)),
            other=_levels(rng.permutation(rows)),
            near=_levels(np.argsort(np.argsort(distances, kind="stable"), kind="stable")),
            kind=_kinds(rows, rng),
            cluster=_clusters(dataset.base, rng),
        )


class Case(msgspec.Struct, frozen=True, eq=False):
    """A filter as a request says it and as SQL says it, and which rows it keeps."""

    name: str
    share: float
    filter: dict[str, Any]
    where: str
    mask: Mask


def cases(made: Attributes) -> Iterator[Case]:
    """Every kind of filter at every share that it can have."""
    rows = len(made.random)
    for share in SHARES:
        level = round(share * _LEVELS)
        yield Case("range", share, {"random": {"$lt": level}}, f"random < {level}", made.random < level)
        yield Case("range, near", share, {"near": {"$lt": level}}, f"near < {level}", made.near < level)
        if share <= 0.01:
            listed = [int(value) for value in np.linspace(0, _LEVELS - 1, level)]
            where = f"random = ANY(ARRAY{listed})"
            yield Case("$in", share, {"random": {"$in": listed}}, where, np.isin(made.random, listed))
        if share in (0.001, 0.01, 0.1):
            half, fivefold, last_fifth = level // 2, 5 * level, _LEVELS * 4 // 5
            yield Case(
                "and",
                share,
                {"$and": [{"random": {"$lt": fivefold}}, {"other": {"$gte": last_fifth}}]},
                f"random < {fivefold} AND other >= {last_fifth}",
                (made.random < fivefold) & (made.other >= last_fifth),
            )
            yield Case(
                "or",
                share,
                {"$or": [{"random": {"$lt": half}}, {"other": {"$lt": half}}]},
                f"(random < {half} OR other < {half})",
                (made.random < half) | (made.other < half),
            )
            yield Case(
                "not",
                share,
                {"$not": {"random": {"$gte": level}}},
                f"(random >= {level}) IS NOT TRUE",
                made.random < level,
            )
        value = next((value for value, of in _VALUES.items() if of == share), None)
        if value is None or rows * share < 1 or not (kept := made.kind == value).any():
            continue
        for name, column, mask in (
            ("equality", "kind", kept),
            ("equality, near", "cluster", made.cluster == value),
        ):
            yield Case(name, share, {column: value}, f"{column} = '{value}' COLLATE \"C\"", mask)
        where = f"metadata->>'kind' = '{value}'"
        yield Case("metadata", share, {"metadata.kind": value}, where, kept)
        where = f'metadata @> \'{{"tags": ["{value}"]}}\''
        yield Case("array", share, {"metadata.tags": {"$contains": value}}, where, kept)


def _levels(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    return ranks.astype(np.int64) * _LEVELS // len(ranks)


def _kinds(rows: int, rng: np.random.Generator) -> NDArray[np.str_]:
    kinds = np.full(rows, "rest", dtype="U8")
    order, at = rng.permutation(rows), 0
    for value, share in _VALUES.items():
        count = round(share * rows)
        kinds[order[at : at + count]] = value
        at += count
    return kinds


def _clusters(base: Vectors, rng: np.random.Generator) -> NDArray[np.str_]:
    """For each value the rows nearest to one of its own, the small values first."""
    clusters = np.full(len(base), "rest", dtype="U8")
    for value, share in reversed(_VALUES.items()):
        free = np.flatnonzero(clusters == "rest")
        count = round(share * len(base))
        if count:
            distances = _squares(base[free], base[rng.choice(free)])
            clusters[free[np.argsort(distances, kind="stable")[:count]]] = value
    return clusters


def _squares(rows: Vectors, one: Vectors) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = ((rows - one) ** 2).sum(axis=1, dtype=np.float64)
    return squares
