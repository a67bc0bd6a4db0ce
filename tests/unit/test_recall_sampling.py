from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.recall.sampling import RecallSampler, RecallSeen, RecallWindow


def test_the_share_chosen_is_the_rate() -> None:
    rng = random.Random(3)
    sampler = RecallSampler(0.1, 1.0, rng=rng.random)
    assert sum(sampler.chooses() for _ in range(10_000)) == pytest.approx(1000, rel=0.1)
    assert not any(RecallSampler(0.0, 1.0).chooses() for _ in range(1000))
    assert all(RecallSampler(1.0, 1.0).chooses() for _ in range(1000))


@given(st.floats(0.01, 50), st.lists(st.floats(0, 20), min_size=1, max_size=60))
def test_no_span_of_time_sees_more_than_its_budget_and_one_second_more(
    budget: float, pauses: list[float]
) -> None:
    now = 0.0
    sampler = RecallSampler(1.0, budget, clock=lambda: now)
    paid: list[float] = []
    for pause in pauses:
        now += pause
        if sampler.try_spend():
            paid.append(now)
    assert paid, "a full bucket pays for the first"
    for first, start in enumerate(paid):
        for last in range(first, len(paid)):
            assert last - first + 1 <= (paid[last] - start) * budget + max(1.0, budget) + 1e-6


def test_what_was_spent_comes_back_with_time() -> None:
    now = 0.0
    sampler = RecallSampler(1.0, 0.5, clock=lambda: now)
    assert [sampler.try_spend(), sampler.try_spend()] == [True, False]
    now = 1.9
    assert not sampler.try_spend()
    now = 2.0
    assert sampler.try_spend()
    now = 1.0  # a clock that goes back brings nothing
    assert not sampler.try_spend()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.integers(1, 10))
def test_a_window_is_the_mean_of_the_last(values: list[float], most: int) -> None:
    window = RecallWindow(most)
    for value in values:
        seen = window.add(value)
    last = values[-most:]
    assert seen == RecallSeen(sum(last) / len(last), len(last))
