"""`pgscatter schema apply` on real servers, as a user runs it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from deploy.local import Cluster
from tests.integration.apps import collection, pgscatter, write_map

_numbers = itertools.count()


def fresh() -> str:
    return f"public.applied_{next(_numbers)}"


async def query(cluster: Cluster, node: str, sql: str, *args: object) -> list[Any]:
    connection = await asyncpg.connect(cluster.node(node).dsn, timeout=10)
    try:
        return [dict(row) for row in await connection.fetch(sql, *args)]
    finally:
        await connection.close(timeout=10)


async def on_all(cluster: Cluster, sql: str) -> None:
    for shard in ("s0", "s1", "s2", "s3"):
        # What a test's own statements name, whichever test comes first.
        await query(cluster, f"{shard}-a", "CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
        await query(cluster, f"{shard}-a", sql)


async def indexes(cluster: Cluster, node: str, table: str) -> dict[str, str]:
    schema, name = table.split(".")
    sql = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = $1 AND tablename = $2"
    return {row["indexname"]: row["indexdef"] for row in await query(cluster, node, sql, schema, name)}


def apply(path: Path, *flags: object, check: bool = True) -> tuple[int, list[str], list[str]]:
    done = pgscatter("schema", "apply", "--map", path, *flags, check=check)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


FINE = [f"s{i}: as the map says, on 2 nodes" for i in range(4)]


@pytest.fixture
def written(cluster: Cluster, tmp_path: Path) -> Any:
    """Writes a map whose one collection is called docs."""

    def write(**changes: Any) -> Path:
        return write_map(cluster, tmp_path / "map.yaml", {"docs": collection(**changes)})

    return write


async def test_a_second_run_finds_nothing_to_do_and_replicas_know_the_table(
    cluster: Cluster, written: Any
) -> None:
    table = fresh()
    path = written(table=table)
    status, lines, errors = apply(path)
    assert (status, errors) == (0, [])
    name = table.split(".")[1]
    for shard in ("s0", "s1", "s2", "s3"):
        assert f"{shard}: created table {table}" in lines
        assert f"{shard}: created index {name}_embedding_hnsw" in lines
        assert await query(cluster, f"{shard}-b", f"SELECT * FROM {table}") == []
    before = await indexes(cluster, "s2-a", table)
    assert apply(path) == (0, [f"s{i}: nothing to do" for i in range(4)], [])
    assert await indexes(cluster, "s2-a", table) == before


@pytest.mark.parametrize(
    ("type_", "metric", "quantization", "key"),
    [
        ("vector", "l2", "none", "embedding vector_l2_ops"),
        ("vector", "cosine", "halfvec", "((embedding)::halfvec(4)) halfvec_cosine_ops"),
        ("vector", "l1", "none", "embedding vector_l1_ops"),
        ("vector", "inner_product", "binary", "((binary_quantize(embedding))::bit(4)) bit_hamming_ops"),
        ("halfvec", "inner_product", "none", "embedding halfvec_ip_ops"),
        ("halfvec", "l1", "halfvec", "embedding halfvec_l1_ops"),
        ("halfvec", "cosine", "binary", "((binary_quantize(embedding))::bit(4)) bit_hamming_ops"),
    ],
)
async def test_every_kind_of_index_is_made_once(
    cluster: Cluster, written: Any, type_: str, metric: str, quantization: str, key: str
) -> None:
    table = fresh()
    path = written(
        table=table,
        vector={"type": type_, "dimensions": 4, "metric": metric},
        index={"m": 8, "ef_construction": 32, "quantization": quantization},
    )
    apply(path)
    (definition,) = [d for d in (await indexes(cluster, "s0-a", table)).values() if "hnsw" in d]
    assert definition.endswith(f"USING hnsw ({key}) WITH (m='8', ef_construction='32')")
    assert apply(path)[1] == [f"s{i}: nothing to do" for i in range(4)]


async def test_a_collection_of_its_own_schema_and_key(cluster: Cluster, written: Any) -> None:
    table = f"space_{next(_numbers)}.docs"
    path = written(
        table=table,
        id={"type": "uuid"},
        sharding={"strategy": "list", "key": "category", "placement": {"s1": ["a"], "s3": ["b"]}},
    )
    _, lines, _ = apply(path, "--no-index")
    # A shard that holds nothing is told which it is, all the same.
    assert [line for line in lines if line.startswith(("s0", "s2")) and "recorded" not in line] == []
    found = await indexes(cluster, "s1-a", table)
    assert set(found) == {"docs_pkey", "docs_category_idx"}
    assert apply(path, "--no-index")[1] == [f"s{i}: nothing to do" for i in range(4)]
    assert apply(path)[1] == [
        "s0: nothing to do",
        "s1: created index docs_embedding_hnsw",
        "s2: nothing to do",
        "s3: created index docs_embedding_hnsw",
    ]


async def test_runs_at_once_follow_each_other(written: Any) -> None:
    path = written(table=fresh())
    runs = await asyncio.gather(*(asyncio.to_thread(apply, path) for _ in range(3)))
    assert [status for status, _, _ in runs] == [0, 0, 0]
    created = [line for _, lines, _ in runs for line in lines if "created table" in line]
    assert len(created) == 4


TAKEN = (
    "CREATE TABLE {table} (key bigint PRIMARY KEY, vec vector(4) NOT NULL, tag varchar(20),"
    " cents numeric(10,2), added timestamptz NOT NULL DEFAULT now())"
)
MAPPING: Mapping[str, Any] = {
    "id": {"column": "key", "type": "bigint"},
    "vector": {"column": "vec", "dimensions": 4, "metric": "l2"},
    "content": None,
    "metadata": None,
    "columns": {
        "category": {"column": "tag", "type": "text"},
        "price": {"column": "cents", "type": "numeric"},
    },
}


def mapped(table: str, **changes: Any) -> dict[str, Any]:
    entry = {"table": table, **MAPPING, **changes}
    return {name: value for name, value in collection(**entry).items() if value is not None}


async def test_a_table_that_exists_is_taken_over_by_mapping(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    await on_all(cluster, TAKEN.format(table=table))
    await on_all(
        cluster, f"CREATE INDEX mine_{next(_numbers)} ON {table} USING hnsw (vec vector_l2_ops) WITH (m = 4)"
    )
    path = write_map(cluster, tmp_path / "map.yaml", {"docs": mapped(table)})
    status, lines, errors = apply(path)
    assert (status, errors) == (0, [])
    assert not any("created" in line for line in lines)
    assert any("has m 4 instead of 16; it is kept" in line for line in lines)
    assert "s0: note: column cents is numeric(10,2): values are rounded to that" in lines


async def test_a_table_that_has_rows_gets_its_index(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    await on_all(cluster, TAKEN.format(table=table))
    path = write_map(cluster, tmp_path / "map.yaml", {"docs": mapped(table)})
    pgscatter("schema", "apply", "--map", path, "--no-index")
    await fill(cluster, table)
    status, lines, _ = apply(path)
    assert status == 0
    created = [line for line in lines if "note" not in line]
    assert created == [f"s{i}: created index {table.split('.')[1]}_vec_hnsw" for i in range(4)]
    assert "s0: nothing to do" in apply(path)[1]


async def fill(
    cluster: Cluster, table: str, rows: int = 200, *, columns: str = "key, vec", values: str = ""
) -> None:
    """Every row on the shard where `PARTITION BY HASH` with 16 partitions would put it."""
    name = f"modulus_{next(_numbers)}"
    for shard in range(4):
        await query(cluster, f"s{shard}-a", f"CREATE TABLE {name} (key bigint) PARTITION BY HASH (key)")
        belongs = " OR ".join(
            f"satisfies_hash_partition('{name}'::regclass, 16, {bucket}, i)"
            for bucket in range(shard * 4, shard * 4 + 4)
        )
        await query(
            cluster,
            f"s{shard}-a",
            f"INSERT INTO {table} ({columns}) SELECT i, ARRAY[i, 1, 2, 3]::float4[]::vector"
            f"{', ' if values else ''}{values}"
            f" FROM generate_series(1, {rows}::bigint) i WHERE {belongs}",
        )
        await query(cluster, f"s{shard}-a", f"DROP TABLE {name}")


async def test_rows_that_belong_elsewhere_are_counted_and_refused(cluster: Cluster, tmp_path: Path) -> None:
    table = fresh()
    await on_all(cluster, TAKEN.format(table=table))
    await fill(cluster, table)
    one = await query(cluster, "s1-a", f"SELECT key FROM {table} ORDER BY key LIMIT 1")
    await query(cluster, "s3-a", f"INSERT INTO {table} (key, vec) VALUES ({one[0]['key']}, '[1,2,3,4]')")
    path = write_map(cluster, tmp_path / "map.yaml", {"docs": mapped(table)})
    status, lines, errors = apply(path, check=False)
    assert status == 1
    (error,) = errors
    assert error.startswith("s3: docs: 1 of ")
    assert f"for example key '{one[0]['key']}'" in error
    assert not any("created" in line for line in lines)
    assert len(await indexes(cluster, "s0-a", table)) == 1


async def test_one_wrong_table_leaves_every_shard_as_it_was(cluster: Cluster, written: Any) -> None:
    table = fresh()
    await query(
        cluster,
        "s2-a",
        f"CREATE TABLE {table} (id integer, embedding vector, content text, price float4,"
        " extra int NOT NULL)",
    )
    status, lines, errors = apply(written(table=table), check=False)
    assert status == 1
    assert [line.split(": ", 2)[2].split(";")[0] for line in errors] == [
        "column id is integer",
        "column id may be NULL",
        "column embedding is vector",
        "column embedding may be NULL",
        "column metadata is missing",
        "column category is missing",
        "column price is real",
        "column extra is NOT NULL without a default, and the map does not fill it",
        "column id has no unique index of its own, which upserts need",
    ]
    assert all(line.startswith("s2: docs: ") for line in errors)
    assert [line for line in lines if "created" in line] == []
    assert await query(cluster, "s0-a", "SELECT to_regclass($1)::text AS found", table) == [{"found": None}]


async def test_a_shard_without_primary_is_named_and_the_others_are_done(
    cluster: Cluster, tmp_path: Path
) -> None:
    table = fresh()
    path = write_map(cluster, tmp_path / "map.yaml", {"docs": collection(table=table)})
    text = path.read_text()
    # The shard is left with its replica, which takes no writes.
    path.write_text(text.replace(cluster.node("s1-a").dsn, "postgresql://nobody@127.0.0.1:1/none"))
    status, lines, errors = apply(path, check=False)
    assert status == 1
    (error,) = errors
    assert error.startswith("s1: no primary: ")
    assert "s1-b is a replica" in error
    assert [line for line in lines if "created table" in line] == [
        f"s{i}: created table {table}" for i in (0, 2, 3)
    ]


def test_wrong_usage_and_wrong_maps(cluster: Cluster, written: Any, tmp_path: Path) -> None:
    path = written(table=fresh())
    status, _, errors = apply(path, "--collection", "nope", check=False)
    assert (status, errors) == (1, ["no collection 'nope' in the map; it has docs"])
    status, _, errors = apply(tmp_path / "gone.yaml", check=False)
    assert status == 1
    assert "gone.yaml: cannot be read" in errors[0]
    assert pgscatter("schema", "apply", check=False).returncode == 2
    assert pgscatter("schema", check=False).returncode == 2
    assert apply(path, "--index-memory", "0", check=False)[0] == 2


FILTERED: dict[str, Any] = {
    "columns": {"category": {"type": "text", "index": True}, "price": {"type": "float8", "index": True}},
    "metadata": {
        "column": "metadata",
        "indexes": {"lang": "text", "size": "number", "tags": "array", '"it\'s a".{b\\}': "text"},
    },
}


async def test_indexes_on_what_filters_compare_are_made_once(cluster: Cluster, written: Any) -> None:
    table = fresh()
    name = table.split(".")[1]
    path = written(table=table, **FILTERED)
    _, lines, _ = apply(path)
    filters = ["category", "price", "metadata_lang", "metadata_size", "metadata_tags", "metadata_it_s_a_b"]
    for column in filters:
        assert f"s1: created index {name}_{column}_filter" in lines
    assert apply(path)[1] == [f"s{i}: nothing to do" for i in range(4)]
    assert pgscatter("schema", "check", "--map", path).stdout.splitlines() == FINE
    # Those of an earlier map stay; who drops them decides.
    lines = apply(written(table=table))[1]
    assert not any("created" in line for line in lines)
    kept = [
        line for line in lines if line.startswith("s0: note: index ") and "is kept, though the map" in line
    ]
    assert len(kept) == len(filters)


async def test_a_table_that_has_rows_gets_what_its_filters_lack(cluster: Cluster, written: Any) -> None:
    table = fresh()
    name = table.split(".")[1]
    apply(written(table=table))
    path = written(table=table, **FILTERED)
    checked = pgscatter("schema", "check", "--map", path, check=False)
    assert checked.returncode == 1
    assert f"s2: warning: docs: lacks index {name}_category_filter" in checked.stderr.splitlines()
    await fill(
        cluster, table, columns="id, embedding, category, metadata", values="'c' || i % 9, '{\"size\": 1}'"
    )
    # By hand, under any name; and what is left of a build that was interrupted.
    await on_all(cluster, f'CREATE INDEX mine_{next(_numbers)} ON {table} (category COLLATE "C", id)')
    await on_all(cluster, f"CREATE INDEX {name}_price_filter ON {table} (price)")
    await on_all(
        cluster,
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'public.{name}_price_filter'::regclass",
    )
    status, lines, errors = apply(path)
    assert (status, errors) == (0, [])
    assert [line for line in lines if line.startswith("s3: ") and "recorded" not in line] == [
        f"s3: created index {name}_price_filter in place of one whose build had failed",
        *(
            f"s3: created index {name}_metadata_{path}_filter"
            for path in ("lang", "size", "tags", "it_s_a_b")
        ),
        f"s3: gathered statistics of {table}",
    ]
    (known,) = await query(
        cluster, "s3-a", "SELECT count(*) FROM pg_stats WHERE tablename = $1", f"{name}_metadata_size_filter"
    )
    assert known["count"] == 1
    assert apply(path)[1] == [f"s{i}: nothing to do" for i in range(4)]
    # A server that has forgotten, or a run that ended before.
    await query(
        cluster,
        "s3-a",
        "DELETE FROM pg_statistic WHERE starelid = $1::text::regclass",
        f"public.{name}_metadata_size_filter",
    )
    checked = pgscatter("schema", "check", "--map", path, check=False)
    assert "s3: warning: docs: lacks statistics of" in checked.stderr
    assert f"s3: gathered statistics of {table}" in apply(path)[1]


async def test_a_build_by_another_session_is_left_alone(cluster: Cluster, written: Any) -> None:
    table = fresh()
    name = table.split(".")[1]
    apply(written(table=table))
    await fill(cluster, table, columns="id, embedding, price", values="i")
    path = written(table=table, columns={"category": "text", "price": {"type": "float8", "index": True}})
    reader = await asyncpg.connect(cluster.node("s0-a").dsn, timeout=10)
    builder = await asyncpg.connect(cluster.node("s0-a").dsn, timeout=10)
    try:
        # A concurrent build waits for those that have seen the table, and its index is invalid meanwhile.
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.execute(f"SELECT count(*) FROM {table}")
        statement = f"CREATE INDEX CONCURRENTLY by_hand_{name} ON {table} (price)"
        build = asyncio.create_task(builder.execute(statement))
        while f"by_hand_{name}" not in await indexes(cluster, "s0-a", table):
            await asyncio.sleep(0.05)
        _, lines, _ = apply(path)
        assert f"s0: note: index by_hand_{name} is being built by another session" in lines
        assert f"s0: created index {name}_price_filter" not in lines
        assert f"s1: created index {name}_price_filter" in lines
        await reader.execute("ROLLBACK")
        await build
    finally:
        await reader.close(timeout=10)
        await builder.close(timeout=10)
    assert "s0: nothing to do" in apply(path)[1]
