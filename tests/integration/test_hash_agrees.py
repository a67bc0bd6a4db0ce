"""Python, the predicates and PostgreSQL agree on where a row lives: asked of a live node."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from deploy.local import Cluster
from shard_config.file.identifiers import RESERVED, SYSTEM_COLUMNS
from shard_config.hashing import bucket, buckets
from shard_config.model import Column, HashSharding, ListSharding, Sharding
from shard_config.partition import NoPlaceError, locate
from shard_config.predicate import literal, sql_predicate
from shard_config.values import ValueType, coerce
from tests.unit.shard_config_maps import by_list, by_range

RNG = random.Random(20260131)
MODULI = (1, 2, 3, 7, 8, 12, 64, 100, 257, 1024, 65536)
SHARDS = ("s0", "s1", "s2", "s3")

INTEGERS = [
    *range(-300, 300),
    *(sign * (1 << bits) + off for bits in range(63) for sign in (1, -1) for off in (-1, 0, 1)),
    2**63 - 1,
    -(2**63),
    *(RNG.getrandbits(64) - 2**63 for _ in range(2000)),
]
ALPHABETS = ("abc XYZ09'\"\\$%_", "éßñàΩ", "日本語", "😀🚀\U0010ffff\ue000", "\x01\x7f\t\n")
TEXTS = [
    "",
    "hello",
    *("x" * length for length in range(64)),
    *("é" * length for length in range(40)),
    "long " * 5000,
    "😀" * 3001,
    *("".join(RNG.choice(RNG.choice(ALPHABETS)) for _ in range(RNG.randrange(48))) for _ in range(2500)),
]
UUIDS = [
    uuid.UUID(int=0),
    uuid.UUID(int=2**128 - 1),
    *(uuid.UUID(int=1 << bit) for bit in range(128)),
    *(uuid.UUID(int=RNG.getrandbits(128)) for _ in range(2500)),
]
HASHED: list[tuple[ValueType, list[Any]]] = [
    (ValueType.BIGINT, INTEGERS),
    (ValueType.INTEGER, [key for key in INTEGERS if -(2**31) <= key < 2**31]),
    (ValueType.SMALLINT, [key for key in INTEGERS if -(2**15) <= key < 2**15]),
    (ValueType.TEXT, TEXTS),
    (ValueType.UUID, UUIDS),
]


@pytest.fixture
async def connection(cluster: Cluster) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection to one primary; what it creates is temporary."""
    primary = next(node for node in cluster.nodes if node.role == "primary")
    connection = await asyncpg.connect(primary.dsn)
    yield connection
    await connection.close()


@pytest.mark.parametrize(("type_", "keys"), HASHED, ids=[type_ for type_, _ in HASHED])
async def test_buckets_are_those_of_hash_partitioning(
    connection: asyncpg.Connection[asyncpg.Record], type_: ValueType, keys: list[Any]
) -> None:
    await connection.execute(f"CREATE TEMP TABLE template (k {type_}) PARTITION BY HASH (k)")
    for modulus in MODULI:
        found = buckets(type_, keys, modulus).tolist()
        assert found == [bucket(type_, key, modulus) for key in keys]
        wrong = await connection.fetch(
            "SELECT k, r FROM unnest($2::int[], $3::%s[]) AS u(r, k) "  # noqa: UP031
            "WHERE NOT satisfies_hash_partition('template'::regclass, $1, r, k)" % type_,
            modulus,
            found,
            keys,
        )
        assert wrong == []


@pytest.mark.parametrize(("type_", "keys"), HASHED, ids=[type_ for type_, _ in HASHED])
async def test_hash_predicates_agree(
    connection: asyncpg.Connection[asyncpg.Record], type_: ValueType, keys: list[Any]
) -> None:
    await _fill(connection, type_, keys)
    for modulus in MODULI:
        scattered = tuple(RNG.choice(SHARDS) for _ in range(modulus))
        in_runs = tuple(SHARDS[at * len(SHARDS) // modulus] for at in range(modulus))
        for placement in (scattered, in_runs):
            await _check(connection, HashSharding(Column("k", "k", type_), placement), keys)


EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
PLACED: list[tuple[ValueType, list[Any]]] = [
    (ValueType.BIGINT, INTEGERS),
    (ValueType.SMALLINT, list(range(-50, 50))),
    (ValueType.TEXT, TEXTS),
    (ValueType.UUID, UUIDS),
    (ValueType.FLOAT8, [0.0, -0.0, 0.1, 1e-310, -1e308, *(RNG.gauss(0, 5) for _ in range(500))]),
    (ValueType.FLOAT4, [coerce(ValueType.FLOAT4, RNG.gauss(0, 5)) for _ in range(500)]),
    (ValueType.NUMERIC, [Decimal("1E+20"), Decimal("0.10"), *(Decimal(n) / 100 for n in range(-200, 200))]),
    (
        ValueType.DATE,
        [date(1, 1, 2), date(9999, 12, 30), *(date(2026, 1, 1) + timedelta(n) for n in range(300))],
    ),
    (
        ValueType.TIMESTAMP,
        [
            datetime(1, 1, 1, 1),
            datetime(9999, 12, 31),
            *(datetime(2026, 1, 1, 0, 0, n, n) for n in range(60)),
        ],
    ),
    (ValueType.TIMESTAMPTZ, [EPOCH + timedelta(hours=n, microseconds=n) for n in range(300)]),
]


@pytest.mark.parametrize(("type_", "keys"), PLACED, ids=[type_ for type_, _ in PLACED])
async def test_range_predicates_agree(
    connection: asyncpg.Connection[asyncpg.Record], type_: ValueType, keys: list[Any]
) -> None:
    await _fill(connection, type_, keys)
    for lower, upper in ((None, None), (None, []), ([], None), ([], [])):
        bounds = sorted(set(RNG.sample(keys, 6)))
        bounds = [*([None] if lower is None else []), *bounds, *([None] if upper is None else [])]
        await _check(connection, by_range(type_, bounds, list(SHARDS[:3])), keys)


@pytest.mark.parametrize(
    ("type_", "keys"), [*PLACED, (ValueType.BOOLEAN, [True, False])], ids=[*(t for t, _ in PLACED), "boolean"]
)
async def test_list_predicates_agree(
    connection: asyncpg.Connection[asyncpg.Record], type_: ValueType, keys: list[Any]
) -> None:
    await _fill(connection, type_, keys)
    listed = {key: RNG.choice(SHARDS[:3]) for key in RNG.sample(keys, min(len(keys), 40))}
    for default in (None, "s2", "s3"):
        await _check(connection, by_list(type_, listed, default), keys)
    await _check(connection, ListSharding(Column("k", "k", type_), {}, "s1"), keys)


async def test_text_is_compared_by_code_point_whatever_the_columns_collation(
    connection: asyncpg.Connection[asyncpg.Record],
) -> None:
    await connection.execute('CREATE TEMP TABLE held (k text COLLATE "C.utf8")')
    keys = ["Z", "a", "é", "z", "\ue000", "\U00010000"]
    await connection.copy_records_to_table("held", records=[(key,) for key in keys])
    await _check(connection, by_range(ValueType.TEXT, [None, "a", "\ue000", None], list(SHARDS)), keys)


async def test_literals_survive_the_server(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    for setting in ("on", "off"):
        await connection.execute(f"SET standard_conforming_strings = {setting}; SET datestyle = 'SQL, DMY'")
        for type_, keys in PLACED:
            for key in RNG.sample(keys, 20):
                assert await connection.fetchval(f"SELECT {literal(type_, key)}") == key


async def test_the_list_of_reserved_words_is_the_servers(
    connection: asyncpg.Connection[asyncpg.Record],
) -> None:
    words = await connection.fetch("SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')")
    assert {row["word"] for row in words} <= RESERVED
    columns = await connection.fetch(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'pg_class'::regclass AND attnum < 0"
    )
    assert {row["attname"] for row in columns} == SYSTEM_COLUMNS


async def _fill(connection: asyncpg.Connection[asyncpg.Record], type_: ValueType, keys: list[Any]) -> None:
    await connection.execute(f"CREATE TEMP TABLE held (k {type_})")
    await connection.copy_records_to_table("held", records=[(key,) for key in keys])
    await connection.execute("INSERT INTO held VALUES (NULL)")


async def _check(connection: asyncpg.Connection[asyncpg.Record], sharding: Sharding, keys: list[Any]) -> None:
    """Each shard's predicate picks exactly the keys that `locate` puts there, and is never NULL."""
    expected: dict[str | None, list[Any]] = {}
    for key in keys:
        try:
            expected.setdefault(locate(sharding, key), []).append(key)
        except NoPlaceError:
            expected.setdefault(None, []).append(key)
    for shard in SHARDS:
        predicate = sql_predicate(sharding, shard)
        rows = await connection.fetch(f"SELECT k FROM held WHERE {predicate}")
        assert sorted(row["k"] for row in rows) == sorted(expected.get(shard, []))
        others = await connection.fetchval(f"SELECT count(*) FROM held WHERE NOT ({predicate})")
        total = await connection.fetchval("SELECT count(*) FROM held")
        assert others == total - len(rows)
