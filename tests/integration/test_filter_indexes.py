"""What the documentation says an index helps is served by it, in the router's own statements."""

from __future__ import annotations

import random
import string
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import pytest

from deploy.local import Cluster
from router.postgres.filter_indexes import filter_indexes
from router.postgres.search import SearchStatements
from router.query.filter import parse
from router.query.selectivity import estimates
from router.query.sizes import Layout
from router.query.types import Scan
from router.recall.index_gain import index_gains
from router.schema import ddl
from shard_config import model
from shard_config.values import ValueType
from tests.integration.worlds import World, world

ONES = [1.0] * 8
COLUMNS = {
    name: model.Column(name, name, type_, index=True)
    for name, type_ in {
        "category": ValueType.TEXT,
        "price": ValueType.FLOAT8,
        "added": ValueType.TIMESTAMPTZ,
        "owner": ValueType.UUID,
    }.items()
}
PATHS = {
    ("lang",): model.MetadataType.TEXT,
    ("geo", "o'clock \\"): model.MetadataType.TEXT,
    ("size",): model.MetadataType.NUMBER,
    ("tags",): model.MetadataType.ARRAY,
}
ROWS_EACH = 20_000
ROWS = """
INSERT INTO {table} (id, embedding, category, price, added, owner, metadata)
SELECT i, ARRAY[i % 7, i % 11, i % 13, 1, 1, 1, 1, 1]::float4[]::vector, 'c' || i % 500, i % 500,
       '2026-01-01Z'::timestamptz + i * '1 minute'::interval, md5(i::text)::uuid,
       jsonb_build_object('lang', 'l' || i % 500, 'size', i % 500, 'tags', jsonb_build_array('t' || i % 500),
                          'geo', jsonb_build_object('o\'\'clock \\', 'g' || i % 500), 'other', i % 500)
FROM generate_series(1, {rows}) i
"""
GEO = "metadata.geo.o'clock \\"
GENERIC = {"enable_seqscan": "off", "plan_cache_mode": "force_generic_plan"}
SERVED: list[tuple[str, dict[str, Any]]] = [
    ("category", {"category": "c7"}),
    ("category", {"category": {"$in": ["c7", "c8", "c9"]}}),
    ("category", {"category": {"$in": [f"c{n}" for n in range(30)]}}),
    ("category", {"category": {"$gte": "c7", "$lt": "c71"}}),
    ("category", {"category": {"$between": ["c7", "c70"]}}),
    ("category", {"category": {"$like": "c49%"}}),
    ("category", {"category": {"$like": "c4_\\9%"}}),
    ("category", {"category": None}),
    ("price", {"price": 7}),
    ("price", {"price": {"$lt": 5}}),
    ("price", {"price": {"$between": [5, 7]}}),
    ("price", {"price": {"$in": [5, 7]}}),
    ("added", {"added": {"$lt": "2026-01-01T01:00:00Z"}}),
    ("owner", {"owner": "c4ca4238-a0b9-2382-0dcc-509a6f75849b"}),
    ("metadata.lang", {"metadata.lang": "l7"}),
    ("metadata.lang", {"metadata.lang": {"$in": ["l7", "l8", "l9"]}}),
    ("metadata.lang", {"metadata.lang": {"$gte": "l7", "$lt": "l71"}}),
    ("metadata.lang", {"metadata.lang": {"$like": "l49%"}}),
    (GEO, {GEO: "g7"}),
    ("metadata.size", {"metadata.size": 7}),
    ("metadata.size", {"metadata.size": {"$in": [7, 8.0]}}),
    ("metadata.size", {"metadata.size": {"$gt": 495}}),
    ("metadata.size", {"metadata.size": {"$between": [5, 7]}}),
    ("metadata.tags", {"metadata.tags": "t7"}),
    ("metadata.tags", {"metadata.tags": {"$in": ["t7", "t8"]}}),
    ("metadata.tags", {"metadata.tags": {"$contains": "t7"}}),
    ("metadata.tags", {"metadata.tags": {"$containsAny": ["t7", "t8"]}}),
    ("metadata.tags", {"metadata.tags": {"$containsAll": ["t7", "t8"]}}),
    ("category", {"category": "c7", "metadata.other": 7}),
    ("category", {"$or": [{"category": "c7"}, {"price": 7}]}),
    ("price", {"$or": [{"category": "c7"}, {"price": 7}]}),
]
NOT_SERVED: list[dict[str, Any]] = [
    {"category": {"$ne": "c7"}},
    {"category": {"$like": "%7"}},
    {"category": {"$ilike": "c49%"}},
    {"metadata.size": "7"},
    {"metadata.lang": 7},
    {"metadata.other": 7},
    {"metadata.tags": {"$exists": False}},
    {"$or": [{"category": "c7"}, {"metadata.other": 7}]},
]


@pytest.fixture
async def indexed(cluster: Cluster) -> AsyncIterator[tuple[World, dict[str, str]]]:
    """A world whose shards have rows and all indexes, and these indexes' names by field."""
    async with world(cluster, columns=COLUMNS, metadata_indexes=PATHS) as w:
        table = w.collection.table
        await w.on_primaries(ROWS.format(table=table, rows=ROWS_EACH))
        names = {}
        for number, index in enumerate(filter_indexes(w.collection)):
            names[index.field] = f"{table.name}_{number}_filter"
            await w.on_primaries(ddl.create_filter_index(w.collection, index, names[index.field]))
        await w.on_primaries(f"ANALYZE {table}")
        yield w, names


async def plan(w: World, filter: dict[str, Any]) -> str:
    """As the server makes it when it knows the values."""
    found = await w.search(ONES, filter=filter, exact=True, plan=True, cache=False)
    return found.answer.reports[0].plan or ""


async def generic_plan(w: World, filter: dict[str, Any], connection: asyncpg.Connection) -> str:
    """As the server makes it for any values, reading the table through only if there is nothing else."""
    statement = SearchStatements().search(
        w.collection,
        b"",
        limit=10,
        candidates=10,
        ef_search=40,
        scan=Scan.EXACT,
        filter=parse(w.collection, filter, w.topology.parts.settings),
        layout=Layout(frozenset()),
    )
    await connection.execute(f"PREPARE search AS {statement.shape.single}")
    values = ", ".join(["NULL"] * len(statement.args))
    rows = await connection.fetch(f"EXPLAIN EXECUTE search ({values})")
    await connection.execute("DEALLOCATE search")
    return "\n".join(row[0] for row in rows)


async def test_what_the_documentation_says_an_index_helps_it_serves(
    cluster: Cluster, indexed: tuple[World, dict[str, str]]
) -> None:
    w, names = indexed
    for field, raw in SERVED:
        shown = await plan(w, raw)
        assert names[field] in shown, (raw, shown)
    for raw in NOT_SERVED:
        shown = await plan(w, raw)
        assert "_filter" not in shown, (raw, shown)
    connection = await asyncpg.connect(cluster.node("s0-a").dsn, server_settings=GENERIC)
    try:
        for field, raw in SERVED:
            shown = await generic_plan(w, raw, connection)
            assert names[field] in shown, (raw, shown)
    finally:
        await connection.close()


async def test_estimates_know_the_indexes_and_their_statistics(indexed: tuple[World, dict[str, str]]) -> None:
    w, names = indexed
    await w.topology.parts.statistics.read()
    table = w.topology.parts.statistics.of("docs", "s0")
    assert table is not None
    for field, raw in SERVED:
        filter = parse(w.collection, raw, w.topology.parts.settings)
        found = estimates(filter, [table])[0]
        if raw != {"category": None}:
            assert names[field] in found.indexes, (raw, found)
        if "metadata.other" in raw or "metadata.tags" in raw:
            continue
        # Every shard has the same rows; of ranges a histogram tells no more than a hundredth of them.
        true = (await w.router.count(w.collection, filter, w.soon())).count / 4
        assert found.known and found.share * table.rows == pytest.approx(true, abs=ROWS_EACH / 100), (
            raw,
            found,
        )
    for raw in NOT_SERVED:
        assert not estimates(parse(w.collection, raw, w.topology.parts.settings), [table])[0].indexes, raw


async def test_what_an_index_would_save_is_measured_without_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What pays on a quiet machine may not beside other tests, which take from both sides alike.
    monkeypatch.setattr("router.recall.index_gain._LEAST_FACTOR", 1.1)
    monkeypatch.setattr("router.recall.index_gain._LEAST_MS", 0.0)
    columns = {name: msgspec.structs.replace(column, index=False) for name, column in COLUMNS.items()}
    async with world(cluster, columns=columns) as w:
        await w.on_primaries(ROWS.format(table=w.collection.table, rows=ROWS_EACH))
        await w.build_index()
        raw = [{"metadata.lang": "l7"}, {"price": {"$lt": 400}}, {"owner": {"$ne": None}}]
        given = [(str(one), parse(w.collection, one, w.topology.parts.settings)) for one in raw]
        gains = await index_gains(w.router, w.collection, given, 10, 40)
        found = {str(advice): gain for gain in gains for advice in gain.advice}
        lang = found["metadata.indexes.lang: text"]
        assert lang.share == pytest.approx(0.002)
        assert lang.without_ms > 1.1 * lang.with_ms
        assert str(lang).endswith("set metadata.indexes.lang: text, and run `pgscatter schema apply`")
        # Made from the columns' values; of no two rows is the owner the same.
        assert {"columns.price.index: true", "columns.category.index: true"} < set(found)
        assert "columns.owner.index: true" not in found


async def test_a_text_that_an_index_cannot_hold_is_the_document_s_own_failure(
    indexed: tuple[World, dict[str, str]],
) -> None:
    w, _ = indexed
    long = "".join(random.Random(3).choices(string.ascii_letters, k=6000))
    documents = [
        {"id": 1, "vector": ONES, "metadata": {"lang": long}},
        {"id": 2, "vector": ONES, "metadata": {"tags": [long], "size": [long]}},
        {"id": 3, "vector": ONES, "category": long},
        {"id": 4, "vector": ONES, "metadata": {"lang": "en"}},
    ]
    async with w.over_http() as http:
        answer = (await http.put("/documents", json={"documents": documents})).json()
    assert answer["stored"] == 2
    assert [failure["id"] for failure in answer["failures"]] == [1, 3]
    assert all("index row size" in failure["message"] for failure in answer["failures"])
    found = await w.ids(ONES, filter={"metadata.tags": {"$contains": long}}, exact=True)
    assert found == [2]
