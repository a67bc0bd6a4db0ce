"""The faults: what breaks, how it is mended, and which outcomes it explains, that is, may lead to.

A node of a shard whose partner lives explains nothing that a reader could meet but `stale`, which is true
while the partner has not all that was written.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable
from time import perf_counter

import msgspec

from bench.faults import steps
from bench.faults.broken import Broken
from bench.faults.steps import TABLE, Step, abuse, redis, server, sql, way
from bench.faults.verdict import Window

__all__ = ["EARLY", "MEASURED", "SOAKED", "Fault"]


class Fault(msgspec.Struct, frozen=True):
    """`seconds` is what it lasts, beside what it takes to inject it.

    `explains` are the outcomes that a caller may meet meanwhile, as `bench.faults.outcomes` names them; on
    its shard, or `everywhere`. `partner`: another node of the shard is well meanwhile.
    """

    name: str
    title: str
    inject: Step
    heal: Step | None = None
    explains: frozenset[str] = frozenset()
    partner: bool = True
    seconds: float = 6.0
    everywhere: bool = False

    def window(self, shards: Iterable[str]) -> Window:
        """It begins now, on these."""
        now = perf_counter()
        return Window(self.name, self.explains, frozenset(shards), now, now)

    async def happen(self, b: Broken, window: Window, most: float) -> None:
        """Break it, for `seconds` or as long as `most`, and mend it."""
        try:
            await _do(self.inject, b)
            await asyncio.sleep(min(self.seconds, most))
        finally:
            if self.heal is not None:
                await _do(self.heal, b)
            window.healed = perf_counter()


async def _do(step: Step, b: Broken) -> None:
    if inspect.iscoroutinefunction(step):
        await step(b)
    else:
        await asyncio.to_thread(step, b)


_OPERATIONS = ("search", "read", "count", "write")
# The partner may lack what was acknowledged last: searches say so, and an absent document is no proof.
_NO_PRIMARY = frozenset(
    ["write:unavailable", "write:unknown", "search:stale", "read:stale", "count:stale", "read:unavailable"]
)
_LATE = frozenset(["search:partial", "search:late", "read:late", "count:late", "count:partial"])
_CUT_OFF = frozenset(f"{of}:{what}" for of in _OPERATIONS for what in ("refused", "lost"))
_FULL = frozenset(f"{of}:overloaded" for of in _OPERATIONS)
# Locks reach the replica with the log: its replay waits for readers, and they for it.
_LOCKED = _NO_PRIMARY | _LATE | _FULL | {"search:unavailable", "count:unavailable"}

# Every write needs a temporary file, and there is no room for one: the server's own error, of the class of a
# full disk. One that a trigger raises would blame the row.
_NO_SPACE = f"""
CREATE FUNCTION public.no_space() RETURNS trigger LANGUAGE plpgsql
    SET temp_file_limit = 0 SET work_mem = '64kB' AS
    $$ BEGIN
        PERFORM count(*) FROM (SELECT n FROM generate_series(1, 20000) n ORDER BY -n OFFSET 0) sorted;
        RETURN NULL;
    END $$;
CREATE TRIGGER no_space BEFORE INSERT OR UPDATE ON {TABLE} EXECUTE FUNCTION public.no_space()
"""


def _ended(*roles: str) -> tuple[Step, Step]:
    return server("kill", *roles), server("start", *roles)


def _frozen(role: str) -> tuple[Step, Step]:
    return server("pause", role), server("resume", role)


def _way(action: str, role: str, *arguments: float) -> tuple[Step, Step]:
    return way(action, role, *arguments), way("restore", role)


# What `bench faults` measures one by one, and a soak does as well.
_NODES = (
    Fault("kill-replica", "kill -9 of a replica", *_ended("replica")),
    Fault("kill-primary", "kill -9 of a primary", *_ended("primary"), _NO_PRIMARY),
    Fault(
        "promotion",
        "kill -9 of a primary, promotion",
        steps.promote,
        server("rejoin", "primary"),
        _NO_PRIMARY,
    ),
    Fault("freeze-replica", "SIGSTOP of a replica", *_frozen("replica")),
    Fault("freeze-primary", "SIGSTOP of a primary", *_frozen("primary"), _NO_PRIMARY),
    Fault("freeze-redis", "SIGSTOP of Redis", *_frozen("redis")),
    Fault("slow-1s", "a replica slower by 1 s", *_way("delay", "replica", 1.0)),
    Fault("refuse", "a replica that refuses connections", *_way("refuse", "replica")),
    Fault("cut", "a replica that nothing reaches", *_way("cut", "replica")),
    Fault("full", "a replica without free connections", steps.fill, Broken.release),
    Fault(
        *("lag", "a replica that replays nothing"),
        sql("SELECT pg_wal_replay_pause()", "replica"),
        sql("SELECT pg_wal_replay_resume()", "replica"),
    ),
)
MEASURED = (
    *_NODES,
    Fault("slow-100ms", "a replica slower by 100 ms", *_way("delay", "replica", 0.1)),
    Fault("rolling", "every node restarted in turn", steps.roll, seconds=0),
    Fault(
        *("shard-gone", "all nodes of a shard killed"),
        *_ended("primary", "replica"),
        partner=False,
        seconds=4,
    ),
)
# Those that replace the router or leave its memory at a new height come first, so that what grows afterwards
# is a leak.
EARLY = (
    Fault("restart", "SIGTERM of the router, and a new one", Broken.restart, explains=_CUT_OFF),
    Fault("kill-worker", "kill -9 of a worker of the router", steps.kill_worker, explains=_CUT_OFF),
    Fault("stalled", "clients that take no answer", abuse(20, times=4, k=1000), Broken.release),
    Fault("slow-bodies", "requests that come byte by byte", abuse(50, slowly=True), Broken.release),
    Fault(
        *("flood", "a thousand connections at once", abuse(1000), Broken.release, _FULL | _LATE),
        everywhere=True,
    ),
)
SOAKED = (
    *_NODES,
    Fault("stop-replica", "a replica stopped", server("stop", "replica"), server("start", "replica")),
    Fault("cut-primary", "a primary that nothing reaches", *_way("cut", "primary"), _NO_PRIMARY),
    Fault("mute-primary", "a primary that is not heard", *_way("mute", "primary"), _NO_PRIMARY),
    Fault("terminate", "all backends terminated", steps.terminate, explains=_NO_PRIMARY, everywhere=True),
    Fault("lock", "a table locked", steps.lock, Broken.release, _LOCKED),
    Fault(
        *("no-space", "a primary without space", sql(_NO_SPACE, "primary")),
        sql("DROP FUNCTION public.no_space() CASCADE", "primary"),
        frozenset(["write:unavailable"]),
    ),
    Fault("reindex-table", "REINDEX TABLE", sql(f"REINDEX TABLE {TABLE}", "primary"), explains=_LOCKED),
    Fault("vacuum-full", "VACUUM FULL", sql(f"VACUUM FULL {TABLE}", "primary"), explains=_LOCKED),
    Fault("analyze", "ANALYZE", sql(f"ANALYZE {TABLE}", "primary")),
    Fault(
        *("add-column", "a column added, and dropped"),
        sql(f"ALTER TABLE {TABLE} ADD extra int", "primary"),
        sql(f"ALTER TABLE {TABLE} DROP extra", "primary"),
    ),
    Fault("kill-redis", "kill -9 of Redis", *_ended("redis")),
    Fault("flush-redis", "Redis flushed", redis("FLUSHALL")),
    Fault(
        *("readonly-redis", "a Redis that takes no writes"),
        redis("REPLICAOF 127.0.0.1 1"),
        redis("REPLICAOF NO ONE"),
    ),
    Fault(
        *("full-redis", "a Redis that is full"),
        redis("CONFIG SET maxmemory 1", "CONFIG SET maxmemory-policy noeviction"),
        redis("CONFIG SET maxmemory 256mb", "CONFIG SET maxmemory-policy allkeys-lru"),
    ),
    Fault("busy", "busy loops on every core", steps.busy, Broken.release, explains=_LATE, everywhere=True),
)
