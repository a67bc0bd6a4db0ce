"""One shard's replica set: picks a node, and another one if that node cannot answer.

Invariant: whoever asks gets one report, unless it leaves first; a shard without an answer is data, not
an exception. Only full queues everywhere are one.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter

from router.policy.selection import Health, Role, rank
from router.postgres.connection import ErrorKind, NodeError
from router.query.errors import OverloadedError
from router.query.types import Probe, ShardReport, ShardRows, ShardState
from router.stages.dispatcher import Fetched, Ticket
from router.stages.node import Node

__all__ = ["Ask", "ReplicaSet"]

_RETRIED = (ErrorKind.UNREACHABLE, ErrorKind.LOST, ErrorKind.TRANSIENT)


class ReplicaSet:
    """The nodes of one shard; holds no state of its own beyond them."""

    def __init__(
        self, shard: str, nodes: Sequence[Node], *, rng: Callable[[], float] = random.random
    ) -> None:
        self.shard = shard
        self.nodes = tuple(nodes)
        self._rng = rng

    def __repr__(self) -> str:
        return f"<ReplicaSet {self.shard} {list(self.nodes)}>"

    @property
    def readable(self) -> bool:
        return any(node.state.health is Health.UP for node in self.nodes)

    def primary(self) -> Node | None:
        """The node that takes writes, if one is known and up."""
        for node in self.nodes:
            if node.state.health is Health.UP and node.state.role is Role.PRIMARY:
                return node
        return None

    def ask(self, probe: Probe, deadline: float, done: Callable[[str, ShardRows | Exception], None]) -> Ask:
        """Fetch the probe's rows from the best node, or from the next ones if it fails.

        Each node is tried once, and once more after the others if it only lost the connection. An error
        that would repeat elsewhere ends the attempts. `done` is called once with the shard's name and its
        rows, or an OverloadedError when every node that could answer has a full queue; it may be called
        before this returns. Past the deadline the caller is expected to leave.
        """
        ask = Ask(self, probe, deadline, done)
        ask.go_on()
        return ask

    def order(self, probe: Probe) -> list[tuple[int, bool]]:
        """Nodes to try, best first, as (index, whether its rows may be stale)."""
        return rank(self.nodes, primary_only=probe.primary_only, min_lsn=probe.min_lsn, random=self._rng)


class Ask:
    """One probe on its way through a replica set.

    No task of its own: a step is taken when a node has answered, which spares a search one task and two
    turns of the event loop per shard.
    """

    def __init__(
        self,
        replicas: ReplicaSet,
        probe: Probe,
        deadline: float,
        done: Callable[[str, ShardRows | Exception], None],
    ) -> None:
        self._replicas = replicas
        self._probe = probe
        self._deadline = deadline
        self._done = done
        self._started = perf_counter()
        self._order = deque(replicas.order(probe))
        self._attempts = 0
        self._lost: set[int] = set()
        self._problems: list[str] = []
        self._overloaded: OverloadedError | None = None
        # The attempt under way: which node, whether it is behind, how far its log is known to reach.
        self._index = 0
        self._stale = False
        self._lsn = 0
        self._ticket: Ticket | None = None

    def leave(self) -> None:
        """The rows are not wanted any more; `done` will not be called."""
        if self._ticket is not None:
            self._node.leave(self._ticket)

    def go_on(self) -> None:
        """Try the next node, or report that none is left."""
        while self._order:
            self._index, self._stale = self._order.popleft()
            node = self._node
            if node.state.health is Health.DOWN:
                continue  # since the order was made
            self._attempts += 1
            # Known before the statement starts, so that its rows hold at least this much.
            self._lsn = node.state.lsn if self._stale else max(node.state.lsn, self._probe.min_lsn)
            try:
                self._ticket = node.submit(self._probe, self._deadline, self._came)
            except OverloadedError as exc:
                self._overloaded = exc
                continue
            return
        if self._overloaded is not None and not self._problems:
            self._done(self._replicas.shard, self._overloaded)
        else:
            self._done(self._replicas.shard, ShardRows([], self._failure()))

    @property
    def _node(self) -> Node:
        return self._replicas.nodes[self._index]

    def _came(self, outcome: Fetched | Exception) -> None:
        self._ticket = None
        if isinstance(outcome, Fetched):
            self._done(self._replicas.shard, ShardRows(outcome.rows, self._report(outcome)))
        elif isinstance(outcome, NodeError):
            self._failed(outcome)
        elif isinstance(outcome, OverloadedError):
            self._overloaded = outcome
            self.go_on()
        else:
            self._done(self._replicas.shard, outcome)

    def _failed(self, error: NodeError) -> None:
        node = self._node
        node.failed(error)
        self._problems.append(f"{node.config.name}: {error}")
        if error.kind not in _RETRIED:
            self._order.clear()
        elif error.kind is ErrorKind.LOST and self._index not in self._lost:
            self._lost.add(self._index)
            self._order.append((self._index, self._stale))
        self.go_on()

    def _report(self, fetched: Fetched) -> ShardReport:
        node = self._node
        return ShardReport(
            self._replicas.shard,
            ShardState.OK,
            node=node.config.name,
            role=node.state.role,
            attempts=self._attempts,
            stale=self._stale,
            lsn=self._lsn,
            queue_ms=fetched.queue_ms,
            execute_ms=fetched.execute_ms,
            total_ms=(perf_counter() - self._started) * 1000,
            together=fetched.together,
            asked=self._probe.asked,
            returned=len(fetched.rows),
            plan=fetched.plan,
        )

    def _failure(self) -> ShardReport:
        return ShardReport(
            self._replicas.shard,
            ShardState.FAILED,
            attempts=self._attempts,
            total_ms=(perf_counter() - self._started) * 1000,
            asked=self._probe.asked,
            error="; ".join(self._problems) or self._why_nobody(),
        )

    def _why_nobody(self) -> str:
        wanted = "primary" if self._probe.primary_only else "node"
        states = (f"{node.config.name} is {_described(node)}" for node in self._replicas.nodes)
        return f"no {wanted} is up: {', '.join(states)}"


def _described(node: Node) -> str:
    state = node.state
    role = f" as {state.role}" if state.role else ""
    return f"{state.health}{role}" + (f" ({state.reason})" if state.reason else "")
