"""Live recall on the real cluster: below 1 where scans are narrow, 1 where they are wide."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from deploy.local import Cluster
from router.query.ranked import RankedAnswer
from router.query.types import SearchQuery
from router.recall.live import LiveRecall, Sampled
from router.stages.stage import Stage
from tests.integration.test_search import gaussian, indexed
from tests.integration.worlds import Vectors, World, patient, world

D = 64  # enough that neighbours are hard to find
ALWAYS = patient(recall_sample_rate=1.0, recall_budget=1000.0)


async def settled(recall: LiveRecall, count: int) -> None:
    async with asyncio.timeout(20):
        while recall.samples + recall.dropped.total() < count:
            await asyncio.sleep(0.005)


async def sample(w: World, queries: Vectors, k: int = 3, **options: Any) -> float:
    """Mean recall of these searches, one after the other."""
    recall = w.topology.parts.recall
    before = recall.seen("docs")
    count = recall.samples
    for at, query in enumerate(queries, 1):
        await w.search(query, k, **options)
        await settled(recall, count + at)
    after = recall.seen("docs")
    assert after is not None
    sums = after.recall * after.samples - (0.0 if before is None else before.recall * before.samples)
    return sums / len(queries)


async def test_recall_is_below_one_for_a_narrow_scan_and_one_for_a_wide_one(cluster: Cluster) -> None:
    async with indexed(cluster, settings=ALWAYS, dimensions=D) as (w, _):
        narrow = await sample(w, gaussian(60, D, seed=11), k=1, ef_search=1)
        assert 0.2 < narrow < 0.95
        assert await sample(w, gaussian(25, D, seed=12), ef_search=1000) == pytest.approx(1.0)
        assert await sample(w, gaussian(10, D, seed=13), ef_search=1000, filter={"category": "rare"}) > 0.99
        recall = w.topology.parts.recall
        assert (recall.samples, recall.dropped) == (95, {})
        # What a cache answers shows nothing new.
        await w.search(gaussian(1, D, seed=13)[0], 3, ef_search=1000, filter={"category": "rare"})
        assert recall.samples == 95


class Writing:
    """Stores a document before each repetition."""

    def __init__(self, w: World, inner: Stage[SearchQuery, RankedAnswer]) -> None:
        self._w, self._inner = w, inner

    async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
        if query.exact:
            await self._w.put(self._w.document(99, np.ones(8, dtype=np.float32)))
        return await self._inner.search(query, deadline)


async def test_a_write_in_between_drops_the_sample(cluster: Cluster) -> None:
    async with world(cluster, ALWAYS) as w:
        await w.put(*(w.document(i, np.full(8, i, dtype=np.float32)) for i in range(10)))
        composed = w.router._search._inner._inner._ranked  # type: ignore[attr-defined]
        sampled = composed._vector
        assert isinstance(sampled, Sampled)
        sampled._inner = Writing(w, sampled._inner)
        await w.search(np.zeros(8), 3)
        await settled(w.topology.parts.recall, 1)
        assert w.topology.parts.recall.dropped == {"written": 1}
        assert w.router.recall("docs") is None


async def test_a_rate_of_zero_measures_nothing(cluster: Cluster) -> None:
    async with world(cluster, patient()) as w:
        await w.search(np.zeros(8), 3)
        assert "0 waiting" in repr(w.topology.parts.recall)
        assert w.topology.parts.recall._task is None
