from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.recall.measure import best_bound, lower_bound, queries_for, recall

distances = st.lists(st.floats(0, 100), max_size=20).map(sorted)


@given(distances, distances)
def test_recall_is_a_share_and_whole_for_the_exact_answer(found: list[float], exact: list[float]) -> None:
    if not exact:
        assert recall(found, exact) is None
        return
    share = recall(found, exact)
    assert share is not None
    assert 0 <= share <= 1
    assert recall(exact, exact) == 1
    assert share == recall([*found, math.inf], exact)


def test_a_row_as_near_as_the_last_exact_one_counts() -> None:
    assert recall([0.1, 0.5, 0.5], [0.1, 0.2, 0.5]) == 1
    assert recall([0.1, 0.6], [0.1, 0.2]) == 0.5
    assert recall([-3.0, -1.0], [-3.0, -2.0]) == 0.5
    assert recall([], [0.1]) == 0


def test_few_or_scattered_queries_promise_less() -> None:
    assert lower_bound([1.0]) < 0.1
    assert lower_bound([1.0] * 50) < lower_bound([1.0] * 500) < 1
    assert lower_bound([1.0, 0.8] * 10) < lower_bound([1.0, 0.8] * 1000) < 0.9
    assert lower_bound([1.0] * 499 + [0.9]) < lower_bound([1.0] * 500)


@pytest.mark.parametrize("queries", [20, 300, 1000])
def test_without_a_miss_the_bound_is_the_one_of_clopper_and_pearson(queries: int) -> None:
    assert lower_bound([1.0] * queries) == pytest.approx(best_bound(queries), abs=0.1 / queries)


def test_queries_for_a_target_are_as_few_as_may_do() -> None:
    for target in (0.5, 0.9, 0.99, 0.999):
        assert best_bound(queries_for(target)) >= target > best_bound(queries_for(target) - 1)


def test_the_bound_holds_where_bad_queries_are_rare() -> None:
    """One query in a hundred finds nothing, which most samples of fifty show once or not at all."""
    rng = np.random.default_rng(1)
    samples = (rng.random((300, 50)) >= 0.01).astype(float)
    assert np.mean([lower_bound(sample.tolist()) <= 0.99 for sample in samples]) >= 0.95
