"""Batches are taken on as a whole, and go at the pace at which they are answered."""

from __future__ import annotations

import pytest

from router.policy.batches import AdmittedBatch, Batches
from router.query.errors import OverloadedError


def admitted(batches: Batches, searches: int = 100, each: float = 0.0, **changes: float) -> AdmittedBatch:
    options = {"ahead": 0.0, "available": 60.0, "timeout": 2.0, **changes}
    return batches.admit(searches, each=each, **options)


def test_a_batch_that_would_not_be_done_in_time_is_refused_as_a_whole() -> None:
    batches = Batches(512)
    with pytest.raises(OverloadedError, match="100 searches would take about 70 s"):
        admitted(batches, each=0.7)
    with pytest.raises(OverloadedError) as refused:
        admitted(batches, each=0.5, ahead=15.0)
    assert refused.value.retry_after == 15.0
    with admitted(batches, each=0.5):
        # What is left of others counts as well.
        with pytest.raises(OverloadedError) as refused:
            admitted(batches, each=0.2)
        assert refused.value.retry_after == pytest.approx(50.0)
        with admitted(batches, each=0.05):
            assert batches.seconds == pytest.approx(55.0)
    assert batches.seconds == 0.0
    with admitted(batches, each=0.5):
        pass


def test_what_has_been_answered_is_not_expected_any_more() -> None:
    batches = Batches(512)
    with admitted(batches, each=0.5) as batch:
        for _ in range(40):
            batch.answered(0.1, 50.0)
        assert batches.seconds == pytest.approx(30.0)


def test_an_error_gives_the_place_back() -> None:
    batches = Batches(1)
    with pytest.raises(ValueError, match="x"), admitted(batches):
        raise ValueError("x")
    with admitted(batches), pytest.raises(OverloadedError, match="1 batches are under way"):
        admitted(batches)


def test_batches_share_the_places_in_the_queues() -> None:
    batches = Batches(100)
    several = [admitted(batches, each=0.0001) for _ in range(10)]
    assert [batch.size for batch in several] == [10] * 10
    assert admitted(Batches(0)).size == 1


def sizes(batch: AdmittedBatch, seconds_of_one: float, answers: int) -> list[int]:
    """How many are on their way while a node answers one after the other, each in `seconds_of_one`."""
    found = []
    for _ in range(answers):
        batch.answered(batch.size * seconds_of_one, 1e6)
        found.append(batch.size)
    return found


def test_as_many_are_on_their_way_as_are_answered_soon() -> None:
    fast = sizes(admitted(Batches(512), 10_000), 0.001, 200)
    assert fast[0] == 5 and max(fast) == fast[-1] == 64
    slow = sizes(admitted(Batches(512), 10_000), 0.1, 200)
    assert min(slow) >= 2 and max(slow[50:]) <= 3
    between = sizes(admitted(Batches(512), 10_000), 0.01, 600)
    assert 12 <= min(between[100:]) and max(between[100:]) <= 28
    # A short time limit leaves less for the wait.
    assert max(sizes(admitted(Batches(512), 10_000, timeout=0.4), 0.01, 200)[50:]) <= 6


def test_what_a_search_is_expected_to_take_is_where_it_begins() -> None:
    assert admitted(Batches(512)).size == 4
    assert admitted(Batches(512), each=0.001).size == 64
    assert admitted(Batches(512), each=0.02).size == 12
    assert admitted(Batches(512), each=0.5).size == 2


def test_searches_that_are_late_for_another_reason_go_side_by_side() -> None:
    """A node keeps silent, so that each takes its whole time limit however few there are."""
    batch = admitted(Batches(512), 150)
    now, under_way = 0.0, 0
    for _ in range(150):
        under_way += 1
        if under_way >= batch.size:
            now, under_way = now + 2.0, 0
        batch.answered(2.0, 60.0 - now)
    assert 20.0 < now < 60.0


def test_a_batch_has_its_share_of_turns_however_few_of_its_searches_wait() -> None:
    batch = admitted(Batches(512))
    node = object()
    turns = [batch.turn(node, now, 0.2) for now in (10.0, 10.5, 11.0, 11.0, 11.0)]
    assert turns == pytest.approx([10.0, 10.2, 10.4, 10.6, 10.8])
    assert batch.turn(node, 20.0, 0.2) == 19.0, "what it did not use is not kept for long"
    assert batch.turn(node, 19.1, 0.2) == 19.1, "using an idle node is no debt"
    assert batch.turn(object(), 30.0, 0.2) == 30.0


def test_several_batches_together_leave_half_of_a_node_to_others() -> None:
    batches = Batches(512)
    several = [admitted(batches) for _ in range(4)]
    node = object()
    for batch in several:
        turns = [batch.turn(node, 10.0, 0.1) for _ in range(3)]
        assert turns == [10.0, 10.0, 10.0], "what an idle node has done is no debt"
        later = [batch.turn(node, now, 0.1) for now in (10.4, 11.0, 11.0)]
        assert later == pytest.approx([10.4, 10.8, 11.0])


def test_what_ends_at_once_after_the_batch_s_time_is_counted_like_the_rest() -> None:
    batch = admitted(Batches(512), 3)
    batch.answered(0.0, 0.0)
    batch.answered(0.0, -0.001)
    assert batch.seconds == 0.0
