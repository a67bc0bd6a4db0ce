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

__all__ = ["FAULTS", "Broken", "Fault"]

# Of the shards, one suffers.
_SHARD = "s1"
_PAUSE = 1.0
_GAP = 0.02  # seconds between two connections
_SECONDS = 60.0

Role = Literal["primary", "replica"]


class Broken:
    """What faults are done to, one after the other, and what has to be remembered until they are healed.

    Attributes:
        primary, replica: names of the suffering shard's nodes when the fault began.
    """

    def __init__(self, world: World, proxies: Proxies) -> None:
        self.cluster = world.cluster
        self.proxies = proxies
        self.held: list[asyncpg.Connection] = []
        self.primary = self.replica = ""

    def look(self) -> None:
        """Who is who now; a promotion has changed it."""
        self.cluster.status()
        nodes = [node for node in self.cluster.nodes if node.shard == _SHARD]
        self.primary = next(node.name for node in nodes if node.role == "primary")
        self.replica = next(node.name for node in nodes if node.role == "replica")

    def name(self, role: Role) -> str:
        return self.primary if role == "primary" else self.replica

    async def kill(self, *names: str) -> None:
        for name in names:
            await asyncio.to_thread(self.cluster.kill, name)

    async def start(self, *names: str) -> None:
        for name in names:
            await asyncio.to_thread(self.cluster.start, name)

    async def sql(self, name: str, statement: str) -> None:
        await execute(statement, self.cluster.node(name).dsn)


Step = Callable[[Broken], Awaitable[None]]


class Fault(msgspec.Struct, frozen=True):
    """`hits` is the node that it happens to; `partner`: another node of the shard is well meanwhile.

    `seconds` is what it lasts, beside what it takes to inject it.
    """

    name: str
    title: str
    hits: Role
    inject: Step
    heal: Step
    partner: bool = True
    seconds: float = 6.0


async def _kill_replica(b: Broken) -> None:
    await b.kill(b.replica)


async def _start_replica(b: Broken) -> None:
    await b.start(b.replica)


async def _kill_primary(b: Broken) -> None:
    await b.kill(b.primary)


async def _start_primary(b: Broken) -> None:
    await b.start(b.primary)


async def _kill_and_promote(b: Broken) -> None:
    await b.kill(b.primary)
    await asyncio.sleep(_PAUSE)
    await b.sql(b.replica, "SELECT pg_promote()")


async def _rejoin(b: Broken) -> None:
    """The old primary comes back as a replica of the new one."""
    await asyncio.to_thread(b.cluster.rejoin, b.primary)


def _freeze(role: Role) -> Step:
    async def step(b: Broken) -> None:
        await asyncio.to_thread(b.cluster.pause, b.name(role))

    return step


def _thaw(role: Role) -> Step:
    async def step(b: Broken) -> None:
        await asyncio.to_thread(b.cluster.resume, b.name(role))

    return step


async def _freeze_redis(b: Broken) -> None:
    await asyncio.to_thread(b.cluster.pause, "redis")


async def _thaw_redis(b: Broken) -> None:
    await asyncio.to_thread(b.cluster.resume, "redis")


def _slow(seconds: float) -> Step:
    async def step(b: Broken) -> None:
        b.proxies.delay(b.replica, seconds)

    return step


async def _refuse(b: Broken) -> None:
    await asyncio.to_thread(b.proxies.refuse, b.replica)


async def _cut(b: Broken) -> None:
    b.proxies.cut(b.replica)


async def _restore(b: Broken) -> None:
    await asyncio.to_thread(b.proxies.restore, b.replica)


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
            b.held.append(await connect(b.cluster.node(b.replica).dsn, timeout=_SECONDS))
            await asyncio.sleep(gap)


async def _empty(b: Broken) -> None:
    for connection in b.held:
        connection.terminate()
    b.held.clear()


async def _stop_replay(b: Broken) -> None:
    await b.sql(b.replica, "SELECT pg_wal_replay_pause()")


async def _go_on_replaying(b: Broken) -> None:
    await b.sql(b.replica, "SELECT pg_wal_replay_resume()")


async def _roll(b: Broken) -> None:
    for node in b.cluster.nodes:
        await asyncio.to_thread(b.cluster.stop, node.name)
        await b.start(node.name)
        await asyncio.sleep(_PAUSE)


async def _nothing(b: Broken) -> None:
    pass


async def _kill_both(b: Broken) -> None:
    await b.kill(b.primary, b.replica)


async def _start_both(b: Broken) -> None:
    await b.start(b.primary, b.replica)


FAULTS = (
    Fault("kill-replica", "kill -9 of a replica", "replica", _kill_replica, _start_replica),
    Fault("kill-primary", "kill -9 of a primary", "primary", _kill_primary, _start_primary),
    Fault("promotion", "kill -9 of a primary, promotion", "primary", _kill_and_promote, _rejoin),
    Fault("freeze-replica", "SIGSTOP of a replica", "replica", _freeze("replica"), _thaw("replica")),
    Fault("freeze-primary", "SIGSTOP of a primary", "primary", _freeze("primary"), _thaw("primary")),
    Fault("freeze-redis", "SIGSTOP of Redis", "replica", _freeze_redis, _thaw_redis),
    Fault("slow-100ms", "a replica slower by 100 ms", "replica", _slow(0.1), _restore),
    Fault("slow-1s", "a replica slower by 1 s", "replica", _slow(1.0), _restore),
    Fault("refuse", "a replica that refuses connections", "replica", _refuse, _restore),
    Fault("cut", "a replica that nothing reaches", "replica", _cut, _restore),
    Fault("full", "a replica without free connections", "replica", _fill, _empty),
    Fault("lag", "a replica that replays nothing", "replica", _stop_replay, _go_on_replaying),
    Fault("rolling", "every node restarted in turn", "replica", _roll, _nothing, seconds=0),
    Fault(
        "shard-gone",
        "all nodes of a shard killed",
        "primary",
        _kill_both,
        _start_both,
        partner=False,
        seconds=4,
    ),
)
