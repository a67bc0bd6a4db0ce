"""What the nodes of one shard are taken for, by what probes of all of them say."""

from __future__ import annotations

from router.policy.limit import Limit
from router.policy.selection import Health, NodeState, Role
from router.prober import _Group
from router.settings import Settings
from router.stages.node import Node
from shard_config import model


class Shard:
    """Nodes that say what they are told to, probed one after the other."""

    def __init__(self, *names: str) -> None:
        self.nodes = {name: Node(model.Node(name, ""), "s0", Settings(), Limit(1, 1)) for name in names}
        self.group = _Group(list(self.nodes.values()))
        self.now = 0.0

    def probe(self, name: str, role: Role, lsn: int, *, timeline: int = 0, started: float = 1.0) -> None:
        self.now += 1
        state = NodeState(Health.UP, role, lsn, timeline=timeline, started=started, age=0.0)
        self.group.observe(self.nodes[name], state, self.now, self.group.replayed())

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
    before = shard.group.replayed()
    shard.probe("b", Role.REPLICA, 60)
    state = NodeState(Health.UP, Role.PRIMARY, 55, timeline=1)
    shard.group.observe(shard.nodes["a"], state, 10.0, before)
    assert shard.deposed() == set()
