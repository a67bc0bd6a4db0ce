"""The faults of a soak, each with the outcomes that it explains: what it may lead to, and nothing else.

A node of a shard whose partner lives explains nothing that a reader could meet but `stale`, which is true
while the partner has not all that was written. Those that replace the router, or leave its memory at a new
height, come first, so that what grows afterwards is a leak.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec
import psutil
import redis

from bench.errors import BenchError
from bench.faults.kinds import FAULTS, Broken, Fault, Step, empty, kill_and_promote, nothing, server, sql, way
from bench.faults.proxies import Proxies
from bench.http_client import request_bytes
from bench.sql import execute, fetch
from bench.world import COLLECTION, World, search_path
from deploy.local.router import Router
from deploy.local.servers import free_ports
from deploy.tied_to_parent import tied_to_parent
from router.postgres.driver import connect

__all__ = ["EARLY", "KINDS", "QUICK", "Soaked"]

_WORKERS = 2
_TABLE = f"public.{COLLECTION}"
_SLOW_BYTES = 30
_RELOAD_SECONDS, _CATCH_UP_SECONDS, _REDIS_SECONDS = 1.0, 20.0, 10.0


class Soaked(Broken):
    """What faults are done to, with the router, which is started again on its port."""

    def __init__(self, world: World, proxies: Proxies, **settings: object) -> None:
        super().__init__(world, proxies)
        self.world = world
        self.stack = ExitStack()  # what ends when the fault does
        self.writers: list[asyncio.StreamWriter] = []  # of clients that misbehave
        self._settings = {"workers": _WORKERS, "port": free_ports(1)[0], "redis": True, **settings}
        self._served = ExitStack()
        self.router = self._start()

    def _start(self) -> Router:
        return self._served.enter_context(self.world.serve(**self._settings))  # type: ignore[arg-type]

    def restart(self) -> None:
        self.close()
        self.router = self._start()

    def close(self) -> None:
        self._served.close()


def _soaked(work: Callable[[Soaked], object]) -> Step:
    """Done in a thread."""

    async def step(b: Broken) -> None:
        assert isinstance(b, Soaked)
        await asyncio.to_thread(work, b)

    return step


def _kill_worker(b: Soaked) -> None:
    children = {child.pid: " ".join(child.cmdline()) for child in psutil.Process(b.router.pid).children()}
    workers = [pid for pid, line in children.items() if "resource_tracker" not in line]
    if len(workers) != _WORKERS:
        raise BenchError(f"the router has {len(workers)} workers, not {_WORKERS}: {children}")
    os.kill(random.choice(workers), signal.SIGKILL)


async def _promote(b: Broken) -> None:
    """Make the replica synchronous, wait until it has all, and only then kill the primary and promote it."""
    primary = b.cluster.node(b.names["primary"]).dsn
    await execute("ALTER SYSTEM SET synchronous_standby_names = '*'", primary)
    await execute("SELECT pg_reload_conf()", primary)
    await asyncio.sleep(_RELOAD_SECONDS)
    end = (await fetch("SELECT pg_current_wal_lsn()::text", primary))[0][0]
    caught_up = f"SELECT bool_and(sync_state = 'sync' AND flush_lsn >= '{end}') FROM pg_stat_replication"
    async with asyncio.timeout(_CATCH_UP_SECONDS):
        while not (await fetch(caught_up, primary))[0][0]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await kill_and_promote(b)


async def _lock(b: Broken) -> None:
    connection = await connect(b.cluster.node(b.names["primary"]).dsn, timeout=_CATCH_UP_SECONDS)
    b.held.append(connection)
    await connection.execute(f"BEGIN; LOCK TABLE {_TABLE} IN ACCESS EXCLUSIVE MODE")


async def _terminate(b: Broken) -> None:
    others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
    statement = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
    await execute(statement, *(node.dsn for node in b.cluster.nodes))


def _busy(b: Soaked) -> None:
    loop = ["nice", "-n", "5", sys.executable, "-c", "while True: pass"]
    for _ in range(2 * (os.cpu_count() or 1)):
        b.stack.enter_context(tied_to_parent(loop, b.world.folder / "busy.log"))


def _abused(connections: int, *, times: int = 1, k: int = 10, slowly: bool = False) -> Step:
    """Open so many connections at once, and send searches on each, without reading an answer.

    `slowly`: the end of the body comes byte by byte, and the last one never.
    """

    async def step(b: Broken) -> None:
        assert isinstance(b, Soaked)
        host, _, port = b.router.url.removeprefix("http://").partition(":")
        body = {"vector": b.world.dataset.queries[0].tolist(), "k": k, "include": ["vector"], "cache": False}
        request = request_bytes(f"{b.router.url}{search_path(COLLECTION)}", msgspec.json.encode(body))

        async def one() -> None:
            _, writer = await asyncio.open_connection(host, int(port), limit=1)
            b.writers.append(writer)
            writer.write(request[:-_SLOW_BYTES] if slowly else times * request)
            for byte in request[-_SLOW_BYTES:-1] if slowly else b"":
                await asyncio.sleep(0.1)
                writer.write(bytes([byte]))

        await asyncio.gather(*(one() for _ in range(connections)))

    return step


async def _hang_up(b: Broken) -> None:
    assert isinstance(b, Soaked)
    for writer in b.writers:
        writer.transport.abort()
    b.writers.clear()


def _redis(*commands: str) -> Step:
    def step(b: Soaked) -> None:
        with redis.Redis.from_url(b.cluster.redis_url, socket_timeout=_REDIS_SECONDS) as client:
            for command in commands:
                client.execute_command(*command.split())

    return _soaked(step)


def _statement(text: str) -> Step:
    return sql(text, "primary")


def _kind(name: str, title: str, inject: Step, heal: Step = nothing, *explains: str, **more: Any) -> Fault:
    return Fault(name, title, "primary", inject, heal, explains=frozenset(explains), **more)


# The partner may lack what was acknowledged last: searches say so, and an absent document is no proof.
_BEHIND = ("search:stale", "read:stale", "count:stale", "read:unavailable")
_NO_PRIMARY = ("write:unavailable", "write:unknown", *_BEHIND)
_LATE = ("search:partial", "search:late", "read:late", "count:late", "count:partial")
_OPERATIONS = ("search", "read", "count", "write")
_CUT_OFF = [f"{of}:{what}" for of in _OPERATIONS for what in ("refused", "lost")]
_FULL = [f"{of}:overloaded" for of in _OPERATIONS]
# Locks reach the replica with the log: its replay waits for readers, and they for it.
_LOCKED = (*_NO_PRIMARY, *_LATE, *_FULL, "search:unavailable", "count:unavailable")

# Every write needs a temporary file, and there is no room for one: the server's own error, of the class of a
# full disk. One that a trigger raises would blame the row.
_NO_SPACE = f"""
CREATE FUNCTION public.no_space() RETURNS trigger LANGUAGE plpgsql
    SET temp_file_limit = 0 SET work_mem = '64kB' AS
    $$ BEGIN
        PERFORM count(*) FROM (SELECT n FROM generate_series(1, 20000) n ORDER BY -n OFFSET 0) sorted;
        RETURN NULL;
    END $$;
CREATE TRIGGER no_space BEFORE INSERT OR UPDATE ON {_TABLE} EXECUTE FUNCTION public.no_space()
"""


# Of those that are measured one by one, and break one node or Redis.
_EXPLAINED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("kill-replica", "freeze-replica", "slow-1s", "refuse", "cut", "full", "lag"), ()),
    **{"freeze-redis": (), "kill-primary": _NO_PRIMARY, "freeze-primary": _NO_PRIMARY},
}
EARLY = (
    _kind("restart", "SIGTERM of the router, and a new one", _soaked(Soaked.restart), nothing, *_CUT_OFF),
    _kind("kill-worker", "kill -9 of a worker of the router", _soaked(_kill_worker), nothing, *_CUT_OFF),
    _kind("stalled", "clients that take no answer", _abused(20, times=4, k=1000), _hang_up),
    _kind("slow-bodies", "requests that come byte by byte", _abused(50, slowly=True), _hang_up),
    _kind(
        *("flood", "a thousand connections at once", _abused(1000), _hang_up),
        *(*_FULL, *_LATE),
        everywhere=True,
    ),
)
KINDS = (
    *(
        msgspec.structs.replace(fault, explains=frozenset(_EXPLAINED[fault.name]))
        for fault in FAULTS
        if fault.name in _EXPLAINED
    ),
    _kind("stop-replica", "a replica stopped", server("stop", "replica"), server("start", "replica")),
    _kind("promotion", "a primary killed, promotion", _promote, server("rejoin", "primary"), *_NO_PRIMARY),
    *(
        _kind(
            f"{does}-primary", title, way(does, role="primary"), way("restore", role="primary"), *_NO_PRIMARY
        )
        for does, title in (
            ("cut", "a primary that nothing reaches"),
            ("mute", "a primary that is not heard"),
        )
    ),
    _kind("terminate", "all backends terminated", _terminate, nothing, *_NO_PRIMARY, everywhere=True),
    _kind("lock", "a table locked", _lock, empty, *_LOCKED),
    _kind(
        *("no-space", "a primary without space", _statement(_NO_SPACE)),
        _statement("DROP FUNCTION public.no_space() CASCADE"),
        "write:unavailable",
    ),
    *(
        _kind(
            command.lower().replace(" ", "-"), command, _statement(f"{command} {_TABLE}"), nothing, *explains
        )
        for command, explains in (("REINDEX TABLE", _LOCKED), ("VACUUM FULL", _LOCKED), ("ANALYZE", ()))
    ),
    _kind(
        *("add-column", "a column added, and dropped", _statement(f"ALTER TABLE {_TABLE} ADD extra int")),
        _statement(f"ALTER TABLE {_TABLE} DROP extra"),
    ),
    _kind("kill-redis", "kill -9 of Redis", server("kill", "redis"), server("start", "redis")),
    _kind("flush-redis", "Redis flushed", _redis("FLUSHALL")),
    _kind(
        *("readonly-redis", "a Redis that takes no writes"),
        *(_redis("REPLICAOF 127.0.0.1 1"), _redis("REPLICAOF NO ONE")),
    ),
    _kind(
        *("full-redis", "a Redis that is full"),
        _redis("CONFIG SET maxmemory 1", "CONFIG SET maxmemory-policy noeviction"),
        _redis("CONFIG SET maxmemory 256mb", "CONFIG SET maxmemory-policy allkeys-lru"),
    ),
    _kind(
        *("busy", "busy loops on every core", _soaked(_busy)),
        _soaked(lambda b: b.stack.close()),
        *_LATE,
        everywhere=True,
    ),
)
QUICK = ("kill-worker", "promotion", "freeze-replica", "terminate", "lock", "kill-redis")
