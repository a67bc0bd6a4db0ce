"""The only health loop: asks every node who it is and how far it has come.

One task and one connection per node, apart from those that serve requests, so that load cannot
starve it and a node that hangs delays nobody else's probe.

Invariant: whatever a node that is not down does, its state is replaced at most 1.2 × the interval (the
jitter) plus `probe_timeout` after it was last replaced by a probe, and the 0.25 s that `router.nodes.patroni`
may take where the map names a Patroni. The interval is `probe_interval`, or longer where more nodes than
`probe_rate` allows would be probed in it. A node that is down is tried again after a pause that grows up to
`reconnect_max` (`router.policy.backoff`), when its turn to open a connection has come
(`router.policy.openings`). The event loop's own delay comes on top.

A connection may be lost without a word, as when a firewall forgets it, while its node is well. So a probe
that has had no answer for half of its time is made once more over a new connection, and what is answered
first counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterable
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec

from router.freshness.freshness import Freshness
from router.nodes.group import Group, Registry
from router.nodes.node import Node
from router.policy import backoff
from router.policy.openings import Urgency
from router.policy.replication import claims
from router.policy.selection import Health, NodeState, Role
from router.postgres.connection import (
    LASTING,
    MISSING_EXTENSION,
    POSTGRES_ERRORS,
    Connection,
    ErrorKind,
    NodeError,
    node_error,
    open_connection,
)
from router.postgres.identity import IDENTITY_COLUMN, READABLE, UNREADABLE_ERRORS, read_identity
from router.postgres.pooler import SHARED
from router.postgres.wal import LOG_COLUMNS, STATE_COLUMNS, STATE_SOURCE
from router.settings import Settings
from shard_config.identity import Identity

if TYPE_CHECKING:
    from router.nodes.patroni import Patroni

__all__ = ["Prober"]

_QUERY = f"""
SELECT {STATE_COLUMNS},
       {LOG_COLUMNS},
       (SELECT system_identifier FROM pg_control_system()) AS system,
       current_database()::text AS database,
       extract(epoch FROM pg_postmaster_start_time())::float8 AS started,
       CASE WHEN r.standby
            THEN extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 END AS age,
       extract(epoch FROM clock_timestamp())::float8 AS clock,
       EXISTS (SELECT FROM pg_extension WHERE extname = 'vector') AS vector,
       pg_backend_pid() AS process,
       {{identity}}
FROM {STATE_SOURCE}
"""
# A statement that names a table fails where there is none, or none that this role may read.
_WITHOUT_IDENTITY = _QUERY.format(identity=f"{READABLE} AS readable")
_WITH_IDENTITY = _QUERY.format(identity=IDENTITY_COLUMN)

_logger = logging.getLogger(__name__)

# Whoever starts a router waits no longer for nodes that do not answer.
_START_SECONDS = 15.0
# After a write, replicas are asked again this soon, and ever less eagerly, until they have caught up;
# streaming on one machine takes one or two milliseconds.
_CATCH_UP_FIRST = 0.002
_CATCH_UP_FACTOR = 2.0
# Of the interval, before a probe is made for somebody who asks for one: ten a second at most by default.
_SOONEST_SHARE = 0.2
_TOGETHER_SECONDS = 0.1
# Of a probe's time, for the table of identities to be unlocked.
_LOCK_SHARE = 0.1
# Of a probe's time, to open a connection to a node that nothing is known of.
_FIRST_TIMES = 2.0


class Prober:
    """Keeps `Node.state` true; `start` and `close` frame its life."""

    def __init__(self, nodes: Iterable[Node], settings: Settings, freshness: Freshness | None = None) -> None:
        """`freshness` knows which writes were acknowledged, and is told where they are lost."""
        shards: dict[str, list[Node]] = {}
        for node in nodes:
            shards.setdefault(node.shard, []).append(node)
        pace = _Pace(sum(map(len, shards.values())), settings)
        registry = Registry()
        contents: dict[str, dict[str, Any]] = {}
        self._watches = [
            _Watch(node, group, pace, settings, contents)
            for group in (Group(members, registry, freshness) for members in shards.values())
            for node in group.nodes
        ]

    def __repr__(self) -> str:
        return f"<Prober of {len(self._watches)} nodes>"

    async def start(self) -> None:
        """Begin, and return when every node has been probed once, well or ill, or `_START_SECONDS` later.

        Primaries are probed once more where a replica is ahead of what they had written when they were asked:
        it may have followed another primary, or been asked later.
        """
        for watch in self._watches:
            watch.start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
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


class _Pace:
    """How often all nodes together are asked."""

    def __init__(self, nodes: int, settings: Settings) -> None:
        self.interval = max(settings.probe_interval, nodes / settings.probe_rate)
        self._many = self.interval > settings.probe_interval
        self.down: set[Node] = set()
        self._first, self._longest = settings.probe_interval, settings.reconnect_max

    def __repr__(self) -> str:
        return f"<_Pace every {self.interval:g} s, {len(self.down)} down>"

    def together(self, end: float) -> float:
        """When a pause that would end then does end: where there are many nodes, with other pauses.

        To wake up costs a router more than the probe that it wakes up for.
        """
        return end - end % _TOGETHER_SECONDS if self._many else end

    def again(self, failures: int, needed: bool) -> float:
        """Seconds until a node that is down is tried again."""
        return backoff.pause(
            failures, first=self._first, longest=self._longest, needed=needed, down=len(self.down)
        )


class _Watch:
    """Probes one node, for ever."""

    def __init__(
        self,
        node: Node,
        group: Group,
        pace: _Pace,
        settings: Settings,
        contents: dict[str, dict[str, Any]],
    ) -> None:
        """`contents` of maps are shared with the other nodes, see `read_identity`."""
        self.node = node
        self._group = group
        self._pace = pace
        self.probed_once = asyncio.Event()
        self._settings = settings
        self._patroni: Patroni | None = None
        if node.config.patroni:
            from router.nodes.patroni import Patroni  # a tenth of a router's start is its client of HTTP

            self._patroni = Patroni(node.config.patroni, node.network)
        self._connection: Connection | None = None
        self._contents = contents
        self._asks_identity = False  # whether the node has a table of it that can be read
        self._identity: tuple[str, Identity | None] = ("", None)  # as the probe tells it, and in full
        self._again = asyncio.Event()
        self._expected = 0
        self._failures = 0  # in a row
        self._began = float("-inf")  # when the last probe did, by the loop's clock
        self._wake = asyncio.Event()
        self._paused = False  # until the end of its pause
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
        # A writer and whoever reads after it may both say so; one round of probes will do. One that is down
        # has a pause of its own, which writes must not cut short.
        if lsn <= self._expected:
            return
        self._expected = lsn
        if self.node.state.health is not Health.DOWN:
            self._wake.set()

    def probe_soon(self) -> None:
        least = _SOONEST_SHARE * self._pace.interval
        known = self.node.state.health is not Health.DOWN
        if known and asyncio.get_running_loop().time() - self._began > least:
            self._wake.set()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._drop()
        if self._patroni is not None:
            await self._patroni.close()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause = 0.0
        while True:
            judged = loop.time()
            try:
                await self._probe()
                judged = loop.time()
                await self._renew()
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
                        cause="internal",
                    )
                )
            self.probed_once.set()
            self._again.set()
            state = self.node.state
            interval = self._interval(state)
            catching_up = state.health is Health.UP and state.lsn < self._expected
            if catching_up and pause < interval:
                pause = min(max(pause * _CATCH_UP_FACTOR, _CATCH_UP_FIRST), interval)
            else:
                # Jitter keeps many routers from asking at the same moment.
                pause = interval * random.uniform(1.0 - backoff.JITTER, 1.0 + backoff.JITTER)
            left = max(0.0, judged + pause - loop.time())
            if await self._pause(left, interruptible=not catching_up):
                pause = 0.0

    def _interval(self, state: NodeState) -> float:
        """Seconds until the next probe."""
        if state.health is not Health.DOWN:
            self._failures = 0
            self._pace.down.discard(self.node)
            return self._pace.interval
        self._failures += 1
        self._pace.down.add(self.node)
        return self._pace.again(self._failures, self._group.lacking)

    async def _pause(self, seconds: float, *, interruptible: bool) -> bool:
        """Sleep; True if a write cut it short, or came while the last probe was under way."""
        if not interruptible:
            await asyncio.sleep(seconds)
            return False
        self._paused = False
        loop = asyncio.get_running_loop()
        timer = loop.call_at(self._pace.together(loop.time() + seconds), self._end_pause)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        self._wake.clear()
        return not self._paused

    def _end_pause(self) -> None:
        self._paused = True
        self._wake.set()

    async def _probe(self) -> None:
        # Before the node is asked: what a replica has replayed by now, its primary must have written by the
        # time of its answer; what it replays meanwhile says nothing.
        before = self._group.before()
        self._began = asyncio.get_running_loop().time()
        try:
            state = await self._ask()
        except (NodeError, *POSTGRES_ERRORS) as exc:
            # A node that does not answer is not worth a polite goodbye: it would hang there.
            self._drop()
            error = node_error(exc)
            late = isinstance(exc, TimeoutError)
            reason = "no answer within the probe's time" if late else str(error)
            state = msgspec.structs.replace(
                self.node.state,
                health=Health.DOWN,
                reason=reason,
                permanent=error.kind in LASTING,
                cause="timeout" if late else error.cause,
            )
        if self._patroni is not None and claims(state):
            state = msgspec.structs.replace(state, leads=await self._patroni.leads())
        self._group.observe(self.node, state, asyncio.get_running_loop().time(), before)
        if state.health is Health.UP:
            # The beginning, because the answer may be from any moment since; and after the state, so that a
            # state is never taken for newer than it is.
            self.node.probed = self._began
            self.node.tend()

    async def _ask(self) -> NodeState:
        """What the node says of itself.

        Raises:
            NodeError, and POSTGRES_ERRORS
        """
        if self._connection is None:
            # It is down, or not known yet, and stays so until its turn has come and the connection is open.
            self._connection = await self._open()
            async with asyncio.timeout(self._settings.probe_timeout):
                return await self._state(self._connection)
        # A server that is told to shut down, or to let nobody in, answers over the connection that is there.
        if self._connection.way.moved or self.node.closed:
            self._drop()
            return await self._ask_anew()
        return await self._ask_again_if_late(self._connection)

    async def _ask_again_if_late(self, connection: Connection) -> NodeState:
        """Over the connection that is there, and over a new one as well if it is late."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.probe_timeout
        anew: asyncio.Task[NodeState] | None = None
        waiting = True

        def late() -> None:
            nonlocal anew
            anew = loop.create_task(self._ask_anew(), name=f"probe {self.node.config.name} anew")
            anew.add_done_callback(settled)

        def settled(task: asyncio.Task[NodeState]) -> None:
            if not waiting:
                return
            if task.cancelled() or task.exception() is not None:
                limit.reschedule(end)  # the first may answer still
            else:
                connection.terminate()
                limit.reschedule(loop.time())

        timer = loop.call_later(self._settings.probe_timeout / 2, late)
        try:
            async with asyncio.timeout(None) as limit:
                state = await self._state(connection)
        except (NodeError, *POSTGRES_ERRORS) as exc:
            # Perhaps for no other reason than this connection.
            timer.cancel()
            waiting = False
            connection.terminate()
            if self._connection is connection:
                self._connection = None
            try:
                return await (anew or self._ask_anew())
            except TimeoutError:
                if not isinstance(exc, TimeoutError):
                    raise exc from None  # a new connection may not have had its turn in time
                self.node.doubtful = True
                raise
        except BaseException:
            waiting = False
            await _give_up(anew)
            raise
        finally:
            timer.cancel()
        waiting = False
        await _give_up(anew)
        if self._connection is not connection and self._connection is not None:
            self._connection.terminate()  # both have answered
        self._connection = connection
        return state

    async def _ask_anew(self) -> NodeState:
        """Over a new connection, which is kept if there is an answer within the other half of the time."""
        async with asyncio.timeout(self._settings.probe_timeout / 2):
            connection = await self._open()
            try:
                state = await self._state(connection)
            except BaseException:
                connection.terminate()
                raise
        self._connection = connection
        return state

    async def _renew(self) -> None:
        """Replace a connection that has reached its age; it is kept for now if there is no new one."""
        old = self._connection
        if old is None or monotonic() < old.expires:
            return
        # No longer than the pause that follows, so that the next probe is not late.
        most = min(self._settings.probe_timeout / 2, (1.0 - backoff.JITTER) * self._pace.interval)
        with contextlib.suppress(*POSTGRES_ERRORS):
            try:
                async with asyncio.timeout(most):
                    self._connection = await self._open(Urgency.SPARE)
            except NodeError as exc:
                if exc.closed:
                    self.node.failed(exc)
                return
            old.terminate()

    async def _open(self, urgency: Urgency | None = None) -> Connection:
        opened = partial(
            open_connection,
            self.node.config.dsn,
            connect_timeout=self._opening_seconds(),
            statement_timeout=self._settings.probe_timeout,
            name="pgscatter probe",
            check_pooler=True,
            network=self.node.network,
            lifetime=self._settings.connection_max_age,
            searches=False,
            lock_timeout=_LOCK_SHARE * self._settings.probe_timeout,
        )
        try:
            connection = await self.node.open(lambda: urgency or self._urgency(), opened, self._turn)
        finally:
            self._group.tried.discard(self.node)
        self.node.login(None)
        self.node.pooled = connection.process != connection.get_server_pid()
        return connection

    def _opening_seconds(self) -> float:
        """A node that is in doubt gets its whole time, because it keeps nobody else waiting."""
        whole = self._settings.probe_connect_timeout
        return whole if self.node.doubtful else min(whole, _FIRST_TIMES * self._settings.probe_timeout)

    def _turn(self) -> None:
        self._group.tried.add(self.node)
        if not self.probed_once.is_set():
            asyncio.get_running_loop().call_later(self._settings.probe_timeout, self._is_slow)

    def _is_slow(self) -> None:
        """A connection takes longer than a probe may, and nothing is known of the node yet."""
        if not self.probed_once.is_set():
            reason = "no connection within the probe's time"
            self.node.observe(
                msgspec.structs.replace(self.node.state, health=Health.DOWN, reason=reason, cause="timeout")
            )
            self.probed_once.set()

    def _urgency(self) -> Urgency:
        """One node at a time is what a shard needs most."""
        return Urgency.SHARD if self._group.lacking and not self._group.tried - {self.node} else Urgency.NODE

    async def _state(self, connection: Connection) -> NodeState:
        try:
            row = await self._identified(connection)
        except asyncpg.LockNotAvailableError:
            # Somebody is changing that table, and may take his time; its last word stands meanwhile.
            row = await _without_identity(connection)
        if row["process"] != connection.process:
            raise NodeError(ErrorKind.FATAL, SHARED)
        return _state(row, self._identity[1])

    async def _identified(self, connection: Connection) -> asyncpg.Record:
        """What the node says; `_identity` is up to date then.

        Raises:
            asyncpg.LockNotAvailableError: it could not be.
        """
        row = await self._with_identity(connection) if self._asks_identity else None
        if row is None:
            asked, self._asks_identity = self._asks_identity, False
            row = await _without_identity(connection)
            if row["readable"] and not asked:
                complete = await self._with_identity(connection)
                if complete is not None:
                    row, self._asks_identity = complete, True
        said = row["identity"] if self._asks_identity else None
        if said is None:
            self._identity = ("", None)
        elif said != self._identity[0]:
            try:
                identity = await read_identity(connection, self._contents)
            except NodeError as exc:
                extra = {"node": self.node.config.name, "shard": self.node.shard, "reason": str(exc)}
                _logger.error("identity not understood", extra=extra)
                self._identity = (said, None)
            else:
                # If there is none, the table was changed in between, and is read again.
                self._identity = ("" if identity is None else said, identity)
        return row

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


async def _without_identity(connection: Connection) -> asyncpg.Record:
    row = await connection.fetchrow(_WITHOUT_IDENTITY)
    assert row is not None, "it selects from one row"
    return row


async def _give_up(task: asyncio.Task[NodeState] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _state(row: asyncpg.Record, identity: Identity | None) -> NodeState:
    standby = row["standby"]
    return NodeState(
        Health.UP,
        Role.REPLICA if standby else Role.PRIMARY,
        row["lsn"] or 0,  # a replica that has replayed nothing yet has no position
        timeline=row["timeline"] or 0,
        started=row["started"],
        age=inf if row["age"] is None else row["age"],
        clock=row["clock"] - monotonic(),
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
