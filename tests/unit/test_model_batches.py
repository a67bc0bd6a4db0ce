"""Which of the waiting texts go into a model's next call."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from router.model_service.batches import Turns, take_batch

# Of each request the sizes of its items.
requests = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=30), min_size=1, max_size=8)


def turns(sizes: list[int]) -> Turns[int]:
    return Turns(range(len(sizes)), sizes)


@given(requests, st.integers(1, 20), st.integers(1, 100))
def test_every_item_is_in_one_batch_and_no_batch_is_too_large(
    sizes: list[list[int]], most_items: int, most_chars: int
) -> None:
    all_turns = list(map(turns, sizes))
    waiting = deque(all_turns)
    taken: dict[int, list[int]] = {id(one): [] for one in all_turns}
    while waiting:
        batch = take_batch(waiting, most_items, most_chars)
        items = [(one, index) for one, indices in batch for index in indices]
        assert 1 <= len(items) <= most_items
        assert len(items) == 1 or sum(one.sizes[index] for one, index in items) <= most_chars
        assert len({id(one) for one, _ in batch}) == len(batch)
        for one, index in items:
            taken[id(one)].append(index)
    for one in all_turns:
        assert sorted(taken[id(one)]) == list(range(len(one.items)))
        assert one.waiting == one.waiting_chars == 0


@given(requests, st.integers(1, 20))
def test_the_items_of_a_request_are_taken_shortest_first(sizes: list[list[int]], most_items: int) -> None:
    waiting = deque(map(turns, sizes))
    last: dict[int, int] = {}
    while waiting:
        for one, indices in take_batch(waiting, most_items, 1000):
            for index in indices:
                assert last.get(id(one), 0) <= one.sizes[index]
                last[id(one)] = one.sizes[index]


@given(requests, st.integers(1, 20))
def test_a_request_waits_for_one_batch_of_each_request_before_it(
    sizes: list[list[int]], most_items: int
) -> None:
    last = turns([1])
    waiting = deque([*map(turns, sizes), last])
    batches = [take_batch(waiting, most_items, 10_000) for _ in range(len(sizes) + 1)]
    assert any(one is last for batch in batches for one, _ in batch)


def test_requests_that_fit_into_a_batch_are_finished_in_the_order_in_which_they_came() -> None:
    first, second, third = turns([1] * 4), turns([1] * 4), turns([1] * 4)
    waiting = deque([first, second, third])
    assert [len(indices) for _, indices in take_batch(waiting, 8, 100)] == [4, 4]
    assert [one for one, _ in take_batch(waiting, 8, 100)] == [third]


def test_a_large_request_shares_what_a_small_one_leaves_of_a_batch() -> None:
    large, small = turns([1] * 100), turns([1])
    waiting = deque([large])
    take_batch(waiting, 8, 100)
    waiting.append(small)
    take_batch(waiting, 8, 100)
    assert [(one, len(indices)) for one, indices in take_batch(waiting, 8, 100)] == [(small, 1), (large, 7)]
    assert large.waiting == 100 - 8 - 8 - 7


def test_a_turn_that_brought_nothing_for_lack_of_room_is_still_to_come() -> None:
    short, long = turns([10]), turns([95])
    waiting = deque([short, long, turns([1])])
    assert [one for one, _ in take_batch(waiting, 8, 100)] == [short]
    assert next(one for one, _ in take_batch(waiting, 8, 100)) is long
