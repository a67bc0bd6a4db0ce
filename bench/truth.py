"""The exact nearest rows of every query, computed once and kept in the user's cache.

Recall counts a returned row by its distance, not by its id: a row as near as the k-th true one is as
right as that one. PostgreSQL computes in float32, so "as near" has that precision.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.datasets import Dataset, Vectors
from bench.errors import BenchError
from bench.generators import Measured
from shard_config.model import Metric

__all__ = ["Truth", "cache_folder", "exact", "truth_of"]

# Distances of a block of queries to all rows, in float64.
_BLOCK_BYTES = 256 << 20
_FLOAT32 = 1e-5
_FORMAT = b"truth 1"

Progress = Callable[[int], object]


class Truth(msgspec.Struct, frozen=True, eq=False):
    """`ids` and `distances` are (q, k), nearest first; equal distances in order of ids."""

    ids: NDArray[np.int64]
    distances: NDArray[np.float64]

    @property
    def k(self) -> int:
        return int(self.ids.shape[1])

    def recall(self, dataset: Dataset, queries: NDArray[np.int64], answers: NDArray[np.int64]) -> float:
        """Mean share of true neighbours in `answers` (m, k) to `queries` (m,); -1 stands for no row.

        Raises:
            BenchError: there is no answer.
        """
        if not len(queries):
            raise BenchError("no answer to compute recall from")
        # A generator asks the same queries again and again, and mostly gets the same rows.
        rows, counts = np.unique(
            np.column_stack([queries, np.sort(answers, axis=1)]), axis=0, return_counts=True
        )
        shares = [self._share(dataset, int(row[0]), row[1:]) for row in rows]
        return float(np.average(shares, weights=counts))

    def recall_of(self, measured: Measured, dataset: Dataset) -> float | None:
        """Of the answers of a load; None where none was kept."""
        return self.recall(dataset, measured.asked, measured.answers) if len(measured.asked) else None

    def recall_of_each(self, dataset: Dataset, answers: Sequence[Sequence[int]]) -> float:
        """Of an answer to each of the first queries."""
        padded = [[*answer, *[-1] * self.k][: self.k] for answer in answers]
        return self.recall(dataset, np.arange(len(answers)), np.array(padded, np.int64))

    def _share(self, dataset: Dataset, query: int, answer: NDArray[np.int64]) -> float:
        found = np.unique(answer[answer >= 0])
        true = self.ids[query]
        known = np.isin(found, true)
        right, others = int(known.sum()), found[~known]
        if len(others) and right < len(true):
            limit = self.distances[query, -1]
            # Relative to what is subtracted, as the error is.
            scale = max(abs(limit), 1e-30)
            (distances,) = _distances(dataset.queries[[query]], dataset.base[others], dataset.metric)
            right += int((distances <= limit + _FLOAT32 * scale).sum())
        return min(right, len(true)) / len(true)


def truth_of(
    dataset: Dataset, k: int, progress: Progress = lambda _: None, folder: Path | None = None
) -> Truth:
    """The k nearest rows of each query; `progress` hears how many queries are done.

    Raises:
        BenchError: there are fewer than k rows.
    """
    if not 1 <= k <= len(dataset.base):
        raise BenchError(f"k={k}, but {dataset.name} has {len(dataset.base)} rows")
    path = (cache_folder() if folder is None else folder) / f"{_digest(dataset, k)}.npz"
    kept = _kept(path, (len(dataset.queries), k))
    if kept is not None:
        progress(len(dataset.queries))
        return kept
    truth = exact(dataset, k, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(fresh, ids=truth.ids, distances=truth.distances)
    fresh.replace(path)
    return truth


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pgscatter" / "truth"


def exact(dataset: Dataset, k: int, progress: Progress = lambda _: None) -> Truth:
    """By comparing every query with every row, a block of queries at a time."""
    rows, queries = len(dataset.base), len(dataset.queries)
    ids = np.empty((queries, k), np.int64)
    distances = np.empty((queries, k))
    block = max(1, _BLOCK_BYTES // (8 * rows))
    for first in range(0, queries, block):
        every = _distances(dataset.queries[first : first + block], dataset.base, dataset.metric)
        for i, row in enumerate(every, first):
            # All that are as near as the k-th, so that ties at the limit go by id.
            near = np.flatnonzero(row <= np.partition(row, k - 1)[k - 1])
            order = near[np.argsort(row[near], kind="stable")][:k]
            ids[i], distances[i] = order, row[order]
        progress(min(first + block, queries))
    return Truth(ids, distances)


def _distances(queries: Vectors, rows: Vectors, metric: Metric) -> NDArray[np.float64]:
    """As pgvector's operators have them, but for L2, which stays squared."""
    left, right = queries.astype(np.float64), rows.astype(np.float64)
    if metric is Metric.L1:
        return np.stack([np.abs(right - one).sum(axis=1) for one in left])
    if metric is Metric.COSINE:
        left /= np.linalg.norm(left, axis=1, keepdims=True)
        right /= np.linalg.norm(right, axis=1, keepdims=True)
    products: NDArray[np.float64] = left @ right.T
    if metric is Metric.COSINE:
        return 1 - products
    if metric is Metric.INNER_PRODUCT:
        return -products
    squares: NDArray[np.float64] = (left**2).sum(axis=1)[:, None] - 2 * products + (right**2).sum(axis=1)
    return squares


def _digest(dataset: Dataset, k: int) -> str:
    digest = hashlib.sha256(_FORMAT)
    for part in (dataset.base, dataset.queries):
        digest.update(repr((part.shape, part.dtype.str)).encode())
        digest.update(np.ascontiguousarray(part).data)
    digest.update(f"{dataset.metric} {k}".encode())
    return digest.hexdigest()[:32]


def _kept(path: Path, shape: tuple[int, int]) -> Truth | None:
    """What is in the cache; a file that is not whole is as good as none."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            truth = Truth(file["ids"], file["distances"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    return truth if truth.ids.shape == truth.distances.shape == shape else None
