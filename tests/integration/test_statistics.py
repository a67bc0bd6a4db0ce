"""Estimates of filters beside what the planner of a real server believes, and beside the truth."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deploy.local import Cluster
from router.postgres import driver
from router.postgres.conditions import PlainParams, where
from router.postgres.connection import Connection, open_connection
from router.postgres.statistics import read_statistics
from router.query.errors import InvalidError
from router.query.filter import Filter, parse
from router.query.selectivity import estimates
from router.query.statistics import Lookup, TableStatistics, position
from router.settings import Settings
from router.topology import Parts, Topology
from shard_config.values import ValueType, coerce, json_form
from tests.integration.test_search import locked, primary
from tests.integration.worlds import World, column, execute, patient, world

ROWS = 20_000
# Skewed, uniform, clustered and rich in NULLs; `g` is the number of the row.
COLUMNS = {
    "category": (ValueType.TEXT, "'c' || floor(power(random(), 4) * 50)::int"),
    "brand": (
        ValueType.TEXT,
        "CASE WHEN random() < 0.9 THEN left(md5((random() * 3000)::int::text), 9) END",
    ),
    "price": (ValueType.FLOAT8, "CASE WHEN random() < 0.4 THEN exp(random() * 9) END"),
    "amount": (ValueType.NUMERIC, "round((power(random(), 3) * 1000)::numeric, 1)"),
    "clustered": (ValueType.INTEGER, "g / 70"),
    "small": (ValueType.SMALLINT, "floor(random() * 12)"),
    "ratio": (
        ValueType.FLOAT4,
        "CASE WHEN random() < 0.01 THEN 'NaN' ELSE random() + random() END",
    ),
    "active": (ValueType.BOOLEAN, "CASE WHEN random() < 0.7 THEN random() < 0.03 END"),
    "day": (ValueType.DATE, "date '2020-01-01' + (power(random(), 2) * 1500)::int"),
    "seen": (ValueType.TIMESTAMP, "timestamp '2024-02-03' + g * interval '17 min'"),
    "made": (
        ValueType.TIMESTAMPTZ,
        "CASE WHEN random() < .9 THEN timestamptz '1999-1-1' + random() * interval '30y' ELSE 'infinity' END",
    ),
    "owner": (ValueType.UUID, "md5(floor(power(random(), 2) * 5000)::text)::uuid"),
}
METADATA = """jsonb_build_object(
    'lang', CASE WHEN random() < 0.2
                 THEN to_jsonb(ARRAY['l' || floor(random() * 4), 'l' || floor(random() * 40)])
                 ELSE to_jsonb('l' || floor(power(random(), 3) * 30)) END,
    'n', CASE WHEN random() < 0.5 THEN to_jsonb(round((random() * 500)::numeric, 1)) ELSE 'null' END,
    'other', floor(random() * 5))"""


class Statistics:
    """One shard's table with its statistics, and the server to compare them with."""

    def __init__(self, w: World, dsn: str, connection: Connection) -> None:
        self.world = w
        self.dsn = dsn
        self.connection = connection

    @property
    def table(self) -> TableStatistics:
        found = self.world.topology.parts.statistics.of("docs", "s0")
        assert found is not None
        return found

    def filter(self, raw: dict[str, Any]) -> Filter:
        return parse(self.world.collection, raw, Settings())

    async def true_rows(self, filter: Filter) -> int:
        statement, args = self._statement(filter, "count(*)")
        found: int = await self.connection.fetchval(statement, *args)
        return found

    async def planned_rows(self, filter: Filter) -> int:
        """What the planner expects, given the values."""
        statement, args = self._statement(filter, "1")
        plan = json.loads(await self.connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *args))
        found: int = plan[0]["Plan"]["Plan Rows"]
        return found

    def _statement(self, filter: Filter, output: str) -> tuple[str, list[object]]:
        params = PlainParams()
        c = self.world.collection
        statement = f"SELECT {output} FROM {c.table} WHERE {where(filter, c, params)}"
        return self.connection.spelled(statement), params.args


@pytest.fixture
async def statistics(cluster: Cluster) -> AsyncIterator[Statistics]:
    columns = {name: column(name, type_) for name, (type_, _) in COLUMNS.items()}
    async with world(cluster, patient(statistics_interval=0), columns=columns) as w:
        names = ", ".join(COLUMNS)
        values = ", ".join(expression for _, expression in COLUMNS.values())
        table = w.collection.table
        node = next(node for node in cluster.nodes if node.shard == "s0" and node.role == "primary")
        # One shard has rows; the others are empty, as they may be.
        await execute(
            node.dsn,
            f"SELECT setseed(0.4); INSERT INTO {table} (id, embedding, content, metadata, {names})"
            f" SELECT g, array_fill(random(), ARRAY[8])::vector, 'word ' || g % 900, {METADATA}, {values}"
            f" FROM generate_series(1, {ROWS}) g;"
            f" CREATE INDEX by_lang ON {table} USING gin ((metadata #> '{{lang}}'));"
            f" CREATE STATISTICS of_n ON (metadata -> 'n'), (metadata -> 'absent') FROM {table};"
            f" CREATE STATISTICS together ON day, small, category FROM {table};"
            f" CREATE INDEX by_category ON {table} (category); CREATE INDEX by_price ON {table} (price);"
            f' CREATE INDEX by_brand ON {table} (brand COLLATE "C", small);'
            f" CREATE INDEX of_active ON {table} (small) WHERE active;"
            f" CREATE INDEX whole ON {table} USING gin (metadata jsonb_path_ops);"
            f" ANALYZE {table}",
        )
        await w.topology.parts.statistics.read()
        checked = await open_connection(node.dsn, connect_timeout=5.0, statement_timeout=30.0)
        try:
            yield Statistics(w, node.dsn, checked)
        finally:
            await checked.close()


async def values_of(s: Statistics, name: str) -> list[Any]:
    """Different ones that the column has, as a request has them."""
    rows = await s.connection.fetch(
        f"SELECT DISTINCT {name} AS value FROM {s.world.collection.table}"
        f" WHERE {name} IS NOT NULL AND id % 97 = 0 ORDER BY 1"
    )
    type_ = COLUMNS[name][0]
    form = json_form(type_) or (lambda value: value)
    found = [form(row["value"]) for row in rows]
    found = [value if isinstance(value, (bool, int, float)) else str(value) for value in found]
    return [value.replace(" ", "T") if type_.startswith("timestamp") else value for value in found]


def condition(rng: random.Random, name: str, values: list[Any]) -> dict[str, Any]:
    """One whose SQL says what it means: a list of different values, bounds that something lies between."""
    type_ = COLUMNS[name][0]
    several = rng.sample(values, min(rng.choice([1, 2, 4, 20]), len(values)))
    one = several[0]
    low, high = sorted((one, rng.choice(values)), key=lambda value: position(coerce(type_, value)))
    of_text = [{"$like": f"{one[:n]}%"} for n in (2, 3)] if type_ is ValueType.TEXT else []
    return {
        name: rng.choice(
            [
                one,
                {"$ne": one},
                {"$in": several},
                {"$nin": several[:2]},
                {"$lt": one},
                {"$lte": one},
                {"$gt": one},
                {"$gte": one},
                {"$gte": low, "$lt": high},
                {"$between": [low, high]},
                {"$exists": rng.random() < 0.5},
                {"$in": [one, None]},
                *of_text,
            ]
        )
    }


def apart(estimated: float, actual: float) -> float:
    """By which factor they differ; a few rows more or less do not matter."""
    few = ROWS / 1000
    return max((estimated + few) / (actual + few), (actual + few) / (estimated + few))


async def random_filters(s: Statistics, rng: random.Random, count: int) -> list[dict[str, Any]]:
    values = {name: await values_of(s, name) for name in COLUMNS}
    found: list[dict[str, Any]] = []
    for _ in range(count):
        parts = [condition(rng, name, values[name]) for name in rng.sample([*COLUMNS], rng.choice([1, 1, 2]))]
        raw = parts[0] if len(parts) == 1 else {rng.choice(["$and", "$or"]): parts}
        try:
            s.filter(raw)
        except InvalidError:
            continue  # a bound that no value of the type lies beyond
        found.append({"$not": raw} if rng.random() < 0.1 else raw)
    return found


async def test_estimates_of_columns_are_the_planners_and_near_the_truth(statistics: Statistics) -> None:
    s = statistics
    table = s.table
    assert set(table.columns) == {*COLUMNS, "id", "content"}
    assert table.rows == pytest.approx(ROWS) and table.counted
    from_planner: list[float] = []
    from_truth: list[float] = []
    for raw in await random_filters(s, random.Random(5), 400):
        filter = s.filter(raw)
        found = estimates(filter, [table])[0]
        assert found.known, raw
        rows = found.share * table.rows
        from_planner.append(apart(rows, await s.planned_rows(filter)))
        from_truth.append(apart(rows, await s.true_rows(filter)))
    # The planner takes `(x = false) IS NOT TRUE` for `x = true`, and counts a list as if NULLs were spread
    # over it; of prefixes it counts bounds where the router interpolates.
    assert quantile(from_planner, 0.9) < 1.1
    assert quantile(from_truth, 0.99) < 1.6 and max(from_truth) < 4


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


async def test_estimates_of_the_metadata_are_near_the_truth(statistics: Statistics) -> None:
    s = statistics
    assert set(s.table.paths) == {("lang",), ("n",), ("absent",)}
    for raw, index in [
        ({"metadata.lang": "l0"}, "by_lang"),
        ({"metadata.lang": "l3"}, "by_lang"),
        ({"metadata.lang": {"$in": ["l3", "l5", "l35"]}}, "by_lang"),
        ({"metadata.lang": {"$ne": "l1"}}, None),
        ({"metadata.lang": {"$contains": "l1"}}, "whole"),
        ({"metadata.lang": {"$containsAny": ["l1", "l2"]}}, "whole"),
        ({"metadata.lang": {"$gte": "l2"}}, None),
        ({"metadata.lang": {"$like": "l1%"}}, None),
        ({"metadata.n": {"$lt": 100}}, None),
        ({"metadata.n": {"$gte": 100, "$lt": 150}}, None),
        ({"metadata.n": {"$exists": True}}, None),
        ({"metadata.n": None}, None),
        ({"metadata.n": 17}, None),
        ({"metadata.n": {"$lt": "x"}}, None),
        ({"metadata.absent": 1}, None),
    ]:
        filter = s.filter(raw)
        found = estimates(filter, [s.table])[0]
        assert found.known and found.indexes == ((index,) if index else ()), (raw, found)
        assert apart(found.share * ROWS, await s.true_rows(filter)) < 1.2, raw
    assert not estimates(s.filter({"metadata.other": 1}), [s.table])[0].known
    both = estimates(s.filter({"metadata.other": 1, "category": "c5"}), [s.table])[0]
    true = await s.true_rows(s.filter({"category": "c5"}))
    assert not both.known and apart(both.most * ROWS, true) < 1.1 and both.indexes == ("by_category",)


async def test_indexes_are_read_with_what_they_can_look_up(statistics: Statistics) -> None:
    found = {index.name: index for index in statistics.table.indexes}
    # A text is found under the column's own collation, and compared by code point.
    assert found["by_category"].keys == ((Lookup("category", "equal"),),)
    of_small = (Lookup("small", "equal"), Lookup("small", "range"))
    assert found["by_brand"].keys == ((Lookup("brand", "range"), Lookup("brand", "prefix")), of_small)
    assert found["of_active"].keys == (of_small,) and found["of_active"].predicate == "active"
    assert found["by_lang"].keys == ((Lookup(("lang",), "element"),),)
    assert found["whole"].keys == ((Lookup((), "element"),),)
    assert statistics.table.unique("id") and not statistics.table.unique("small")
    (combined,) = statistics.table.combined
    assert {*combined.columns} == {"day", "small", "category"} and combined.common and combined.dependencies


async def test_what_is_not_known_is_left_open_and_what_was_read_is_kept(
    statistics: Statistics, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")  # a command that ran in this process may have raised it
    w = statistics.world
    reader = w.topology.parts.statistics
    empty = reader.of("docs", "s1")
    assert empty is not None and empty.rows == 0 and not empty.columns
    assert not estimates(statistics.filter({"category": "c1"}), [empty])[0].known
    third = reader.of("docs", "s2")
    assert third is not None and third.indexes is empty.indexes, "one object for all shards"
    before = statistics.table
    await reader.read()
    assert statistics.table is before, "nothing has changed"
    table, c = w.collection.table, w.collection
    await w.on_primaries(f"ALTER TABLE {table} RENAME COLUMN price TO cost")
    await w.on_primaries(f"INSERT INTO {table} (id, embedding) VALUES (-1, array_fill(0, ARRAY[8])::vector)")
    await reader.read()
    changed = reader.of("docs", "s0")
    assert changed is not None and set(changed.columns) == {*before.columns} - {"price"}
    fresh = reader.of("docs", "s1")
    assert fresh is not None and fresh.rows > 0 and not fresh.counted
    await w.on_primaries(f"ALTER TABLE {table} RENAME TO {c.table.name}_elsewhere")
    await reader.read()
    assert reader.of("docs", "s0") is None
    await w.on_primaries(f"ALTER TABLE {table}_elsewhere RENAME TO {c.table.name}")
    await reader.read()
    # A type that the map does not know fails the whole reading, once in the log.
    await w.on_primaries(f"ALTER TABLE {table} ALTER COLUMN small TYPE text; ANALYZE {table}")
    await w.on_primaries(f"UPDATE {table} SET small = 'x'; ANALYZE {table}")
    kept = reader.of("docs", "s0")
    for _ in range(2):
        await reader.read()
    assert reader.of("docs", "s0") is kept and kept is not None
    logged = [vars(record) for record in caplog.records if record.message == "statistics not read"]
    assert [one["shard"] for one in logged].count("s0") == 1


async def test_a_role_without_rights_learns_nothing(cluster: Cluster, statistics: Statistics) -> None:
    table, dsn = statistics.world.collection.table, statistics.dsn
    role = f"reader_of_{table.name}"
    await execute(dsn, f"CREATE ROLE {role}; GRANT SELECT (id, category) ON {table} TO {role}")
    try:
        await statistics.connection.execute(f"SET ROLE {role}")
        found = await read_statistics(statistics.connection, statistics.world.collection, 1 << 20)
        assert found is not None and set(found.columns) == {"id", "category"} and not found.paths
        assert found.rows == pytest.approx(ROWS)
    finally:
        await statistics.connection.execute("RESET ROLE")
        await execute(dsn, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_router_begins_with_statistics_and_waits_for_no_shard_that_hangs(
    cluster: Cluster, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, loop = statistics.world, asyncio.get_running_loop()
    shards = w.router.shard_map

    async def known_at_once() -> list[str]:
        topology = Topology(shards, Parts(shards, patient()))
        started = loop.time()
        await topology.open()
        try:
            assert loop.time() - started < 15
            return [name for name in shards.shards if topology.parts.statistics.of("docs", name) is not None]
        finally:
            await topology.close()

    with monkeypatch.context() as patient_start:
        patient_start.setattr("router.nodes.statistics._FIRST_SECONDS", 14.0)
        assert await known_at_once() == list(shards.shards)
    async with locked(primary(cluster, "s1"), w.collection.table):
        known = await known_at_once()
    assert set(known) >= set(shards.shards) - {"s1"}


async def test_statistics_are_read_over_connections_that_are_there(
    statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To open one for each shard, once a minute, would cost more than the reading."""
    parts = statistics.world.topology.parts
    before = statistics.table
    monkeypatch.setattr(driver, "connect", lambda *_, **__: pytest.fail("a connection was opened"))
    await execute(statistics.dsn, f"DELETE FROM {statistics.world.collection.table} WHERE id > 10000")
    await execute(statistics.dsn, f"ANALYZE {statistics.world.collection.table}")
    await parts.statistics.read()
    assert statistics.table is not before


async def test_values_are_read_within_their_bound(statistics: Statistics) -> None:
    found = await read_statistics(statistics.connection, statistics.world.collection, 3000)
    assert found is not None and 0 < len(found.columns) < len(COLUMNS) and "id" in found.columns
    whole = await read_statistics(statistics.connection, statistics.world.collection, 1 << 20)
    assert whole is not None and len(whole.columns) == len(COLUMNS) + 2
