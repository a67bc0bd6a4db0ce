"""`pgscatter schema check` on real servers, as a user runs it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from deploy.local import Cluster
from router.schema.check import read_facts
from router.schema.findings import shard_findings
from shard_config.file import codec
from tests.integration.apps import applied_map, collection, pgscatter
from tests.integration.test_rights import as_role
from tests.integration.worlds import replayed

FINE = [f"s{i}: as the map says, on 2 nodes" for i in range(4)]
INDEXED = {"columns": {"category": {"type": "text", "index": True}, "price": "float8"}}
SILENT = "postgresql://nobody@127.0.0.1:1/none"


async def on(cluster: Cluster, node: str, sql: str) -> None:
    connection = await asyncpg.connect(cluster.node(node).dsn, timeout=10)
    try:
        await connection.execute(sql)
    finally:
        await connection.close(timeout=10)


def check(path: Path, *flags: object) -> tuple[int, list[str], list[str]]:
    done = pgscatter("schema", "check", "--map", path, *flags, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


@pytest.fixture
def applied(cluster: Cluster, tmp_path: Path) -> tuple[Path, str]:
    entry = collection(**INDEXED)
    return applied_map(cluster, tmp_path, docs=entry, other=collection()), entry["table"]


async def test_what_was_applied_is_fine_on_every_node(applied: tuple[Path, str]) -> None:
    path, _ = applied
    assert check(path) == (0, FINE, [])


# By collection: what is done to its table on one shard, and what is said of that.
CHANGED = {
    "gone": ("DROP TABLE {table}", "error: gone: lacks table {table}"),
    "renamed": (
        "ALTER TABLE {table} RENAME COLUMN embedding TO vector",
        "error: renamed: column embedding is missing; right would be embedding vector(4)",
    ),
    "narrowed": (
        "DROP INDEX {table}_embedding_hnsw; ALTER TABLE {table} ALTER COLUMN embedding TYPE vector(3)",
        "error: narrowed: column embedding is vector(3); right would be: ALTER TABLE {table} ALTER COLUMN"
        " embedding TYPE vector(4)",
    ),
    "priceless": ("ALTER TABLE {table} DROP COLUMN price", "error: priceless: column price is missing"),
    "slow": ("DROP INDEX {table}_embedding_hnsw", "warning: slow: lacks index {name}_embedding_hnsw"),
    "cosine": (
        "DROP INDEX {table}_embedding_hnsw;"
        " CREATE INDEX by_cosine ON {table} USING hnsw (embedding vector_cosine_ops)",
        "warning: cosine: index by_cosine (hnsw, vector_cosine_ops) serves no search",
    ),
    "unfiltered": (
        "DROP INDEX {table}_category_filter",
        "warning: unfiltered: lacks index {name}_category_filter",
    ),
    "broken": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{table}_embedding_hnsw'::regclass",
        "warning: broken: index {name}_embedding_hnsw is left over from a build that failed; drop it",
    ),
}


async def test_what_was_changed_on_one_shard_is_found_on_its_primary_and_its_replica(
    cluster: Cluster, tmp_path: Path
) -> None:
    entries = {name: collection(**INDEXED) for name in CHANGED}
    path = applied_map(cluster, tmp_path, fine=collection(), **entries)
    for name, (statement, _) in CHANGED.items():
        await on(cluster, "s2-a", statement.format(table=entries[name]["table"]))
    await replayed(cluster)
    status, lines, errors = check(path)
    assert status == 1
    for name, (_, says) in CHANGED.items():
        table = entries[name]["table"]
        said = f"s2: {says.format(table=table, name=table.split('.')[1])}"
        assert any(line.startswith(said) for line in errors), (said, errors)
    # Both nodes have it, so neither is named; and nobody else has.
    assert all(line.startswith("s2: ") and "(on" not in line for line in errors)
    assert lines == [line for line in FINE if not line.startswith("s2")]
    assert check(path, "--collection", "fine") == (0, FINE, [])


async def test_what_the_map_leaves_open_is_compared_between_shards_and_collations_with_the_system(
    cluster: Cluster, tmp_path: Path
) -> None:
    entry = collection(**INDEXED)
    path = applied_map(cluster, tmp_path, docs=entry)
    table = entry["table"]
    await on(
        cluster,
        "s2-a",
        f"CREATE UNIQUE INDEX named_anyhow ON {table} (content);"
        f"ALTER TABLE {table} ADD CHECK (price > 0), ALTER content SET NOT NULL;"
        f"ALTER TABLE {table} ALTER category SET DEFAULT 'x';"
        f"ALTER TABLE {table} ADD COLUMN folded text COLLATE pg_c_utf8; CREATE INDEX ON {table} (folded);"
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        f"CREATE TRIGGER t BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION nothing()",
    )
    versions = (
        ("pg_collation SET collversion", "collname = 'pg_c_utf8'"),
        ("pg_database SET datcollversion", "datname = current_database()"),
    )
    try:
        for one, where in versions:
            await on(cluster, "s2-a", f"UPDATE {one} = 'old.' || {one.split()[-1]} WHERE {where}")
        await replayed(cluster)
        status, _, errors = check(path)
    finally:
        for one, where in versions:
            await on(cluster, "s2-a", f"UPDATE {one} = substr({one.split()[-1]}, 5) WHERE {where}")
        await on(cluster, "s2-a", f"DROP TABLE {table}; DROP FUNCTION nothing")
    has = "s2: warning: docs: has {}, which s0, s1 and s3 lack"
    traits = (
        "NOT NULL on column content",
        "the constraint CHECK ((price > (0)::double precision))",
        "the default 'x'::text of column category",
        "the index btree (folded)",
        "the trigger t that calls nothing",
        "the unique index btree (content)",
    )
    changed = (
        "s2: warning: docs: the collation {} has changed since indexes of texts were built, from version"
        f" old.1 to 1, so that rows may not be found; right would be: REINDEX TABLE {table}"
    )
    collations = [changed.format("of the database"), changed.format("pg_c_utf8")]
    assert (status, errors) == (1, [*collations, *(has.format(trait) for trait in traits)])


@pytest.mark.parametrize("suffix", ["ccnew", "ccold"])
async def test_an_index_that_is_being_rebuilt_is_not_left_over_whoever_looks(
    cluster: Cluster, tmp_path: Path, suffix: str
) -> None:
    entry = collection(**INDEXED)
    docs = codec.load(applied_map(cluster, tmp_path, docs=entry)).collections["docs"]
    table, node = entry["table"], cluster.node("s2-a")
    name = f"{table.split('.')[1]}_category_filter"
    await on(cluster, "s2-a", f"CREATE ROLE onlooker LOGIN; GRANT SELECT ON {table} TO onlooker")
    builder, reader, looker = [await asyncpg.connect(node.dsn) for _ in range(3)]
    onlooker = await asyncpg.connect(as_role(node.dsn, "onlooker"))
    try:
        # An old snapshot keeps the new index from being used, and whoever has read the old one keeps that.
        level = "REPEATABLE READ" if suffix == "ccnew" else "READ COMMITTED"
        await reader.execute(f"BEGIN ISOLATION LEVEL {level}; SELECT FROM {table}")
        build = asyncio.create_task(builder.execute(f"REINDEX INDEX CONCURRENTLY public.{name}"))
        states = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)"
        async with asyncio.timeout(20):
            while await looker.fetchval(states, f"public.{name}_{suffix}") is None:
                await asyncio.sleep(0.01)
        for connection in (looker, onlooker):
            facts = await read_facts(connection, "s2-a", [docs])
            said = [str(one) for one in shard_findings("s2", [docs], [facts], nodes=1)]
            assert f"note: docs: index {name}_{suffix} is being built by another session" in said
            assert not [one for one in said if "left over" in one]
        await reader.execute("COMMIT")
        await build
    finally:
        for connection in (builder, reader, looker, onlooker):
            connection.terminate()
        await on(cluster, "s2-a", "DROP OWNED BY onlooker; DROP ROLE onlooker")


async def test_json_has_nodes_and_findings_and_a_node_that_is_away_is_one(
    cluster: Cluster, applied: tuple[Path, str]
) -> None:
    path, table = applied
    status, (*lines,), _ = check(path, "--json")
    told: dict[str, Any] = json.loads("\n".join(lines))
    assert (status, told["ok"], told["findings"], len(told["nodes"])) == (0, True, [], 8)
    assert {node["role"] for node in told["nodes"]} == {"primary", "replica"}
    assert all(node["pgvector"] and node["postgresql"] for node in told["nodes"])

    path.write_text(path.read_text().replace(cluster.node("s1-b").dsn, SILENT))
    await on(cluster, "s3-a", f"DROP TABLE {table}")
    await replayed(cluster)
    status, (*lines,), errors = check(path, "--json")
    told = json.loads("\n".join(lines))
    assert (status, told["ok"]) == (1, False)
    away, gone = told["findings"]
    assert (away["shard"], away["nodes"], away["severity"]) == ("s1", ["s1-b"], "error")
    assert "connection refused" in away["message"]
    assert gone == {
        "shard": "s3",
        "severity": "error",
        "message": f"lacks table {table}",
        "collection": "docs",
        "nodes": [],
        "searchable": False,
    }
    assert [line.split(": ")[:2] for line in errors] == [["s1", "error"], ["s3", "error"]]


async def test_a_role_without_rights_is_told_which_and_a_lock_is_not_waited_for_long(
    cluster: Cluster, applied: tuple[Path, str]
) -> None:
    """The check reads no rows, so that a missing right does not stop it, and a lock is a finding."""
    path, table = applied
    text = path.read_text()
    locker = await asyncpg.connect(cluster.node("s0-a").dsn)
    for shard in range(4):
        await on(cluster, f"s{shard}-a", "CREATE ROLE checker LOGIN")
    try:
        for node in cluster.nodes:
            user = node.dsn.split("://")[1].split("@")[0]
            text = text.replace(node.dsn, node.dsn.replace(f"//{user}@", "//checker@"))
        path.write_text(text)
        async with locker.transaction():
            await locker.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            _, _, errors = check(path)
        locked = f"{table} is locked by another session, for which searches wait as well"
        # The replica hears of the lock a little later.
        (said,) = [line for line in errors if "locked" in line]
        assert said.removesuffix(" (on s0-a)") == f"s0: warning: docs: {locked}"
        await replayed(cluster)
        status, _, errors = check(path)
        assert status == 1
        assert f"s0: error: docs: the role lacks a right: GRANT SELECT ON {table} TO checker" in errors
        for shard in range(4):
            await on(cluster, f"s{shard}-a", "GRANT SELECT ON ALL TABLES IN SCHEMA public TO checker")
        await replayed(cluster)
        status, lines, errors = check(path)
        assert (status, errors) == (0, [])
        assert "s0: note: docs: role checker may read, but not write" in lines
    finally:
        await locker.close()
        for shard in range(4):
            await on(cluster, f"s{shard}-a", "DROP OWNED BY checker; DROP ROLE checker")


def test_wrong_usage_is_told_apart_from_a_wrong_shard(applied: tuple[Path, str]) -> None:
    path, _ = applied
    assert check(path, "--nonsense")[0] == 2
    assert check(path, "--collection", "nobody")[0] == 1
    assert pgscatter("schema", "check", check=False).returncode == 2
