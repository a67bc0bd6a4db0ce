"""What full text needs is made by `schema apply`, with and without rows, and missed by `schema check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest

from deploy.local import Cluster
from tests.integration.apps import applied_map, collection, pgscatter, write_map
from tests.integration.worlds import replayed

SHARDS = ("s0", "s1", "s2", "s3")
FINE = [f"{shard}: as the map says, on 2 nodes" for shard in SHARDS]
IDLE = [f"{shard}: nothing to do" for shard in SHARDS]
COLUMNS = {"category": "text", "price": "float8", "title": "text", "lang": "text"}
BY_ROW = {"column": "lang", "values": ["english", "german"]}
KINDS: dict[str, dict[str, Any]] = {
    "one column": {"columns": ["content"]},
    "four columns": {"columns": ["title", "content", "category", "lang"], "language": "german"},
    "languages by row": {"columns": ["content"], "language": BY_ROW},
    "both": {"columns": ["title", "content"], "language": BY_ROW},
}


async def on(cluster: Cluster, shard: str, statement: str) -> None:
    connection = await asyncpg.connect(cluster.node(f"{shard}-a").dsn, timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close(timeout=10)


async def fill(cluster: Cluster, table: str) -> None:
    """A thousand ids, each where the map has it."""
    for number, shard in enumerate(SHARDS):
        name = f"part_{table.split('.')[1]}"
        await on(
            cluster,
            shard,
            f"CREATE TABLE {name} (i bigint) PARTITION BY HASH (i);"
            f"CREATE TABLE {name}_ PARTITION OF {name} FOR VALUES WITH (MODULUS 4, REMAINDER 0);"
            f"INSERT INTO {table} (id, embedding, content, title, lang)"
            " SELECT i, ARRAY[i, 1, 2, 3]::float4[]::vector, 'word' || i % 7 || ' running', 'title ' || i,"
            " (ARRAY['english', 'german', 'other', NULL])[i % 4 + 1]"
            " FROM generate_series(1, 1000::bigint) i"
            f" WHERE satisfies_hash_partition('{name}'::regclass, 16, {number * 4}, i)"
            f" OR satisfies_hash_partition('{name}'::regclass, 16, {number * 4 + 1}, i)"
            f" OR satisfies_hash_partition('{name}'::regclass, 16, {number * 4 + 2}, i)"
            f" OR satisfies_hash_partition('{name}'::regclass, 16, {number * 4 + 3}, i);"
            f"DROP TABLE {name}",
        )


def run(command: str, path: Path, *flags: object) -> tuple[int, list[str], list[str]]:
    done = pgscatter("schema", command, "--map", path, *flags, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


@pytest.mark.parametrize("varchar", [False, True], ids=["text", "varchar"])
async def test_an_index_is_built_over_rows_that_exist_and_only_once(
    cluster: Cluster, tmp_path: Path, varchar: bool
) -> None:
    entries = {name.replace(" ", "_"): collection(columns=COLUMNS) for name in KINDS}
    applied_map(cluster, tmp_path, **entries)
    for entry in entries.values():
        await fill(cluster, entry["table"])
        if varchar:
            for shard in SHARDS:
                kept = "ALTER content TYPE varchar, ALTER title TYPE varchar(99), ALTER lang TYPE varchar"
                await on(cluster, shard, f"ALTER TABLE {entry['table']} {kept}")
    for entry, fulltext in zip(entries.values(), KINDS.values(), strict=True):
        entry["fulltext"] = fulltext
    path = write_map(cluster, tmp_path / "map.yaml", entries)
    await replayed(cluster)
    status, _, errors = run("check", path)
    slow = "so that searches for words read every row"
    assert status == 1
    assert [line for line in errors if "lacks statistics" not in line] == [
        f"{shard}: warning: {name}: lacks index {entry['table'].split('.')[1]}_fulltext, {slow}"
        for shard in SHARDS
        for name, entry in entries.items()
    ]
    status, lines, errors = run("apply", path)
    assert (status, errors) == (0, [])
    assert sum("created index" in line and "_fulltext" in line for line in lines) == 4 * len(KINDS)
    assert sum("gathered statistics" in line for line in lines) == 4 * len(KINDS)
    assert run("apply", path) == (0, IDLE, [])
    await replayed(cluster)
    assert run("check", path) == (0, FINE, [])


async def test_a_column_of_words_comes_with_a_new_or_an_empty_table_and_is_asked_for_of_others(
    cluster: Cluster, tmp_path: Path
) -> None:
    stored = {**KINDS["both"], "stored": "words"}
    entries = {name: collection(columns=COLUMNS) for name in ("filled", "empty")}
    applied_map(cluster, tmp_path, **entries)
    await fill(cluster, entries["filled"]["table"])
    entries["fresh"] = collection(columns=COLUMNS)
    for entry in entries.values():
        entry["fulltext"] = stored
    path = write_map(cluster, tmp_path / "map.yaml", entries)
    status, _, errors = run("apply", path)
    assert status == 1 and len(errors) == 4
    table = entries["filled"]["table"]
    assert f"s2: filled: column words is missing; right would be: ALTER TABLE {table} ADD" in errors[2]
    statement = errors[2].partition("right would be: ")[2].partition("; which")[0]
    for shard in SHARDS:
        await on(cluster, shard, statement)
    status, lines, errors = run("apply", path)
    assert (status, errors) == (0, [])
    empty = entries["empty"]["table"]
    assert [line for line in lines if "column" in line] == [
        f"{shard}: created column words of {empty}" for shard in SHARDS
    ]
    assert run("apply", path) == (0, IDLE, [])
    await replayed(cluster)
    assert run("check", path) == (0, FINE, [])


CHANGED = {
    "unindexed": (
        "DROP INDEX {table}_fulltext",
        "warning: unindexed: lacks index {name}_fulltext, so that searches for words read every row",
    ),
    "narrower": (
        "DROP INDEX {table}_fulltext; CREATE INDEX {name}_fulltext ON {table} USING gin"
        " (to_tsvector('english', content))",
        "warning: narrower: lacks index {name}_fulltext1",
    ),
    "wordless": (
        "ALTER TABLE {table} DROP COLUMN words",
        "error: wordless: lacks column words of {table}, without which searches for words fail",
    ),
    "german": (
        "ALTER TABLE {table} DROP COLUMN words, ADD words tsvector GENERATED ALWAYS AS"
        " (to_tsvector('german', coalesce(content, ''))) STORED",
        "error: german: column words keeps other words than the map says, to_tsvector('german'::regconfig",
    ),
    "plain": (
        "ALTER TABLE {table} DROP COLUMN words, ADD words tsvector",
        "error: plain: column words does not keep the words of each row; right would be words tsvector GENER",
    ),
    "texts": (
        "ALTER TABLE {table} DROP COLUMN words, ADD words text",
        "error: texts: column words is text; right would be words tsvector GENERATED",
    ),
}


async def test_what_full_text_lacks_on_one_shard_is_found(cluster: Cluster, tmp_path: Path) -> None:
    plain = {"columns": ["content"]}
    entries = {
        name: collection(fulltext=plain if "INDEX" in made else {**plain, "stored": "words"})
        for name, (made, _) in CHANGED.items()
    }
    path = applied_map(cluster, tmp_path, **entries)
    await replayed(cluster)
    assert run("check", path) == (0, FINE, [])
    for name, (statement, _) in CHANGED.items():
        table = entries[name]["table"]
        await on(cluster, "s2", statement.format(table=table, name=table.split(".")[1]))
    await replayed(cluster)
    status, _, errors = run("check", path)
    assert status == 1
    for name, (_, says) in CHANGED.items():
        table = entries[name]["table"]
        said = f"s2: {says.format(table=table, name=table.split('.')[1])}"
        assert any(line.startswith(said) for line in errors), (said, errors)
    assert all(line.startswith("s2: ") and "(on" not in line for line in errors)


async def test_a_language_that_a_server_lacks_is_refused_with_those_there_are(
    cluster: Cluster, tmp_path: Path
) -> None:
    fulltext = {"columns": ["content"], "language": {"column": "lang", "values": ["english", "klingon"]}}
    entry = collection(columns=COLUMNS, fulltext=fulltext)
    path = write_map(cluster, tmp_path / "map.yaml", {"docs": entry})
    said = "docs: there is no text search configuration klingon; right would be one of arabic, armenian,"
    for command in ("apply", "check"):
        status, _, errors = run(command, path)
        assert status == 1
        assert all(any(said in line for line in errors if line.startswith(shard)) for shard in SHARDS)


async def test_a_load_into_an_empty_table_ends_with_the_full_text_index(
    cluster: Cluster, tmp_path: Path
) -> None:
    entry = collection(fulltext=KINDS["one column"])
    path = applied_map(cluster, tmp_path, docs=entry)
    source = tmp_path / "vectors.npy"
    np.save(source, np.random.default_rng(1).standard_normal((500, 4)).astype(np.float32))
    pgscatter("load", source, "--map", path, "--collection", "docs")
    await replayed(cluster)
    assert run("check", path) == (0, FINE, [])


async def test_a_document_that_no_index_can_hold_is_said_and_others_are_done(
    cluster: Cluster, tmp_path: Path
) -> None:
    entry = collection(columns=COLUMNS)
    applied_map(cluster, tmp_path, docs=entry)
    await fill(cluster, entry["table"])
    huge = "(SELECT string_agg('word' || i, ' ') FROM generate_series(100000, 250000) i)"
    await on(cluster, "s2", f"UPDATE {entry['table']} SET content = {huge} WHERE id % 20 = 3")
    entry["fulltext"] = {"columns": ["content"]}
    path = write_map(cluster, tmp_path / "map.yaml", {"docs": entry})
    for _ in range(2):
        status, lines, errors = run("apply", path)
        assert status == 1
        (error,) = errors
        assert error.startswith("s2: string is too long for tsvector (")
    name = f"{entry['table'].split('.')[1]}_fulltext"
    assert run("check", path)[0] == 1
    await on(cluster, "s2", f"UPDATE {entry['table']} SET content = 'short' WHERE id % 20 = 3")
    status, lines, errors = run("apply", path)
    assert (status, errors) == (0, [])
    assert f"s2: created index {name} in place of one whose build had failed" in lines
    await replayed(cluster)
    assert run("check", path) == (0, FINE, [])
