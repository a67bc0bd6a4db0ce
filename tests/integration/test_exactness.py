"""Merged answers of four shards against one plain table, id by id."""

from __future__ import annotations

from typing import Any

import asyncpg
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.local import Cluster
from router.postgres.sql import distance_operator
from shard_config import model
from shard_config.values import ValueType
from tests.integration.worlds import World, column, hits, patient, world

ROWS = 400
CATEGORIES = ["a", "b", "c", None]

FILTERS: list[tuple[dict[str, Any] | None, str]] = [
    (None, "true"),
    ({"category": "a"}, "category = 'a'"),
    ({"category": {"$ne": "a"}}, "category IS DISTINCT FROM 'a'"),
    ({"category": {"$nin": ["a", "b"]}}, "(category NOT IN ('a', 'b') OR category IS NULL)"),
    ({"category": None}, "category IS NULL"),
    ({"category": {"$in": ["b", None]}}, "(category = 'b' OR category IS NULL)"),
    ({"price": {"$gte": 3, "$lt": 7}}, "price >= 3 AND price < 7"),
    ({"$not": {"price": {"$between": [2, 8]}}}, "(price BETWEEN 2 AND 8) IS NOT TRUE"),
    ({"$or": [{"category": "c"}, {"price": {"$gt": 9}}]}, "(category = 'c' OR price > 9)"),
    ({"metadata.lang": "de"}, "metadata->>'lang' = 'de'"),
    ({"metadata.n": {"$gte": 5}}, "(metadata->>'n')::int >= 5"),
    ({"metadata.n": {"$in": [1, 2, 3]}}, "(metadata->>'n')::int IN (1, 2, 3)"),
    ({"metadata.deep.x": {"$exists": True}}, "metadata->'deep' ? 'x'"),
    ({"metadata.deep.x": None}, "metadata->'deep'->>'x' IS NULL"),
    ({"metadata.gone": {"$exists": True}}, "metadata->>'gone' IS NOT NULL"),
    ({"metadata.gone": {"$in": [1, None]}}, "(metadata->>'gone' = '1' OR metadata->>'gone' IS NULL)"),
    ({"metadata.gone": {"$ne": None}}, "metadata->>'gone' IS NOT NULL"),
    ({"metadata.lang": {"$ilike": "D%"}}, "metadata->>'lang' ILIKE 'd%'"),
    ({"category": {"$like": "_"}}, "category LIKE '_'"),
    ({"id": {"$in": list(range(0, ROWS, 3))}}, "id % 3 = 0"),
    ({"id": {"$lt": 20}}, "id < 20"),
]


def data(seed: int, dimensions: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(ROWS, dimensions)).astype(np.float32)
    # Equal vectors under different ids: distances tie exactly, and ids must decide.
    vectors[100:140] = vectors[0]
    vectors[140:180] = np.round(vectors[140:180])
    vectors[np.abs(vectors).sum(axis=1) == 0] = 1
    return vectors


async def fill(w: World, vectors: np.ndarray[Any, np.dtype[np.float32]]) -> str:
    """The documents on the shards, and the same in one table on the first node."""
    documents = [
        w.document(
            i,
            vector,
            category=CATEGORIES[i % 4],
            price=float(i % 11),
            content=f"document {i}",
            metadata={
                "lang": ("en", "de", "fr")[i % 3],
                "n": i % 10,
                "deep": {"x": 1} if i % 5 == 0 else {},
                **({"gone": (None, 1)[i % 2]} if i % 3 == 0 else {}),
            },
        )
        for i, vector in enumerate(vectors)
    ]
    await w.put(*documents)
    single = f"{w.collection.table}_single"
    connection = await asyncpg.connect(w.cluster.nodes[0].dsn)
    try:
        vector = w.collection.vector
        await connection.execute(
            f"CREATE TABLE {single} (id bigint PRIMARY KEY, embedding {vector.type}({vector.dimensions}),"
            " category text, price float8, metadata jsonb)"
        )
        await connection.executemany(
            f"INSERT INTO {single} VALUES ($1, $2::text::{vector.type}, $3, $4, $5)",
            [
                (d.id, str(vectors[d.id].tolist()), d.columns["category"], d.columns["price"], d.metadata)
                for d in documents
                if isinstance(d.id, int)
            ],
        )
    finally:
        await connection.close()
    return single


async def expected(
    w: World, single: str, vector: Any, condition: str, k: int, offset: int, max_distance: float | None
) -> list[tuple[int, float]]:
    operator = distance_operator(w.collection.vector.metric)
    connection = await asyncpg.connect(w.cluster.nodes[0].dsn)
    try:
        limit = (
            ""
            if max_distance is None
            else f" AND embedding {operator} $1::text::{w.collection.vector.type} <= {max_distance!r}"
        )
        rows = await connection.fetch(
            f"SELECT id, embedding {operator} $1::text::{w.collection.vector.type} AS d FROM {single}"
            f" WHERE {condition}{limit} ORDER BY d, id OFFSET {offset} LIMIT {k}",
            str(vector.tolist()),
        )
    finally:
        await connection.close()
    return [(row["id"], row["d"]) for row in rows]


@pytest.mark.parametrize("metric", list(model.Metric))
@pytest.mark.parametrize("type_", list(model.VectorType))
async def test_exact_answers_equal_one_tables_for_every_metric_and_filter(
    cluster: Cluster, metric: model.Metric, type_: model.VectorType
) -> None:
    vectors = data(7, 8)
    async with world(cluster, vector=model.Vector("embedding", type_, 8, metric)) as w:
        single = await fill(w, vectors)
        rng = np.random.default_rng(1)
        for number, (raw, condition) in enumerate(FILTERS):
            vector = vectors[0] if number % 3 == 0 else rng.normal(size=8).astype(np.float32)
            offset, k = (0, 10) if number % 2 else (int(rng.integers(0, 60)), int(rng.integers(1, 120)))
            # A limit that lies on a row's very distance, which must be included.
            everything = await expected(w, single, vector, condition, ROWS, 0, None)
            limit = everything[len(everything) // 2][1] if number % 4 == 1 and everything else None
            found = await w.search(
                vector, k, filter=raw, exact=True, offset=offset, max_distance=limit, cache=False
            )
            got = [(hit["id"], hit["distance"]) for hit in hits(found)]
            assert got == await expected(w, single, vector, condition, k, offset, limit), (raw, offset, k)
            assert found.answer.coverage.full
        await w.on_primaries(f"DROP TABLE IF EXISTS {single}")


@pytest.mark.parametrize("sharding", ["hash text", "list", "range"])
async def test_every_strategy_gives_the_same_answer(cluster: Cluster, sharding: str) -> None:
    category, price = column("category", ValueType.TEXT), column("price", ValueType.FLOAT8)
    strategies: dict[str, model.Sharding] = {
        "hash text": model.HashSharding(category, ("s0", "s1", "s2", "s3", "s0")),
        "list": model.ListSharding(category, {"a": "s1", "b": "s3"}, "s2"),
        "range": model.RangeSharding(
            price,
            (
                model.RangePart(None, 3.0, "s3"),
                model.RangePart(3.0, 7.0, "s0"),
                model.RangePart(7.0, None, "s1"),
            ),
        ),
    }
    vectors = data(3, 8)
    async with world(cluster, sharding=strategies[sharding]) as w:
        for start in range(0, ROWS, 100):
            await w.put(
                *(
                    w.document(i, vectors[i], category="abcd"[i % 4], price=float(i % 11))
                    for i in range(start, start + 100)
                )
            )
        target = vectors[5]
        ranked = sorted(range(ROWS), key=lambda i: (float(np.linalg.norm(vectors[i] - target)), i))
        assert await w.ids(target, 5, exact=True) == ranked[:5]
        only = await w.search(target, 400, filter={"category": "b", "price": {"$lt": 3}}, exact=True)
        expected_ids = [i for i in range(ROWS) if i % 4 == 1 and i % 11 < 3]
        assert sorted(hit["id"] for hit in hits(only)) == expected_ids
        assert only.answer.coverage.shards.queried == 1
        assert only.answer.coverage.shards.skipped == only.answer.coverage.shards.total - 1


POINTS = st.tuples(st.integers(-3, 3), st.integers(-3, 3)).filter(lambda point: point != (0, 0))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    points=st.lists(
        st.tuples(st.integers(-3, 3), st.integers(-3, 3)).filter(lambda p: p != (0, 0)),
        min_size=1,
        max_size=60,
    ),
    k=st.integers(1, 70),
    offset=st.integers(0, 10),
    metric=st.sampled_from(model.Metric),
)
def test_ties_and_ends_of_small_random_collections_are_exact(
    cluster: Cluster, points: list[tuple[int, int]], k: int, offset: int, metric: model.Metric
) -> None:
    import asyncio

    async def check() -> None:
        # Nothing else is looked at when each of many worlds is opened.
        alone = patient(statistics_interval=0, schema_check_interval=0)
        vector = model.Vector("embedding", model.VectorType.VECTOR, 2, metric)
        async with world(cluster, alone, vector=vector) as w:
            await w.put(*(w.document(i, point) for i, point in enumerate(points)))
            found = await w.search((1, 2), k, exact=True, offset=offset)
            distances = [(distance(metric, point, (1, 2)), i) for i, point in enumerate(points)]
            got = hits(found)
            assert len(got) == max(0, min(k, len(points) - offset))
            # pgvector sums in single precision: equal by arithmetic, nearly equal by machine.
            for hit, (far, _) in zip(got, sorted(distances)[offset:], strict=False):
                assert hit["distance"] == pytest.approx(far, abs=1e-6)
            assert [h["id"] for h in got] == [
                h["id"] for h in sorted(got, key=lambda h: (h["distance"], h["id"]))
            ]
            short = found.answer.short
            assert (short is None) == (len(got) == k)
            assert short is None or short.reason == "exhausted"

    asyncio.run(check())


def distance(metric: model.Metric, a: tuple[int, int], b: tuple[int, int]) -> float:
    x, y = np.array(a, float), np.array(b, float)
    match metric:
        case model.Metric.L2:
            return float(np.linalg.norm(x - y))
        case model.Metric.L1:
            return float(np.abs(x - y).sum())
        case model.Metric.INNER_PRODUCT:
            return float(-x @ y)
        case model.Metric.COSINE:
            return float(1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y))
