"""One shard's replica set: picks a node, and another one if that node cannot answer.

Invariant: `fetch` always returns a report; a shard without an answer is data, not an exception.
Only the caller's cancellation and a full queue leave it in another way.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter

from router.policy.selection import Health, NodeView, Role, rank
from router.postgres.connection import ErrorKind, NodeError
from router.query.errors import OverloadedError
from router.query.types import Probe, ShardReport, ShardRows, ShardState
from router.stages.node import Fetched, Node

__all__ = ["ReplicaSet"]

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

    async def fetch(self, probe: Probe, deadline: float) -> ShardRows:
        """The probe's rows from the best node, or from the next ones if it fails.

        Each node is tried once, and once more after the others if it only lost the connection. An error
        that would repeat elsewhere ends the attempts.

        Raises:
            OverloadedError: every node that could answer has a full queue.
        """
        started = perf_counter()
        attempts = 0
        problems: list[str] = []
        overloaded: OverloadedError | None = None
        order = deque(self._order(probe))
        lost: set[int] = set()
        while order:
            index, stale = order.popleft()
            node = self.nodes[index]
            if node.state.health is Health.DOWN:
                continue  # since the order was made
            attempts += 1
            # Known before the statement starts, so that its rows hold at least this much.
            lsn = node.state.lsn if stale else max(node.state.lsn, probe.min_lsn)
            try:
                fetched = await node.fetch(probe, deadline)
            except NodeError as exc:
                node.failed(exc)
                problems.append(f"{node.config.name}: {exc}")
                if exc.kind not in _RETRIED:
                    break
                if exc.kind is ErrorKind.LOST and index not in lost:
                    lost.add(index)
                    order.append((index, stale))
                continue
            except OverloadedError as exc:
                overloaded = exc
                continue
            total_ms = (perf_counter() - started) * 1000
            return ShardRows(fetched.rows, self._report(probe, node, fetched, attempts, stale, lsn, total_ms))
        if overloaded is not None and not problems:
            raise overloaded
        report = ShardReport(
            self.shard,
            ShardState.FAILED,
            attempts=attempts,
            total_ms=(perf_counter() - started) * 1000,
            asked=probe.wanted,
            error="; ".join(problems) or self._why_nobody(probe),
        )
        return ShardRows([], report)

    def _order(self, probe: Probe) -> list[tuple[int, bool]]:
        views = [NodeView(i, node.state, node.reads.load) for i, node in enumerate(self.nodes)]
        return rank(views, primary_only=probe.primary_only, min_lsn=probe.min_lsn, random=self._rng)

    def _report(
        self,
        probe: Probe,
        node: Node,
        fetched: Fetched,
        attempts: int,
        stale: bool,
        lsn: int,
        total_ms: float,
    ) -> ShardReport:
        return ShardReport(
            self.shard,
            ShardState.OK,
            node=node.config.name,
            role=node.state.role,
            attempts=attempts,
            stale=stale,
            lsn=lsn,
            queue_ms=fetched.queue_ms,
            execute_ms=fetched.execute_ms,
            total_ms=total_ms,
            asked=probe.wanted,
            returned=len(fetched.rows),
            plan=fetched.plan,
        )

    def _why_nobody(self, probe: Probe) -> str:
        wanted = "primary" if probe.primary_only else "node"
        states = (f"{node.config.name} is {_described(node)}" for node in self.nodes)
        return f"no {wanted} is up: {', '.join(states)}"


def _described(node: Node) -> str:
    state = node.state
    role = f" as {state.role}" if state.role else ""
    return f"{state.health}{role}" + (f" ({state.reason})" if state.reason else "")
