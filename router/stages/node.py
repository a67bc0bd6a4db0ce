"""One PostgreSQL server: its connections, and what is known of its health.

Reads and writes have pools of their own, so that neither can starve the other.
"""

from __future__ import annotations

import asyncio
import time
from time import perf_counter
from typing import Any

import msgspec

from router.policy.selection import Health, NodeState
from router.postgres.connection import Connection, ErrorKind, NodeError, open_connection
from router.postgres.pool import Pool
from router.query.types import Probe, Row
from router.settings import Settings
from shard_config import model

__all__ = ["Fetched", "Node"]


class Fetched(msgspec.Struct, frozen=True):
    rows: list[Row]
    queue_ms: float
    execute_ms: float
    plan: str | None


class Node:
    """Runs probes on one server. `state` is replaced, never changed, by the prober and by failures."""

    def __init__(self, config: model.Node, shard: str, settings: Settings) -> None:
        self.config = config
        self.shard = shard
        self.state = NodeState(since=time.time())
        self._settings = settings
        self.reads = self._pool("reads", settings.node_connections, settings.max_timeout)
        self.writes = self._pool("writes", settings.write_connections, settings.write_timeout)

    def __repr__(self) -> str:
        role = self.state.role or "role unknown"
        return f"<Node {self.config.name} {role} {self.state.health}, {self.reads!r}>"

    async def fetch(self, probe: Probe, deadline: float) -> Fetched:
        """Rows of the probe's statement. The caller owns the deadline and cancels past it.

        Raises:
            NodeError, OverloadedError
        """
        # Not the loop's clock: uvloop's stands still within one turn and counts whole milliseconds.
        started = perf_counter()
        async with self.reads.session() as connection:
            sent = perf_counter()
            rows: list[Any] = await connection.fetch(probe.sql, *probe.args)
            done = perf_counter()
            plan = None
            if probe.plan:
                lines = await connection.fetch(f"EXPLAIN {probe.sql}", *probe.args)
                plan = "\n".join(line[0] for line in lines)
        return Fetched(rows, (sent - started) * 1000, (done - sent) * 1000, plan)

    def failed(self, error: NodeError) -> None:
        """The server cannot be reached: ask it no more until a probe does.

        A connection that broke is no such sign; an operator may have ended just that one.
        """
        if error.kind is ErrorKind.UNREACHABLE:
            self.observe(msgspec.structs.replace(self.state, health=Health.DOWN, reason=str(error)))

    def observe(self, state: NodeState) -> None:
        """Take over what is newly known; `since` moves only when health or role do."""
        changed = (state.health, state.role) != (self.state.health, self.state.role)
        since = time.time() if changed else self.state.since
        if changed and state.health is Health.DOWN:
            self.reads.discard_idle()
            self.writes.discard_idle()
        self.state = msgspec.structs.replace(state, since=since)

    async def close(self) -> None:
        await asyncio.gather(self.reads.close(), self.writes.close())

    def _pool(self, kind: str, size: int, statement_timeout: float) -> Pool:
        settings = self._settings

        async def connect() -> Connection:
            return await open_connection(
                self.config.dsn,
                connect_timeout=settings.connect_timeout,
                statement_timeout=statement_timeout,
                name=f"pgscatter {kind}",
            )

        return Pool(
            f"{self.config.name} {kind}",
            connect,
            size=size,
            queue=settings.node_queue,
            cancel_timeout=settings.cancel_timeout,
        )
