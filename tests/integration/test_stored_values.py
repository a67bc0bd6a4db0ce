"""Values that other applications stored: each has one form in answers, and requests take that form back."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import numpy as np
import pytest

from deploy.local import Cluster
from shard_config import model
from shard_config.partition import locate, locate_many, shard_names, sql_predicate
from shard_config.values import ValueType, coerce
from tests.integration.worlds import World, column, world

T = ValueType
ONES = [1.0] * 8
VECTOR = str(ONES)

# What is stored, as SQL, and what answers show.
VALUES: dict[str, list[tuple[str, Any]]] = {
    "f8": [("'NaN'", "NaN"), ("'Infinity'", "Infinity"), ("'-Infinity'", "-Infinity"), ("1e308", 1e308)],
    "f4": [
        ("'NaN'", "NaN"),
        ("'Infinity'", "Infinity"),
        ("'-Infinity'", "-Infinity"),
        ("0.1234567", 0.1234567),
        ("3.4028235e38", 3.4028235e38),
    ],
    "n": [
        ("'NaN'", "NaN"),
        ("'Infinity'", "Infinity"),
        ("'-Infinity'", "-Infinity"),
        ("0.1234567", 0.1234567),
        ("1e40", 10**40),
    ],
    "d": [
        ("'infinity'", "infinity"),
        ("'-infinity'", "-infinity"),
        ("'0044-03-15 BC'", "0044-03-15 BC"),
        ("'4714-11-24 BC'", "4714-11-24 BC"),
        ("'5874897-12-31'", "5874897-12-31"),
        ("'9999-12-31'", "9999-12-31"),
        ("'0001-01-01'", "0001-01-01"),
    ],
    "ts": [
        ("'infinity'", "infinity"),
        ("'-infinity'", "-infinity"),
        ("'0044-03-15 12:00:00.5 BC'", "0044-03-15T12:00:00.500000 BC"),
        ("'294276-12-31 23:59:59.999999'", "294276-12-31T23:59:59.999999"),
        ("'9999-12-31 23:59:59.999999'", "9999-12-31T23:59:59.999999"),
        ("'0001-01-01 00:00:00'", "0001-01-01T00:00:00"),
    ],
    "tz": [
        ("'infinity'", "infinity"),
        ("'-infinity'", "-infinity"),
        ("'0044-03-15 12:00:00Z BC'", "0044-03-15T12:00:00Z BC"),
        ("'294276-12-31 23:59:59.999999Z'", "294276-12-31T23:59:59.999999Z"),
        ("'10000-01-01 00:00:00Z'", "10000-01-01T00:00:00Z"),
        ("'9999-12-31 23:59:59.999999Z'", "9999-12-31T23:59:59.999999Z"),
    ],
    "s": [("'é 😀'", "é 😀"), ("''", "")],
    "u": [("'{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")],
    "b": [("true", True), ("false", False)],
    "i8": [("-9223372036854775808", -(2**63))],
}
TYPES = {
    "f8": T.FLOAT8,
    "f4": T.FLOAT4,
    "n": T.NUMERIC,
    "d": T.DATE,
    "ts": T.TIMESTAMP,
    "tz": T.TIMESTAMPTZ,
    "s": T.TEXT,
    "u": T.UUID,
    "b": T.BOOLEAN,
    "i8": T.BIGINT,
}
ROWS = [(name, sql, shown) for name, values in VALUES.items() for sql, shown in values]


@asynccontextmanager
async def stored(cluster: Cluster) -> AsyncIterator[World]:
    """A row for each value, its id the place in ROWS, written past the router to the shard of its id."""
    async with world(cluster, columns={name: column(name, type_) for name, type_ in TYPES.items()}) as w:
        c = w.collection
        for id_, (name, sql, _) in enumerate(ROWS):
            await insert(w, locate(c.sharding, id_), f"id, embedding, {name}", f"{id_}, '{VECTOR}', {sql}")
        yield w


async def on(w: World, shard: str, sql: str, *args: object) -> Any:
    """The first row of what `sql` brings on the shard's primary."""
    primary = next(n for n in w.cluster.nodes if n.shard == shard and n.role == "primary")
    connection = await asyncpg.connect(primary.dsn)
    try:
        return await connection.fetchrow(sql, *args)
    finally:
        await connection.close()


async def insert(w: World, shard: str, names: str, values: str) -> None:
    await on(w, shard, f"INSERT INTO {w.collection.table} ({names}) VALUES ({values})")


async def total(w: World, condition: str) -> int:
    shards = w.router.shard_map.shards
    sql = f"SELECT count(*) FROM {w.collection.table} WHERE {condition}"
    return sum([(await on(w, shard, sql))[0] for shard in shards])


def strict(text: str) -> Any:
    """JSON, and not what Python's parser takes besides."""

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


async def test_every_value_has_one_form_in_searches_and_reads_and_goes_back_in(cluster: Cluster) -> None:
    async with stored(cluster) as w, w.over_http() as client:
        for exact in (True, False):
            body = {"vector": ONES, "k": 100, "exact": exact, "include": [*TYPES, "vector"], "cache": False}
            found = await client.post("/search", json=body)
            assert found.status_code == 200, found.text
            hits = {hit["id"]: hit for hit in strict(found.text)["hits"]}
            assert {id_: hits[id_][name] for id_, (name, _, _) in enumerate(ROWS)} == {
                id_: shown for id_, (_, _, shown) in enumerate(ROWS)
            }
        sql = f"SELECT {', '.join(f'{name}::text' for name in TYPES)} FROM {w.collection.table} WHERE id = $1"
        for id_, (name, _, shown) in enumerate(ROWS):
            read = await client.get(f"/documents/{id_}", params={"include": ",".join([*TYPES, "vector"])})
            assert read.status_code == 200, read.text
            document = strict(read.text)
            assert document[name] == shown
            shard = locate(w.collection.sharding, id_)
            before = await on(w, shard, sql, id_)
            # As it came, `shard` and all; then as a search brought it, `distance` included.
            for again in (read.text, json.dumps(hits[id_])):
                body_text = f'{{"documents": [{again}]}}'
                put = await client.put(
                    "/documents", content=body_text, headers={"content-type": "application/json"}
                )
                assert put.status_code == 200, put.text
                assert await on(w, shard, sql, id_) == before


async def test_filters_take_the_forms_and_compare_as_postgresql_does(cluster: Cluster) -> None:
    async with stored(cluster) as w, w.over_http() as client:
        for name, sql, shown in ROWS:
            collate = ' COLLATE "C"' if name == "s" else ""
            sql = f"({sql})::{TYPES[name]}"
            wanted: dict[str, tuple[Any, str]] = {
                "$eq": (shown, f"{name} = {sql}"),
                "$in": ([shown], f"{name} = {sql}"),
                "$nin": ([shown], f"({name} = {sql}) IS NOT TRUE"),
                "$lt": (shown, f"{name} < {sql}{collate}"),
                "$gte": (shown, f"{name} >= {sql}{collate}"),
                "$between": ([shown, shown], f"{name} = {sql}"),
            }
            if shown is False or shown == "":
                del wanted["$lt"]  # refused: nothing is less
            for operator, (operand, condition) in wanted.items():
                params = {"filter": json.dumps({name: {operator: operand}})}
                counted = await client.get("/count", params=params)
                assert counted.status_code == 200, counted.text
                assert counted.json()["count"] == await total(w, condition), (name, shown, operator)


async def test_metadata_that_others_stored_is_shown_digit_by_digit(cluster: Cluster) -> None:
    deep = '{"a":' * 1100 + "1" + "}" * 1100
    texts = [
        '{"n": 0.12345678901234567890, "when": "2026-01-01T00:00:00.1234567Z", "m": 1e400}',
        deep,
        '{"": null, "a.b": [[], {}], "\\ud83d\\ude00": "\\u0001"}',
    ]
    async with world(cluster) as w, w.over_http() as client:
        for id_, text in enumerate(texts):
            shard = locate(w.collection.sharding, id_)
            await insert(w, shard, "id, embedding, metadata", f"{id_}, '{VECTOR}', '{text}'")
        found = await client.post("/search", json={"vector": ONES, "include": ["metadata"]})
        assert found.status_code == 200
        assert '"n": 0.12345678901234567890' in found.text
        assert f'"m": 1{"0" * 400}' in found.text
        assert "2026-01-01T00:00:00.1234567Z" in found.text
        assert '{"a": ' * 1100 in found.text
        assert '{"": null, "a.b": [[], {}], "😀": "\\u0001"}' in found.text


async def test_rows_without_a_usable_vector_are_no_hits_and_infinite_distances_are_named(
    cluster: Cluster,
) -> None:
    for metric, nearest in ((model.Metric.L2, 1), (model.Metric.INNER_PRODUCT, 4), (model.Metric.COSINE, 1)):
        vector = model.Vector("embedding", model.VectorType.VECTOR, 8, metric)
        async with world(cluster, vector=vector) as w, w.over_http() as client:
            await w.on_primaries(f"ALTER TABLE {w.collection.table} ALTER embedding DROP NOT NULL")
            rows = {1: VECTOR, 2: None, 3: str([0] * 8), 4: str([3e38] * 8), 5: str([-3e38] * 8)}
            for id_, data in rows.items():
                quoted = "NULL" if data is None else f"'{data}'"
                await insert(w, locate(w.collection.sharding, id_), "id, embedding", f"{id_}, {quoted}")
            found = await client.post("/search", json={"vector": ONES})
            assert found.status_code == 200, found.text
            hits = strict(found.text)["hits"]
            assert hits[0]["id"] == nearest
            assert 2 not in [hit["id"] for hit in hits]
            distances = [hit["distance"] for hit in hits]
            assert [float(d) for d in distances] == sorted(float(d) for d in distances)
            if metric is not model.Metric.COSINE:
                assert len(hits) == 4
                assert all(isinstance(d, str) == math.isinf(float(d)) for d in distances)
                assert "Infinity" in distances


# Four bounds or listed keys, and keys to place.
KEYS: dict[ValueType, tuple[list[Any], list[Any]]] = {
    T.FLOAT8: (["-Infinity", 0.0, "Infinity", "NaN"], ["-Infinity", -1e300, -0.0, 5.5, "Infinity", "NaN"]),
    T.NUMERIC: (["-Infinity", "0", "Infinity", "NaN"], ["-Infinity", "-1e999", "1", "Infinity", "NaN"]),
    T.DATE: (
        ["-infinity", "0001-01-01", "10000-01-01", "infinity"],
        ["-infinity", "0044-03-15 BC", "0001-01-01", "9999-12-31", "10000-01-01", "infinity"],
    ),
    T.TIMESTAMPTZ: (
        ["-infinity", "0001-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "infinity"],
        ["-infinity", "0044-03-15T12:00:00Z BC", "2026-01-01T00:00Z", "9999-12-31T23:00-05", "infinity"],
    ),
}


@pytest.mark.parametrize("type_", KEYS)
@pytest.mark.parametrize("strategy", ["range", "list"])
async def test_keys_beyond_python_s_values_are_placed_where_postgresql_says(
    cluster: Cluster, type_: ValueType, strategy: str
) -> None:
    bounds, values = KEYS[type_]
    key = column("key", type_)
    sharding: model.Sharding
    ends = [coerce(type_, bound) for bound in bounds]
    if strategy == "range":
        lower = [None, *ends[1:]]
        upper = [*ends[1:], None]
        parts = zip(lower, upper, ["s0", "s1", "s2", "s3"], strict=True)
        sharding = model.RangeSharding(key, tuple(model.RangePart(*part) for part in parts))
    else:
        placed = dict(zip(ends, ["s0", "s1", "s2", "s3"], strict=True))
        sharding = model.ListSharding(key, placed, "s0")
    async with world(cluster, columns={"key": key}, sharding=sharding) as w, w.over_http() as client:
        documents = [{"id": i, "vector": ONES, "key": value} for i, value in enumerate(values)]
        put = await client.put("/documents", json={"documents": documents})
        assert put.status_code == 200, put.text
        assert put.json()["failed"] == 0
        for shard in shard_names(sharding):
            sql = f"SELECT count(*) FROM {w.collection.table} WHERE NOT ({sql_predicate(sharding, shard)})"
            assert (await on(w, shard, sql))[0] == 0
        coerced = [coerce(type_, value) for value in values]
        names = shard_names(sharding)
        assert [names[at] for at in locate_many(sharding, coerced)] == [locate(sharding, v) for v in coerced]
        for i, value in enumerate(values):
            for operator in ("$eq", "$gte", "$lte"):
                body = {"vector": ONES, "k": 20, "filter": {"key": {operator: value}}, "exact": True}
                found = (await client.post("/search", json=body)).json()
                assert i in [hit["id"] for hit in found["hits"]], (operator, value)
            located = await client.get("/locate", params={"key": str(value)})
            assert located.status_code == 200, located.text
            assert strict(located.text)["shard"] == locate(sharding, coerced[i])


@pytest.mark.parametrize("type_", model.VectorType)
async def test_cosine_of_the_shortest_vectors_that_are_taken_is_right(
    cluster: Cluster, type_: model.VectorType
) -> None:
    vector = model.Vector("embedding", type_, 8, model.Metric.COSINE)
    half = type_ is model.VectorType.HALFVEC
    least = math.sqrt(8) * (2.0**-14 if half else 2.0**-63)
    rng = np.random.default_rng(8)
    directions = [direction / np.linalg.norm(direction) for direction in rng.standard_normal((40, 8))]
    async with world(cluster, vector=vector) as w, w.over_http() as client:
        short = [{"id": i, "vector": (d * least * 0.99).tolist()} for i, d in enumerate(directions)]
        refused = await client.put("/documents", json={"documents": short})
        assert refused.status_code == 422
        assert len(refused.json()["errors"]) == 40
        assert (await client.post("/search", json={"vector": short[0]["vector"]})).status_code == 422
        taken = [{"id": i, "vector": (d * least * 1.01).tolist()} for i, d in enumerate(directions)]
        assert (await client.put("/documents", json={"documents": taken})).json()["stored"] == 40
        found = (await client.post("/search", json={"vector": taken[0]["vector"], "k": 40})).json()
        distances = {hit["id"]: hit["distance"] for hit in found["hits"]}
        tolerance = 2.0**-10 if half else 1e-6
        for i, direction in enumerate(directions):
            assert abs(distances[i] - (1 - directions[0] @ direction)) < tolerance
