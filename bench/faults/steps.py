"""How things are broken and mended: each step is done to real servers.

A step is called in a thread of its own, or is a coroutine in the bench's loop, where it keeps connections
open.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import asyncpg
import msgspec
import psutil
import redis as redis_client

from bench.errors import BenchError
from bench.faults.broken import Broken
from bench.http_client import request_bytes
from bench.sql import execute, fetch
from bench.world import COLLECTION, search_path
from deploy.tied_to_parent import tied_to_parent
from router.postgres.driver import connect

__all__ = [
    *("TABLE", "Step", "abuse", "busy", "fill", "kill_worker", "lock", "promote", "redis", "roll", "server"),
    *("sql", "synchronous", "terminate", "way"),
]

Step = Callable[[Broken], object]

TABLE = f"public.{COLLECTION}"
_PAUSE = 1.0
_GAP = 0.02  # seconds between two connections
_SECONDS = 60.0
_SLOW_BYTES, _BYTE_SECONDS = 30, 0.1
_RELOAD_SECONDS, _CATCH_UP_SECONDS, _REDIS_SECONDS = 1.0, 20.0, 10.0


def server(action: str, *roles: str) -> Step:
    """Do what `Cluster` calls so to these servers."""

    def step(b: Broken) -> None:
        for role in roles:
            getattr(b.cluster, action)(b.names[role])

    return step


def way(action: str, role: str, *arguments: float) -> Step:
    """Do what `Proxies` calls so to the way to a node."""
    return lambda b: getattr(b.proxies, action)(b.names[role], *arguments)


def sql(statement: str, role: str) -> Step:
    """Run it on this node of the shard."""
    return lambda b: asyncio.run(execute(statement, b.dsn(role)))


def redis(*commands: str) -> Step:
    def step(b: Broken) -> None:
        with redis_client.Redis.from_url(b.cluster.redis_url, socket_timeout=_REDIS_SECONDS) as client:
            for command in commands:
                client.execute_command(*command.split())

    return step


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
    await asyncio.to_thread(b.cluster.kill, b.names["primary"])
    await asyncio.sleep(_PAUSE)
    await execute("SELECT pg_promote()", b.dsn("replica"))


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
            taken.append(await _kept(b, "replica"))
            await asyncio.sleep(gap)
    return taken


async def lock(b: Broken) -> None:
    connection = await _kept(b, "primary")
    await connection.execute(f"BEGIN; LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE", timeout=_SECONDS)


async def _kept(b: Broken, role: str) -> asyncpg.Connection:
    """A connection that ends when the fault does."""
    connection = await connect(b.dsn(role), timeout=_SECONDS)
    b.until_mended.callback(asyncio.get_running_loop().call_soon_threadsafe, connection.terminate)
    return connection


async def terminate(b: Broken) -> None:
    """End every backend of every node."""
    others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
    statement = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
    await execute(statement, *(node.dsn for node in b.cluster.nodes))


def roll(b: Broken) -> None:
    """Restart every node in turn."""
    for node in b.cluster.nodes:
        b.cluster.stop(node.name)
        b.cluster.start(node.name)
        time.sleep(_PAUSE)


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

    def step(b: Broken) -> None:
        host, _, port = b.router.url.removeprefix("http://").partition(":")
        body = {"vector": b.world.dataset.queries[0].tolist(), "k": k, "include": ["vector"], "cache": False}
        request = request_bytes(f"{b.router.url}{search_path(COLLECTION)}", msgspec.json.encode(body))
        opened = [
            b.until_mended.enter_context(socket.create_connection((host, int(port)), _SECONDS))
            for _ in range(connections)
        ]
        for one in opened:
            one.sendall(request[:-_SLOW_BYTES] if slowly else times * request)
        for byte in request[-_SLOW_BYTES:-1] if slowly else b"":
            time.sleep(_BYTE_SECONDS)
            for one in opened:
                one.sendall(bytes([byte]))

    return step
