"""`pgscatter load` into real shards, as a user runs it, and killed in the middle as nobody wants to."""

from __future__ import annotations

import asyncio
import gc
import io
import itertools
import json
import re
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.local import Cluster
from router.bulk.copy import copy_blocks
from router.bulk.load import Options
from router.bulk.load import load as run_load
from router.bulk.resume import Job
from router.bulk.scalars import JSONB, encoder
from router.bulk.start import find_primaries, start
from router.postgres.connection import POSTGRES_ERRORS
from router.schema.load_lock import load_lock
from router.terminal import Display
from shard_config.file import codec
from shard_config.model import Table
from shard_config.partition import locate
from shard_config.values import ValueType, coerce
from tests.integration.apps import applied_map, collection, pgscatter, write_map

_numbers = itertools.count()
_FINAL = re.compile(r"loaded ([\d,]+) rows in [\d.]+ s \([\d,]+ rows/s\), ready after [\d.]+ s: (.*)")


def fresh() -> str:
    return f"public.loaded_{next(_numbers)}"


def load(source: Path, path: Path, *flags: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    return pgscatter("load", source, "--map", path, "--collection", "docs", *flags, check=check)


def began(source: Path, path: Path, *flags: object) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "router.cli",
        "load",
        source,
        "--map",
        path,
        "--collection",
        "docs",
        *flags,
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([str(part) for part in command], text=True, **pipes)


async def rows(path: Path, sql: str, *, replicas: bool = False) -> dict[str, list[asyncpg.Record]]:
    """The statement's rows on each shard's first node, or its second."""
    found = {}
    for name, shard in codec.load(path).shards.items():
        connection = await asyncpg.connect(shard.nodes[1 if replicas else 0].dsn, timeout=10)
        try:
            found[name] = await connection.fetch(sql)
        finally:
            await connection.close(timeout=10)
    return found


async def check(path: Path, vectors: np.ndarray, table: str, *, replicas: bool = False) -> None:
    """Every row is on its shard, once, and its vector is the file's, bit by bit."""
    sharding = codec.load(path).collections["docs"].sharding
    seen = 0
    stored = await rows(path, f"SELECT id, embedding::float4[] AS v FROM {table}", replicas=replicas)
    for shard, found in stored.items():
        for row in found:
            assert locate(sharding, row["id"]) == shard
            assert row["v"] == vectors[row["id"]].tolist()
        seen += len({row["id"] for row in found})
        assert len(found) == len({row["id"] for row in found})
    assert seen == len(vectors)


async def hnsw(path: Path, table: str) -> list[int]:
    """How many HNSW indexes each shard has."""
    name = table.split(".")[1]
    sql = f"SELECT FROM pg_indexes WHERE tablename = '{name}' AND indexdef LIKE '%USING hnsw%'"
    return [len(found) for found in (await rows(path, sql)).values()]


def sample(n: int, dimensions: int = 4, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dimensions)).astype(np.float32)


def npy(folder: Path, vectors: np.ndarray) -> Path:
    path = folder / "vectors.npy"
    np.save(path, vectors)
    return path


async def test_an_array_is_loaded_indexed_and_on_the_replicas(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    path = applied_map(cluster, tmp_path, docs=collection(table=table))
    vectors = sample(5000)
    source = npy(tmp_path, vectors)
    done = load(source, path, "--chunk-rows", 700)
    found = _FINAL.fullmatch(done.stdout.strip())
    assert found, done.stdout
    assert found[1] == "5,000"
    counts = dict(part.split() for part in found[2].split(", ", 3))
    stored = await rows(path, f"SELECT FROM {table}")
    assert {shard: f"{len(listed):,}" for shard, listed in stored.items()} == counts
    await check(path, vectors, table)
    await check(path, vectors, table, replicas=True)
    assert await hnsw(path, table) == [1, 1, 1, 1]
    analyzed = await rows(path, f"SELECT reltuples FROM pg_class WHERE oid = '{table}'::regclass")
    assert sum(found[0][0] for found in analyzed.values()) == 5000
    again = load(source, path)
    assert again.stdout == "nothing to do: all 5,000 rows were loaded before\n"
    assert pgscatter("schema", "apply", "--map", path).stdout.count("nothing to do") == 4


async def test_an_index_may_be_left_for_later(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    path = applied_map(cluster, tmp_path, docs=collection(table=table))
    vectors = sample(500)
    done = load(npy(tmp_path, vectors), path, "--no-index")
    assert f"note: {table} has no HNSW index; `pgscatter schema apply` creates it" in done.stdout
    await check(path, vectors, table)
    assert await hnsw(path, table) == [0, 0, 0, 0]
    pgscatter("schema", "apply", "--map", path)
    assert await hnsw(path, table) == [1, 1, 1, 1]


def test_only_an_hdf5_file_has_data_sets(tmp_path: Path) -> None:
    refused = load(npy(tmp_path, sample(1)), tmp_path / "map.yaml", "--dataset", "test", check=False)
    assert refused.returncode == 2
    assert "--dataset: only HDF5 files (.hdf5, .h5) have some, and " in refused.stderr


async def test_an_hdf5_file_of_halfvecs(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    vector = {"type": "halfvec", "dimensions": 4, "metric": "cosine"}
    path = applied_map(cluster, tmp_path, docs=collection(table=table, vector=vector))
    vectors = sample(300).astype(np.float16).astype(np.float64)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["test"] = vectors
    load(tmp_path / "a.hdf5", path, "--dataset", "test", "--limit", 250)
    await check(path, vectors[:250], table)


DOCUMENTS = [
    {
        "id": f"doc-{i}",
        "vector": [float(i + 1), 2.0, 3.0, 4.0],
        "content": f"Nummer {i} – é" if i % 3 else None,
        "metadata": {"n": i, "deep": {"list": [1, "x"]}} if i % 2 else None,
        "category": "abc"[i % 3],
        "price": i / 8,
    }
    for i in range(600)
]


def jsonl(folder: Path, documents: list[dict[str, Any]]) -> Path:
    path = folder / "docs.jsonl"
    path.write_text("".join(f"{json.dumps(document)}\n" for document in documents))
    return path


def parquet(folder: Path, documents: list[dict[str, Any]]) -> Path:
    columns = {name: [document[name] for document in documents] for name in documents[0]}
    columns["metadata"] = [None if m is None else json.dumps(m) for m in columns["metadata"]]
    pq.write_table(pa.table(columns), folder / "docs.parquet")
    return folder / "docs.parquet"


@pytest.mark.parametrize("form", [jsonl, parquet])
async def test_documents_are_stored_with_all_their_columns(
    cluster: Cluster, tmp_path: Path, form: Any
) -> None:
    table = fresh()
    sharding = {
        "strategy": "list",
        "key": "category",
        "placement": {"s0": ["a"], "s3": ["b"]},
        "default": "s1",
    }
    path = applied_map(
        cluster, tmp_path, docs=collection(table=table, id={"type": "text"}, sharding=sharding)
    )
    load(form(tmp_path, DOCUMENTS), path, "--chunk-rows", 100)
    sql = f"SELECT id, embedding::float4[] AS vector, content, metadata, category, price FROM {table}"
    stored = await rows_of(path, sql, ["s0", "s1", "s3"])
    assert {shard: {row["category"] for row in found} for shard, found in stored.items()} == {
        "s0": {"a"},
        "s1": {"c"},
        "s3": {"b"},
    }
    found = {row["id"]: dict(row) for listed in stored.values() for row in listed}
    for document in DOCUMENTS:
        row = found.pop(document["id"])
        row["metadata"] = None if row["metadata"] is None else json.loads(row["metadata"])
        assert row == document
    assert not found


async def rows_of(path: Path, sql: str, shards: list[str]) -> dict[str, list[asyncpg.Record]]:
    found = {}
    for name in shards:
        connection = await asyncpg.connect(codec.load(path).shards[name].nodes[0].dsn, timeout=10)
        found[name] = await connection.fetch(sql)
        await connection.close(timeout=10)
    return found


async def test_every_bad_row_that_is_left_out_is_named(cluster: Cluster, tmp_path: Path) -> None:
    path = applied_map(cluster, tmp_path, docs=collection(table=fresh()))
    documents: list[dict[str, Any]] = [{"id": i, "vector": [1, 2, 3, 4]} for i in range(20)]
    for i in range(2, 10):
        documents[i]["vector"] = [1, 2]
    source = jsonl(tmp_path, documents)
    done = load(source, path, "--skip-bad", 8).stdout
    assert "left out 8 bad rows" in done
    assert [f"line {i + 1}: vector" in done for i in range(2, 10)] == [True] * 8


async def test_bad_rows_stop_the_load_unless_they_may_be_skipped(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    path = applied_map(cluster, tmp_path, docs=collection(table=table))
    documents: list[dict[str, Any]] = [{"id": i, "vector": [1, 2, 3, 4]} for i in range(50)]
    documents[20]["vector"] = [1, 2]
    documents[30]["price"] = "dear"
    source = jsonl(tmp_path, documents)
    refused = load(source, path, "--chunk-rows", 10, check=False)
    assert refused.returncode == 1
    assert f"{source}, line 21: vector: has 2 dimensions, but the collection has 4" in refused.stderr
    still = load(source, path, "--skip-bad", 1, check=False)
    assert still.returncode == 1
    assert "2 bad rows so far; 1 may be skipped" in still.stderr
    done = load(source, path, "--skip-bad", 2)
    assert "left out 2 bad rows" in done.stdout
    assert "line 31: price: expected a number, got 'dear'" in done.stdout
    stored = await rows(path, f"SELECT id FROM {table}")
    assert sorted(row["id"] for found in stored.values() for row in found) == [
        i for i in range(50) if i not in (20, 30)
    ]


async def test_rows_that_the_index_cannot_hold_are_named_before_any_is_stored(
    cluster: Cluster, tmp_path: Path
) -> None:
    table = fresh()
    index = {"type": "hnsw", "quantization": "halfvec"}
    path = applied_map(cluster, tmp_path, docs=collection(table=table, index=index))
    largest = [[70000, 1, 1, 1], [65504, 1, 1, 1], [1, 2, 3, 4]]
    source = jsonl(tmp_path, [{"id": i, "vector": vector} for i, vector in enumerate(largest)])
    refused = load(source, path, check=False)
    assert refused.returncode == 1
    assert (
        f"{source}, line 1: vector[0]: 70000 exceeds 65504, the limit of the index's halfvec"
        in refused.stderr
    )
    assert not any((await rows(path, f"SELECT id FROM {table}")).values())
    assert "left out 1 bad rows" in load(source, path, "--skip-bad", 1).stdout
    stored = await rows(path, f"SELECT id FROM {table}")
    assert sorted(row["id"] for found in stored.values() for row in found) == [1, 2]
    assert await hnsw(path, table) == [1, 1, 1, 1]


async def test_ids_that_exist_and_ids_that_repeat_are_named(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    path = applied_map(cluster, tmp_path, docs=collection(table=table))
    load(jsonl(tmp_path, [{"id": i, "vector": [1, 2, 3, 4]} for i in range(10)]), path)
    source = jsonl(tmp_path, [{"id": i, "vector": [1, 2, 3, 5]} for i in range(9, 12)])
    exists = load(source, path, check=False)
    assert exists.returncode == 1
    assert f"{source}, line 1: duplicate key value violates unique constraint" in exists.stderr
    assert "Key (id)=(9) already exists; a load adds rows, it replaces none" in exists.stderr
    assert "left out 1 bad rows" in load(source, path, "--skip-bad", 1).stdout
    twice = jsonl(tmp_path, [{"id": i, "vector": [1, 2, 3, 4]} for i in (100, 101, 100)])
    repeats = load(twice, path, check=False)
    assert repeats.returncode == 1
    assert f"{twice}, line 3: duplicate key" in repeats.stderr
    assert "(id)=(100) already exists" in repeats.stderr
    load(twice, path, "--skip-bad", 1)
    stored = await rows(path, f"SELECT id, embedding::text AS v FROM {table}")
    found = {row["id"]: row["v"] for listed in stored.values() for row in listed}
    assert found.keys() == {*range(12), 100, 101}
    assert found[9] == "[1,2,3,4]"


# What only PostgreSQL refuses, and some words of why.
REFUSALS = {
    "a check": ("ADD CHECK (price < 100)", {"price": 100.0}, "violates check constraint"),
    "a length": ("ALTER category TYPE varchar(3)", {"category": "long"}, "value too long for type character"),
    "a foreign key": (
        "ADD FOREIGN KEY (category) REFERENCES {table}_kinds DEFERRABLE INITIALLY DEFERRED",
        {"category": "none"},
        "violates foreign key constraint",
    ),
    "uniqueness": ("ADD UNIQUE (content)", {"content": "content 1"}, "Key (content)=(content 1) already"),
    "uniqueness at commit": (
        "ADD UNIQUE (content) DEFERRABLE INITIALLY DEFERRED",
        {"content": "content 1"},
        "Key (content)=(content 1) already exists",
    ),
    "a trigger": (
        "ADD COLUMN unused int; CREATE TRIGGER t BEFORE INSERT ON {table} FOR EACH ROW"
        " WHEN (NEW.price = 100) EXECUTE FUNCTION {table}_raises()",
        {"price": 100.0},
        "not at this price",
    ),
    "a trigger that drops the row": (
        "ADD COLUMN unused int; CREATE TRIGGER t BEFORE INSERT ON {table} FOR EACH ROW"
        " WHEN (NEW.price = 100) EXECUTE FUNCTION {table}_drops()",
        {"price": 100.0},
        "not stored, and no error: a trigger of the table dropped the row",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
async def test_rows_that_only_postgresql_refuses_are_named_and_may_be_skipped(
    cluster: Cluster, tmp_path: Path, what: str
) -> None:
    alter, bad, reason = REFUSALS[what]
    table = fresh()
    sharding = {"strategy": "hash", "key": "id", "buckets": 4, "placement": {"s0": [0, 1, 2], "s2": [3]}}
    path = applied_map(cluster, tmp_path, docs=collection(table=table, sharding=sharding))
    setup = (
        f"CREATE TABLE {table}_kinds (kind text PRIMARY KEY); INSERT INTO {table}_kinds VALUES ('a');"
        f" CREATE FUNCTION {table}_raises() RETURNS trigger LANGUAGE plpgsql AS"
        f" 'BEGIN RAISE EXCEPTION ''not at this price''; END';"
        f" CREATE FUNCTION {table}_drops() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        f" ALTER TABLE {table} {alter.format(table=table)}"
    )
    await on_primaries(path, setup)
    placed = codec.load(path).collections["docs"].sharding
    here = [i for i in range(400) if locate(placed, i) == "s0"][:60]
    wrong = [here[i] for i in (7, 8, 31, 59)]
    documents: list[dict[str, Any]] = [
        {"id": i, "vector": [1, 2, 3, 4], "content": f"content {n}", "category": "a", "price": 1.0}
        for n, i in enumerate(here)
    ]
    for document in documents:
        if document["id"] in wrong:
            document.update(bad)
    source = jsonl(tmp_path, documents)
    # One connection a shard, so that chunks are stored in the file's order.
    few = load(source, path, "--chunk-rows", 20, "--jobs", 1, "--skip-bad", 3, check=False)
    assert few.returncode == 1
    assert f"{source}, line 8: " in few.stderr
    assert reason in few.stderr
    assert "4 bad rows so far; 3 may be skipped" in few.stderr
    assert "Traceback" not in few.stderr
    done = load(source, path, "--jobs", 1, "--skip-bad", 4)
    assert "left out 4 bad rows" in done.stdout
    stored = await rows_of(path, f"SELECT id FROM {table}", ["s0"])
    assert sorted(row["id"] for row in stored["s0"]) == sorted({*here} - {*wrong})
    marks = await rows_of(
        path,
        "SELECT sum(rows) AS stored, sum(rejected) AS rejected FROM pgscatter.load_chunk m"
        f" JOIN pgscatter.load l ON l.id = m.load WHERE relation = '{table}'::regclass",
        ["s0"],
    )
    assert dict(marks["s0"][0]) == {"stored": 56, "rejected": 4}
    again = load(source, path, "--skip-bad", 4)
    assert again.stdout.endswith("nothing to do: all 56 rows were loaded before\n")


async def on_primaries(path: Path, sql: str) -> None:
    shard_map = codec.load(path)
    for shard in shard_map.shards_of(shard_map.collections["docs"]):
        connection = await asyncpg.connect(shard_map.shards[shard].nodes[0].dsn, timeout=10)
        try:
            await connection.execute(sql)
        finally:
            await connection.close(timeout=10)


@asynccontextmanager
async def slowed(path: Path, table: str, seconds: float) -> AsyncIterator[None]:
    """Each row takes so long to be stored: a load is still at work when it is looked at, however late."""
    await on_primaries(
        path,
        f"CREATE FUNCTION {table}_slow() RETURNS trigger LANGUAGE plpgsql AS"
        f" 'BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END';"
        f" CREATE TRIGGER slow BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_slow()",
    )
    try:
        yield
    finally:
        await on_primaries(path, f"DROP FUNCTION {table}_slow CASCADE")


async def test_the_marks_of_an_older_version_are_still_good(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    path = applied_map(cluster, tmp_path, docs=collection(table=table))
    source = jsonl(tmp_path, [{"id": i, "vector": [1, 2, 3, 4]} for i in range(50)])
    load(source, path)
    await on_primaries(path, "ALTER TABLE pgscatter.load_chunk DROP COLUMN rejected")
    assert "nothing to do: all 50 rows" in load(source, path).stdout


@pytest.mark.parametrize("form", [jsonl, parquet])
async def test_columns_that_a_row_leaves_out_get_the_tables_default(
    cluster: Cluster, tmp_path: Path, form: Any
) -> None:
    table = fresh()
    path = applied_map(cluster, tmp_path, docs=collection(table=table))
    await on_primaries(
        path,
        f"ALTER TABLE {table} ALTER price SET DEFAULT 1.5, ALTER price SET NOT NULL,"
        " ALTER content SET DEFAULT 'none', ALTER metadata SET DEFAULT '{\"a\": 1}'",
    )
    whole = {"content": "x", "metadata": {"b": 2}, "category": "c", "price": 2.0}
    documents: list[dict[str, Any]] = []
    for i in range(16):
        given = {name: value if i >> bit & 1 else None for bit, (name, value) in enumerate(whole.items())}
        documents.append({"id": i, "vector": [1, 2, 3, 4], **given})
    load(form(tmp_path, documents), path)
    stored = await rows(path, f"SELECT id, content, metadata, category, price FROM {table}")
    found = {row["id"]: dict(row) for listed in stored.values() for row in listed}
    default = {"content": "none", "metadata": {"a": 1}, "category": None, "price": 1.5}
    for document in documents:
        row = found.pop(document["id"])
        row["metadata"] = json.loads(row["metadata"])
        expected = {name: default[name] if document[name] is None else document[name] for name in whole}
        assert row == {"id": document["id"], **expected}
    assert not found


async def test_times_of_a_parquet_file_reach_as_far_as_postgresql_s(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    columns = {"at": "timestamptz", "plain": "timestamp", "day": "date"}
    path = applied_map(cluster, tmp_path, docs=collection(table=table, columns=columns))
    low, high = -210_866_803_200_000_000, 9_224_318_015_999_999_999 - 946_684_800_000_000 * 2
    seconds = [
        low // 10**6,
        -62_135_596_800,
        -62_135_596_801,
        0,
        253_402_300_799,
        253_402_300_800,
        high // 10**6,
    ]
    micro = [second * 10**6 + 1 for second in seconds]
    n = len(seconds)
    source = tmp_path / "times.parquet"
    pq.write_table(
        pa.table(
            {
                "id": list(range(n)),
                "vector": [[1.0, 2.0, 3.0, 4.0]] * n,
                "at": pa.array(micro, pa.timestamp("us", "Europe/Berlin")),
                "plain": pa.array(micro, pa.timestamp("us")),
                "day": pa.array([second // 86400 for second in seconds], pa.date32()),
            }
        ),
        source,
    )
    load(source, path)
    stored = await rows(
        path,
        "SELECT id, extract(epoch FROM at) AS at, extract(epoch FROM plain) AS plain,"
        f" day - date '1970-01-01' AS day FROM {table}",
    )
    found = {row["id"]: row for listed in stored.values() for row in listed}
    for i, second in enumerate(seconds):
        exact = Decimal(second * 10**6 + 1) / 10**6
        assert (found[i]["at"], found[i]["plain"], found[i]["day"]) == (exact, exact, second // 86400)


async def test_ids_on_two_shards_fail_where_the_id_does_not_say_the_shard(
    cluster: Cluster, tmp_path: Path
) -> None:
    table = fresh()
    sharding = {
        "strategy": "hash",
        "key": "category",
        "buckets": 4,
        "placement": {"s0": [0, 1], "s1": [2, 3]},
    }
    path = applied_map(cluster, tmp_path, docs=collection(table=table, sharding=sharding))
    placed = codec.load(path).collections["docs"].sharding
    by_shard = {locate(placed, text): text for text in "abcdefgh"}
    documents = [{"id": i, "vector": [1, 2, 3, 4], "category": by_shard["s0"]} for i in range(20)]
    documents += [{"id": i, "vector": [1, 2, 3, 4], "category": by_shard["s1"]} for i in (7, 30)]
    source = jsonl(tmp_path, documents)
    failed = load(source, path, check=False)
    assert failed.returncode == 1
    assert "the id '7' stands on s0 and s1" in failed.stderr
    shard = codec.load(path).shards["s1"]
    connection = await asyncpg.connect(shard.nodes[0].dsn, timeout=10)
    await connection.execute(f"DELETE FROM {table} WHERE id = 7")
    await connection.close(timeout=10)
    assert load(source, path).returncode == 0


async def test_a_table_that_has_rows_keeps_its_index(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    path = applied_map(cluster, tmp_path, docs=collection(table=table))
    vectors = sample(400)
    before = await rows(
        path, f"SELECT indexrelid FROM pg_index WHERE indrelid = '{table}'::regclass ORDER BY 1"
    )
    load(npy(tmp_path, vectors), path)
    after = await rows(
        path, f"SELECT indexrelid FROM pg_index WHERE indrelid = '{table}'::regclass ORDER BY 1"
    )
    assert before != after
    more = jsonl(tmp_path, [{"id": 1000 + i, "vector": [1, 2, 3, 4]} for i in range(50)])
    load(more, path)
    kept = await rows(
        path, f"SELECT indexrelid FROM pg_index WHERE indrelid = '{table}'::regclass ORDER BY 1"
    )
    assert kept == after


async def test_indexes_that_filters_lack_are_made_after_the_rows(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    applied_map(cluster, tmp_path, docs=collection(table=table))
    entry = collection(
        table=table,
        columns={"category": "text", "price": {"type": "float8", "index": True}},
        metadata={"column": "metadata", "indexes": {"size": "number"}},
    )
    path = write_map(cluster, tmp_path / "indexed.yaml", {"docs": entry})
    np.save(tmp_path / "v.npy", sample(200))
    load(tmp_path / "v.npy", path)
    # Statistics of expressions included.
    assert pgscatter("schema", "check", "--map", path).stdout.count("as the map says") == 4


async def test_emptied_tables_and_restarts_forget_what_was_loaded(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    path = applied_map(cluster, tmp_path, docs=collection(table=table))
    vectors = sample(300)
    source = npy(tmp_path, vectors)
    load(source, path)
    await rows(path, f"TRUNCATE {table}")
    load(source, path)
    await check(path, vectors, table)
    await rows(path, f"DELETE FROM {table} WHERE id >= 150")
    assert "nothing to do" in load(source, path).stdout
    again = load(source, path, "--restart", check=False)
    assert again.returncode == 1
    assert "already exists" in again.stderr
    await rows(path, f"DELETE FROM {table}")
    load(source, path, "--restart")
    await check(path, vectors, table)
    assert await hnsw(path, table) == [1, 1, 1, 1]
    await rows(path, f"DROP TABLE {table}")
    pgscatter("schema", "apply", "--map", path)
    load(source, path)
    await check(path, vectors, table)


def test_what_cannot_be_loaded_is_said_at_once(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    path = write_map(cluster, tmp_path / "map.yaml", {"docs": collection(table=table)})
    source = npy(tmp_path, sample(5))
    missing = load(source, path, check=False)
    assert missing.returncode == 1
    assert f"no table {table}; run `pgscatter schema apply --collection docs`" in missing.stderr
    assert len(missing.stderr.splitlines()) == 4
    other = load(npy(tmp_path, sample(5, dimensions=3)), path, check=False)
    assert (other.returncode, "has 4" in other.stderr) == (1, True)
    unknown = pgscatter("load", source, "--map", path, "--collection", "nope", check=False)
    assert (unknown.returncode, unknown.stderr) == (1, "no collection 'nope' in the map; it has docs\n")
    assert pgscatter("load", source, "--map", path, check=False).returncode == 2
    assert load(source, path, "--jobs", 0, check=False).returncode == 2


async def test_a_load_begun_with_other_chunks_goes_on_with_those(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    path = applied_map(cluster, tmp_path, docs=collection(table=table))
    documents: list[dict[str, Any]] = [{"id": i, "vector": [1, 2, 3, 4]} for i in range(40)]
    documents[35]["vector"] = None
    source = jsonl(tmp_path, documents)
    assert load(source, path, "--chunk-rows", 10, check=False).returncode == 1
    other = load(source, path, "--chunk-rows", 20, "--skip-bad", 1, check=False)
    assert "this load was begun with --chunk-rows 10, which cannot change" in other.stderr
    assert "left out 1 bad rows" in load(source, path, "--skip-bad", 1).stdout


async def test_two_loads_of_one_table_do_not_run_at_once(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    path = applied_map(cluster, tmp_path, docs=collection(table=table))
    vectors = sample(8_000)
    source = npy(tmp_path, vectors)
    running = [began(source, path, "--chunk-rows", 500) for _ in range(3)]
    results = [process.communicate(timeout=100) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], results
    assert sum("nothing to do" in stdout for stdout, _ in results) == 2
    await check(path, vectors, table)


async def begun(source: Path, path: Path, table: str) -> subprocess.Popen[str]:
    """A load that has put off the index of every shard, and is stopped before its end."""
    running = began(source, path, "--chunk-rows", 20)
    try:
        async with asyncio.timeout(60):
            while any(await hnsw(path, table)):
                await asyncio.sleep(0.01)
        running.send_signal(signal.SIGSTOP)
        assert running.poll() is None
    except BaseException:
        running.kill()
        running.communicate(timeout=30)
        raise
    return running


async def test_schema_apply_leaves_the_index_to_a_load_at_work_and_not_to_one_that_was_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    table = fresh()
    path = applied_map(cluster, tmp_path, docs=collection(table=table))
    vectors = sample(4_000)
    source = npy(tmp_path, vectors)
    async with slowed(path, table, 0.02):
        running = await begun(source, path, table)
        try:
            beside = pgscatter("schema", "apply", "--map", path)
            assert await hnsw(path, table) == [0, 0, 0, 0]
            left = f"docs: left to the load that is at work on {table}, which builds it when the rows are in"
            assert beside.stdout.count(f"{left}: ") == 4
            # Nothing is wrong as long as the load lives.
            checked = pgscatter("schema", "check", "--map", path)
            assert checked.stdout.count("a load is at work") == 4
        finally:
            running.kill()
            running.communicate(timeout=30)
    done = pgscatter("schema", "apply", "--map", path)
    assert done.stdout.count("created index") == 4
    assert await hnsw(path, table) == [1, 1, 1, 1]
    load(source, path, "--chunk-rows", 20)
    await check(path, vectors, table)


async def test_a_load_killed_before_its_first_row_goes_on_without_the_index_that_apply_has_built_since(
    cluster: Cluster, tmp_path: Path
) -> None:
    table = fresh()
    path = applied_map(cluster, tmp_path, docs=collection(table=table))
    shards = codec.load(path)
    docs = shards.collections["docs"]

    async def begin() -> None:
        primaries = await find_primaries(shards, docs)
        try:
            await start(docs, primaries, Job("a file", "its options"), chunk_rows=20, restart=False)
        finally:
            for primary in primaries.values():
                primary.close()

    await begin()
    pgscatter("schema", "apply", "--map", path)
    assert await hnsw(path, table) == [1, 1, 1, 1]
    await begin()
    assert await hnsw(path, table) == [0, 0, 0, 0]
    # Whoever gives the load up still gets the index.
    pgscatter("schema", "apply", "--map", path)
    assert await hnsw(path, table) == [1, 1, 1, 1]


async def test_a_load_does_not_begin_under_a_build_of_the_index(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.bulk.start._LOCK_TIMEOUT", 0.3)
    table = fresh()
    path = applied_map(cluster, tmp_path, docs=collection(table=table))
    building = await asyncpg.connect(cluster.node("s2-a").dsn)
    try:
        oid = await building.fetchval("SELECT $1::regclass::oid", table)
        assert await building.fetchval("SELECT pg_try_advisory_lock($1)", load_lock(oid))
        refused = load(npy(tmp_path, sample(50)), path, check=False)
    finally:
        await building.close()
    assert refused.returncode == 1
    assert "s2: another load is at work on this table, or `pgscatter schema apply` builds" in refused.stderr
    load(npy(tmp_path, sample(50)), path)


async def test_a_load_killed_again_and_again_ends_with_exactly_the_file(
    cluster: Cluster, tmp_path: Path
) -> None:
    table = fresh()
    path = applied_map(cluster, tmp_path, docs=collection(table=table))
    vectors = sample(12_000)
    source = npy(tmp_path, vectors)
    # The last time all rows are there, but perhaps not the index.
    for count in (1, 1500, 5000, 9000, 12_000):
        process = began(source, path, "--chunk-rows", 40)
        await reach(path, table, count)
        process.kill()
        process.communicate(timeout=30)
    load(source, path)
    await check(path, vectors, table)
    assert await hnsw(path, table) == [1, 1, 1, 1]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_ctrl_c_and_sigterm_stop_cleanly_and_the_load_goes_on_later(
    cluster: Cluster, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    table = fresh()
    path = applied_map(cluster, tmp_path, docs=collection(table=table))
    vectors = sample(10_000)
    source = npy(tmp_path, vectors)
    async with slowed(path, table, 0.01):
        process = began(source, path, "--chunk-rows", 40)
        await reach(path, table, 500)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (status, "")
    assert stderr.splitlines()[-1].startswith("interrupted; what was loaded stays")
    assert "Traceback" not in stderr
    done = load(source, path)
    assert "were there from before" in done.stdout
    await check(path, vectors, table)


@pytest.mark.parametrize("steps", range(5))
async def test_a_server_that_ends_just_before_a_copy_leaves_no_complaint(
    cluster: Cluster, steps: int
) -> None:
    """After one of these steps of the loop the server's last words are read, and its hanging up is not."""

    async def blocks() -> AsyncIterator[bytes]:
        yield b""

    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    connection = await asyncpg.connect(cluster.nodes[0].dsn, timeout=10)
    other = await asyncpg.connect(cluster.nodes[0].dsn, timeout=10)
    await other.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
    time.sleep(0.3)  # both arrive while the loop stands still
    for _ in range(steps):
        await asyncio.sleep(0)
    with pytest.raises(POSTGRES_ERRORS):
        await copy_blocks(connection, Table("public", "nothing"), ["id"], blocks())
    await asyncio.sleep(0.05)
    connection.terminate()
    await other.close(timeout=10)
    del connection
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


async def reach(path: Path, table: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = await rows(path, f"SELECT count(*) FROM {table}")
        if sum(listed[0][0] for listed in found.values()) >= count:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("no rows arrive")


@pytest.fixture(scope="module")
def fragile() -> Iterator[Cluster]:
    """A cluster whose nodes these tests kill."""
    with Cluster.temporary(shards=4, replicas=1, fsync=False) as running:
        yield running


async def test_a_node_killed_in_the_middle_fails_the_load_which_then_goes_on(
    fragile: Cluster, tmp_path: Path
) -> None:
    table = fresh()
    path = applied_map(fragile, tmp_path, docs=collection(table=table))
    vectors = sample(10_000)
    source = npy(tmp_path, vectors)
    async with slowed(path, table, 0.01):
        process = began(source, path, "--chunk-rows", 40)
        await reach(path, table, 500)
        await asyncio.to_thread(fragile.kill, "s2-a")
        _, stderr = process.communicate(timeout=60)
        gone = load(source, path, check=False)
        await asyncio.to_thread(fragile.start, "s2-a")
    assert process.returncode == 1
    lines = stderr.splitlines()
    assert all(line.startswith("s2: s2-a: ") for line in lines[:-1]), stderr
    assert lines[-1] == "what was loaded stays; the same command goes on from there"
    assert gone.returncode == 1
    assert gone.stderr.startswith("s2: no primary: ")
    done = load(source, path)
    assert "were there from before" in done.stdout
    await check(path, vectors, table)
    assert await hnsw(path, table) == [1, 1, 1, 1]


@pytest.mark.parametrize("end", ["kill the node", pytest.param("interrupt the load", marks=pytest.mark.full)])
async def test_a_node_that_freezes_while_rows_are_sent_to_it(
    fragile: Cluster, tmp_path: Path, end: str
) -> None:
    """No more fits into the socket then, and nothing that waits for room in it is told of the end."""
    table = fresh()
    vector = {"dimensions": 1000, "metric": "l2"}
    path = applied_map(fragile, tmp_path, docs=collection(table=table, vector=vector))
    vectors = sample(20_000, dimensions=1000)
    source = npy(tmp_path, vectors)
    flags = ("--chunk-rows", 10_000, "--limit", 20_000, "--no-index")
    async with slowed(path, table, 0.003):
        process = began(source, path, *flags)
        while process.poll() is None and not await copying(fragile, "s2-a"):
            await asyncio.sleep(0.01)
        await asyncio.to_thread(fragile.pause, "s2-a")
        await asyncio.sleep(1.5)
        if end == "kill the node":
            await asyncio.to_thread(fragile.kill, "s2-a")
            status = 1
        else:
            process.send_signal(signal.SIGINT)
            status = 130
        _, stderr = process.communicate(timeout=30)
        if end == "kill the node":
            await asyncio.to_thread(fragile.start, "s2-a")
        else:
            await asyncio.to_thread(fragile.resume, "s2-a")
    assert process.returncode == status, stderr
    assert "Traceback" not in stderr
    assert "never retrieved" not in stderr
    assert load(source, path, *flags).returncode == 0
    counted = await rows(path, f"SELECT count(*) FROM {table}")
    assert sum(found[0][0] for found in counted.values()) == 20_000


async def copying(cluster: Cluster, node: str) -> bool:
    connection = await asyncpg.connect(cluster.node(node).dsn, timeout=10)
    try:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_stat_progress_copy"))
    finally:
        await connection.close(timeout=10)


async def test_a_replica_that_is_down_is_not_waited_for(fragile: Cluster, tmp_path: Path) -> None:
    table = fresh()
    path = applied_map(fragile, tmp_path, docs=collection(table=table))
    await asyncio.to_thread(fragile.stop, "s1-b")
    try:
        done = load(npy(tmp_path, sample(100)), path)
    finally:
        await asyncio.to_thread(fragile.start, "s1-b")
    assert "note: s1: not waited for: s1-b: " in done.stdout


async def test_a_replica_that_does_not_catch_up_is_named(cluster: Cluster, tmp_path: Path) -> None:
    # The replicas of no other shard have to catch up in so little time.
    sharding = {"strategy": "hash", "key": "id", "buckets": 1, "placement": {"s3": [0]}}
    path = applied_map(cluster, tmp_path, docs=collection(table=fresh(), sharding=sharding))
    shard_map = codec.load(path)
    said = io.StringIO()
    replica = await asyncpg.connect(cluster.node("s3-b").dsn, timeout=10)
    try:
        await replica.execute("SELECT pg_wal_replay_pause()")
        source = npy(tmp_path, sample(100))
        options = Options(replay_timeout=1.0)
        summary = await run_load(shard_map, shard_map.collections["docs"], source, options, Display(said))
    finally:
        await replica.execute("SELECT pg_wal_replay_resume()")
        await replica.close(timeout=10)
    (lag,) = summary.late
    assert (lag.shard, lag.node, lag.reachable) == ("s3", "s3-b", True)
    assert re.fullmatch(r"s3-b has \d+ bytes of log to replay", lag.reason)
    assert summary.rows == 100


WORDS = ("NaN", "Infinity", "-Infinity")
TIMES = (ValueType.DATE, ValueType.TIMESTAMP, ValueType.TIMESTAMPTZ)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    ValueType.BIGINT: st.integers(-(2**63), 2**63 - 1),
    ValueType.INTEGER: st.integers(-(2**31), 2**31 - 1),
    ValueType.SMALLINT: st.integers(-(2**15), 2**15 - 1),
    ValueType.TEXT: st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    ValueType.UUID: st.uuids(),
    ValueType.BOOLEAN: st.booleans(),
    ValueType.FLOAT8: st.floats(allow_nan=False, allow_infinity=False),
    ValueType.FLOAT4: st.floats(width=32, allow_nan=False, allow_infinity=False),
    ValueType.NUMERIC: st.decimals(allow_nan=False, allow_infinity=False).filter(
        lambda value: abs(value.as_tuple().exponent) < 900  # type: ignore[arg-type]
    ),
    ValueType.DATE: st.dates(),
    ValueType.TIMESTAMP: st.datetimes(),
    ValueType.TIMESTAMPTZ: st.datetimes(
        datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.just(timezone(timedelta(hours=5)))
    ),
    JSONB: st.dictionaries(st.text(st.characters(codec="ascii", exclude_characters="\0")), st.integers()).map(
        json.dumps
    ),
}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({name: st.none() | values for name, values in VALUES.items()}), max_size=30
    )
)
def test_values_of_every_type_arrive_as_they_were(cluster: Cluster, listed: list[dict[str, Any]]) -> None:
    asyncio.run(_roundtrip(cluster, listed))


async def _roundtrip(cluster: Cluster, listed: list[dict[str, Any]]) -> None:
    header = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    encoders = {name: encoder(name) for name in VALUES}
    start = struct.pack(">h", len(VALUES))
    data = header + b"".join(start + b"".join(encoders[name](row[name]) for name in VALUES) for row in listed)
    connection = await asyncpg.connect(cluster.node("s0-a").dsn, timeout=10)
    try:
        columns = ", ".join(f"c{at} {name}" for at, name in enumerate(VALUES))
        await connection.execute(f"CREATE TEMPORARY TABLE v ({columns})")
        await connection.copy_to_table("v", source=blocks(data + b"\xff\xff"), format="binary")
        stored = [tuple(row) for row in await connection.fetch("SELECT * FROM v")]
    finally:
        await connection.close(timeout=10)
    for row, expected in zip(stored, listed, strict=True):
        for name, value, wanted in zip(VALUES, row, (expected[name] for name in VALUES), strict=True):
            if name == JSONB and wanted is not None:
                value, wanted = json.loads(value), json.loads(wanted)
            if isinstance(wanted, Decimal) and wanted == 0:
                wanted = Decimal(0)
            assert value == wanted, name
            assert type(value) is type(wanted) or isinstance(wanted, uuid.UUID)


async def blocks(data: bytes) -> Any:
    yield data


BEYOND: list[tuple[ValueType, str]] = [
    *((type_, word) for type_ in (ValueType.FLOAT8, ValueType.FLOAT4, ValueType.NUMERIC) for word in WORDS),
    *((type_, word) for type_ in TIMES for word in ("infinity", "-infinity")),
    (ValueType.NUMERIC, "1e131071"),
    (ValueType.NUMERIC, "1e-16383"),
    (ValueType.DATE, "4714-11-24 BC"),
    (ValueType.DATE, "5874897-12-31"),
    (ValueType.DATE, "9999-12-31"),
    (ValueType.TIMESTAMP, "0044-03-15T12:00:00.000001 BC"),
    (ValueType.TIMESTAMP, "9999-12-31T23:59:59.999999"),
    (ValueType.TIMESTAMPTZ, "294276-12-31T23:59:59.999999Z"),
    (ValueType.TIMESTAMPTZ, "4714-11-24T00:00:00Z BC"),
]


async def test_values_that_python_lacks_arrive_as_they_were(cluster: Cluster) -> None:
    connection = await asyncpg.connect(cluster.node("s0-a").dsn, timeout=10)
    try:
        for type_, text in BEYOND:
            field = encoder(type_)(coerce(type_, text))
            data = b"PGCOPY\n\xff\r\n\0" + bytes(8) + struct.pack(">h", 1) + field + b"\xff\xff"
            await connection.execute(f"CREATE TEMPORARY TABLE v (c {type_})")
            await connection.copy_to_table("v", source=blocks(data), format="binary")
            assert await connection.fetchval(f"SELECT c = '{text}'::{type_} FROM v"), (type_, text)
            await connection.execute("DROP TABLE v")
    finally:
        await connection.close(timeout=10)


def test_dates_around_the_epoch_are_exact() -> None:
    assert encoder(ValueType.DATE)(date(2000, 1, 2)) == struct.pack(">ii", 4, 1)
    moment = datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    assert encoder(ValueType.TIMESTAMPTZ)(moment) == struct.pack(">iq", 8, -1)
