"""Searches on the real cluster: the index's answers, their honesty, deadlines, cancellation, overload."""

from __future__ import annotations

import asyncio
import itertools
import random
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg
import numpy as np
import pytest

from deploy.local import Cluster
from router.query.errors import DeadlineError, OverloadedError
from router.query.types import Consistency, Found, Probe, ShardRows
from router.settings import Settings
from shard_config import model
from shard_config.values import ValueType
from tests.integration.worlds import Vectors, World, column, execute, hits, patient, until, world

ROWS = 3000
DIMENSIONS = 16
EVERYTHING = frozenset(["content", "metadata", "vector", "category", "price"])


def gaussian(rows: int, dimensions: int = DIMENSIONS, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).normal(size=(rows, dimensions)).astype(np.float32)


def vector_of(dimensions: int = DIMENSIONS, metric: model.Metric = model.Metric.L2) -> model.Vector:
    return model.Vector("embedding", model.VectorType.VECTOR, dimensions, metric)


def primary(cluster: Cluster, shard: str) -> str:
    return next(node.dsn for node in cluster.nodes if node.shard == shard and node.role == "primary")


async def fill(w: World, vectors: Vectors) -> None:
    for start in range(0, len(vectors), 1000):
        await w.put(
            *(
                w.document(i, vectors[i], category="rare" if i % 100 == 0 else "common", price=float(i))
                for i in range(start, min(start + 1000, len(vectors)))
            )
        )


async def value(dsn: str, query: str, *args: object) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query, *args)
    finally:
        await connection.close()


async def eventually_zero(dsn: str, query: str, *args: object, within: float = 20.0) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while (found := await value(dsn, query, *args)) and loop.time() < end:
        await asyncio.sleep(0.02)
    assert found == 0


def ranked(vectors: Vectors, query: Vectors) -> list[int]:
    distances = np.linalg.norm(vectors.astype(np.float64) - query, axis=1)
    return [int(i) for i in np.argsort(distances, kind="stable")]


@asynccontextmanager
async def without(cluster: Cluster, method: str) -> AsyncIterator[None]:
    """Sessions that begin within the block plan without `enable_METHOD`, where they can."""
    primaries = [node.dsn for node in cluster.nodes if node.role == "primary"]
    for dsn in primaries:
        await execute(dsn, f"ALTER ROLE CURRENT_USER SET enable_{method} = off")
    try:
        for node in cluster.nodes:
            await eventually_zero(node.dsn, f"SELECT (current_setting('enable_{method}') = 'on')::int")
        yield
    finally:
        for dsn in primaries:
            await execute(dsn, f"ALTER ROLE CURRENT_USER RESET enable_{method}")


def no_sequential_scans(cluster: Cluster) -> AbstractAsyncContextManager[None]:
    """Sessions that begin within the block use an index where they can, however small the table is."""
    return without(cluster, "seqscan")


@asynccontextmanager
async def indexed(
    cluster: Cluster,
    quantization: model.Quantization = model.Quantization.NONE,
    settings: Settings | None = None,
    dimensions: int = DIMENSIONS,
    **changes: Any,
) -> AsyncIterator[tuple[World, Vectors]]:
    index = model.Index(16, 64, quantization)
    async with world(cluster, settings, vector=vector_of(dimensions), index=index, **changes) as w:
        vectors = gaussian(ROWS, dimensions)
        await fill(w, vectors)
        await w.build_index()
        async with no_sequential_scans(cluster):
            for node in w.topology.parts.nodes:
                node.reads.discard_idle()
            yield w, vectors


async def uses_index(w: World, vector: Vectors, **options: Any) -> None:
    found = await w.search(vector, plan=True, **options)
    for report in found.answer.reports:
        assert report.plan is not None
        assert f"Index Scan using {w.collection.table.name}_" in report.plan, report.plan
        assert "_pkey" not in report.plan


async def test_answers_of_the_hnsw_index_are_nearly_the_exact_ones(cluster: Cluster) -> None:
    async with indexed(cluster) as (w, vectors):
        queries = gaussian(40, seed=1)
        await uses_index(w, queries[0])
        found = 0
        for query in queries:
            truth = ranked(vectors, query)[:10]
            assert await w.ids(query, 10, exact=True) == truth
            found += len(set(truth) & set(await w.ids(query, 10)))
        assert found / 400 >= 0.95

        # More than ef_search rows: the scan is widened, and goes on where its widest ends.
        for k in (300, 1000):
            many = await w.search(queries[0], k, cache=False)
            assert many.answer.count == k
            assert many.answer.short is None
            truth = ranked(vectors, queries[0])[:k]
            assert len(set(truth) & {hit["id"] for hit in hits(many)}) >= 0.95 * k
        everything = await w.search(queries[0], ROWS + 50)
        assert {hit["id"] for hit in hits(everything)} == set(range(ROWS))
        assert everything.answer.short is not None
        assert everything.answer.short.reason == "exhausted"

        # Widening ends with its statement: the connection's next one has its own width.
        narrow = await w.search(queries[1], 5, ef_search=5, explain=True)
        assert narrow.answer.count == 5


async def test_filters_do_not_starve_an_index_scan(cluster: Cluster) -> None:
    async with indexed(cluster) as (w, vectors):
        query = gaussian(1, seed=2)[0]
        rare = [i for i in ranked(vectors, query) if i % 100 == 0]
        ten = await w.search(query, 10, filter={"category": "rare"})
        assert ten.answer.count == 10
        assert ten.answer.short is None
        assert len({hit["id"] for hit in hits(ten)} & set(rare[:10])) >= 9

        # Fewer match than were asked for: all of them, in order, and the answer says that there are no more.
        every = await w.search(query, 50, filter={"category": "rare"})
        assert [hit["id"] for hit in hits(every)] == rare
        assert every.answer.short is not None
        assert (every.answer.short.reason, every.answer.short.returned) == ("exhausted", len(rare))
        none = await w.search(query, 10, filter={"category": "nowhere"})
        assert (none.answer.count, none.answer.coverage.full) == (0, True)

        near = float(np.linalg.norm(vectors[ranked(vectors, query)[2]] - query)) + 1e-4
        limited = await w.search(query, 10, max_distance=near)
        assert [hit["id"] for hit in hits(limited)] == ranked(vectors, query)[:3]
        assert limited.answer.short is not None
        assert limited.answer.short.reason == "max_distance"

        # Nothing lies beyond the limit here: it is not what cut the answer short.
        all_near = await w.search(query, 50, filter={"category": "rare"}, max_distance=1e9)
        assert all_near.answer.short is not None
        assert all_near.answer.short.reason == "exhausted"


async def test_numbers_in_metadata_are_compared_at_any_size(cluster: Cluster) -> None:
    async with world(cluster) as w:
        numbers = [1, 2**64, 10**30, 10**30 + 1, 2**4095]
        await w.put(*(w.document(i, [i] * 8, metadata={"n": n}) for i, n in enumerate(numbers[:4])))
        for at, number in enumerate(numbers):
            for _ in range(2):  # the second from the cache
                assert await w.ids([0] * 8, filter={"metadata.n": {"$lt": number}}) == list(range(at))
        assert await w.ids([0] * 8, filter={"metadata.n": {"$in": [2**64, 10**30]}}) == [1, 2]
        assert await w.ids([0] * 8, filter={"metadata.n": str(10**30)}) == []


async def test_deleted_rows_do_not_shorten_answers(cluster: Cluster) -> None:
    async with indexed(cluster) as (w, vectors):
        query = gaussian(1, seed=3)[0]
        order = ranked(vectors, query)
        gone, left = order[:2000], order[2000:]
        await w.on_primaries(f"ALTER TABLE {w.collection.table} SET (autovacuum_enabled = false)")
        outcome = await w.router.delete(w.collection, gone, w.soon())
        assert outcome.deleted == 2000
        await uses_index(w, query, k=10)
        found = await w.search(query, 10, cache=False)
        assert found.answer.count == 10
        assert len({hit["id"] for hit in hits(found)} & set(left[:10])) >= 9


@pytest.mark.parametrize("quantization", [model.Quantization.HALFVEC, model.Quantization.BINARY])
async def test_quantized_indexes_answer_with_full_distances(
    cluster: Cluster, quantization: model.Quantization
) -> None:
    async with indexed(cluster, quantization) as (w, vectors):
        found = 0
        queries = gaussian(20, seed=4)
        await uses_index(w, queries[0])
        for query in queries:
            answer = hits(await w.search(query, 10, ef_search=400))
            for hit in answer:
                exact = np.linalg.norm(vectors[hit["id"]].astype(np.float64) - query)
                assert hit["distance"] == pytest.approx(float(exact), rel=1e-6)
            assert answer == sorted(answer, key=lambda hit: (hit["distance"], hit["id"]))
            found += len({hit["id"] for hit in answer} & set(ranked(vectors, query)[:10]))
        assert found / 200 >= (0.95 if quantization is model.Quantization.HALFVEC else 0.8)


async def test_every_field_comes_back_as_it_was_stored(cluster: Cluster) -> None:
    columns = {
        "category": column("category", ValueType.TEXT),
        "price": column("price", ValueType.FLOAT8),
        "at": column("at", ValueType.TIMESTAMPTZ),
        "ref": column("ref", ValueType.UUID),
        "flag": column("flag", ValueType.BOOLEAN),
    }
    async with world(cluster, columns=columns) as w:
        import datetime

        at = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
        ref = uuid.UUID(int=2**127 + 5)
        vector = [0.1, -2.5, 3e-30, 4.0, 5.0, 6.0, 7.0, 8.0]
        full = w.document(
            1,
            vector,
            content='ünï "quoted" \\ \n 𝄞',
            metadata={"a": [1, 2.5, None, True], "ü": {"deep": "𝄞"}},
            category="c",
            price=1e300,
            at=at,
            ref=ref,
            flag=False,
        )
        await w.put(full, w.document(2, vector[::-1]))
        include = frozenset([*EVERYTHING, "at", "ref", "flag"])
        for options in ({"exact": True}, {}):
            first, second = hits(await w.search(vector, 2, include=include, **options))
            assert first["id"] == 1
            assert first["distance"] == 0
            assert first["content"] == full.content
            assert first["metadata"] == {"a": [1, 2.5, None, True], "ü": {"deep": "𝄞"}}
            assert np.array_equal(np.array(first["vector"], "<f4"), np.array(vector, "<f4"))
            assert (first["category"], first["price"], first["flag"]) == ("c", 1e300, False)
            assert datetime.datetime.fromisoformat(first["at"]) == at
            assert uuid.UUID(first["ref"]) == ref
            for name in ("content", "metadata", "category", "price", "at", "ref", "flag"):
                assert second[name] is None
        (bare,) = hits(await w.search(vector, 1, include=frozenset()))
        assert set(bare) == {"id", "distance", "shard"}


@pytest.mark.parametrize("type_", [ValueType.TEXT, ValueType.UUID])
async def test_ids_that_are_no_numbers_tie_in_code_point_order(cluster: Cluster, type_: ValueType) -> None:
    id_ = column("id", type_)
    texts = ["a", "B", "é", "z", "Z", "_", "aa", "a b", "𝄞", "\uffee", "ß", "ä", "A", "-a", "10", "9"]
    rng = random.Random(5)
    ids: list[Any] = (
        texts if type_ is ValueType.TEXT else [uuid.UUID(int=rng.getrandbits(128)) for _ in texts]
    )
    names = ("s0", "s1", "s2", "s3")
    async with world(cluster, id=id_, sharding=model.HashSharding(id_, names)) as w:
        await w.put(*(w.document(i, [1] * 8) for i in ids))
        expected = [str(i) for i in sorted(ids)]
        for k in (3, len(ids)):
            assert await w.ids([0] * 8, k, exact=True) == expected[:k]
        offset = hits(await w.search([0] * 8, 5, exact=True, offset=4))
        assert [hit["id"] for hit in offset] == expected[4:9]
        assert sorted(await w.ids([0] * 8, 50)) == sorted(expected)
        for one in ids:
            answer = await w.router.read(w.collection, one, frozenset(), w.soon())
            assert answer is not None
            assert str(answer.document["id"]) == str(one)


@asynccontextmanager
async def locked(dsn: str, table: object) -> AsyncIterator[None]:
    """No statement on the table gets anywhere within the block."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield
        await connection.execute("ROLLBACK")
    finally:
        await connection.close()


async def test_what_was_found_is_answered_though_there_is_no_room_to_look_further(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(cluster) as w:
        await w.put(*(w.document(i, [i] * 8) for i in range(20)))
        fetch, rounds = w.router._fanout.fetch, itertools.count()

        async def full(probes: Mapping[str, Probe], deadline: float) -> dict[str, ShardRows]:
            if next(rounds):
                raise OverloadedError("512 searches wait")
            return await fetch(probes, deadline)

        monkeypatch.setattr(w.router._fanout, "fetch", full)
        found = await w.search([0.0] * 8, 50)
        assert (found.answer.count, found.answer.coverage.full) == (20, True)
        assert found.answer.short is not None
        assert (found.answer.short.reason, found.answer.cacheable) == ("scan_limit", False)
        assert next(rounds) == 2


WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%' || $1 || ' %'"
)


async def test_a_shard_that_hangs_is_reported_by_the_deadline_and_its_statement_cancelled(
    cluster: Cluster,
) -> None:
    async with world(cluster) as w:
        await w.put(*(w.document(i, [i] * 8) for i in range(40)))
        loop, dsn = asyncio.get_running_loop(), primary(cluster, "s1")
        async with locked(dsn, w.collection.table):
            within, started = 2.0, loop.time()
            found, error = await asyncio.gather(
                w.search([0] * 8, 40, consistency=Consistency.STRONG, within=within),
                w.search([0] * 8, consistency=Consistency.STRONG, within=within, allow_partial=False),
                return_exceptions=True,
            )
            assert isinstance(found, Found) and isinstance(error, DeadlineError)
            assert within * 0.8 < loop.time() - started < within + 5
            coverage = found.answer.coverage
            assert (coverage.full, coverage.shards.timed_out, coverage.shards.ok) == (False, 1, 3)
            assert [failure.shard for failure in coverage.failures] == ["s1"]
            assert {hit["shard"] for hit in hits(found)} == {"s0", "s2", "s3"}
            assert found.answer.short is not None
            assert found.answer.short.reason == "coverage"
            assert not found.answer.cacheable
            late = next(report for report in found.answer.reports if report.shard == "s1")
            assert (late.node, late.attempts, late.hedged) == ("s1-a", 1, False)
            assert 0 < late.execute_ms <= late.total_ms < within * 1000 + 5000
            await eventually_zero(dsn, WAITING, str(w.collection.table))
        again = await w.search([0] * 8, 40, consistency=Consistency.STRONG)
        assert again.answer.coverage.full
        assert again.answer.count == 40


async def test_searches_cancelled_at_random_moments_leave_every_connection_usable(cluster: Cluster) -> None:
    before = asyncio.all_tasks()
    settings = patient(node_connections=3, statistics_interval=0)
    async with world(cluster, settings, vector=vector_of()) as w:
        vectors = gaussian(800)
        await fill(w, vectors)
        rng = random.Random(11)
        truth = ranked(vectors, vectors[0])[:20]

        async def one(number: int) -> None:
            # Some ask the same, some alone; some are answered, some are not.
            target = vectors[number % 7]
            await w.search(target, 20, exact=True, cache=number % 2 == 0, explain=number % 4 == 2)

        for _ in range(10):
            tasks = [asyncio.create_task(one(number)) for number in range(30)]
            for task in tasks:
                asyncio.get_running_loop().call_later(rng.uniform(0, 0.02), task.cancel)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert not [r for r in results if r is not None and not isinstance(r, asyncio.CancelledError)]
            # Connections are mended behind the cancelled ones; a search does not wait for that to be over.
            assert await w.ids(vectors[0], 20, exact=True, cache=False) == truth
        await until(lambda: not any(n.reads.in_flight or n.reads.waiting for n in w.topology.parts.nodes))
        for node in w.topology.parts.nodes:
            assert node.reads.connections <= 3
            # A server process takes a moment to end.
            query = "SELECT count(*) - $1 FROM pg_stat_activity WHERE application_name = 'pgscatter reads'"
            await eventually_zero(node.config.dsn, query, node.reads.connections)
        found = await asyncio.gather(
            *(
                w.ids(vectors[0], 20, exact=True, cache=False, consistency=Consistency.STRONG)
                for _ in range(12)
            )
        )
        assert all(ids == truth for ids in found)
    assert asyncio.all_tasks() == before


async def test_nobody_is_cancelled_along_with_another_who_asked_the_same(cluster: Cluster) -> None:
    async with world(cluster, cache=model.Cache(0.0)) as w:
        await w.put(*(w.document(i, [i] * 8) for i in range(40)))
        rng = random.Random(3)

        async def patient() -> None:
            await asyncio.sleep(rng.uniform(0, 0.01))
            assert await w.ids([0] * 8, 5, exact=True) == [0, 1, 2, 3, 4]

        async def hasty() -> None:
            await asyncio.sleep(rng.uniform(0, 0.008))
            task = asyncio.create_task(w.ids([0] * 8, 5, exact=True))
            await asyncio.sleep(rng.uniform(0, 0.003))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        for _ in range(40):
            await asyncio.gather(*(patient() for _ in range(5)), *(hasty() for _ in range(5)))


async def test_more_searches_than_may_wait_are_refused_at_once(cluster: Cluster) -> None:
    settings = patient(node_connections=2, node_statements=2, node_queue=3, statistics_interval=0)
    async with world(cluster, settings) as w:
        await w.put(*(w.document(i, [i] * 8) for i in range(40)))
        dsn = primary(cluster, "s2")

        def search() -> asyncio.Task[Any]:
            return asyncio.create_task(
                w.search([0] * 8, 5, consistency=Consistency.STRONG, cache=False, within=30.0)
            )

        async with locked(dsn, w.collection.table):
            waiting = [search() for _ in range(5)]
            node = next(node for node in w.topology.parts.nodes if node.config.name == "s2-a")
            await until(lambda: (node.dispatcher.in_flight, node.dispatcher.waiting) == (2, 3))
            loop = asyncio.get_running_loop()
            started = loop.time()
            refused = await asyncio.gather(*(search() for _ in range(20)), return_exceptions=True)
            assert loop.time() - started < 10
            assert all(isinstance(error, OverloadedError) for error in refused)
            assert not any(task.done() for task in waiting)
        answers = await asyncio.gather(*waiting)
        assert all(found.answer.coverage.full for found in answers)
        assert (await w.search([0] * 8, 5)).answer.coverage.full


async def test_a_connection_that_the_server_ended_is_replaced(cluster: Cluster) -> None:
    async with world(cluster) as w:
        await w.put(*(w.document(i, [i] * 8) for i in range(40)))
        for _ in range(3):
            assert (await w.search([0] * 8, 5, cache=False)).answer.coverage.full
            for node in cluster.nodes:
                await execute(
                    node.dsn,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'pgscatter reads'",
                )
            await asyncio.sleep(0.05)
            assert (await w.search([0] * 8, 5, cache=False)).answer.coverage.full


async def test_a_table_that_is_missing_on_one_shard_is_that_shards_failure(cluster: Cluster) -> None:
    async with world(cluster) as w:
        await w.put(*(w.document(i, [i] * 8) for i in range(40)))
        table = w.collection.table
        await execute(primary(cluster, "s3"), f"ALTER TABLE {table} RENAME TO {table.name}_away")
        try:
            found = await w.search([0] * 8, 40, consistency=Consistency.STRONG)
            coverage = found.answer.coverage
            assert (coverage.shards.failed, coverage.shards.ok) == (1, 3)
            assert table.name in coverage.failures[0].error
        finally:
            await execute(primary(cluster, "s3"), f"ALTER TABLE {table}_away RENAME TO {table.name}")
        # The node itself is well: nothing has to recover.
        assert (await w.search([0] * 8, 40, consistency=Consistency.STRONG)).answer.coverage.full


async def test_backends_that_an_operator_ends_cost_no_search(cluster: Cluster) -> None:
    async with world(cluster) as w:
        await w.put(*(w.document(i, [float(i)] * 8) for i in range(20)))
        operators = [await asyncpg.connect(node.dsn) for node in cluster.nodes]
        rng, ended = random.Random(6), 0

        async def end_backends() -> None:
            """Once on each server while searches are under way."""
            nonlocal ended
            for operator in operators:
                await asyncio.sleep(rng.uniform(0, 0.005))
                ended += await operator.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE application_name = 'pgscatter reads'"
                )

        try:
            for _ in range(15):
                ending = asyncio.create_task(end_backends())
                while not ending.done():
                    searches = [w.search([float(i)] * 8, 20, cache=False) for i in range(4)]
                    for one in await asyncio.gather(*searches):
                        assert one.answer.coverage.full and one.answer.count == 20
        finally:
            for operator in operators:
                operator.terminate()
        assert ended >= 8
