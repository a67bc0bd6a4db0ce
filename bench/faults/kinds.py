"""The faults: what breaks, and how it is made whole again. All of them happen to real servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Literal

import asyncpg
import msgspec

from bench.faults.proxies import Proxies
from bench.sql import execute
from bench.world import World
from router.postgres.driver import connect

__all__ = [
    "FAULTS",
    "Broken",
    "Fault",
    "Step",
    "empty",
    "kill_and_promote",
    "nothing",
    "server",
    "sql",
    "way",
]

_PAUSE = 1.0
_GAP = 0.02  # seconds between two connections
_SECONDS = 60.0

Role = Literal["primary", "replica"]


class Broken:
    """What faults are done to, one after the other, and what has to be remembered until they are healed.

    Attributes:
        names: by role, of the suffering shard's nodes when the fault began; and of Redis.
    """

    def __init__(self, world: World, proxies: Proxies) -> None:
        self.cluster = world.cluster
        self.proxies = proxies
        self.held: list[asyncpg.Connection] = []
        self.names: dict[str, str] = {}

    def look(self, shard: str = "s1") -> None:
        """Who is who now, on the shard that is to suffer; a promotion has changed it."""
        self.cluster.status()
        nodes = [node for node in self.cluster.nodes if node.shard == shard]
        self.names = {"redis": "redis", **{node.role: node.name for node in nodes}}


Step = Callable[[Broken], Awaitable[None]]


class Fault(msgspec.Struct, frozen=True):
    """`hits` is the node that it happens to; `partner`: another node of the shard is well meanwhile.

    `seconds` is what it lasts, beside what it takes to inject it. `explains` are the outcomes that a caller
    may meet meanwhile, as `bench.soak.verdict` names them; on its shard, or `everywhere`.
    """

    name: str
    title: str
    hits: Role
    inject: Step
    heal: Step
    partner: bool = True
    seconds: float = 6.0
    explains: frozenset[str] = frozenset()
    everywhere: bool = False


def server(action: str, *roles: str) -> Step:
    """Do what `Cluster` calls so to these servers."""

    async def step(b: Broken) -> None:
        for role in roles:
            await asyncio.to_thread(getattr(b.cluster, action), b.names[role])

    return step


def way(action: str, *arguments: float, role: Role = "replica") -> Step:
    """Do what `Proxies` calls so to the way to a node."""

    async def step(b: Broken) -> None:
        await asyncio.to_thread(getattr(b.proxies, action), b.names[role], *arguments)

    return step


def sql(statement: str, *roles: Role) -> Step:
    """Run it on these nodes of the shard, by default on the replica."""

    async def step(b: Broken) -> None:
        await execute(statement, *(b.cluster.node(b.names[role]).dsn for role in roles or ("replica",)))

    return step


async def kill_and_promote(b: Broken) -> None:
    await server("kill", "primary")(b)
    await asyncio.sleep(_PAUSE)
    await sql("SELECT pg_promote()")(b)


async def _fill(b: Broken) -> None:
    """Take every connection that the replica has, and then the router's as well."""
    # Slowly: what is to be seen is a server that is full, not one that is overrun.
    await _take(b, _GAP)
    await b.held[0].execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgscatter reads'",
        timeout=_SECONDS,
    )
    await _take(b, 0.0)


async def _take(b: Broken, gap: float) -> None:
    with contextlib.suppress(asyncpg.TooManyConnectionsError):
        while True:
            b.held.append(await connect(b.cluster.node(b.names["replica"]).dsn, timeout=_SECONDS))
            await asyncio.sleep(gap)


async def empty(b: Broken) -> None:
    for connection in b.held:
        connection.terminate()
    b.held.clear()


async def _roll(b: Broken) -> None:
    for node in b.cluster.nodes:
        for action in (b.cluster.stop, b.cluster.start):
            await asyncio.to_thread(action, node.name)
        await asyncio.sleep(_PAUSE)


async def nothing(b: Broken) -> None:
    pass


def _ended(*roles: str) -> tuple[Step, Step]:
    return server("kill", *roles), server("start", *roles)


def _frozen(role: str) -> tuple[Step, Step]:
    return server("pause", role), server("resume", role)


_restore = way("restore")

FAULTS = (
    Fault("kill-replica", "kill -9 of a replica", "replica", *_ended("replica")),
    Fault("kill-primary", "kill -9 of a primary", "primary", *_ended("primary")),
    Fault(
        *("promotion", "kill -9 of a primary, promotion", "primary", kill_and_promote),
        server("rejoin", "primary"),
    ),
    Fault("freeze-replica", "SIGSTOP of a replica", "replica", *_frozen("replica")),
    Fault("freeze-primary", "SIGSTOP of a primary", "primary", *_frozen("primary")),
    Fault("freeze-redis", "SIGSTOP of Redis", "replica", *_frozen("redis")),
    Fault("slow-100ms", "a replica slower by 100 ms", "replica", way("delay", 0.1), _restore),
    Fault("slow-1s", "a replica slower by 1 s", "replica", way("delay", 1.0), _restore),
    Fault("refuse", "a replica that refuses connections", "replica", way("refuse"), _restore),
    Fault("cut", "a replica that nothing reaches", "replica", way("cut"), _restore),
    Fault("full", "a replica without free connections", "replica", _fill, empty),
    Fault(
        *("lag", "a replica that replays nothing", "replica", sql("SELECT pg_wal_replay_pause()")),
        sql("SELECT pg_wal_replay_resume()"),
    ),
    Fault("rolling", "every node restarted in turn", "replica", _roll, nothing, seconds=0),
    Fault(
        *("shard-gone", "all nodes of a shard killed", "primary", *_ended("primary", "replica")),
        partner=False,
        seconds=4,
    ),
)
