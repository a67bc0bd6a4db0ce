"""Searches that share a node's statements, on real servers: same answers, no shared misfortune."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import pytest

from deploy.local import Cluster
from router.query.errors import InvalidError, OverloadedError
from router.query.filter import Field, Filter, Like
from router.query.types import Consistency, Found, SearchQuery
from tests.integration.test_search import fill, gaussian, locked, primary, vector_of
from tests.integration.worlds import Vectors, World, hits, patient, until, world

# One statement at a time, so that whatever comes at once must share.
NARROW = patient(node_connections=1, node_statements=1, node_together=16)
ROWS = 2000

KINDS: list[dict[str, Any]] = [
    {},
    {"k": 1},
    {"k": 40},
    {"k": 5, "offset": 7},
    {"ef_search": 80},
    {"filter": {"category": "rare"}},
    {"filter": {"category": "common", "price": {"$lt": 900}}},
    {"filter": {"price": {"$in": [float(i) for i in range(0, 30, 3)]}}},
    {"filter": {"price": {"$in": [float(i) for i in range(0, ROWS, 2)]}}},
    {"filter": {"id": {"$in": list(range(50))}}},
    {"filter": {"metadata.n": {"$gte": 3}}},
    {"include": frozenset(["content", "metadata", "vector", "category"])},
    {"exact": True},
]


async def searched(w: World, query: Vectors, options: dict[str, Any]) -> Found:
    usual = {"cache": False, "consistency": Consistency.STRONG, "within": 30.0}
    return await w.search(query, **{**usual, **options})


@pytest.mark.parametrize("with_index", [True, False])
async def test_searches_that_leave_together_are_answered_as_alone(cluster: Cluster, with_index: bool) -> None:
    async with world(cluster, NARROW, vector=vector_of()) as w:
        await fill(w, gaussian(ROWS))
        if with_index:
            await w.build_index()
        asked = [(query, KINDS[i % len(KINDS)]) for i, query in enumerate(gaussian(10 * len(KINDS), seed=1))]
        alone = [await searched(w, query, options) for query, options in asked]
        together = await asyncio.gather(*(searched(w, query, options) for query, options in asked))
        for one, other in zip(alone, together, strict=True):
            assert hits(other) == hits(one)
            assert other.answer.short == one.answer.short
        sizes = [report.together for found in together for report in found.answer.reports]
        assert max(sizes) > 4
        assert max(report.together for found in alone for report in found.answer.reports) == 1


def like(w: World, pattern: str) -> Filter:
    """A filter that the router would have refused if its pattern ends in a backslash."""
    return Like(Field(w.collection.columns["category"]), pattern, False)


async def with_filter(w: World, query: Vectors, filter: Filter) -> Found:
    search = SearchQuery(w.collection, query.astype("<f4").tobytes(), 10, filter=filter, cache=False)
    return await w.router.search(search, w.soon())


async def test_a_search_that_breaks_its_statement_breaks_alone(cluster: Cluster) -> None:
    async with world(cluster, NARROW, vector=vector_of()) as w:
        await fill(w, gaussian(500))
        queries = gaussian(40, seed=2)
        patterns = ["c\\" if i in (7, 21) else "c%" for i in range(len(queries))]
        outcomes = await asyncio.gather(
            *(
                with_filter(w, query, like(w, pattern))
                for query, pattern in zip(queries, patterns, strict=True)
            ),
            return_exceptions=True,
        )
        for i, outcome in enumerate(outcomes):
            if i in (7, 21):
                assert isinstance(outcome, InvalidError)
                assert "must not end with escape character" in str(outcome.problems)
            else:
                assert isinstance(outcome, Found)
                assert outcome.answer.coverage.full
                assert hits(outcome) == hits(await with_filter(w, queries[i], like(w, "c%")))


async def test_a_search_that_is_cancelled_leaves_its_statement_to_the_others(cluster: Cluster) -> None:
    async with world(cluster, NARROW, vector=vector_of()) as w:
        vectors = gaussian(ROWS)
        await fill(w, vectors)
        queries = gaussian(60, seed=3)
        expected = [await w.ids(query, exact=True, cache=False) for query in queries]
        for delay in np.linspace(0.0, 0.05, 12):
            tasks = [asyncio.create_task(searched(w, query, {})) for query in queries]
            await asyncio.sleep(float(delay))
            for task in tasks[::3]:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for i, outcome in enumerate(outcomes):
                if i % 3 or isinstance(outcome, Found):
                    assert isinstance(outcome, Found)
                    assert outcome.answer.coverage.full
                    assert [hit["id"] for hit in hits(outcome)] == expected[i]
                else:
                    assert isinstance(outcome, asyncio.CancelledError)
        for node in w.topology.parts.nodes:
            assert (node.dispatcher.waiting, node.dispatcher.in_flight) == (0, 0)


async def test_a_search_waits_for_a_node_no_longer_than_it_may(cluster: Cluster) -> None:
    settings = patient(
        node_connections=1, node_statements=1, node_together=1, node_queue_wait=0.3, statistics_interval=0
    )
    async with world(cluster, settings) as w:
        await w.put(*(w.document(i, [i] * 8) for i in range(40)))
        loop = asyncio.get_running_loop()
        async with locked(primary(cluster, "s2"), w.collection.table):
            first = asyncio.create_task(searched(w, np.zeros(8, np.float32), {}))
            node = next(node for node in w.topology.parts.nodes if node.config.name == "s2-a")
            await until(lambda: node.dispatcher.in_flight)
            started = loop.time()
            with pytest.raises(OverloadedError) as caught:
                await searched(w, np.ones(8, np.float32), {})
            assert 0.25 <= loop.time() - started < 10
            assert caught.value.retry_after >= 0
            assert not first.done()
        assert (await first).answer.coverage.full


async def test_a_large_batch_lets_single_searches_by(cluster: Cluster) -> None:
    async with world(cluster, NARROW, vector=vector_of()) as w:
        await fill(w, gaussian(ROWS))
        queries = gaussian(400, seed=4)

        async def finished_before_a_single_search() -> int:
            batch = object()
            finished = 0

            async def member(query: Vectors) -> None:
                nonlocal finished
                await searched(w, query, {"caller": batch})
                finished += 1

            members = [asyncio.create_task(member(query)) for query in queries]
            await asyncio.sleep(0)
            await searched(w, queries[0], {})
            before = finished
            await asyncio.gather(*members)
            return before

        # Without turns it would have been the last of 401. A member has a turn in each millisecond, and those
        # whose turns come while a busy machine is still submitting them go first: hence the best of three.
        assert min([await finished_before_a_single_search() for _ in range(3)]) < 300


async def test_the_connection_used_last_is_used_next(cluster: Cluster) -> None:
    """Turn by turn over five connections, each server process finds its caches cold: 7 % fewer searches."""
    async with world(cluster, patient(statistics_interval=0)) as w:
        reads = w.topology.parts.nodes[0].reads
        async with AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(reads.session(10)) for _ in range(5)]
            for connection in opened:
                await connection.set_ef_search(10)
        used = []
        for _ in range(10):
            async with reads.session(10) as connection:
                used.append(connection)
        assert len(set(used)) == 1
