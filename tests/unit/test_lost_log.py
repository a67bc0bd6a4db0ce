"""When a shard's log proves that what was written to it is gone, and when it does not."""

from __future__ import annotations

from router.policy.lost_log import lost_bytes
from router.policy.selection import Health, NodeState, Role
from router.query.types import Position


def primary(timeline: int, written: int, recovered: int | None = None) -> NodeState:
    return NodeState(
        Health.UP, Role.PRIMARY, written, timeline=timeline, written=written, recovered=recovered
    )


def test_a_log_that_goes_on_has_lost_nothing() -> None:
    assert lost_bytes(primary(1, 100), Position(1, 100), Position(1, 90)) == 0
    assert lost_bytes(primary(1, 100), None, None) == 0


def test_a_log_that_ends_before_what_was_acknowledged_has_lost_it() -> None:
    assert lost_bytes(primary(1, 60), Position(1, 100), None) == 40
    # What others wrote was seen by a probe.
    assert lost_bytes(primary(1, 60), None, Position(1, 90)) == 30


def test_after_a_promotion_only_what_was_replayed_before_is_there() -> None:
    # By its first probe it has written more than it has lost.
    assert lost_bytes(primary(2, 500, recovered=80), Position(1, 100), None) == 20
    assert lost_bytes(primary(2, 500, recovered=100), Position(1, 100), None) == 0
    # Started again since, it does not say where its replay ended.
    assert lost_bytes(primary(2, 500), Position(1, 100), None) == 0
    assert lost_bytes(primary(2, 90), Position(1, 100), None) == 10


def test_what_a_replaced_primary_had_and_nobody_was_told_of_is_no_loss() -> None:
    assert lost_bytes(primary(2, 500, recovered=80), Position(1, 80), Position(1, 100)) == 0


def test_a_page_that_was_flushed_within_a_record_proves_nothing() -> None:
    assert lost_bytes(primary(1, 8000), Position(1, 8192), Position(1, 8192)) == 0
    assert lost_bytes(primary(1, 8000), Position(1, 8193), None) == 193


def test_a_primary_on_an_earlier_timeline_than_was_written_on_lacks_something() -> None:
    assert lost_bytes(primary(1, 60), Position(2, 100), None) == 40
    assert lost_bytes(primary(1, 160), Position(2, 100), None) == 1
