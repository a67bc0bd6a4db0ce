"""How long searches are expected to take a node."""

from __future__ import annotations

import pytest

from router.policy.search_cost import SearchCost


def test_kinds_are_kept_apart_and_what_is_known_fades() -> None:
    cost = SearchCost()
    for at in range(100):
        cost.took("slow", 2.0, at * 0.01)
        cost.took("fast", 0.001, at * 0.01)
    assert cost.of("slow", 1.0) == pytest.approx(2.0, rel=0.2)
    assert cost.of("fast", 1.0) == pytest.approx(0.001, rel=0.2)
    assert cost.of("unknown", 1.0) == 0
    assert cost.of("slow", 11.0) == pytest.approx(cost.of("slow", 1.0) / 1024)


def test_one_statement_says_little() -> None:
    cost = SearchCost()
    cost.took("k", 1.0, 0.0)
    assert cost.of("k", 0.0) == pytest.approx(0.1)


def test_kinds_without_end_take_no_room_without_end() -> None:
    cost = SearchCost()
    for number in range(10_000):
        cost.took(number, 1.0, 0.0)
    assert repr(cost) == "<SearchCost of 256 kinds>"
    assert cost.of(9_999, 0.0) > 0
    # The one that was confirmed longest ago makes room.
    cost.took(9_744, 1.0, 0.0)
    cost.took("new", 1.0, 0.0)
    assert cost.of(9_744, 0.0) > 0 and cost.of(9_745, 0.0) == 0


def test_one_slow_search_does_not_make_the_mean_a_multiple_and_an_old_mean_fades() -> None:
    cost = SearchCost()
    for at in range(100):
        cost.took("k", 0.002, at * 0.01)
    assert cost.usual("k", 1.0) == pytest.approx(0.002, rel=0.05)
    cost.took("k", 1.5, 1.0)
    assert cost.usual("k", 1.0) < 0.005
    for at in range(30):
        cost.took("k", 1.5, 1.0 + at)
    assert cost.usual("k", 30.0) > 0.5, "searches that have become slow are soon known to be"
    assert cost.usual("k", 60.0) < cost.usual("k", 30.0) / 7
    assert cost.usual("unknown", 0.0) == 0
