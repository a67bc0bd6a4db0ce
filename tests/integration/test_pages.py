"""Pages of one search: none repeats a row of another, none is lost, and equal distances go by their ids."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import numpy as np
import pytest

from deploy.local import Cluster
from router.query.types import Consistency
from shard_config import model
from shard_config.values import ValueType
from tests.integration.test_search import gaussian, locked, no_sequential_scans, primary, uses_index
from tests.integration.worlds import Vectors, World, column, hits, patient, world

NAMES = ("s0", "s1", "s2", "s3")


def sharding(shards: int, type_: ValueType = ValueType.BIGINT) -> model.HashSharding:
    return model.HashSharding(column("id", type_), NAMES[:shards])


@asynccontextmanager
async def stored(
    cluster: Cluster,
    vectors: Vectors,
    *,
    shards: int = 2,
    metric: model.Metric = model.Metric.L2,
    quantization: model.Quantization = model.Quantization.NONE,
    ids: Sequence[Any] | None = None,
    only_index: bool = True,
    **changes: Any,
) -> AsyncIterator[World]:
    """The vectors by number, or by `ids`, behind an HNSW index.

    `only_index`: it is used wherever it can be; else where PostgreSQL thinks it is worth it.
    """
    changes.setdefault("sharding", sharding(shards))
    changes["vector"] = model.Vector("embedding", model.VectorType.VECTOR, vectors.shape[1], metric)
    async with world(cluster, index=model.Index(16, 64, quantization), **changes) as w:
        for start in range(0, len(vectors), 1000):
            numbers = range(start, min(start + 1000, len(vectors)))
            await w.put(
                *(
                    w.document(n if ids is None else ids[n], vectors[n], category="ab"[n % 2], price=float(n))
                    for n in numbers
                )
            )
        await w.build_index()
        async with no_sequential_scans(cluster) if only_index else nullcontext():
            for node in w.topology.parts.nodes:
                node.reads.discard_idle()
            yield w


async def walk(w: World, vector: Any, k: int, *, start: int = 0, **options: Any) -> list[list[Any]]:
    """The ids of every page from `start` on, to the first that is not full."""
    pages: list[list[Any]] = []
    while True:
        found = await w.search(vector, k, offset=start + k * len(pages), cache=False, **options)
        assert found.answer.coverage.full
        page = hits(found)
        assert page == sorted(page, key=lambda hit: hit["distance"])
        pages.append([hit["id"] for hit in page])
        if len(page) < k:
            assert found.answer.short is not None
            return pages


def flat(pages: list[list[Any]]) -> list[Any]:
    return [id_ for page in pages for id_ in page]


@pytest.mark.parametrize(
    ("quantization", "shards"),
    [
        (model.Quantization.NONE, 1),
        (model.Quantization.NONE, 2),
        (model.Quantization.HALFVEC, 4),
        (model.Quantization.BINARY, 1),
        (model.Quantization.BINARY, 4),
    ],
)
async def test_equal_vectors_come_in_the_order_of_their_ids_page_by_page(
    cluster: Cluster, quantization: model.Quantization, shards: int
) -> None:
    vectors = np.ones((80, 8), np.float32)
    async with stored(cluster, vectors, shards=shards, quantization=quantization) as w:
        await uses_index(w, vectors[0], k=5)
        assert flat(await walk(w, [0.5] * 8, 5)) == list(range(80))
        for k in (1, 7, 80):
            assert await w.ids([0.5] * 8, k) == list(range(k))
        alone = flat(await walk(w, [0.5] * 8, 5, filter={"category": "b"}))
        assert alone == list(range(1, 80, 2))


@pytest.mark.parametrize("type_", [ValueType.TEXT, ValueType.UUID])
async def test_equal_vectors_with_other_ids_come_in_their_order(cluster: Cluster, type_: ValueType) -> None:
    rng = random.Random(1)
    ids: list[Any] = [uuid.UUID(int=rng.getrandbits(128)) for _ in range(80)]
    if type_ is ValueType.TEXT:
        ids = [f"{rng.choice('aBé𝄞_')}{n}" for n in range(80)]
    changes = {"id": column("id", type_), "sharding": sharding(3, type_)}
    async with stored(cluster, np.ones((80, 8), np.float32), ids=ids, **changes) as w:
        assert flat(await walk(w, [0.5] * 8, 5)) == [str(id_) for id_ in sorted(ids)]


@pytest.mark.parametrize("metric", list(model.Metric))
async def test_groups_of_equal_vectors_are_paged_in_order(cluster: Cluster, metric: model.Metric) -> None:
    rng = np.random.default_rng(2)
    groups = rng.normal(size=(12, 8)).astype(np.float32)
    which = rng.integers(0, len(groups), 300)
    target = rng.normal(size=8).astype(np.float32)
    async with stored(cluster, groups[which], metric=metric) as w:
        exact = hits(await w.search(target, 300, exact=True))
        for k in (4, 25):
            assert flat(await walk(w, target, k)) == [hit["id"] for hit in exact]


@pytest.mark.parametrize(
    ("quantization", "shards", "count"),
    [
        # One shard's pages go on beyond the greatest ef_search, 1000.
        (model.Quantization.NONE, 1, 1000),
        (model.Quantization.NONE, 4, 500),
        (model.Quantization.HALFVEC, 2, 500),
        (model.Quantization.BINARY, 1, 1000),
        (model.Quantization.BINARY, 2, 500),
        (model.Quantization.BINARY, 4, 500),
    ],
)
async def test_a_walk_to_the_end_shows_every_matching_row_once(
    cluster: Cluster, quantization: model.Quantization, shards: int, count: int
) -> None:
    vectors = gaussian(count)
    # Some equal, some equal to the index alone.
    vectors[100:140] = vectors[0]
    vectors[200:240] = np.abs(vectors[200:240])
    async with stored(cluster, vectors, shards=shards, quantization=quantization) as w:
        query = gaussian(1, seed=3)[0]
        await uses_index(w, query, k=10)
        assert sorted(flat(await walk(w, query, 10))) == list(range(count))
        assert sorted(flat(await walk(w, query, 25, ef_search=10))) == list(range(count))
        half = await walk(w, query, 20, filter={"category": "a"})
        assert sorted(flat(half)) == list(range(0, count, 2))


async def test_pages_agree_where_postgresql_would_rather_read_the_table_for_some_of_them(
    cluster: Cluster,
) -> None:
    # For so few rows it would take the index for the first depths of a page's searches and read the table for
    # the others, and that elsewhere in plans made for a search's numbers than in those for any numbers.
    vectors = gaussian(1000, 384)
    async with stored(
        cluster, vectors, shards=4, quantization=model.Quantization.BINARY, only_index=False
    ) as w:
        query = gaussian(1, 384, seed=3)[0]
        plans = set()
        for offset in (0, 400):
            found = await w.search(query, 10, offset=offset, plan=True)
            plans |= {"Seq Scan" in str(report.plan) for report in found.answer.reports}
        assert plans == {False}
        assert sorted(flat(await walk(w, query, 10))) == list(range(1000))


@pytest.mark.parametrize("quantization", [model.Quantization.NONE, model.Quantization.BINARY])
async def test_any_window_is_of_the_same_list(cluster: Cluster, quantization: model.Quantization) -> None:
    vectors = gaussian(300)
    vectors[50:80] = vectors[7]
    async with stored(cluster, vectors, quantization=quantization) as w:
        query, k = vectors[7] + np.float32(0.01), 7
        aligned = await walk(w, query, k)
        rng = random.Random(4)
        start = rng.choice([n for n in range(60) if n % k])
        rest = flat(await walk(w, query, k, start=start))
        assert len(set(rest)) == len(rest) == len(vectors) - start
        assert set(rest) >= set(flat(aligned[-(-start // k) :]))
        # Many at once share statements, in any order.
        numbers = rng.sample(range(len(aligned)), len(aligned))
        together = await asyncio.gather(*(w.ids(query, k, offset=n * k, cache=False) for n in numbers))
        assert together == [aligned[n] for n in numbers]


async def test_pages_within_a_distance_end_where_it_does(cluster: Cluster) -> None:
    vectors = gaussian(600)
    async with stored(cluster, vectors) as w:
        query = gaussian(1, seed=6)[0]
        distances = np.linalg.norm(vectors - query, axis=1)
        limit = float(np.sort(distances)[200]) + 1e-6
        pages = await walk(w, query, 9, max_distance=limit, ef_search=200)
        assert sorted(flat(pages)) == sorted(int(n) for n in np.flatnonzero(distances <= limit))
        beyond = await w.search(query, 9, offset=400, max_distance=limit)
        assert beyond.answer.count == 0
        assert beyond.answer.short is not None
        assert beyond.answer.short.reason == "max_distance"


async def test_a_row_that_lies_on_two_shards_costs_no_other_its_place(cluster: Cluster) -> None:
    vectors = gaussian(200)
    async with stored(cluster, vectors, shards=2) as w:
        table = w.collection.table
        await w.on_primaries(
            f"INSERT INTO {table} (id, embedding) SELECT n, array_fill(0.25::real, ARRAY[16])::vector"
            " FROM generate_series(1000, 1059) n"
        )
        pages = flat(await walk(w, gaussian(1, seed=8)[0], 6))
        assert sorted(pages) == [*range(200), *range(1000, 1060)]


async def test_a_page_accounts_for_all_of_its_searches(cluster: Cluster) -> None:
    async with stored(cluster, gaussian(400), settings=patient(hedge_quantile=0)) as w:
        query = gaussian(1, seed=9)[0]
        first = await w.search(query, 10, explain=True)
        third = await w.search(query, 10, offset=20, explain=True)
        assert [report.attempts for report in first.answer.reports] == [1, 1]
        assert [report.attempts for report in third.answer.reports] == [2, 2]
        assert sum(report.kept for report in third.answer.reports) == 10
        assert third.answer.coverage.shards.queried == 2


async def test_pages_bring_the_columns_of_their_own_rows(cluster: Cluster) -> None:
    vectors = gaussian(400)
    async with stored(cluster, vectors) as w:
        query, k = gaussian(1, seed=10)[0], 7
        for filter_ in (None, {"category": "a"}):
            pages = await asyncio.gather(
                *(
                    w.search(
                        query,
                        k,
                        offset=n * k,
                        include=frozenset(["vector", "price"]),
                        cache=False,
                        filter=filter_,
                    )
                    for n in range(20)
                )
            )
            for hit in (hit for found in pages for hit in hits(found)):
                assert hit["price"] == hit["id"]
                assert np.array_equal(np.array(hit["vector"], "<f4"), vectors[hit["id"]])


async def test_a_page_that_lacks_a_shard_has_rows_of_the_others_only(cluster: Cluster) -> None:
    async with stored(cluster, gaussian(400), shards=3) as w:
        query = gaussian(1, seed=11)[0]
        async with locked(primary(cluster, "s1"), w.collection.table):
            found = await w.search(query, 10, offset=45, consistency=Consistency.STRONG, within=2.5)
        assert [failure.shard for failure in found.answer.coverage.failures] == ["s1"]
        assert {hit["shard"] for hit in hits(found)} == {"s0", "s2"}
        assert (found.answer.count, found.answer.cacheable) == (10, False)
