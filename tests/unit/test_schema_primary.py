"""Which node a command writes to, by what all of them say."""

from __future__ import annotations

import pytest

from router.policy.selection import Health, NodeState, Role
from router.postgres.connection import NodeError
from router.schema.primary import choose


def primary(timeline: int, lsn: int = 100, leads: bool | None = None) -> NodeState:
    return NodeState(Health.UP, Role.PRIMARY, lsn, timeline=timeline, leads=leads)


def replica(timeline: int = 0, lsn: int = 100) -> NodeState:
    return NodeState(Health.UP, Role.REPLICA, lsn, timeline=timeline)


def away(reason: str) -> NodeState:
    return NodeState(Health.DOWN, reason=reason)


@pytest.mark.parametrize(
    ("states", "chosen"),
    [
        ([primary(1)], 0),
        ([replica(), primary(1)], 1),
        ([primary(1), away("b: refused")], 0),
        ([primary(1), primary(2)], 1),
        ([primary(3), replica(2), primary(2)], 0),
        # Replicas say late which timeline they follow, and may say nothing.
        ([primary(2), replica(1)], 0),
        ([primary(2), replica(0)], 0),
        # Patroni's word.
        ([primary(1, leads=True), primary(1)], 0),
        ([primary(1, leads=False), primary(1)], 1),
        ([primary(1, leads=True), primary(1, leads=False)], 0),
        # It followed one that was replaced, beyond where its successor begins.
        ([primary(2, 100), replica(1, 900)], 0),
        ([primary(1, 100, leads=True), replica(1, 900)], 0),
    ],
)
def test_the_latest_timeline_and_patroni_decide(states: list[NodeState], chosen: int) -> None:
    assert choose("abc"[: len(states)], states) == chosen


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([replica(), away("b: refused")], "no primary: a is a replica; b: refused"),
        ([primary(2), primary(2)], "more than one primary on timeline 2: a, b; stop all but one"),
        (
            [primary(1, leads=True), primary(1, leads=True)],
            "more than one primary on timeline 1: a, b; stop all but one",
        ),
        (
            [primary(1), replica(2), away("c: refused")],
            "no primary: a was replaced: its timeline is 1, but b has been on 2; b is a replica; c: refused",
        ),
        (
            [primary(1, leads=False), replica()],
            "no primary: a: its Patroni says that it does not lead; b is a replica",
        ),
        # The one that Patroni denies has been on a later one.
        (
            [primary(1), primary(2, leads=False)],
            "no primary: a was replaced: its timeline is 1, but b has been on 2;"
            " b: its Patroni says that it does not lead",
        ),
        (
            [primary(1, 100), replica(1, 101)],
            "a says that it is the primary, but b has replayed what it never wrote:"
            " one of them is of another history; stop or rebuild that one",
        ),
        (
            [primary(1, 100), replica(0, 101)],
            "a says that it is the primary, but b has replayed what it never wrote:"
            " one of them is of another history; stop or rebuild that one",
        ),
    ],
)
def test_where_nobody_can_tell_nothing_is_written_and_the_reason_is_said(
    states: list[NodeState], said: str
) -> None:
    with pytest.raises(NodeError) as caught:
        choose("abc"[: len(states)], states)
    assert str(caught.value) == said
