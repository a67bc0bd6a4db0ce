from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from router.bulk.check import to_float32, wrong_vectors
from router.decode.vectors import from_components
from router.query.errors import InvalidError
from shard_config.model import Metric, Vector, VectorType

# Every kind of number that a check looks for, and those next to the bounds.
HALF = [2.9e-8, 3e-8, 6e-8, 6.1e-5, 1.05e-4, 1.06e-4, 65504.0, 65519.0, -65504.0, 65520.0]
SHORT = [1e-23, 1.08e-19, 1.87e-19, 1.88e-19]
SINGLE = [0.0, -0.0, 1.0, -3.5, 1e-45, 9.2e18, 1e19, 3e38, float("nan"), float("inf"), float("-inf")]
NUMBERS = st.sampled_from([*HALF, *SHORT, *SINGLE])


@given(
    arrays.arrays(np.float32, (7, 3), elements=NUMBERS | st.floats(width=32)),
    st.sampled_from(VectorType),
    st.sampled_from(Metric),
)
def test_a_chunk_is_judged_as_single_requests_are(
    rows: np.ndarray, type_: VectorType, metric: Metric
) -> None:
    vector = Vector("embedding", type_, 3, metric)
    expected = {}
    for at, row in enumerate(rows):
        try:
            from_components(row, vector, "vector")
        except InvalidError as exc:
            expected[at] = exc.detail
    assert wrong_vectors(rows, vector) == expected


@pytest.mark.parametrize("dtype", [">f4", "<f8", "<f2"])
def test_numbers_of_any_float_type_become_float32(dtype: str) -> None:
    rows = np.array([[1.5, -2.0]], dtype=dtype)
    found = to_float32(rows)
    assert found.dtype == np.float32
    assert found.tolist() == [[1.5, -2.0]]


def test_what_float32_cannot_hold_is_refused() -> None:
    rows = to_float32(np.array([[1e300, 1.0], [1.0, 1.0]]))
    assert set(wrong_vectors(rows, Vector("e", VectorType.VECTOR, 2, Metric.L2))) == {0}
