"""A pooler between the router and its servers: whole sessions work, shared ones are refused and say so."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import asyncpg
import numpy as np
import pytest

from deploy.local import Cluster
from router.bulk.errors import LoadError
from router.bulk.load import Options, load
from router.nodes.group import Group
from router.nodes.node import Node
from router.nodes.prober import _Pace, _Watch
from router.policy.limit import Limit
from router.postgres.connection import Connection, ErrorKind, NodeError, open_connection
from router.postgres.pooler import SHARED, PoolerError, check_sessions
from router.query.errors import RouterError
from router.schema.apply import apply
from router.settings import Settings
from router.terminal import Display
from shard_config import model
from tests.integration.test_session_settings import all_that_a_router_does, in_database, primary
from tests.integration.worlds import World, execute, patient, shard_map, until, world
from tests.poolers import POOLERS, Pooler, stand_in

SHARING: dict[str, dict[str, Any]] = {
    "one process": {"size": 1},
    "the one used last": {"size": 5},
    "the one that rested longest": {"size": 5, "round_robin": True},
}


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    with Cluster.temporary(shards=1, replicas=1, fsync=False) as running:
        asyncio.run(execute(primary(running), "CREATE EXTENSION vector"))
        yield running


async def checked(dsn: str, **options: Any) -> Connection:
    """As the prober connects."""
    usual: dict[str, Any] = {"connect_timeout": 20, "statement_timeout": 7, "check_pooler": True}
    return await open_connection(dsn, **{**usual, **options})


async def busy(pooler: Pooler, count: int) -> None:
    """Have the pooler open `count` servers, and give all back."""
    others = [await asyncpg.connect(pooler.dsn, statement_cache_size=0) for _ in range(count)]
    for statement in ("BEGIN", "COMMIT"):
        for other in others:
            await other.execute(statement)
    for other in others:
        other.terminate()


@pytest.mark.parametrize("how", SHARING)
@pytest.mark.parametrize("name", POOLERS)
async def test_a_pooler_that_shares_processes_is_refused_before_anything_is_set(
    pair: Cluster, name: str, how: str
) -> None:
    options = SHARING[how]
    async with POOLERS[name](primary(pair), "transaction", **options) as pooler:
        for servers in {1, options["size"]}:
            await busy(pooler, servers)
            for _ in range(2):
                with pytest.raises(NodeError) as caught:
                    await checked(pooler.dsn)
                assert (str(caught.value), caught.value.kind) == (SHARED, ErrorKind.FATAL)
        other = await asyncpg.connect(pooler.dsn, statement_cache_size=0)
        try:
            for _ in range(2 * options["size"]):
                assert await other.fetchval("SHOW statement_timeout") == "0"
                assert await other.fetchval("SHOW enable_sort") == "on"
        finally:
            other.terminate()


async def test_a_change_of_processes_is_seen_without_a_second_connection(pair: Cluster) -> None:
    async with stand_in(primary(pair), "transaction", size=2, round_robin=True) as pooler:
        await busy(pooler, 2)
        connection = await asyncpg.connect(pooler.dsn, statement_cache_size=0)
        try:
            with pytest.raises(PoolerError):
                await check_sessions(connection, None)
        finally:
            connection.terminate()


async def test_a_process_that_another_client_had_when_the_second_connection_came_is_asked_for_again(
    pair: Cluster,
) -> None:
    async with stand_in(primary(pair), "transaction", size=2) as pooler:
        connection, client = [await asyncpg.connect(pooler.dsn, statement_cache_size=0) for _ in range(2)]

        async def another() -> asyncpg.Connection:
            await client.execute("BEGIN")  # in the one process that there was, so the second gets a new one
            return await asyncpg.connect(pooler.dsn, statement_cache_size=0)

        try:
            with pytest.raises(PoolerError):
                await check_sessions(connection, another)
        finally:
            connection.terminate()
            client.terminate()


async def test_pgbouncer_that_shares_processes_between_statements_is_refused(pair: Cluster) -> None:
    if "PgBouncer" not in POOLERS:
        pytest.skip("this machine has no pgbouncer; the stand-in is tested")
    async with POOLERS["PgBouncer"](primary(pair), "statement") as pooler:
        with pytest.raises(NodeError, match="in transaction or statement mode"):
            await checked(pooler.dsn)


@asynccontextmanager
async def pooled(cluster: Cluster, name: str, mode: str, **options: Any) -> AsyncIterator[Cluster]:
    """The cluster as it is reached through a pooler before each node."""
    async with AsyncExitStack() as stack:
        nodes = []
        for node in cluster.nodes:
            pooler = await stack.enter_async_context(POOLERS[name](node.dsn, mode, **options))
            nodes.append(dataclasses.replace(node, dsn=pooler.dsn))
        yield cast(Cluster, _Nodes(nodes))


class _Nodes:
    redis_url = ""

    def __init__(self, nodes: list[Any]) -> None:
        self.nodes = nodes


@pytest.mark.parametrize("name", POOLERS)
async def test_a_router_and_commands_name_the_pooler_that_shares_processes(
    pair: Cluster, name: str, tmp_path: Path
) -> None:
    async with pooled(pair, name, "transaction") as cluster:
        async with routed(cluster) as w, w.over_http() as client:
            await until(
                lambda: {(node.state, node.reason) for node in w.router.nodes()} == {("down", SHARED)}
            )
            answer = await client.post("/search", json={"vector": [1.0] * 8})
            assert (answer.status_code, answer.json()["type"]) == (500, "urn:pgscatter:problem:misconfigured")
        shards = shard_map(cluster)
        with Display(io.StringIO()) as display:
            (result,) = await apply(shards, [shards.collections["docs"]], display)
            assert [f"{node}: {SHARED}" in result.errors[0] for node in ("s0-a", "s0-b")] == [True, True]
            np.save(tmp_path / "rows.npy", np.ones((3, 8), np.float32))
            with pytest.raises(LoadError, match="shares server processes"):
                await load(shards, shards.collections["docs"], tmp_path / "rows.npy", Options(), display)


async def on_replica(cluster: Cluster, database: str) -> None:
    dsn = in_database(next(node.dsn for node in cluster.nodes if node.role == "replica"), database)
    async with asyncio.timeout(10):
        while True:
            try:
                return await execute(dsn, "SELECT 1")
            except asyncpg.InvalidCatalogNameError:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def routed(cluster: Cluster) -> AsyncIterator[World]:
    from router.topology import Parts, Topology

    shards = shard_map(cluster)
    topology = Topology(shards, Parts(shards, patient()))
    await topology.open()
    try:
        yield World(cluster, topology)
    finally:
        await topology.close()


@pytest.mark.parametrize("name", POOLERS)
async def test_behind_a_pooler_of_sessions_filtered_searches_are_whole_and_writes_are_stored(
    pair: Cluster, name: str
) -> None:
    async with pooled(pair, name, "session") as cluster, world(cluster) as w:
        await w.put(*(w.document(i, [float(i)] * 8, category=f"c{i % 10}") for i in range(200)))
        await w.build_index()
        # Without iterative scans, an index of 200 rows yields 40, and four of them match.
        found = await w.ids([0.0] * 8, 20, filter={"category": "c3"}, cache=False)
        assert found == list(range(3, 203, 10))
        assert (await w.router.delete(w.collection, [3, 13], w.soon())).deleted == 2
        assert (await w.router.count(w.collection, None, w.soon())).count == 198


@pytest.mark.full
@pytest.mark.parametrize("name", POOLERS)
async def test_behind_a_pooler_of_sessions_a_router_and_commands_do_as_without_it(
    pair: Cluster, name: str, tmp_path: Path
) -> None:
    database = f"behind_{name.lower().replace('-', '_')}"
    for one in (database, f"{database}_direct"):
        await execute(primary(pair), f"CREATE DATABASE {one}")
        await on_replica(pair, one)
    direct = await all_that_a_router_does(pair, f"{database}_direct", tmp_path)
    async with pooled(pair, name, "session") as cluster:
        through = await all_that_a_router_does(cluster, database, tmp_path)
    for one, other in zip(direct, through, strict=True):
        assert one == other


@pytest.mark.parametrize("name", POOLERS)
async def test_a_cancelled_search_ends_on_the_server_behind_a_pooler(pair: Cluster, name: str) -> None:
    async with POOLERS[name](primary(pair), "session") as pooler:
        connection = await checked(pooler.dsn)
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await connection.execute("SELECT pg_sleep(60)")
            async with asyncio.timeout(20):
                assert await connection.fetchval("SELECT 1") == 1
            assert connection.process == await connection.fetchval("SELECT pg_backend_pid()")
            assert connection.process != connection.get_server_pid()
            assert await connection.fetchval("SHOW application_name") == "pgscatter"
        finally:
            connection.terminate()


LEFT = """
SET statement_timeout = 900; SET search_path = nowhere; SET synchronous_commit = off;
SET enable_indexscan = off; PREPARE __asyncpg_stmt_{}__ AS SELECT 'left'; SELECT pg_advisory_lock(1);
SET ROLE nobody_at_all
"""


@pytest.mark.parametrize("name", POOLERS)
async def test_what_a_client_before_has_left_in_a_session_is_gone(pair: Cluster, name: str) -> None:
    await execute(primary(pair), "DROP ROLE IF EXISTS nobody_at_all; CREATE ROLE nobody_at_all")
    async with POOLERS[name](primary(pair), "session", size=2, reset="SELECT 1") as pooler:
        left = await asyncpg.connect(pooler.dsn, statement_cache_size=0)
        # The number that the driver will give to one of its next statements.
        unique = int(asyncpg.Connection._get_unique_id(left, "stmt").split("_")[-3], 16)
        await left.execute(LEFT.format(f"{unique + 2:x}"))
        await left.close()
        connection = await checked(pooler.dsn)
        try:
            for setting in ("synchronous_commit", "enable_indexscan"):
                value = await connection.fetchval(
                    f"SELECT setting = reset_val FROM pg_settings WHERE name = '{setting}'"
                )
                assert value, setting
            assert await connection.fetchval("SELECT current_user") == "postgres"
            assert await connection.fetchval("SHOW statement_timeout") == "7s"
            assert "nowhere" not in await connection.fetchval("SHOW search_path")
            held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            assert await connection.fetchval(held) == 0
        finally:
            connection.terminate()


async def test_a_pooler_without_a_second_session_says_which_limit_to_raise(pair: Cluster) -> None:
    async with stand_in(primary(pair), "session", size=1) as pooler:
        with pytest.raises(NodeError, match="gave no second session in time: its pool_size") as caught:
            await checked(pooler.dsn, connect_timeout=2)
        assert caught.value.kind is ErrorKind.TRANSIENT


async def test_a_probe_that_another_process_answers_than_before_is_a_shared_session(pair: Cluster) -> None:
    connection = await checked(primary(pair))
    try:
        node = Node(model.Node("a", primary(pair)), "s0", Settings(), Limit(1, 1))
        watch = _Watch(node, Group([node]), _Pace(1, Settings()), Settings(), {})
        assert (await watch._state(connection)).reason is None
        connection.process += 1  # as if the last probe had been answered there
        with pytest.raises(NodeError, match="shares server processes"):
            await watch._state(connection)
    finally:
        connection.terminate()


async def test_a_pooler_that_only_new_connections_meet_is_found_by_the_first_of_them(pair: Cluster) -> None:
    async with stand_in(primary(pair), "transaction", size=1) as pooler:
        node = Node(model.Node("a", pooler.dsn), "s0", Settings(), Limit(1, 1))
        try:
            # The probes of such a node have an older connection, which is direct.
            for pool in (node.reads, node.writes):
                with pytest.raises(NodeError, match="shares server processes"):
                    async with pool.session():
                        raise AssertionError("opened")
        finally:
            await node.close()


async def test_what_a_probe_has_found_of_a_pooler_costs_other_connections_nothing(pair: Cluster) -> None:
    async with stand_in(primary(pair), "session") as pooler:
        for dsn, pooled in ((primary(pair), False), (pooler.dsn, True)):
            node = Node(model.Node("a", dsn), "s0", Settings(), Limit(1, 1))
            watch = _Watch(node, Group([node]), _Pace(1, Settings()), Settings(), {})
            try:
                (await watch._open()).terminate()
                assert node.pooled is pooled
                before = pooler.clients
                async with node.reads.session():
                    assert pooler.clients - before == pooled
            finally:
                await node.close()


async def test_a_pooler_that_begins_to_share_processes_takes_the_node_down(pair: Cluster) -> None:
    async with AsyncExitStack() as stack:
        poolers = [await stack.enter_async_context(stand_in(node.dsn, "session")) for node in pair.nodes]
        nodes = [
            dataclasses.replace(node, dsn=pooler.dsn)
            for node, pooler in zip(pair.nodes, poolers, strict=True)
        ]
        async with world(cast(Cluster, _Nodes(nodes))) as w:
            await w.put(w.document(1, [1.0] * 8))
            await until(lambda: [node.state for node in w.router.nodes()] == ["up", "up"])
            for pooler in poolers:
                pooler.mode = "transaction"
            async with asyncio.timeout(30):
                while {node.state for node in w.router.nodes()} != {"down"}:
                    with suppress(RouterError):
                        await w.search([1.0] * 8, cache=False)
                    await asyncio.sleep(0.01)
            assert all("pooler" in (node.reason or "") for node in w.router.nodes())
