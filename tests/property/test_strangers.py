"""Verdicts on nodes are the same whether they are made for each probe or kept until something changes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from router.nodes.group import Group, Registry
from router.policy.selection import Health, NodeState, Role
from router.postgres.connection import ErrorKind, NodeError
from shard_config.identity import Identity
from tests.unit.test_prober import Shard

# Few of each, so that servers are met under two names and shards are built anew.
IDENTITIES = [None, Identity("s0", 1, ""), Identity("s1", 1, "")]
STATES = st.builds(
    NodeState,
    health=st.sampled_from([Health.UP, Health.UP, Health.UP, Health.DOWN]),
    role=st.sampled_from(Role),
    lsn=st.sampled_from([10, 20]),
    timeline=st.just(1),
    started=st.sampled_from([0.0, 0.0, 1.0]),
    system=st.sampled_from([1, 1, 2]),
    database=st.sampled_from(["x"] * 5 + ["y"]),
    identity=st.sampled_from(IDENTITIES),
)


class AnewGroup(Group):
    """Keeps no verdict."""

    def _strangers(self, states: Sequence[NodeState]) -> dict[int, str]:
        self._judged_by = ()
        return super()._strangers(states)


class World:
    def __init__(self, *, anew: bool) -> None:
        registry = Registry()
        self.shards = [
            Shard("a", "b", shard="s0", registry=registry),
            Shard("c", "d", shard="s1", registry=registry),
        ]
        if anew:
            for shard in self.shards:
                shard.group.__class__ = AnewGroup

    def probe(self, number: int, state: NodeState | None) -> None:
        """What a probe has found; None for a search that could not reach the node."""
        shard = self.shards[number // 2]
        shard.now += 1
        node = list(shard.nodes.values())[number % 2]
        if state is None:
            node.failed(NodeError(ErrorKind.UNREACHABLE, "by order"))
            return
        if not state.started:
            state = msgspec.structs.replace(state, started=10.0 + number)  # a server of its own
        shard.group.observe(node, state, shard.now, shard.group.before())

    def verdicts(self) -> list[tuple[object, ...]]:
        states = [node.state for shard in self.shards for node in shard.nodes.values()]
        return [(one.health, one.role, one.deposed, one.reason, one.lag) for one in states]


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 3), st.none() | STATES, st.integers(1, 3)), max_size=12))
def test_a_verdict_that_is_kept_is_the_one_that_would_be_made(
    probes: list[tuple[int, NodeState | None, int]],
) -> None:
    logging.disable()  # of shards that are built anew
    try:
        kept, anew = World(anew=False), World(anew=True)
        for number, state, times in probes:
            for _ in range(times):
                for world in (kept, anew):
                    world.probe(number, state)
                assert kept.verdicts() == anew.verdicts()
    finally:
        logging.disable(logging.NOTSET)
