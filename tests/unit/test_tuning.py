from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from router.recall.tuning import smallest


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40, unique=True).map(sorted), st.integers(1, 1100))
def test_bisection_finds_the_smallest_step_that_reaches(steps: list[int], needed: int) -> None:
    tried: list[int] = []

    async def reaches(step: int) -> bool:
        tried.append(step)
        return step >= needed

    found = asyncio.run(smallest(steps, reaches))
    assert found == next((step for step in steps if step >= needed), None)
    assert len(tried) <= 8
