"""What the nodes of one shard are taken for, by what probes of all of them say."""

from __future__ import annotations

import asyncio

import msgspec

from router.nodes.group import Group
from router.nodes.node import Node
from router.nodes.prober import Prober
from router.policy.limit import Limit
from router.policy.selection import Health, NodeState, Role
from router.query.types import Position
from router.settings import Settings
from router.stages.replicas import ReplicaSet
from shard_config import model


class Shard:
    """Nodes that say what they are told to, probed one after the other."""

    def __init__(self, *names: str) -> None:
        self.nodes = {name: Node(model.Node(name, ""), "s0", Settings(), Limit(1, 1)) for name in names}
        self.group = Group(list(self.nodes.values()))
        self.now = 0.0

    def probe(self, name: str, role: Role, lsn: int, *, timeline: int = 0, started: float = 1.0) -> None:
        self.now += 1
        state = NodeState(Health.UP, role, lsn, timeline=timeline, started=started, age=0.0)
        self.group.observe(self.nodes[name], state, self.now, self.group.before())
        self.nodes[name].probed = self.now

    def down(self, name: str) -> None:
        node = self.nodes[name]
        state = msgspec.structs.replace(node.state, health=Health.DOWN)
        self.group.observe(node, state, self.now, self.group.before())

    def deposed(self) -> set[str]:
        return {name for name, node in self.nodes.items() if node.state.deposed}


def test_a_replica_beyond_its_primary_is_deposed_until_it_is_started_again() -> None:
    shard = Shard("b", "c")
    shard.probe("c", Role.REPLICA, 88)
    shard.probe("b", Role.PRIMARY, 68, timeline=2)
    assert shard.deposed() == {"c"}
    shard.probe("b", Role.PRIMARY, 90, timeline=2)
    shard.probe("c", Role.REPLICA, 88)
    assert shard.deposed() == {"c"}
    shard.probe("c", Role.REPLICA, 90, started=2.0)
    assert shard.deposed() == set()


def test_a_replica_of_a_primary_that_nobody_has_seen_yet_is_not_deposed_for_good() -> None:
    shard = Shard("a", "b", "c")
    shard.probe("c", Role.REPLICA, 80)
    # A primary that was replaced by b, which is away.
    shard.probe("a", Role.PRIMARY, 50, timeline=1)
    assert shard.deposed() == {"c"}
    shard.probe("b", Role.PRIMARY, 85, timeline=2)
    assert shard.deposed() == {"a"}
    shard.probe("c", Role.REPLICA, 85)
    assert shard.deposed() == {"a"}


def test_a_replica_that_has_replayed_since_its_primary_was_asked_is_well() -> None:
    shard = Shard("a", "b")
    shard.probe("a", Role.PRIMARY, 50, timeline=1)
    shard.probe("b", Role.REPLICA, 50)
    before = shard.group.before()
    shard.probe("b", Role.REPLICA, 60)
    state = NodeState(Health.UP, Role.PRIMARY, 55, timeline=1)
    shard.group.observe(shard.nodes["a"], state, 10.0, before)
    assert shard.deposed() == set()


def test_the_end_of_the_log_is_known_when_every_node_that_is_up_was_probed_since() -> None:
    shard = Shard("a", "b")
    logs = ReplicaSet("s0", list(shard.nodes.values()))
    assert (logs.timeline, logs.head(0.0)) == (0, None)
    shard.probe("a", Role.PRIMARY, 50, timeline=1)  # at 1
    shard.probe("b", Role.REPLICA, 40)  # at 2
    assert (logs.timeline, logs.head(1.0)) == (1, Position(1, 50))
    # It may have been promoted.
    assert logs.head(1.5) is None
    shard.probe("a", Role.PRIMARY, 55, timeline=1)  # at 3
    assert logs.head(2.0) == Position(1, 55)
    shard.down("b")
    assert logs.head(2.5) == Position(1, 55)
    # Without its primary nobody knows what its successor has written.
    shard.probe("b", Role.REPLICA, 55)
    shard.down("a")
    assert (logs.timeline, logs.head(0.0)) == (1, None)
    shard.probe("b", Role.PRIMARY, 54, timeline=2)
    assert (logs.timeline, logs.head(0.0)) == (2, Position(2, 54))
    # Back as it was, it is no primary any more.
    shard.probe("a", Role.PRIMARY, 99, timeline=1)
    assert logs.head(0.0) == Position(2, 54)
    shard.down("b")
    assert (logs.timeline, logs.head(0.0)) == (2, None)


def test_where_only_replicas_are_known_the_furthest_says_how_long_the_log_is() -> None:
    shard = Shard("b", "c")
    logs = ReplicaSet("s0", list(shard.nodes.values()))
    shard.probe("b", Role.REPLICA, 40)
    shard.probe("c", Role.REPLICA, 30)
    assert logs.head(0.0) == Position(0, 40)
    assert logs.head(1.5) is None


async def test_whoever_asks_for_probes_gets_them_soon_and_not_more_of_them_than_the_interval_allows() -> None:
    # Nothing listens there: what counts is when it is tried.
    node = Node(model.Node("a", "postgresql://127.0.0.1:1/x"), "s0", Settings(), Limit(1, 1))
    began: list[float] = []
    prober = Prober([node], Settings(probe_interval=1.0))
    observe, loop = node.observe, asyncio.get_running_loop()

    def observed(state: NodeState) -> None:
        began.append(loop.time())
        observe(state)

    node.observe = observed  # type: ignore[method-assign]
    await prober.start()
    try:
        end = loop.time() + 0.7
        while loop.time() < end:
            prober.probe_soon("s0")
            prober.probe_soon("elsewhere")
            await asyncio.sleep(0.005)
    finally:
        await prober.close()
        await node.close()
    assert 3 <= len(began) <= 4, began
