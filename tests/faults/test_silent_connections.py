"""Connections that are lost without a word, and names that lead elsewhere: what notices, and how soon."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from bench.faults.proxies import Proxies, open_proxies
from deploy.local import Cluster
from deploy.local.router import listening, serve_arguments
from router.freshness.redis_link import RedisLink
from router.http.server import CLOSING
from router.network.dial import Network
from router.network.names import Address, Names
from router.nodes.node import Node
from router.nodes.prober import Prober
from router.policy.limit import Limit
from router.policy.selection import Health, NodeState
from router.postgres.connection import Connection, open_connection
from router.postgres.pool import Pool
from router.query.types import Probe, Shape, ShardState
from router.settings import Settings
from router.stages.fanout import Fanout
from router.stages.replicas import ReplicaSet
from shard_config import model
from tests.integration.worlds import execute

SETTINGS = Settings(probe_interval=0.1, probe_timeout=2.0, connection_check=0.3, name_interval=0.2)


@pytest.fixture(autouse=True, scope="module")
def extension(cluster: Cluster) -> None:
    asyncio.run(execute(cluster.node("s0-a").dsn, "CREATE EXTENSION IF NOT EXISTS vector"))


@contextmanager
def proxies(cluster: Cluster) -> Iterator[Proxies]:
    with open_proxies({node.name: node.port for node in cluster.nodes}) as opened:
        yield opened


@asynccontextmanager
async def probed(
    config: model.Node, settings: Settings = SETTINGS, network: Network | None = None
) -> AsyncIterator[tuple[Node, list[NodeState]]]:
    """A node, and the states that its probes have found."""
    node = Node(config, "s0", settings, Limit(1, 1), network=network)
    states: list[NodeState] = []
    observe = node.observe

    def observed(state: NodeState) -> None:
        states.append(state)
        observe(state)

    node.observe = observed  # type: ignore[method-assign]
    prober = Prober([node], settings)
    await prober.start()
    try:
        yield node, states
    finally:
        await prober.close()
        await node.close()


def behind(cluster: Cluster, ways: Proxies, name: str = "s0-a") -> model.Node:
    host, port = ways.addresses[name]
    node = cluster.node(name)
    return model.Node(name, node.dsn.replace(f"127.0.0.1:{node.port}", f"{host}:{port}"))


async def port_of(pool: Pool) -> int:
    async with pool.session() as connection:
        return int(await connection.fetchval("SELECT inet_server_port()"))


async def test_a_node_whose_connections_were_forgotten_is_not_taken_for_down(cluster: Cluster) -> None:
    with proxies(cluster) as ways:
        async with probed(behind(cluster, ways)) as (node, states):
            assert node.state.health is Health.UP
            for _ in range(2):
                before = node.probed
                ways.forget("s0-a")
                # Half of the probe's time, and the rest is for a new connection: later it would be down.
                async with asyncio.timeout(20):
                    while node.probed - before < 0.5 * SETTINGS.probe_timeout:
                        await asyncio.sleep(0.01)
            assert {state.health for state in states} == {Health.UP}


async def test_an_idle_connection_that_was_forgotten_costs_a_request_a_moment(cluster: Cluster) -> None:
    with proxies(cluster) as ways:
        async with probed(behind(cluster, ways)) as (node, _):
            for pool in (node.writes, node.reads):
                await asyncio.gather(*(port_of(pool) for _ in range(3)))
                assert pool.connections == 3
            await asyncio.sleep(0.6)
            ways.forget("s0-a")
            for pool in (node.writes, node.reads):
                async with asyncio.timeout(10):
                    assert await port_of(pool) == cluster.node("s0-a").port
                # Those that had idled beside it are gone with it.
                assert pool.connections == 1


async def test_connections_that_all_end_when_they_are_used_cost_no_search(cluster: Cluster) -> None:
    with proxies(cluster) as ways:
        async with (
            probed(behind(cluster, ways, "s0-a")) as (a, states_of_a),
            probed(behind(cluster, ways, "s0-b")) as (b, states_of_b),
        ):
            fanout = Fanout({"s0": ReplicaSet("s0", [a, b])})
            probe = Probe(Shape("SELECT inet_server_port()", None), (), 1, 1)
            for node in (a, b):
                await asyncio.gather(*(port_of(node.reads) for _ in range(3)))
                assert node.reads.connections == 3
                ways.doom(node.config.name)
            found = await fanout.fetch({"s0": probe}, asyncio.get_running_loop().time() + 20)
            report = found["s0"].report
            assert (report.state, report.attempts) == (ShardState.OK, 3), report.error
            # Nothing but the searches has found out.
            assert {state.health for state in (*states_of_a, *states_of_b)} == {Health.UP}


async def test_a_connection_in_use_is_not_asked_first(cluster: Cluster) -> None:
    node = Node(model.Node("s0-a", cluster.node("s0-a").dsn), "s0", SETTINGS, Limit(1, 1))
    asked = []
    async with node.reads.session() as connection:
        execute = connection.execute

        async def executed(statement: str) -> str:
            asked.append(statement)
            return await execute(statement)

    node.reads._idle[0] = _Spied(connection, executed)  # type: ignore[list-item]
    now = connection.used
    for pause in (0.2, 0.2, 0.2, 0.2, 0.2, 0.5):
        assert asked == []
        # As the prober says it after each probe.
        node.reads.tend(now := now + pause)
        await port_of(node.reads)
    assert asked == ["SELECT 1"]
    await node.close()


class _Spied:
    def __init__(self, connection: Connection, execute: object) -> None:
        self.__dict__.update(_connection=connection, execute=execute)

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._connection, name, value)


async def test_connections_that_are_old_or_unused_are_closed_one_at_a_time(cluster: Cluster) -> None:
    dsn = cluster.node("s0-a").dsn

    async def connect() -> Connection:
        return await open_connection(dsn, connect_timeout=5, statement_timeout=5, lifetime=100)

    pool = Pool("n", connect, size=4, queue=10, cancel_timeout=1, max_idle=50)

    async def used_together() -> list[Connection]:
        started = time.monotonic()
        async with pool.session() as a, pool.session() as b, pool.session() as c:
            assert all(80 <= one.expires - one.opened <= 100 for one in (a, b, c))
            assert len({round(one.expires - one.opened, 6) for one in (a, b, c)}) == 3
            assert all(one.opened - started < 10 for one in (a, b, c))
            return [a, b, c]

    began = time.monotonic()
    connections = await used_together()
    pool.tend(began + 40)
    assert pool.connections == 3
    for left in (2, 1, 0, 0):
        pool.tend(began + 60)
        assert pool.connections == left
    async with asyncio.timeout(20):
        while not all(one.is_closed() for one in connections):
            await asyncio.sleep(0.01)
    aged = Pool("n", connect, size=4, queue=10, cancel_timeout=1)
    async with aged.session(), aged.session(), aged.session():
        pass
    for left in (2, 1, 0):
        aged.tend(time.monotonic() + 101)
        assert aged.connections == left
    await aged.close()
    # One that is in use is closed when it comes back; its successor is not.
    async with pool.session() as old:
        pool.tend(time.monotonic() + 101)
    assert pool.connections == 0
    assert not old.is_closed()  # politely, behind its last caller
    await pool.close()
    assert old.is_closed()


async def test_connections_follow_a_name_that_has_moved_while_the_old_server_still_answers(
    cluster: Cluster,
) -> None:
    old, new = cluster.node("s0-a"), cluster.node("s0-b")
    address = ["127.0.0.2"]
    names = Names(SETTINGS.name_interval, look_up=lambda host: (Address(socket.AF_INET, address[0]),))
    async with forwarded("127.0.0.2", 0, old.port) as port, forwarded("127.0.0.3", port, new.port):
        dsn = old.dsn.replace(f"127.0.0.1:{old.port}", f"db.test:{port}")
        async with probed(model.Node("s0-a", dsn), network=Network(names)) as (node, _):
            assert await port_of(node.writes) == old.port
            assert str(node.state.role) == "primary"
            async with node.reads.session() as busy:
                address[0] = "127.0.0.3"
                async with asyncio.timeout(20):
                    while str(node.state.role) != "replica":
                        await asyncio.sleep(0.02)
                # From then on nothing more is begun at the old one.
                assert await port_of(node.writes) == new.port
                # What was begun there ends there.
                assert await busy.fetchval("SELECT inet_server_port()") == old.port
            assert await port_of(node.reads) == new.port


@asynccontextmanager
async def forwarded(host: str, port: int, target: int) -> AsyncIterator[int]:
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()

    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", target)
        for one in (pump(reader, back), pump(there, writer)):
            tasks.add(asyncio.create_task(one))

    server = await asyncio.start_server(serve, host, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_redis_is_found_by_the_names_of_its_own_network(cluster: Cluster) -> None:
    """By the loop's look-ups it would wait for the names of whatever else is looked up there."""
    names = Names(10.0, look_up=lambda host: (Address(socket.AF_INET, "127.0.0.1"),))
    url = cluster.redis_url.replace("127.0.0.1", "cache.test")
    assert "cache.test" in url
    link = RedisLink(url, budget=10.0, pause=0.2, network=Network(names))
    await link.check()
    assert (link.on, link.reason) == (True, None)
    assert await link.call(lambda client: client.ping())
    await link.close()


async def test_a_redis_whose_connections_were_forgotten_is_used_again_at_once(cluster: Cluster) -> None:
    port = int(cluster.redis_url.rsplit(":", 1)[1].split("/")[0])
    with open_proxies({"redis": port}) as ways:
        host, way = ways.addresses["redis"]
        link = RedisLink(f"redis://{host}:{way}", budget=1.0, pause=0.2)

        async def eight() -> list[object]:
            return await asyncio.gather(*(link.call(lambda client: client.ping()) for _ in range(8)))

        assert all(await eight())
        ways.forget("redis")
        assert await link.call(lambda client: client.ping()) is None
        # Not one of the others is left, to be found by a call of its own, which would take it as long.
        async with asyncio.timeout(4):
            while not link.on:
                await asyncio.sleep(0.01)
        assert all(await eight())
        await link.close()


def test_the_end_does_not_wait_for_whatever_does_not_answer(tmp_path: Path) -> None:
    with ExitStack() as stack:
        # One takes connections and says nothing, at the other not even the system answers.
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        ports = [one.getsockname()[1] for one in (silent, full)]
        shards = {
            f"s{n}": {"nodes": [{"name": f"s{n}-a", "dsn": f"postgresql://u@127.0.0.1:{port}/d"}]}
            for n, port in enumerate(ports)
        }
        path = tmp_path / "map.yaml"
        path.write_text(yaml.safe_dump({"version": 1, "shards": shards, "collections": {}}))
        arguments = serve_arguments(path, redis=f"redis://127.0.0.1:{ports[0]}")
        with listening([sys.executable, "-m", "router.cli", *arguments], tmp_path / "log") as router:
            states = httpx.get(f"{router.url}/v1/nodes", timeout=30).json()["nodes"]
            assert {node["state"] for node in states} == {"down"}
            began = time.monotonic()
            os.kill(router.pid, signal.SIGTERM)
            assert router.watcher.wait(30) == 0, router.last_words()
            assert time.monotonic() - began < CLOSING
