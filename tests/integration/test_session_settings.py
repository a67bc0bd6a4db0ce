"""What a server, a database or a role sets for its sessions changes nothing that pgscatter does."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import msgspec
import numpy as np
import pytest

from deploy.local import Cluster
from router.bulk.load import Options, load
from router.postgres.connection import ErrorKind, NodeError, open_connection
from router.postgres.session_settings import EVERYWHERE, session_settings
from router.query.filter import parse
from router.query.types import Consistency
from router.schema.apply import apply
from router.schema.session import connect
from router.settings import Settings
from router.terminal import Display
from router.topology import Parts, Topology
from shard_config import model
from shard_config.values import ValueType
from tests.integration.worlds import World, column, execute, hits, patient, shard_map

# Each of these breaks or changes something where it is not overridden.
ODD = {
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "statement_timeout": "40ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "idle_session_timeout": "300ms",
    "transaction_timeout": "40ms",
    "exit_on_error": "on",
    "row_security": "off",
    "client_encoding": "LATIN1",
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kathmandu",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "gin_fuzzy_search_limit": "1",
    "client_min_messages": "debug1",
    "jit": "on",
    "search_path": "app",
    "hnsw.iterative_scan": "off",
}
# What its name, type and operator mean must not depend on who else uses a name.
SHADOWS = """
CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions;
CREATE SCHEMA app; CREATE TYPE app.vector AS (x int);
CREATE FUNCTION app.current_setting(text) RETURNS text LANGUAGE sql AS $$ SELECT 'wrong' $$;
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    with Cluster.temporary(shards=1, replicas=1, fsync=False) as running:
        yield running


def in_database(dsn: str, name: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


def primary(cluster: Cluster) -> str:
    return next(node.dsn for node in cluster.nodes if node.role == "primary")


def map_of(cluster: Cluster, database: str) -> model.ShardMap:
    """A map of this database with one collection, whose columns are of types with many texts."""
    columns = {
        "category": column("category", ValueType.TEXT),
        "price": column("price", ValueType.FLOAT8),
        "at": column("at", ValueType.TIMESTAMPTZ),
        "amount": column("amount", ValueType.NUMERIC),
    }
    whole = shard_map(
        cluster,
        columns=columns,
        table=model.Table("documents", "docs"),
        sharding=model.HashSharding(column("id", ValueType.BIGINT), ("s0",) * 16),
    )
    shards = {
        name: msgspec.structs.replace(
            shard,
            nodes=tuple(msgspec.structs.replace(n, dsn=in_database(n.dsn, database)) for n in shard.nodes),
        )
        for name, shard in whole.shards.items()
    }
    return msgspec.structs.replace(whole, version=1, shards=shards)


async def all_that_a_router_does(cluster: Cluster, database: str, folder: Path) -> list[Any]:
    """Schema, load, writes, reads and errors of one row, and what came of each."""
    shards = map_of(cluster, database)
    docs = shards.collections["docs"]
    came: list[Any] = []
    with Display(io.StringIO()) as display:
        for _ in range(2):
            came += [msgspec.to_builtins(result) for result in await apply(shards, [docs], display)]
        source = folder / f"{database}.npy"
        np.save(source, np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32))
        loaded = await load(shards, docs, source, Options(), display)
        came += [loaded.copied, loaded.notes, loaded.late]
    dsn = in_database(primary(cluster), database)
    await execute(dsn, f"BEGIN READ WRITE; ALTER TABLE {docs.table} ADD CHECK (id < 900); COMMIT")
    topology = Topology(shards, Parts(shards, patient(failover_wait=1.0)))
    await topology.open()
    try:
        came += await answers(World(cluster, topology))
    finally:
        await topology.close()
    return came


async def answers(w: World) -> list[Any]:
    docs, router = w.collection, w.router
    came: list[Any] = [sorted((node.name, node.state, node.role, node.reason) for node in router.nodes())]
    documents = [
        w.document(i, [float(i)] * 8, content=f"é\\n{i}", category=f"c{i}", metadata={"a": [None, i]})
        for i in (*range(400, 420), 1000)
    ]
    documents = [msgspec.structs.replace(d, index=i) for i, d in enumerate(documents)]
    stored = await router.upsert(docs, documents, w.soon())
    came += [stored.stored, [(f.id, f.reason) for f in stored.failures]]
    await asyncio.sleep(0.4)  # longer than the server lets sessions be idle
    everything = frozenset({"content", "metadata", "vector", *docs.columns})
    for consistency in (Consistency.EVENTUAL, Consistency.STRONG):
        for options in ({}, {"exact": True}, {"filter": {"category": {"$like": "c4%"}}}):
            found = await w.search(
                [400.0] * 8, 30, consistency=consistency, cache=False, include=everything, **options
            )
            came += [hits(found), found.answer.coverage]
    together = [w.search([float(i)] * 8, 3, cache=False) for i in range(20)]
    came += [hits(found) for found in await asyncio.gather(*together)]
    came.append(await router.read(docs, 401, everything, w.soon()))
    came.append((await router.count(docs, None, w.soon())).count)
    came.append(await router.delete(docs, [401, 402], w.soon()))
    matching = parse(docs, {"category": "c403"}, Settings())
    came.append(await router.delete_matching(docs, matching, w.soon()))
    return came


async def test_no_default_of_a_session_changes_what_a_router_or_a_command_does(
    pair: Cluster, tmp_path: Path
) -> None:
    dsn = primary(pair)
    for name in ("plain", "odd"):
        await execute(dsn, f"CREATE DATABASE {name}")
    await execute(in_database(dsn, "odd"), SHADOWS)
    known = {setting.name for setting in EVERYWHERE}
    assert known - {"client_connection_check_interval"} == set(ODD) - {"search_path", "hnsw.iterative_scan"}
    connection = await asyncpg.connect(in_database(dsn, "odd"))
    try:
        there = {row[0] for row in await connection.fetch("SELECT name FROM pg_settings")}
        for name, value in ODD.items():
            if name in there or "." in name:
                # All within one session, since the first would keep others from the database.
                await connection.execute(f"ALTER DATABASE odd SET {name} = '{value}'")
    finally:
        await connection.close()
    plain = await all_that_a_router_does(pair, "plain", tmp_path)
    odd = await all_that_a_router_does(pair, "odd", tmp_path)
    plain[0]["done"].remove("created extension vector")
    for one, other in zip(plain, odd, strict=True):
        assert one == other


def test_every_setting_is_documented_with_its_value_and_its_reason() -> None:
    page = (Path(__file__).parents[2] / "docs" / "postgresql.md").read_text()
    for setting in EVERYWHERE:
        assert f"| `{setting.name}` | `{setting.value}` | {setting.why}" in page


async def test_settings_of_a_role_lose_against_the_routers(pair: Cluster) -> None:
    dsn = primary(pair)
    await execute(dsn, "CREATE EXTENSION IF NOT EXISTS vector; CREATE ROLE odd_role LOGIN")
    await execute(dsn, "ALTER ROLE odd_role SET default_transaction_read_only = on")
    await execute(dsn, "ALTER ROLE odd_role SET search_path = nowhere")
    await execute(dsn, "ALTER ROLE odd_role SET enable_indexscan = off")
    as_role = urlunsplit(urlsplit(dsn)._replace(netloc=f"odd_role@{urlsplit(dsn).netloc.rsplit('@')[-1]}"))
    connection = await open_connection(as_role, connect_timeout=5, statement_timeout=7)
    try:
        shown = {
            name: await connection.fetchval("SELECT setting FROM pg_settings WHERE name = $1", name)
            for name in (
                *("default_transaction_read_only", "search_path", "statement_timeout"),
                "enable_indexscan",
            )
        }
    finally:
        connection.terminate()
    assert shown == {
        "default_transaction_read_only": "off",
        "search_path": "pg_catalog, public, nowhere, pg_temp",
        "statement_timeout": "7000",
        "enable_indexscan": "on",  # else the router's choice of the vector index would be undone
    }


async def test_a_server_gives_up_sessions_of_a_vanished_machine_after_a_minute(pair: Cluster) -> None:
    await execute(primary(pair), "CREATE EXTENSION IF NOT EXISTS vector")
    for connection in (
        await open_connection(primary(pair), connect_timeout=5, statement_timeout=7),
        await connect(model.Node("a", primary(pair)), "pgscatter load"),
    ):
        try:
            idle, interval, count = [
                int(await connection.fetchval(f"SHOW tcp_keepalives_{name}"))
                for name in ("idle", "interval", "count")
            ]
        finally:
            connection.terminate()
        assert 0 < idle + interval * count <= 60


async def test_a_router_says_which_setting_a_server_refuses(
    pair: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_one_more(major: int, own: dict[str, str]) -> dict[str, str]:
        return session_settings(major, {**own, "no_such_setting": "1", "IntervalStyle": "no style"})

    monkeypatch.setattr("router.postgres.session_settings.session_settings", with_one_more)
    with pytest.raises(NodeError) as caught:
        await open_connection(primary(pair), connect_timeout=5, statement_timeout=5)
    assert caught.value.kind is ErrorKind.FATAL
    assert str(caught.value).startswith("the server refuses SET IntervalStyle = 'no style' (")
    assert "SET no_such_setting = '1' (" in str(caught.value)
    with pytest.raises(NodeError, match="refuses SET IntervalStyle"):
        await connect(model.Node("s0-a", primary(pair)), "test")


async def test_a_router_says_which_setting_did_not_last(
    pair: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a pooler that gives each statement another session."""
    monkeypatch.setattr("router.postgres.session_settings._SAFE_PATH", "RESET IntervalStyle; SET jit = on")
    with pytest.raises(NodeError, match=re.escape("has jit = 'on' after it was set to 'off'; a pooler")):
        await open_connection(primary(pair), connect_timeout=5, statement_timeout=5)


async def test_a_connection_knows_pgvectors_types_without_looking_each_up(
    pair: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[Any] = []
    look_up = asyncpg.Connection._introspect_types

    async def noted(self: Any, types: Any, timeout: Any) -> Any:
        looked_up.append(types)
        return await look_up(self, types, timeout)

    dsn = primary(pair)
    await execute(dsn, "CREATE EXTENSION IF NOT EXISTS vector")
    monkeypatch.setattr(asyncpg.Connection, "_introspect_types", noted)
    connection = await open_connection(dsn, connect_timeout=5, statement_timeout=5)
    try:
        wire = np.array([2, 0], ">u2").tobytes() + np.array([1.5, -2], ">f4").tobytes()
        half = np.array([1, 0], ">u2").tobytes() + np.array([0.5], ">f2").tobytes()
        for type_, values in (("vector", [wire, wire]), ("halfvec", [half])):
            assert await connection.fetchval(f"SELECT $1::{type_}[]", values) == values
            assert await connection.fetchval(f"SELECT ($1::{type_}[])[1]::text", values) in (
                "[1.5,-2]",
                "[0.5]",
            )
    finally:
        await connection.close()
    assert not looked_up
