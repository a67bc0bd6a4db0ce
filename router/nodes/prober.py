"""The only health loop: asks every node who it is and how far it has come.

One task and one connection per node, apart from those that serve requests, so that load cannot
starve it and a node that hangs delays nobody else's probe.

Invariant: whatever a node does, its state is replaced at most 1.2 × `probe_interval` (the jitter) plus
`probe_timeout` after it was last replaced by a probe, and the 0.25 s that `router.nodes.patroni` may take
where the map names a Patroni. The event loop's own delay comes on top.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable
from math import inf

import asyncpg
import msgspec

from router.freshness.freshness import Freshness
from router.nodes.group import Group, Registry
from router.nodes.node import Node
from router.nodes.patroni import Patroni
from router.policy.replication import claims
from router.policy.selection import Health, NodeState, Role
from router.postgres.connection import (
    MISSING_EXTENSION,
    POSTGRES_ERRORS,
    Connection,
    ErrorKind,
    NodeError,
    node_error,
    open_connection,
)
from router.postgres.identity import IDENTITY_COLUMN, READABLE, UNREADABLE_ERRORS, read_identity
from router.postgres.wal import LOG_COLUMNS, STATE_COLUMNS, STATE_SOURCE
from router.settings import Settings
from shard_config.identity import Identity

__all__ = ["Prober"]

_QUERY = f"""
SELECT {STATE_COLUMNS},
       {LOG_COLUMNS},
       (SELECT system_identifier FROM pg_control_system()) AS system,
       current_database()::text AS database,
       extract(epoch FROM pg_postmaster_start_time())::float8 AS started,
       CASE WHEN r.standby
            THEN extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 END AS age,
       EXISTS (SELECT FROM pg_extension WHERE extname = 'vector') AS vector,
       {{identity}}
FROM {STATE_SOURCE}
"""
# A statement that names a table fails where there is none, or none that this role may read.
_WITHOUT_IDENTITY = _QUERY.format(identity=f"{READABLE} AS readable")
_WITH_IDENTITY = _QUERY.format(identity=IDENTITY_COLUMN)

_logger = logging.getLogger(__name__)

# After a write, replicas are asked again this soon, and ever less eagerly, until they have caught up;
# streaming on one machine takes one or two milliseconds.
_CATCH_UP_FIRST = 0.002
_CATCH_UP_FACTOR = 2.0
# Of the interval, before a probe is made for somebody who asks for one: ten a second at most by default.
_SOONEST_SHARE = 0.2
_JITTER = 0.2  # of the interval, either way


class Prober:
    """Keeps `Node.state` true; `start` and `close` frame its life."""

    def __init__(self, nodes: Iterable[Node], settings: Settings, freshness: Freshness | None = None) -> None:
        """`freshness` knows which writes were acknowledged, and is told where they are lost."""
        self._settings = settings
        shards: dict[str, list[Node]] = {}
        for node in nodes:
            shards.setdefault(node.shard, []).append(node)
        registry = Registry()
        self._watches = [
            _Watch(node, group, settings)
            for group in (Group(members, registry, freshness) for members in shards.values())
            for node in group.nodes
        ]

    def __repr__(self) -> str:
        return f"<Prober of {len(self._watches)} nodes>"

    async def start(self) -> None:
        """Begin, and return when every node has been probed once, well or ill.

        Primaries are probed once more where a replica is ahead of what they had written when they were asked:
        it may have followed another primary, or been asked later.
        """
        for watch in self._watches:
            watch.start()
        await asyncio.gather(*(watch.probed_once.wait() for watch in self._watches))
        doubtful = [watch for watch in self._watches if watch.is_doubted()]
        await asyncio.gather(*(watch.probe_again() for watch in doubtful))

    def expect(self, shard: str, lsn: int) -> None:
        """Probe the shard's nodes at short intervals until they have replayed `lsn`."""
        for watch in self._watches:
            # A primary has what it has written.
            if watch.node.shard == shard and not claims(watch.node.state):
                watch.expect(lsn)

    def probe_soon(self, shard: str) -> None:
        """Probe the shard's nodes soon, unless that was done just now."""
        for watch in self._watches:
            if watch.node.shard == shard:
                watch.probe_soon()

    async def close(self) -> None:
        await asyncio.gather(*(watch.close() for watch in self._watches))


class _Watch:
    """Probes one node, for ever."""

    def __init__(self, node: Node, group: Group, settings: Settings) -> None:
        self.node = node
        self._group = group
        self.probed_once = asyncio.Event()
        self._settings = settings
        self._patroni = Patroni(node.config.patroni) if node.config.patroni else None
        self._connection: Connection | None = None
        self._asks_identity = False  # whether the node has a table of it that can be read
        self._identity: tuple[str, Identity | None] = ("", None)  # as the probe tells it, and in full
        self._again = asyncio.Event()
        self._expected = 0
        self._began = float("-inf")  # when the last probe did, by the loop's clock
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"probe {self.node.config.name}")

    def is_doubted(self) -> bool:
        return self._group.is_doubted(self.node)

    async def probe_again(self) -> None:
        """Probe now, and return when that is done."""
        self._again.clear()
        self._wake.set()
        await self._again.wait()

    def expect(self, lsn: int) -> None:
        self._expected = max(self._expected, lsn)
        self._wake.set()

    def probe_soon(self) -> None:
        least = _SOONEST_SHARE * self._settings.probe_interval
        if asyncio.get_running_loop().time() - self._began > least:
            self._wake.set()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._drop()
        if self._patroni is not None:
            await self._patroni.close()

    async def _run(self) -> None:
        pause = 0.0
        while True:
            try:
                await self._probe()
            except Exception:
                # A loop that ended here would leave the node as it was last seen, for ever.
                _logger.exception("probe of %s", self.node.config.name)
                self._drop()
                self.node.observe(
                    msgspec.structs.replace(
                        self.node.state,
                        health=Health.DOWN,
                        reason="its probe failed; the log says how",
                        permanent=False,
                    )
                )
            self.probed_once.set()
            self._again.set()
            state = self.node.state
            catching_up = state.health is Health.UP and state.lsn < self._expected
            interval = self._settings.probe_interval
            if catching_up and pause < interval:
                pause = min(max(pause * _CATCH_UP_FACTOR, _CATCH_UP_FIRST), interval)
            else:
                # Jitter keeps many routers from asking at the same moment.
                pause = interval * random.uniform(1.0 - _JITTER, 1.0 + _JITTER)
            if await self._pause(pause, interruptible=not catching_up):
                pause = 0.0

    async def _pause(self, seconds: float, *, interruptible: bool) -> bool:
        """Sleep; True if a write cut it short, or came while the last probe was under way."""
        if not interruptible:
            await asyncio.sleep(seconds)
            return False
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    async def _probe(self) -> None:
        # Before the node is asked: what a replica has replayed by now, its primary must have written by the
        # time of its answer; what it replays meanwhile says nothing.
        before = self._group.before()
        self._began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._settings.probe_timeout):
                state = await self._ask()
        except (NodeError, *POSTGRES_ERRORS) as exc:
            # A node that does not answer is not worth a polite goodbye: it would hang there.
            self._drop()
            error = node_error(exc)
            reason = "no answer within the probe's time" if isinstance(exc, TimeoutError) else str(error)
            state = msgspec.structs.replace(
                self.node.state,
                health=Health.DOWN,
                reason=reason,
                permanent=error.kind is ErrorKind.FATAL,
            )
        if self._patroni is not None and claims(state):
            state = msgspec.structs.replace(state, leads=await self._patroni.leads())
        self._group.observe(self.node, state, asyncio.get_running_loop().time(), before)
        if state.health is Health.UP:
            # The beginning, because the answer may be from any moment since; and after the state, so that a
            # state is never taken for newer than it is.
            self.node.probed = self._began

    async def _ask(self) -> NodeState:
        if self._connection is not None:
            try:
                return await self._state(self._connection)
            except (NodeError, *POSTGRES_ERRORS):
                # Perhaps for no other reason than this connection.
                self._drop()
        self._connection = await open_connection(
            self.node.config.dsn,
            connect_timeout=self._settings.probe_timeout,
            statement_timeout=self._settings.probe_timeout,
            name="pgscatter probe",
        )
        return await self._state(self._connection)

    async def _state(self, connection: Connection) -> NodeState:
        row = await self._with_identity(connection) if self._asks_identity else None
        if row is None:
            asked, self._asks_identity = self._asks_identity, False
            row = await connection.fetchrow(_WITHOUT_IDENTITY)
            assert row is not None, "it selects from one row"
            if row["readable"] and not asked:
                complete = await self._with_identity(connection)
                if complete is not None:
                    row, self._asks_identity = complete, True
        said = row["identity"] if self._asks_identity else None
        if said is None:
            self._identity = ("", None)
        elif said != self._identity[0]:
            self._identity = (said, await read_identity(connection))
        return _state(row, self._identity[1])

    async def _with_identity(self, connection: Connection) -> asyncpg.Record | None:
        """The whole answer, or None if the table of identities cannot be read."""
        try:
            return await connection.fetchrow(_WITH_IDENTITY)
        except UNREADABLE_ERRORS:
            return None

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _state(row: asyncpg.Record, identity: Identity | None) -> NodeState:
    standby = row["standby"]
    return NodeState(
        Health.UP,
        Role.REPLICA if standby else Role.PRIMARY,
        row["lsn"] or 0,  # a replica that has replayed nothing yet has no position
        timeline=row["timeline"] or 0,
        started=row["started"],
        age=inf if row["age"] is None else max(row["age"], 0.0),
        searchable=row["vector"],
        reason=None if row["vector"] else MISSING_EXTENSION,
        system=row["system"],
        database=row["database"],
        identity=identity,
        written=row["written"] or 0,
        recovered=row["recovered"],
        synchronous=row["synchronous"],
        receiving=row["receiving"],
    )
