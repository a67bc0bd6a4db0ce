"""How long searches are expected to take a node."""

from __future__ import annotations

import pytest

from router.policy.pace import Pace


def test_kinds_are_kept_apart_and_what_is_known_fades() -> None:
    pace = Pace()
    for at in range(100):
        pace.took("slow", 2.0, at * 0.01)
        pace.took("fast", 0.001, at * 0.01)
    assert pace.of("slow", 1.0) == pytest.approx(2.0, rel=0.2)
    assert pace.of("fast", 1.0) == pytest.approx(0.001, rel=0.2)
    assert pace.of("unknown", 1.0) == 0
    assert pace.of("slow", 11.0) == pytest.approx(pace.of("slow", 1.0) / 1024)


def test_one_statement_says_little() -> None:
    pace = Pace()
    pace.took("k", 1.0, 0.0)
    assert pace.of("k", 0.0) == pytest.approx(0.1)


def test_kinds_without_end_take_no_room_without_end() -> None:
    pace = Pace()
    for number in range(10_000):
        pace.took(number, 1.0, 0.0)
    assert repr(pace) == "<Pace of 256 kinds>"
    assert pace.of(9_999, 0.0) > 0
    # The one that was confirmed longest ago makes room.
    pace.took(9_744, 1.0, 0.0)
    pace.took("new", 1.0, 0.0)
    assert pace.of(9_744, 0.0) > 0 and pace.of(9_745, 0.0) == 0
