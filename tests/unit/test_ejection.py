from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.policy.ejection import TRIAL_SECONDS, Ejection, has_room


def test_three_silent_requests_in_a_row_leave_a_node_out() -> None:
    ejection = Ejection()
    assert [ejection.struck(0.0) for _ in range(2)] == [False, False]
    ejection.answered()
    assert [ejection.struck(0.0) for _ in range(3)] == [False, False, True]
    assert ejection.out
    assert repr(ejection) == "<Ejection out, 3 strikes, 1 before>"


def test_one_request_tries_it_when_its_time_is_over() -> None:
    ejection = Ejection()
    for _ in range(3):
        ejection.struck(0.0)
    assert not ejection.due(0.9)
    assert ejection.due(1.0)
    ejection.tried(1.0 + TRIAL_SECONDS)
    assert ejection.out
    assert not ejection.due(1.5)
    ejection.answered()
    assert not ejection.out
    assert not ejection.due(5.0)


def test_each_failed_trial_doubles_the_time_up_to_a_bound() -> None:
    ejection = Ejection()
    for _ in range(3):
        ejection.struck(0.0)
    now, waits = 0.0, []
    for _ in range(8):
        start = now
        while not ejection.due(now):
            now += 0.25
        waits.append(now - start)
        ejection.tried(now + TRIAL_SECONDS)
        assert not ejection.struck(now)
    assert waits == [1, 2, 4, 5, 5, 5, 5, 5]
    assert ejection.count == 1


def test_a_node_that_was_down_and_is_well_is_tried_at_once() -> None:
    ejection = Ejection()
    ejection.returned(0.0)
    assert not ejection.out
    for _ in range(5):
        for _ in range(3):
            ejection.struck(0.0)
    ejection.returned(0.1)
    assert ejection.out
    assert ejection.due(0.1)


def test_a_trial_that_is_lost_is_not_the_last() -> None:
    ejection = Ejection()
    for _ in range(3):
        ejection.struck(0.0)
    ejection.tried(1.0 + TRIAL_SECONDS)
    assert ejection.due(2.0)


def test_one_that_no_request_comes_to_try_is_left_out_no_longer() -> None:
    ejection = Ejection()
    assert not ejection.untried(100.0)
    for _ in range(3):
        ejection.struck(0.0)
    assert not ejection.untried(10.9)
    assert ejection.untried(11.0)
    ejection.tried(20.0)
    assert not ejection.untried(29.9)
    assert ejection.untried(30.0)


def test_of_a_set_no_more_than_a_share_is_left_out() -> None:
    assert [has_room(ejected, 2, 0.5) for ejected in range(3)] == [True, False, False]
    assert [has_room(ejected, 3, 0.5) for ejected in range(3)] == [True, False, False]
    assert [has_room(ejected, 3, 1.0) for ejected in range(4)] == [True, True, True, False]
    assert not has_room(0, 3, 0.0)


def test_a_node_that_cannot_be_spared_is_left_out_as_soon_as_it_can() -> None:
    ejection = Ejection()
    for _ in range(5):
        assert not ejection.struck(0.0, room=False)
        assert not ejection.out
    assert ejection.struck(1.0)
    assert ejection.out


def test_the_past_is_forgotten_after_a_minute() -> None:
    ejection = Ejection()
    for now in (0.0, 10.0, 100.0):
        ejection.answered()
        for _ in range(3):
            ejection.struck(now)
    assert not ejection.due(100.9)
    assert ejection.due(101.0)


@given(st.lists(st.tuples(st.sampled_from(["answered", "struck", "tried"]), st.floats(0, 5)), max_size=100))
def test_a_node_that_answers_is_never_left_out(events: list[tuple[str, float]]) -> None:
    ejection = Ejection()
    now = 0.0
    for event, gap in events:
        now += gap
        if event == "answered":
            ejection.answered()
            assert not ejection.out
        elif event == "struck":
            ejection.struck(now)
            if ejection.out:
                assert not ejection.due(now + 0.99)
                assert ejection.due(now + 30)
        elif ejection.due(now):
            ejection.tried(now + TRIAL_SECONDS)
            assert not ejection.due(now)
