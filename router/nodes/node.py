"""One PostgreSQL server: its connections, the way to them, and what is known of its health.

Reads and writes have pools of their own, so that neither can starve the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from math import inf
from time import perf_counter
from typing import Any, Protocol

import msgspec

from router.network.dial import Network
from router.nodes.dispatcher import Dispatcher, Execute, Fetched, Ticket
from router.nodes.opening import Turns
from router.nodes.status import NodeLabel, NodeStatus
from router.policy.ejection import Ejection
from router.policy.latency import Latency
from router.policy.limit import Limit
from router.policy.openings import Urgency
from router.policy.selection import Health, NodeState, Role
from router.postgres.connection import Connection, ErrorKind, NodeError, open_connection
from router.postgres.pool import Pool
from router.postgres.search import arrays
from router.query.errors import OverloadedError
from router.query.types import Probe, Row, Work
from router.settings import Settings
from shard_config import model

__all__ = ["Node"]

# Where no search is hedged, it is only shown.
_ANY_QUANTILE = 0.95
_GRACE_SECONDS = 0.05
# A server that comes back has cold caches, and perhaps little strength.
_WARM_UP_SECONDS, _LEAST_SHARE = 5.0, 0.1
# Connections for requests: one that hangs must not take the turns of other nodes.
_OPENED_AT_ONCE = 2
_DOUBTFUL_SECONDS = 0.5


class NodeSet(Protocol):
    """Nodes that share the work, as a node sees it that is one of them."""

    @property
    def nodes(self) -> Sequence[Node]: ...

    @property
    def readable(self) -> bool: ...

    def primary(self) -> Node | None: ...

    def observed(self) -> None:
        """A node's state is new."""
        ...

    def has_room(self) -> bool:
        """Whether the set can do without one node more."""
        ...


class Node:
    """Runs probes on one server. `state` is replaced, never changed, by the prober and by failures.

    `limit` may be shared with the other servers of one host; `network` and `turns`, to open connections, with
    all nodes of the router. `changed` is told whenever operators would see the node otherwise. `execute`
    takes the place of the server, and `clock` that of the machine's, where the node is simulated.
    """

    def __init__(
        self,
        config: model.Node,
        shard: str,
        settings: Settings,
        limit: Limit,
        *,
        network: Network | None = None,
        turns: Turns | None = None,
        execute: Execute | None = None,
        clock: Callable[[], float] = perf_counter,
        changed: Callable[[Node], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.shard = shard
        self.network = network or Network()
        self.max_lag = settings.max_lag
        self.closed = False  # whether it takes no new connections, as it said to who wanted one last
        self.doubtful = False  # whether the connection that was opened last kept its opener waiting
        self.pooled = False  # whether probes go through a pooler, and have found that it keeps sessions whole
        self._turns = turns or Turns(settings.node_opens)
        self._opening = asyncio.Semaphore(_OPENED_AT_ONCE)
        quantile = settings.hedge_quantile or _ANY_QUANTILE
        self.latencies = tuple(Latency(quantile) for _ in Work)
        self.heard = float("-inf")  # when it last answered a search, by `clock`
        self.ejection = Ejection()
        self.ejected_since = 0.0  # wall-clock time
        self.ejected_for = ""
        self.login_refused: str | None = None  # why it let no new connection in, the last time
        self.sets: list[NodeSet] = []  # more than one while a snapshot replaces another
        self.listeners: list[Callable[[], None]] = []  # called when `state` is new
        self.role_changes = 0
        self.probed = float("-inf")  # when the last probe that it answered began, by the loop's clock
        self._warm_at = float("-inf")
        self.state = NodeState(since=time.time())
        self._clock = clock
        self._changed = changed
        self._settings = settings
        self.dispatcher = Dispatcher(
            config.name,
            execute or self._execute,
            limit,
            queue=settings.node_queue,
            wait=settings.node_queue_wait,
            together=settings.node_together,
            busy=lambda: self.reads.mending,
            clock=clock,
        )
        pump = self.dispatcher.pump
        self.reads = self._pool("reads", settings.node_connections, settings.max_timeout, pump)
        self.writes = self._pool("writes", settings.write_connections, settings.write_timeout)

    def __repr__(self) -> str:
        role = self.state.role or "role unknown"
        return f"<Node {self.config.name} {role} {self.state.health}, {self.dispatcher!r}>"

    @property
    def load(self) -> int:
        """Searches that a newcomer would share the node with."""
        return self.dispatcher.load

    @property
    def ejected(self) -> bool:
        """Left out, although probes find it well."""
        return self.ejection.out and self.state.health in (Health.UP, Health.UNKNOWN)

    def mean(self, work: Work, now: float) -> float:
        """Seconds that it took lately, by the clock of whoever says `answered`."""
        return self.latencies[work].mean(now)

    @property
    def zone(self) -> str | None:
        return self.config.zone

    def share(self, now: float) -> float:
        """Of the searches that it could get, how many it should: it grows while a returned node warms up."""
        if now >= self._warm_at:
            return 1.0
        return max(1.0 - (self._warm_at - now) / _WARM_UP_SECONDS, _LEAST_SHARE)

    def status(self, head: int | None) -> NodeStatus:
        """What operators are told of it; `head` is the position that its primary has written, if known."""
        state, ejected = self.state, self.ejected
        replica = state.role is Role.REPLICA and state.health is Health.UP
        label: NodeLabel = "deposed" if state.deposed else "ejected" if ejected else state.health.value
        reason = state.reason or (f"{self.ejected_for}; it is tried again soon" if ejected else None)
        return NodeStatus(
            name=self.config.name,
            shard=self.shard,
            zone=self.zone,
            role=state.role,
            state=label,
            reason=reason or self.login_refused,
            since=self.ejected_since if ejected else state.since,
            ejections=self.ejection.count,
            role_changes=self.role_changes,
            in_flight=self.reads.in_flight + self.writes.in_flight,
            waiting=self.dispatcher.waiting + self.writes.waiting,
            connections=self.reads.connections + self.writes.connections,
            replay_lag_bytes=max(0, head - state.lsn) if replica and head is not None else None,
            replay_lag_s=state.lag if replica else None,
            timeline=state.timeline or None,
            cause=self._cause(label) if reason or self.login_refused else None,
            system=str(state.system) if state.system else None,
            holds_shard=None if state.identity is None else state.identity.shard,
            holds_map=None if state.identity is None else state.identity.version,
            lost_bytes=state.lost,
        )

    def answered(self, work: Work, seconds: float, now: float) -> None:
        """It has answered a search, `seconds` after it was asked."""
        self.heard = now
        self.latencies[work].add(seconds, now)
        self._readmit()

    def unanswered(self, since: float, now: float) -> None:
        """A search that was sent at `since` was answered by another node first.

        If this node has answered nothing at all since then, it may be gone, and that counts against it.
        """
        if self.heard < since and self._struck("it kept silent when it was asked", now):
            # One that is only slow answers something meanwhile.
            asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._abandon_if_unheard, since)

    def refused(self, error: NodeError, now: float) -> None:
        """A search failed there, for a reason that lies with the node."""
        self._struck(str(error), now)

    def try_again(self, probe: Probe, seconds: float) -> None:
        """Send an ejected node a copy of a search, which another node answers for the caller.

        If it answers within `seconds`, it gets searches again; a failure or a late answer counts against it.
        """
        started = self._clock()
        self.ejection.tried(started + seconds)
        ticket: Ticket | None = None

        def came(outcome: Fetched | Exception) -> None:
            nonlocal ticket
            ticket = None
            timer.cancel()
            if isinstance(outcome, Fetched):
                # One that has only become slow would be asked, be late and be left out again and again.
                self.heard = self._clock()
                self.latencies[probe.work].restart(self.heard - started, self.heard)
                self._readmit()
            elif isinstance(outcome, NodeError):
                self.failed(outcome)
                self.ejection.struck(self._clock())

        def late() -> None:
            nonlocal ticket
            if ticket is not None:
                left, ticket = ticket, None
                self.leave(left)
                self.ejection.struck(self._clock())

        loop = asyncio.get_running_loop()
        timer = loop.call_later(seconds, late)
        try:
            ticket = self.submit(probe, loop.time() + seconds, came)
        except OverloadedError:
            timer.cancel()

    def submit(self, probe: Probe, deadline: float, done: Callable[[Fetched | Exception], None]) -> Ticket:
        """`Dispatcher.submit`: `done` is called with the probe's rows, or a NodeError or OverloadedError.

        Raises:
            OverloadedError
        """
        return self.dispatcher.submit(probe, deadline, done)

    def leave(self, ticket: Ticket) -> None:
        self.dispatcher.leave(ticket)

    def failed(self, error: NodeError) -> None:
        """The server cannot be reached: ask it no more until a probe does.

        A connection that broke is no such sign; an operator may have ended just that one.
        """
        if error.kind is ErrorKind.UNREACHABLE:
            self.closed = error.closed
            self.observe(
                msgspec.structs.replace(
                    self.state, health=Health.DOWN, reason=str(error), permanent=False, cause=error.cause
                )
            )

    def observe(self, state: NodeState) -> None:
        """Take over what is newly known; `since` moves only when health, role or right do."""
        known = self.state
        changed = (state.health, state.role, state.deposed) != (known.health, known.role, known.deposed)
        since = time.time() if changed else self.state.since
        if changed and state.health is Health.DOWN:
            self.reads.discard_idle()
            self.writes.discard_idle()
        if state.health is Health.UP and self.state.health is Health.DOWN:
            now = self._clock()
            self._warm_at = now + _WARM_UP_SECONDS
            if self._has_room():
                self.ejection.returned(now)
            else:
                self.ejection.answered()
        if state.role is not self.state.role and None not in (state.role, self.state.role):
            self.role_changes += 1
        self.state = msgspec.structs.replace(state, since=since)
        if changed and state.health is Health.FOREIGN:
            self.reads.retire()
            self.writes.retire()
            # Whatever comes from there is of other rows.
            self.dispatcher.abandon(NodeError(ErrorKind.LOST, "given up: the node is none of this shard"))
        for one in list(self.sets):
            one.observed()
        for listener in list(self.listeners):
            listener()
        if changed or state.reason != known.reason:
            self._changed(self)

    def abandon(self) -> None:
        """The server has gone silent: what is under way or waits there is tried elsewhere."""
        self.dispatcher.abandon(NodeError(ErrorKind.LOST, "given up: the node does not answer"))
        self.reads.discard_idle()

    async def warm(self) -> None:
        """Open one connection ahead of the first search, once nothing more urgent is to be opened.

        Raises:
            NodeError: the server cannot be reached.
        """
        await self.reads.warm(self._opener("reads", self._settings.max_timeout, Urgency.SPARE))

    async def open(
        self,
        urgency: Callable[[], Urgency],
        opened: Callable[[], Awaitable[Connection]],
        begun: Callable[[], None] = lambda: None,
    ) -> Connection:
        """What `opened` returns, called in its turn, see `Turns.run`."""
        now = asyncio.get_running_loop().time
        started = inf

        def turn() -> None:
            nonlocal started
            started = now()
            begun()

        try:
            connection = await self._turns.run(urgency, opened, turn, doubtful=self.doubtful)
        except BaseException as exc:
            # One that was refused at once, or had no turn, is not in doubt; who has left early knows nothing.
            if now() - started > _DOUBTFUL_SECONDS:
                self.doubtful = True
            elif isinstance(exc, Exception):
                self.doubtful = False
            raise
        self.doubtful = self.closed = False
        return connection

    def tend(self) -> None:
        """See to what time alone changes; to be called with each probe that it answers."""
        if self.ejection.untried(self._clock()):
            self._readmit()
        now = time.monotonic()
        self.reads.tend(now)
        self.writes.tend(now)

    async def close(self) -> None:
        await self.dispatcher.close()
        await asyncio.gather(self.reads.close(), self.writes.close())

    def _cause(self, label: str) -> str:
        """Why it is not as it should be, in a word."""
        if label == "down":
            return self.state.cause or "unreachable"
        if label == "up":
            if self.state.reason is None:
                return "authentication"
            return "lagging" if self.state.searchable else "misconfigured"
        return label

    def _has_room(self) -> bool:
        return all([one.has_room() for one in self.sets])

    def _struck(self, reason: str, now: float) -> bool:
        """Count a failure; whether it is left out from now on, and was not before."""
        fresh = self.ejection.struck(now, room=self._has_room())
        if fresh:
            self.ejected_since, self.ejected_for = time.time(), reason
            self._changed(self)
        return fresh

    def _abandon_if_unheard(self, since: float) -> None:
        if self.heard < since:
            self.abandon()

    def _readmit(self) -> None:
        returns = self.ejection.out
        if returns:
            self._warm_at = self._clock() + _WARM_UP_SECONDS
            self.state = msgspec.structs.replace(self.state, since=time.time())
        self.ejection.answered()
        if returns:
            self._changed(self)

    async def _execute(self, probes: Sequence[Probe]) -> list[tuple[Sequence[Row], str | None]]:
        probe = probes[0]
        return await self.reads.run(partial(_fetch, probes), probe.ef_search, renewed=probe.renewed)

    def login(self, refused: str | None) -> None:
        """A new connection was refused for who asked for it, or let in."""
        changed = (refused is None) != (self.login_refused is None)
        self.login_refused = refused
        if changed:
            self._changed(self)

    def _opener(
        self, kind: str, statement_timeout: float, urgency: Urgency
    ) -> Callable[[], Coroutine[None, None, Connection]]:
        """What opens a connection of this kind, in its turn."""
        settings = self._settings
        opened = partial(
            open_connection,
            self.config.dsn,
            connect_timeout=settings.connect_timeout,
            statement_timeout=statement_timeout,
            name=f"pgscatter {kind}",
            network=self.network,
            lifetime=settings.connection_max_age,
        )

        async def open_one() -> Connection:
            try:
                async with self._opening:
                    # A pooler that the probes, on an older connection, do not go through is checked here.
                    checked = partial(opened, check_pooler=not self.pooled)
                    connection = await self.open(lambda: urgency, checked)
            except NodeError as exc:
                if exc.authentication:
                    self.login(str(exc))
                raise
            self.login(None)
            self._require_origin(connection)
            return connection

        return open_one

    def _require_origin(self, connection: Connection) -> None:
        """See that the address has led to what the probes were answered by: it may stand for several servers.

        Raises:
            NodeError: it has not; the connection is closed then.
        """
        state = self.state
        if state.health is Health.UP and state.system and connection.origin != (state.system, state.database):
            connection.terminate()
            system, database = connection.origin or (0, "")
            raise NodeError(
                ErrorKind.TRANSIENT,
                f"its address leads to more than one server: to the system {state.system}, database"
                f" {state.database}, and to the system {system}, database {database}",
            )

    def _pool(
        self, kind: str, size: int, statement_timeout: float, freed: Callable[[], None] = lambda: None
    ) -> Pool:
        settings = self._settings

        return Pool(
            f"{self.config.name} {kind}",
            self._opener(kind, statement_timeout, Urgency.REQUEST),
            size=size,
            queue=settings.node_queue,
            cancel_timeout=settings.cancel_timeout,
            check_after=settings.connection_check,
            max_idle=settings.connection_max_idle,
            freed=freed,
        )


async def _fetch(probes: Sequence[Probe], connection: Connection) -> list[tuple[Sequence[Row], str | None]]:
    """The rows of each of `probes`, which are of one key."""
    probe = probes[0]
    if probe.ef_search is not None:
        await connection.set_ef_search(probe.ef_search)
    if len(probes) == 1:
        return [await _fetch_one(connection, probe)]
    shape = probe.shape
    assert shape.together is not None, "only searches that have a key wait together"
    rows: list[Any] = await connection.fetch(
        connection.spelled(shape.together), *arrays(shape, [probe.args for probe in probes])
    )
    answers: list[tuple[list[Row], None]] = [([], None) for _ in probes]
    for row in rows:
        answers[row[-1] - 1][0].append(row)
    return list(answers)


async def _fetch_one(connection: Connection, probe: Probe) -> tuple[Sequence[Row], str | None]:
    """The rows of one probe, and the statement's plan if it wants that."""
    statement = connection.spelled(probe.shape.single)
    rows: list[Any] = await connection.fetch(statement, *probe.args)
    if not probe.plan:
        return rows, None
    lines = await connection.fetch(f"EXPLAIN {statement}", *probe.args)
    return rows, "\n".join(line[0] for line in lines)
