from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.policy.replication import Heads, claims, elect
from router.policy.selection import Health, NodeState, Role


def primary(timeline: int, health: Health = Health.UP, leads: bool | None = None) -> NodeState:
    return NodeState(health, Role.PRIMARY, timeline=timeline, leads=leads)


REPLICA = NodeState(Health.UP, Role.REPLICA)


def test_the_primary_on_the_latest_timeline_takes_writes() -> None:
    assert elect([REPLICA, primary(1)], 0) == 1
    assert elect([primary(1), primary(2)], 2) == 1
    assert elect([primary(2), primary(1), REPLICA], 2) == 0


def test_nobody_takes_writes_where_it_is_not_clear_who_may() -> None:
    assert elect([], 0) is None
    assert elect([REPLICA], 0) is None
    assert elect([primary(2), primary(2)], 2) is None
    # Its successor is away; what it takes now would be lost.
    assert elect([primary(1), primary(2, Health.DOWN)], 2) is None


def test_whom_patroni_denies_takes_no_writes() -> None:
    assert elect([primary(1, leads=False), REPLICA], 0) is None
    assert elect([primary(2, leads=False), primary(1)], 0) == 1
    assert elect([primary(2, leads=False), primary(1, leads=True)], 0) == 1
    # A later timeline that somebody is known to have been on is still a later one.
    assert elect([primary(2, leads=False), primary(1, leads=True)], 2) is None


def test_patroni_decides_between_equals_and_no_others() -> None:
    assert elect([primary(2), primary(2, leads=True)], 2) == 1
    assert elect([primary(2, leads=True), primary(2, leads=True)], 2) is None
    assert elect([primary(1, leads=True), primary(2)], 2) == 1


def test_what_is_down_claims_nothing() -> None:
    assert not claims(primary(1, Health.DOWN))
    assert not claims(REPLICA)
    assert claims(primary(1))


STATES = st.builds(
    NodeState,
    health=st.sampled_from(Health),
    role=st.sampled_from(list(Role)),
    timeline=st.integers(0, 4),
    leads=st.sampled_from([None, True, False]),
)


@given(st.lists(STATES, max_size=5), st.integers(0, 4))
def test_whoever_is_elected_claims_it_and_nobody_else_has_as_good_a_claim(
    states: list[NodeState], latest: int
) -> None:
    elected = elect(states, latest)
    if elected is not None:
        winner = states[elected]
        assert claims(winner)
        assert winner.leads is not False
        assert winner.timeline >= latest
        for index, rival in enumerate(states):
            if index != elected and claims(rival) and rival.leads is not False:
                named = bool(winner.leads) and not rival.leads
                assert rival.timeline < winner.timeline or (rival.timeline == winner.timeline and named)


def test_lag_is_the_time_for_which_something_was_lacking() -> None:
    heads = Heads()
    heads.saw(10, 100.0)
    heads.saw(20, 101.0)
    heads.saw(20, 150.0)
    assert heads.lag(20, 160.0, 0.0) == 0  # an idle primary's replica has all there is
    assert heads.lag(15, 160.0, 0.0) == 59
    assert heads.lag(9, 160.0, 0.0) == 60


def test_what_was_lacking_before_anybody_looked_is_as_old_as_it_may_be() -> None:
    heads = Heads()
    assert heads.lag(9, 100.0, 30.0) == 30  # no primary was seen: nobody knows what there is
    heads.saw(10, 100.0)
    heads.saw(20, 110.0)
    assert heads.lag(9, 111.0, 41.0) == 41
    assert heads.lag(9, 111.0, 0.5) == 11
    assert heads.lag(10, 111.0, 41.0) == 1
    assert heads.lag(20, 111.0, 41.0) == 0


def test_what_only_a_lost_primary_had_is_not_lacking() -> None:
    heads = Heads()
    heads.saw(10, 100.0)
    heads.saw(30, 101.0)
    heads.saw(20, 102.0)
    assert heads.lag(20, 200.0, 0.0) == 0
    assert heads.lag(15, 200.0, 0.0) == 98


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0.001, 1.0)), min_size=1, max_size=600))
def test_what_is_remembered_is_bounded_and_errs_by_little(steps: list[tuple[int, float]]) -> None:
    heads, now, lsn = Heads(), 0.0, 0
    ends: list[tuple[float, int]] = []
    for bytes_, seconds in steps:
        now, lsn = now + seconds, lsn + bytes_
        heads.saw(lsn, now)
        ends.append((now, lsn))
    assert len(heads._samples) <= 129
    assert heads.lag(lsn, now, 0.0) == 0
    for _, replayed in ends[:-1]:
        true = now - next(seen for seen, end in ends if end > replayed)
        assert 0 <= heads.lag(replayed, now, 0.0) <= true
    if len(ends) < 128:
        assert heads.lag(0, now, 0.0) == now - ends[0][0]
