"""What faults happen to, and how it is broken and mended. All of it is done to real servers."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Literal

import asyncpg
import msgspec
import psutil
import redis as redis_client

from bench.errors import BenchError
from bench.faults.network import obstacle, open_network
from bench.faults.proxies import Proxies, open_proxies
from bench.http_client import request_bytes
from bench.sql import execute, fetch
from bench.world import COLLECTION, World, search_path
from deploy.local.router import Router
from deploy.local.servers import free_ports
from deploy.tied_to_parent import tied_to_parent
from router.postgres.driver import connect

__all__ = [
    *("TABLE", "Broken", "Role", "Step", "abuse", "breakable", "busy", "fill", "in_thread", "kill_worker"),
    *("lock", "nothing", "promote", "redis", "release", "roll", "server", "sql", "synchronous", "terminate"),
    "way",
]

TABLE = f"public.{COLLECTION}"
_PAUSE = 1.0
_GAP = 0.02  # seconds between two connections
_SECONDS = 60.0
_SLOW_BYTES = 30
_RELOAD_SECONDS, _CATCH_UP_SECONDS, _REDIS_SECONDS = 1.0, 20.0, 10.0

Role = Literal["primary", "replica"]


class Broken:
    """A world whose nodes the router reaches over ways that can be broken; made by `breakable`.

    Attributes:
        names: by role, of the suffering shard's nodes when the fault began; and of Redis.
        until_mended: what ends with the fault, by `release`.
        network: a note on how a node is cut off.
    """

    def __init__(self, world: World, proxies: Proxies, network: str, **settings: object) -> None:
        self.world = world
        self.cluster = world.cluster
        self.proxies = proxies
        self.network = network
        self.names: dict[str, str] = {}
        self.until_mended = ExitStack()
        self.workers = int(str(settings.get("workers", 1)))
        self._settings = {"port": free_ports(1)[0], "redis": True, **settings}
        self._served = ExitStack()
        self.router = self._start()

    def __repr__(self) -> str:
        return f"<Broken {self.router!r} on {self.world!r}>"

    def look(self, shard: str) -> None:
        """Who is who now, on the shard that is to suffer; a promotion has changed it."""
        self.cluster.status()
        nodes = [node for node in self.cluster.nodes if node.shard == shard]
        self.names = {"redis": "redis", **{node.role: node.name for node in nodes}}

    def dsn(self, role: str) -> str:
        return self.cluster.node(self.names[role]).dsn

    def on_release(self, work: Callable[[], object]) -> None:
        """`work` is called in this loop."""
        self.until_mended.callback(asyncio.get_running_loop().call_soon_threadsafe, work)

    def restart(self) -> None:
        """End the router, and start another on its port."""
        self.close()
        self.router = self._start()

    def close(self) -> None:
        self._served.close()

    def _start(self) -> Router:
        return self._served.enter_context(self.world.serve(**self._settings))  # type: ignore[arg-type]


@contextmanager
def breakable(world: World, **settings: object) -> Iterator[Broken]:
    """`world` behind proxies, over a link of its own for each node where the machine allows that.

    It is served by a router with these settings.
    """
    ports = {node.name: node.port for node in world.cluster.nodes}
    without = obstacle()
    note = (
        "each node is reached over a link of its own to a network namespace; it is cut at the far end"
        if without is None
        else f"the network is cut by the bench's own proxy, which drops what it gets: {without}"
    )
    with (
        nullcontext() if without else open_network(list(ports)) as network,
        open_proxies(ports, network) as proxies,
    ):
        text = world.map_path.read_text()
        for name, (host, port) in proxies.addresses.items():
            before = text
            text = text.replace(f"127.0.0.1:{ports[name]}/", f"{host}:{port}/")
            if text == before:
                raise BenchError(f"{name} is not in {world.map_path}")
        path = world.folder / "behind_proxies.yaml"
        path.write_text(text)
        broken = Broken(world, proxies, note, map_path=path, **settings)
        try:
            yield broken
        finally:
            broken.close()


Step = Callable[[Broken], Awaitable[None]]


async def nothing(b: Broken) -> None:
    pass


def in_thread(work: Callable[[Broken], object]) -> Step:
    async def step(b: Broken) -> None:
        await asyncio.to_thread(work, b)

    return step


# What a step has registered with `until_mended`.
release = in_thread(lambda b: b.until_mended.close())


def server(action: str, *roles: str) -> Step:
    """Do what `Cluster` calls so to these servers."""

    def work(b: Broken) -> None:
        for role in roles:
            getattr(b.cluster, action)(b.names[role])

    return in_thread(work)


def way(action: str, *arguments: float, role: Role = "replica") -> Step:
    """Do what `Proxies` calls so to the way to a node."""
    return in_thread(lambda b: getattr(b.proxies, action)(b.names[role], *arguments))


def sql(statement: str, role: Role) -> Step:
    """Run it on this node of the shard."""

    async def step(b: Broken) -> None:
        await execute(statement, b.dsn(role))

    return step


def redis(*commands: str) -> Step:
    def work(b: Broken) -> None:
        with redis_client.Redis.from_url(b.cluster.redis_url, socket_timeout=_REDIS_SECONDS) as client:
            for command in commands:
                client.execute_command(*command.split())

    return in_thread(work)


# -- nodes


async def synchronous(b: Broken) -> None:
    """Let the primary wait for its replica at each commit, from when the replica has all that there is."""
    primary = b.dsn("primary")
    await execute("ALTER SYSTEM SET synchronous_standby_names = '*'", primary)
    await execute("SELECT pg_reload_conf()", primary)
    await asyncio.sleep(_RELOAD_SECONDS)
    end = (await fetch("SELECT pg_current_wal_lsn()::text", primary))[0][0]
    caught_up = f"SELECT bool_and(sync_state = 'sync' AND flush_lsn >= '{end}') FROM pg_stat_replication"
    async with asyncio.timeout(_CATCH_UP_SECONDS):
        while not (await fetch(caught_up, primary))[0][0]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def promote(b: Broken) -> None:
    """Kill the primary and promote its replica, which has all that was acknowledged."""
    await synchronous(b)
    await server("kill", "primary")(b)
    await asyncio.sleep(_PAUSE)
    await sql("SELECT pg_promote()", "replica")(b)


async def fill(b: Broken) -> None:
    """Take every connection that the replica has, and then the router's as well."""
    # Slowly: what is to be seen is a server that is full, not one that is overrun.
    taken = await _taken(b, _GAP)
    await taken[0].execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgscatter reads'",
        timeout=_SECONDS,
    )
    await _taken(b, 0.0)


async def _taken(b: Broken, gap: float) -> list[asyncpg.Connection]:
    """All connections that there were."""
    taken = []
    with suppress(asyncpg.TooManyConnectionsError):
        while True:
            taken.append(await connect(b.dsn("replica"), timeout=_SECONDS))
            b.on_release(taken[-1].terminate)
            await asyncio.sleep(gap)
    return taken


async def lock(b: Broken) -> None:
    connection = await connect(b.dsn("primary"), timeout=_CATCH_UP_SECONDS)
    b.on_release(connection.terminate)
    await connection.execute(f"BEGIN; LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")


async def terminate(b: Broken) -> None:
    """End every backend of every node."""
    others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
    statement = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
    await execute(statement, *(node.dsn for node in b.cluster.nodes))


async def roll(b: Broken) -> None:
    """Restart every node in turn."""
    for node in b.cluster.nodes:
        for action in (b.cluster.stop, b.cluster.start):
            await asyncio.to_thread(action, node.name)
        await asyncio.sleep(_PAUSE)


# -- the router and its machine


def kill_worker(b: Broken) -> None:
    children = {child.pid: " ".join(child.cmdline()) for child in psutil.Process(b.router.pid).children()}
    workers = [pid for pid, line in children.items() if "resource_tracker" not in line]
    if len(workers) != b.workers:
        raise BenchError(f"the router has {len(workers)} workers, not {b.workers}: {children}")
    os.kill(random.choice(workers), signal.SIGKILL)


def busy(b: Broken) -> None:
    """Twice as many busy loops as there are cores."""
    loop = ["nice", "-n", "5", sys.executable, "-c", "while True: pass"]
    for _ in range(2 * (os.cpu_count() or 1)):
        b.until_mended.enter_context(tied_to_parent(loop, b.world.folder / "busy.log"))


def abuse(connections: int, *, times: int = 1, k: int = 10, slowly: bool = False) -> Step:
    """Open so many connections at once, and send searches on each, without reading an answer.

    `slowly`: the end of the body comes byte by byte, and the last one never.
    """

    async def step(b: Broken) -> None:
        host, _, port = b.router.url.removeprefix("http://").partition(":")
        body = {"vector": b.world.dataset.queries[0].tolist(), "k": k, "include": ["vector"], "cache": False}
        request = request_bytes(f"{b.router.url}{search_path(COLLECTION)}", msgspec.json.encode(body))

        async def one() -> None:
            _, writer = await asyncio.open_connection(host, int(port), limit=1)
            b.on_release(writer.transport.abort)
            writer.write(request[:-_SLOW_BYTES] if slowly else times * request)
            for byte in request[-_SLOW_BYTES:-1] if slowly else b"":
                await asyncio.sleep(0.1)
                writer.write(bytes([byte]))

        await asyncio.gather(*(one() for _ in range(connections)))

    return step
