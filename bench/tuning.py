"""Equal recall: each variant gets the smallest scan that reaches it, or the comparison means nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from bench.datasets import Dataset
from bench.errors import BenchError, SearchError
from bench.generators import Target
from bench.targets import TargetSpec, make
from bench.truth import Truth

__all__ = ["MOST_RUNS", "ask", "recall_of", "smallest"]

# Steps of about an eighth: finer ones differ by less than the recall of one set of queries tells.
_STEPS = (
    *(10, 12, 14, 16, 18, 20, 22, 24, 28, 32, 36, 40, 48, 56, 64, 72, 80, 96, 112, 128, 144, 160),
    *(192, 224, 256, 288, 320, 384, 448, 512, 576, 640, 768, 896, 1000),
)
# So often all queries are asked at most: once with the widest scan, then by bisection.
MOST_RUNS = 1 + (len(_STEPS) - 1).bit_length()
_CONCURRENCY = 4
_SECONDS = 600.0

# Called once for each answer.
Progress = Callable[[], object]


def smallest(
    spec: TargetSpec, dataset: Dataset, truth: Truth, wanted: float, progress: Progress = int
) -> tuple[int, float]:
    """The ef_search, and its recall over all queries.

    Raises:
        BenchError: even the widest scan stays below `wanted`.
    """
    found: dict[int, float] = {}

    def reaches(ef_search: int) -> bool:
        widened = msgspec.structs.replace(spec, ef_search=ef_search)
        found[ef_search] = recall_of(widened, dataset, truth, progress)
        return found[ef_search] >= wanted

    low, high = 0, len(_STEPS) - 1
    if not reaches(_STEPS[-1]):
        recall = found[_STEPS[-1]]
        raise BenchError(
            f"{dataset.name}: recall {recall:.4f} even at ef_search {_STEPS[-1]}, not {wanted:g}"
        )
    while low < high:
        middle = (low + high) // 2
        if reaches(_STEPS[middle]):
            high = middle
        else:
            low = middle + 1
    return _STEPS[low], found[_STEPS[low]]


def recall_of(spec: TargetSpec, dataset: Dataset, truth: Truth, progress: Progress = int) -> float:
    """By asking every query once."""
    count = len(dataset.queries)
    answers = np.full((count, truth.k), -1, np.int64)
    for query, ids in enumerate(ask(spec, count, progress)):
        answers[query, : len(ids)] = ids[: truth.k]
    return truth.recall(dataset, np.arange(count), answers)


def ask(spec: TargetSpec, count: int, progress: Progress = int) -> list[list[int]]:
    """The answers to the first `count` queries, each asked once.

    Raises:
        BenchError: a search failed.
    """
    try:
        return asyncio.run(_ask(spec, count, progress))
    except (SearchError, OSError) as exc:  # TimeoutError is one
        raise BenchError(f"a search failed while none may: {exc or 'it took too long'}") from exc


async def _ask(spec: TargetSpec, count: int, progress: Progress) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(count)]
    target = make(spec)
    try:
        async with asyncio.timeout(_SECONDS):
            await target.open()
            queries = iter(range(count))
            tasks = [
                asyncio.create_task(_client(target, queries, found, progress)) for _ in range(_CONCURRENCY)
            ]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await target.close()
    return found


async def _client(target: Target, queries: Iterator[int], found: list[list[int]], progress: Progress) -> None:
    for query in queries:
        found[query] = list(await target.search(query))
        progress()
