"""How wide an HNSW scan must be for a wanted recall.

Real vectors of the collection are the queries; each one's own row is left out of its answers. Truth
comes from exact searches through the same router, so whatever the number of shards does for recall is
part of what is measured.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from router.postgres.sql import sample
from router.query.plan import EF_SEARCH_MAX
from router.query.types import Probe, SearchQuery, Shape
from router.query.wire import from_wire_bytes
from router.topology import Topology
from shard_config.model import Collection

__all__ = ["Measured", "TuningError", "lower_bound", "smallest", "tune"]

# Steps of about an eighth: finer ones would be told apart by noise alone.
_STEPS = [
    *(10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 40, 48, 56, 64, 72, 80, 96, 112, 128, 144, 160),
    *(192, 224, 256, 288, 320, 384, 448, 512, 576, 640, 768, 896, EF_SEARCH_MAX),
]
_Z95 = 1.6449  # one-sided 95 % quantile of the normal distribution
_CONCURRENCY = 4
_SEARCH_SECONDS = 60.0

Progress = Callable[[str, int], None]


class TuningError(Exception):
    pass


class Measured(msgspec.Struct, frozen=True):
    """`recall` is the mean over `queries`, at least `bound` with 95 % confidence."""

    ef_search: int
    recall: float
    bound: float
    queries: int


def lower_bound(recalls: Sequence[float]) -> float:
    """The mean of all queries' recall is above this with 95 % confidence (normal approximation)."""
    n = len(recalls)
    mean = sum(recalls) / n
    if n < 2:
        return 0.0
    variance = sum((value - mean) ** 2 for value in recalls) / (n - 1)
    return mean - _Z95 * math.sqrt(variance / n)


async def smallest(steps: Sequence[int], reaches: Callable[[int], Awaitable[bool]]) -> int | None:
    """The smallest of the ascending `steps` that `reaches`, by bisection; None if the last does not."""
    if not await reaches(steps[-1]):
        return None
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        if await reaches(steps[middle]):
            high = middle
        else:
            low = middle + 1
    return steps[low]


async def tune(
    topology: Topology, collection: Collection, *, k: int, target: float, queries: int, progress: Progress
) -> Measured:
    """The smallest `ef_search` whose recall at `k` is at least `target` with 95 % confidence.

    Raises:
        TuningError: too few rows, a shard did not answer, or no width reaches the target.
    """
    vectors = await _sampled(topology, collection, queries)
    if len(vectors) < 2:
        raise TuningError(f"{collection.name} holds too few rows to sample queries from")
    truth = await _answers(topology, collection, vectors, k, None, progress)
    measured: dict[int, Measured] = {}

    async def reaches(ef_search: int) -> bool:
        found = await _answers(topology, collection, vectors, k, ef_search, progress)
        recalls = [
            len(set(got) & set(true)) / len(true) for got, true in zip(found, truth, strict=True) if true
        ]
        if not recalls:
            raise TuningError(f"{collection.name} holds too few rows to measure recall at {k}")
        mean = sum(recalls) / len(recalls)
        measured[ef_search] = Measured(ef_search, mean, lower_bound(recalls), len(recalls))
        return measured[ef_search].bound >= target

    best = await smallest([step for step in _STEPS if step >= k] or [EF_SEARCH_MAX], reaches)
    if best is None:
        last = measured[EF_SEARCH_MAX]
        raise TuningError(
            f"recall at {k} is {last.recall:.4f} (at least {last.bound:.4f} with 95 % confidence, over"
            f" {last.queries} queries) even at ef_search {EF_SEARCH_MAX}: the target {target} is out of"
            " reach; build the index with larger m and ef_construction, or sample more queries"
        )
    return measured[best]


async def _sampled(topology: Topology, collection: Collection, count: int) -> list[tuple[object, bytes]]:
    """About `count` random rows as (id, vector), an equal part of each shard."""
    shards = topology.snapshot.shard_map.shards_of(collection)
    statement = sample(collection, math.ceil(count / len(shards)))
    probes = {shard: Probe(Shape(statement.sql), statement.args, count, count) for shard in shards}
    deadline = asyncio.get_running_loop().time() + _SEARCH_SECONDS
    parts = await topology.snapshot.fanout.fetch(probes, deadline)
    missing = [part.report for part in parts.values() if part.report.error is not None]
    if missing:
        raise TuningError(f"{missing[0].shard}: {missing[0].error}")
    kind = collection.vector.type
    return [(row[0], from_wire_bytes(row[1], kind)) for part in parts.values() for row in part.rows]


async def _answers(
    topology: Topology,
    collection: Collection,
    vectors: Sequence[tuple[object, bytes]],
    k: int,
    ef_search: int | None,
    progress: Progress,
) -> list[list[object]]:
    """For each query the ids of its k nearest other rows; exactly if `ef_search` is None."""
    what = "exact answers" if ef_search is None else f"ef_search {ef_search}"
    places = asyncio.Semaphore(_CONCURRENCY)
    done = 0

    async def one(id_: object, vector: bytes) -> list[object]:
        nonlocal done
        query = SearchQuery(
            collection, vector, k + 1, ef_search=ef_search or 1, exact=ef_search is None, cache=False
        )
        async with places:
            deadline = asyncio.get_running_loop().time() + _SEARCH_SECONDS
            found = await topology.snapshot.search(query, deadline)
        if not found.answer.coverage.full:
            raise TuningError(f"{found.answer.coverage.failures[0].shard} did not answer")
        done += 1
        progress(what, done)
        ids = [hit["id"] for hit in msgspec.json.decode(found.answer.hits)]
        own = id_ if isinstance(id_, int) else str(id_)
        return [other for other in ids if other != own][:k]

    tasks = [asyncio.create_task(one(id_, vector)) for id_, vector in vectors]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
