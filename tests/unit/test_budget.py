from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.policy.budget import Budget


@given(st.floats(0.0, 1.0), st.lists(st.booleans(), max_size=400))
def test_never_more_than_the_share_and_the_burst(share: float, spends: list[bool]) -> None:
    budget = Budget(share)
    spent = 0
    for requests, spend in enumerate(spends, 1):
        budget.earn()
        if spend:
            spent += budget.try_spend()
        assert spent <= requests * share + (10 if share else 0) + 1e-9


def test_what_is_saved_does_not_pile_up() -> None:
    budget = Budget(0.05)
    for _ in range(100_000):
        budget.earn()
    assert sum(budget.try_spend() for _ in range(100)) == 10
    assert budget.denied == 90
    assert repr(budget) == "<Budget 0.0 of 10, 90 denied>"


def test_twenty_requests_pay_for_one_more() -> None:
    budget = Budget(0.05)
    while budget.try_spend():
        pass
    for _ in range(21):
        budget.earn()
    assert budget.try_spend()
    assert not budget.try_spend()


def test_a_share_of_nothing_allows_nothing() -> None:
    budget = Budget(0.0)
    budget.earn()
    assert not budget.try_spend()


def test_half_of_it_is_kept_for_what_is_urgent() -> None:
    budget = Budget(0.05)
    assert [budget.try_spend(urgent=False) for _ in range(7)] == [True] * 5 + [False] * 2
    assert [budget.try_spend(urgent=True) for _ in range(6)] == [True] * 5 + [False]
