"""The primary of each shard, and work on many of them at once.

The node that says so is the primary, and of several the one on the latest timeline, as for the router
(`router.policy.replication`), Patroni's word included. A command has not watched the nodes before, so it
also takes what replicas know: one that has been on a later timeline than the node that says it is the
primary, or has replayed more than that has written, has followed another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import asyncpg
import msgspec

from router.policy.replication import claims, elect
from router.policy.selection import Health, NodeState, Role
from router.postgres.connection import ErrorKind, NodeError
from router.postgres.wal import STATE_COLUMNS, STATE_SOURCE
from router.schema.session import CONNECT_TIMEOUT, Connection, connect, node_errors
from shard_config.model import Node, Shard

__all__ = ["Primary", "choose", "on_each", "primary_of"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

# As many shards are worked on at once; more would only queue on this process.
_CONCURRENCY = 16
# For all nodes of a shard to say that nothing has changed: one that is frozen must not stop the work.
_ASK_AGAIN_SECONDS = 1.0
_UNKNOWN_LSN = 2**63 - 1

_STATE = f"SELECT {STATE_COLUMNS} FROM {STATE_SOURCE}"
# A replica has no other word for its timeline; these come late, but never say too much. The receiver's is
# shown to some roles only.
_REPLICA_TIMELINE = """
SELECT greatest((SELECT timeline_id FROM pg_control_checkpoint()),
                (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
                (SELECT received_tli FROM pg_stat_wal_receiver))
"""


class Primary(msgspec.Struct, frozen=True):
    """The node of a replica set that takes writes, with a connection to it.

    `nodes` are all of the set, and `timeline` is the one that it was found to be the primary on.
    """

    shard: str
    node: Node
    nodes: Sequence[Node]
    connection: Connection
    timeline: int

    async def confirm(self) -> None:
        """See that no node of the set knows of another primary by now.

        Raises:
            NodeError: it was replaced, and what is written to it will be lost.
        """
        if len(self.nodes) == 1 and not self.node.patroni:
            return  # if it was restarted as something else, the connection is gone
        asked: list[_Asked] = []
        try:
            await _ask_all(self.nodes, "pgscatter who leads", {}, _ASK_AGAIN_SECONDS, asked)
        finally:
            for one in asked:
                one.close()
        states = [one.state for one in asked]
        own = self.nodes.index(self.node)
        if states[own].health is not Health.UP:
            # It may be busy, or have no room for one more connection.
            states[own] = NodeState(Health.UP, Role.PRIMARY, _UNKNOWN_LSN, timeline=self.timeline)
        try:
            chosen = choose([node.name for node in self.nodes], states)
        except NodeError as exc:
            raise NodeError(
                ErrorKind.READ_ONLY, f"{self.node.name}: it may not be the primary any more: {exc}"
            ) from exc
        timeline = states[chosen].timeline
        if chosen != own or timeline != self.timeline:
            now = f"the primary is {self.nodes[chosen].name} now, on timeline {timeline}"
            message = f"it was replaced as the primary on timeline {self.timeline}: {now}"
            raise NodeError(ErrorKind.READ_ONLY, f"{self.node.name}: {message}")

    def close(self) -> None:
        self.connection.terminate()


class _Asked(msgspec.Struct):
    """What a node said; `connection` is open if it says that it is a primary."""

    node: Node
    state: NodeState
    connection: Connection | None = None

    def close(self) -> None:
        if self.connection is not None:
            self.connection.terminate()
            self.connection = None


async def primary_of(shard: Shard, name: str, **settings: str) -> Primary:
    """The primary of `shard`, found by asking every node of it.

    Raises:
        NodeError: none of them is, or it cannot be told which.
    """
    asked: list[_Asked] = []
    chosen: _Asked | None = None
    try:
        await _ask_all(shard.nodes, name, settings, CONNECT_TIMEOUT * 2, asked)
        chosen = asked[choose([one.node.name for one in asked], [one.state for one in asked])]
        assert chosen.connection is not None
        return Primary(shard.name, chosen.node, shard.nodes, chosen.connection, chosen.state.timeline)
    finally:
        for one in asked:
            if one is not chosen:
                one.close()


def choose(names: Sequence[str], states: Sequence[NodeState]) -> int:
    """The index of the node that takes writes; a node that could not be asked says why in its `reason`.

    Raises:
        NodeError: there is none, or it cannot be told which it is.
    """
    latest = max(state.timeline for state in states)
    index = elect(states, latest)
    if index is None:
        raise NodeError(ErrorKind.UNREACHABLE, _why_none(names, states, latest))
    chosen = states[index]
    for name, state in zip(names, states, strict=True):
        # One that is known to be on an earlier timeline has followed a primary that was replaced since.
        earlier = 0 < state.timeline < chosen.timeline
        if state.role is Role.REPLICA and state.lsn > chosen.lsn and not earlier and not chosen.leads:
            raise NodeError(
                ErrorKind.UNREACHABLE,
                f"{names[index]} says that it is the primary, but {name} has replayed what it never wrote:"
                " one of them is of another history; stop or rebuild that one",
            )
    return index


def _why_none(names: Sequence[str], states: Sequence[NodeState], latest: int) -> str:
    said = dict(zip(names, states, strict=True))
    claiming = {name: state for name, state in said.items() if claims(state)}
    denied = [name for name, state in claiming.items() if state.leads is False]
    leading = {name: state for name, state in claiming.items() if state.leads is not False}
    equals = [name for name, state in leading.items() if state.timeline == latest]
    if len(equals) > 1:
        return f"more than one primary on timeline {latest}: {', '.join(sorted(equals))}; stop all but one"
    reasons = [f"{name}: its Patroni says that it does not lead" for name in denied]
    later = ", ".join(sorted(name for name, state in said.items() if state.timeline == latest))
    reasons += [
        f"{name} was replaced: its timeline is {state.timeline}, but {later} has been on {latest}"
        for name, state in leading.items()
    ]
    for name, state in said.items():
        if state.health is not Health.UP:
            reasons.append(state.reason or f"{name} cannot be asked")
        elif state.role is Role.REPLICA:
            reasons.append(f"{name} is a replica")
    return f"no primary: {'; '.join(sorted(reasons))}"


async def _ask_all(
    nodes: Iterable[Node], name: str, settings: dict[str, str], seconds: float, asked: list[_Asked]
) -> None:
    """Ask all at once; `asked` gets one for each node, in their order, and so all that was opened."""
    asked += [_Asked(node, NodeState(Health.DOWN)) for node in nodes]
    async with asyncio.TaskGroup() as group:
        for one in asked:
            group.create_task(_ask(one, name, settings, seconds))
    # A replica may have replayed what its primary wrote after it was asked.
    furthest = max((one.state.lsn for one in asked if one.state.role is Role.REPLICA), default=0)
    for one in asked:
        if one.connection is not None and one.state.lsn < furthest:
            await _ask(one, name, settings, seconds)


async def _ask(one: _Asked, name: str, settings: dict[str, str], seconds: float) -> None:
    """Find out what the node is, within `seconds`."""
    node = one.node
    try:
        with node_errors():
            async with asyncio.timeout(seconds):
                connection = one.connection
                if connection is None:
                    connection = one.connection = await connect(node, name, **settings)
                one.state = await _state(connection)
    except NodeError as exc:
        said = str(exc)
        reason = said if said.startswith(f"{node.name}: ") else f"{node.name}: {said}"
        one.state = NodeState(Health.DOWN, reason=reason)
    finally:
        if not claims(one.state):
            one.close()
    if node.patroni and claims(one.state):
        from router.nodes.patroni import Patroni

        patroni = Patroni(node.patroni)
        try:
            one.state = msgspec.structs.replace(one.state, leads=await patroni.leads())
        finally:
            await patroni.close()


async def _state(connection: Connection) -> NodeState:
    row = await connection.fetchrow(_STATE)
    assert row is not None, "it selects from one row"
    if not row["standby"]:
        return NodeState(Health.UP, Role.PRIMARY, row["lsn"], timeline=row["timeline"])
    try:
        timeline = await connection.fetchval(_REPLICA_TIMELINE)
    except asyncpg.InsufficientPrivilegeError:
        timeline = None
    return NodeState(Health.UP, Role.REPLICA, row["lsn"] or 0, timeline=timeline or 0)


async def on_each(
    keys: Iterable[K], work: Callable[[K], Awaitable[T]], timeout: float, *, at_once: int = _CONCURRENCY
) -> tuple[dict[K, T], dict[K, NodeError]]:
    """Run `work` for every key, each within `timeout` seconds; what succeeded, and what failed and why."""
    slots = asyncio.Semaphore(at_once)
    done: dict[K, T] = {}
    failed: dict[K, NodeError] = {}

    async def one(key: K) -> None:
        async with slots:
            try:
                with node_errors():
                    async with asyncio.timeout(timeout):
                        done[key] = await work(key)
            except NodeError as exc:
                failed[key] = exc

    keys = list(keys)
    async with asyncio.TaskGroup() as group:
        for key in keys:
            group.create_task(one(key))
    return {k: done[k] for k in keys if k in done}, {k: failed[k] for k in keys if k in failed}
