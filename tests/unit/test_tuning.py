from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.recall.advice import advice, candidate_steps
from router.recall.tuning import smallest
from shard_config.model import Index, Quantization
from tests.unit.queries import collection


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40, unique=True).map(sorted), st.integers(1, 1100))
def test_bisection_finds_the_smallest_step_that_reaches(steps: list[int], needed: int) -> None:
    tried: list[int] = []

    async def reaches(step: int) -> bool:
        tried.append(step)
        return step >= needed

    found = asyncio.run(smallest(steps, reaches))
    assert found == next((step for step in steps if step >= needed), None)
    assert len(tried) <= 8


@pytest.mark.parametrize(
    ("quantization", "measured", "ideal", "says", "not_said"),
    [
        ("none", 0.8, {}, "larger m and ef_construction", "quantization"),
        ("none", 0.96, {}, "more queries (--queries)", "larger m"),
        ("binary", 0.96, {}, "more queries (--queries)", "quantization"),
        ("binary", 0.8, {1000: 0.99}, "its graph misses them: build the index with larger m", "quantization"),
        ("binary", 0.8, {1000: 0.85}, "set index.quantization to halfvec or none", "larger m"),
        ("halfvec", 0.8, {1000: 0.85}, "set index.quantization to none", "halfvec or"),
        ("binary", 0.8, {1000: 0.85, 2000: 0.9, 4000: 0.96}, "or search.overfetch to 40 (4000", "larger m"),
        ("binary", 0.8, {1000: 0.85, 2000: 0.9}, "no more than 0.8500, whatever its graph", "overfetch"),
    ],
)
def test_what_is_advised_is_what_limits_the_recall(
    quantization: str, measured: float, ideal: dict[int, float], says: str, not_said: str
) -> None:
    of = collection(index=Index(16, 64, Quantization(quantization)))
    said = advice(of, 100, measured, ideal, 0.95)
    assert says in said
    assert not_said not in said


def test_as_many_candidates_are_tried_as_the_map_may_ask_for() -> None:
    assert candidate_steps(10) == [1000]
    assert candidate_steps(30) == [1000, 2000, 3000]
    assert candidate_steps(100) == [1000, 2000, 4000, 8000, 10_000]
