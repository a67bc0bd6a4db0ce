from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from router.policy.selection import Health, LagPolicy, NodeState, PrimaryReads, Reads, Role, rank
from router.query.types import Work

STATES = st.builds(
    NodeState,
    health=st.sampled_from(Health),
    role=st.sampled_from([None, *Role]),
    lsn=st.integers(0, 20),
)


ANY = Reads()


class Node(NamedTuple):
    state: NodeState
    load: int = 0
    ejected: bool = False
    seconds: float = 0.0
    zone: str | None = None
    part: float = 1.0

    def mean(self, work: Work, now: float) -> float:
        return self.seconds

    def share(self, now: float) -> float:
        return self.part


def order(
    states: Sequence[NodeState],
    loads: Sequence[int] = (),
    *,
    seconds: Sequence[float] = (),
    ejected: Sequence[int] = (),
    zones: Sequence[str] = (),
    shares: Sequence[float] = (),
    reads: Reads = ANY,
    primary_only: bool = False,
    min_lsn: int = 0,
) -> list[tuple[int, bool]]:
    nodes = [
        Node(
            state,
            loads[i] if loads else 0,
            i in ejected,
            seconds[i] if seconds else 0.0,
            zones[i] if zones else None,
            shares[i] if shares else 1.0,
        )
        for i, state in enumerate(states)
    ]
    return rank(
        nodes,
        reads,
        work=Work.NEAREST,
        primary_only=primary_only,
        min_lsn=min_lsn,
        now=0.0,
        random=lambda: 0.5,
    )


PRIMARY = NodeState(Health.UP, Role.PRIMARY, 100)
REPLICA = NodeState(Health.UP, Role.REPLICA, 90)


def test_the_least_loaded_node_comes_first() -> None:
    assert [index for index, _ in order([PRIMARY, REPLICA, REPLICA], [3, 2, 1])] == [2, 1, 0]


def test_a_replica_behind_our_writes_comes_after_the_primary_and_is_called_stale() -> None:
    assert order([REPLICA, PRIMARY], [0, 9], min_lsn=95) == [(1, False), (0, True)]
    assert order([REPLICA, PRIMARY], [0, 9], min_lsn=90) == [(0, False), (1, False)]


def test_the_least_stale_replica_is_the_best_of_the_stale() -> None:
    older = NodeState(Health.UP, Role.REPLICA, 10)
    assert order([older, REPLICA], min_lsn=95) == [(1, True), (0, True)]


def test_primaries_only_leaves_replicas_out() -> None:
    assert order([REPLICA, PRIMARY], primary_only=True) == [(1, False)]


def test_a_node_that_is_slower_counts_as_so_much_busier() -> None:
    assert order([PRIMARY, REPLICA], [0, 3], seconds=[0.1, 0.002]) == [(1, False), (0, False)]
    assert order([PRIMARY, REPLICA], [0, 60], seconds=[0.1, 0.002]) == [(0, False), (1, False)]
    # Differences as small as this are chance, and an unknown node is not slow.
    assert order([PRIMARY, REPLICA], [0, 1], seconds=[0.003, 0.002])[0] == (0, False)
    assert order([PRIMARY, REPLICA], [0, 1], seconds=[0.0, 0.002])[0] == (0, False)


def test_an_ejected_node_comes_last_but_comes() -> None:
    older = NodeState(Health.UP, Role.REPLICA, 10)
    assert order([PRIMARY, REPLICA], [0, 99], ejected=[0]) == [(1, False), (0, False)]
    # A stale answer that says so is worth more than none by the deadline.
    assert order([PRIMARY, older], ejected=[0], min_lsn=50) == [(1, True), (0, False)]
    assert order([PRIMARY, REPLICA], ejected=[0, 1]) != []


LAGGING = NodeState(Health.UP, Role.REPLICA, 90, lag=11.0)
DEPOSED = NodeState(Health.UP, Role.PRIMARY, 120, timeline=1, deposed=True)


def test_nodes_of_the_routers_zone_come_first() -> None:
    reads = Reads(zone="b")
    assert order([PRIMARY, REPLICA], [0, 9], zones=["a", "b"], reads=reads) == [(1, False), (0, False)]
    assert order([PRIMARY, REPLICA], [0, 9], zones=["a", "b"])[0] == (0, False)


def test_a_node_that_has_come_back_gets_its_share_of_draws() -> None:
    # The draw is 0.5 each time.
    assert order([PRIMARY, REPLICA], [0, 9], shares=[0.4, 1.0]) == [(1, False), (0, False)]
    assert order([PRIMARY, REPLICA], [0, 9], shares=[0.6, 1.0]) == [(0, False), (1, False)]


def test_primaries_are_read_as_the_operator_says() -> None:
    last, never = Reads(primary="last_resort"), Reads(primary="never")
    assert order([PRIMARY, REPLICA], [0, 9], reads=last) == [(1, False), (0, False)]
    assert order([PRIMARY, REPLICA], [0, 9], reads=never) == [(1, False)]
    assert order([PRIMARY], reads=never) == []
    # Whoever asks for the primary alone has said so.
    assert order([PRIMARY, REPLICA], reads=never, primary_only=True) == [(0, False)]


def test_replicas_that_lag_too_far_are_left_out_while_anybody_else_can_answer() -> None:
    assert order([LAGGING, PRIMARY], [0, 9])[0] == (1, False)
    assert order([LAGGING, REPLICA], [0, 9])[0] == (1, False)


def test_when_all_lag_too_far_the_policy_decides() -> None:
    def found(primary: PrimaryReads, policy: LagPolicy, *states: NodeState) -> list[tuple[int, bool]]:
        return order(states, reads=Reads(primary=primary, lag_policy=policy))

    assert found("never", "stale", LAGGING, PRIMARY) == [(0, True)]
    assert found("never", "primary", LAGGING, PRIMARY) == [(1, False)]
    assert found("never", "error", LAGGING, PRIMARY) == []
    assert found("equal", "error", LAGGING) == []
    assert found("equal", "primary", LAGGING) == []
    assert found("equal", "stale", LAGGING) == [(0, True)]
    # Nobody lags: the primary stays out.
    assert found("never", "primary", LAGGING, REPLICA, PRIMARY) == [(1, False)]


def test_a_deposed_primary_is_no_primary_and_stale() -> None:
    assert order([DEPOSED, PRIMARY], [0, 9]) == [(1, False), (0, True)]
    assert order([DEPOSED, PRIMARY], primary_only=True) == [(1, False)]
    assert order([DEPOSED], primary_only=True) == []
    assert order([DEPOSED], reads=Reads(lag_policy="error")) == []


@given(st.lists(st.tuples(STATES, st.booleans(), st.integers(0, 9)), max_size=5), st.integers(0, 20))
def test_no_ejected_node_comes_before_one_that_is_not(
    nodes: list[tuple[NodeState, bool, int]], min_lsn: int
) -> None:
    ejected = [i for i, (_, out, _) in enumerate(nodes) if out]
    ranked = order(
        [state for state, _, _ in nodes], [load for *_, load in nodes], ejected=ejected, min_lsn=min_lsn
    )
    if 2 * len(ejected) <= len(nodes):
        outs = [index in ejected for index, _ in ranked]
        assert outs == sorted(outs)


@given(
    st.lists(
        st.tuples(
            st.builds(NodeState, st.just(Health.UP), st.sampled_from(Role), lsn=st.integers(0, 3)),
            st.integers(0, 3),
            st.sampled_from([0.0, 0.01, 0.02, 0.03]),
            st.booleans(),
        ),
        max_size=4,
    ),
    st.integers(0, 2),
    st.sampled_from([0.4, 1.0, 1.0, 1.0]),
)
def test_the_short_way_where_all_is_well_leads_to_the_same_order(
    nodes: list[tuple[NodeState, int, float, bool]], min_lsn: int, share: float
) -> None:
    def found(zone: str) -> list[tuple[int, bool]]:
        return order(
            [state for state, *_ in nodes],
            [load for _, load, *_ in nodes],
            seconds=[seconds for *_, seconds, _ in nodes],
            ejected=[i for i, (*_, out) in enumerate(nodes) if out and share < 1],
            shares=[share] * len(nodes),
            min_lsn=min_lsn,
            reads=Reads(zone=zone),
        )

    # No node is in that zone, so it changes nothing; but with a zone, there is no short way.
    assert found("") == found("nowhere")


@given(st.lists(STATES, max_size=5), st.integers(0, 20), st.booleans())
def test_a_node_that_is_down_is_never_asked_and_no_other_is_forgotten(
    states: list[NodeState], min_lsn: int, primary_only: bool
) -> None:
    ranked = order(states, min_lsn=min_lsn, primary_only=primary_only)
    asked = [index for index, _ in ranked]
    assert len(asked) == len(set(asked))
    for index, state in enumerate(states):
        never = state.health in (Health.DOWN, Health.FOREIGN)
        excluded = never or (primary_only and state.role is Role.REPLICA)
        assert (index in asked) is not excluded
    for index, stale in ranked:
        state = states[index]
        if state.health is Health.UP and not stale:
            assert state.role is Role.PRIMARY or state.lsn >= min_lsn
