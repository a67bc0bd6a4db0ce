"""Equal recall: each variant gets the smallest scan that reaches it, or the comparison means nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from bench.datasets import Dataset
from bench.errors import BenchError, SearchError
from bench.generators import Target
from bench.targets import TargetSpec, opened
from bench.truth import Truth
from router.recall.tuning import STEPS
from router.recall.tuning import smallest as bisect

__all__ = ["MOST_RUNS", "ask", "smallest"]

# From what has been found in the first ten rows on.
_STEPS = [step for step in STEPS if step >= 10]
# So often all queries are asked at most: once with the widest scan, then by bisection.
MOST_RUNS = 1 + (len(_STEPS) - 1).bit_length()
_CONCURRENCY = 4
_SECONDS = 600.0

# Called once for each answer.
Progress = Callable[[], object]


def smallest(
    spec: TargetSpec, dataset: Dataset, truth: Truth, wanted: float, progress: Progress = lambda: None
) -> tuple[int, float]:
    """The ef_search, and its recall over all queries.

    Raises:
        BenchError: even the widest scan stays below `wanted`, or a search failed.
    """
    found: dict[int, float] = {}

    async def reaches(ef_search: int) -> bool:
        widened = msgspec.structs.replace(spec, ef_search=ef_search)
        answers = await _ask(widened, len(dataset.queries), progress)
        found[ef_search] = truth.recall_of_each(dataset, answers)
        return found[ef_search] >= wanted

    best = asyncio.run(bisect(_STEPS, reaches))
    if best is None:
        recall = found[_STEPS[-1]]
        raise BenchError(
            f"{dataset.name}: recall {recall:.4f} even at ef_search {_STEPS[-1]}, not {wanted:g}"
        )
    return best, found[best]


def ask(spec: TargetSpec, count: int) -> list[list[int]]:
    """The answers to the first `count` queries, each asked once; none may fail."""
    return asyncio.run(_ask(spec, count, lambda: None))


async def _ask(spec: TargetSpec, count: int, progress: Progress) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(count)]
    queries = iter(range(count))

    async def client(target: Target) -> None:
        for query in queries:
            found[query] = list(await target.search(query))
            progress()

    try:
        async with asyncio.timeout(_SECONDS), opened(spec) as target, asyncio.TaskGroup() as clients:
            for _ in range(_CONCURRENCY):
                clients.create_task(client(target))
    except (ExceptionGroup, SearchError, OSError) as exc:  # TimeoutError is an OSError
        failure = exc.exceptions[0] if isinstance(exc, ExceptionGroup) else exc
        if not isinstance(failure, SearchError | OSError):
            raise
        raise BenchError(f"a search failed while none may: {str(failure) or 'it took too long'}") from failure
    return found
