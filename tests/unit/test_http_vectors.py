from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http import vectors
from router.query.errors import InvalidError
from shard_config.model import Metric, Vector, VectorType

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**60), max_value=2.0**60)


def vector(type_: VectorType = VectorType.VECTOR, metric: Metric = Metric.L2, dimensions: int = 3) -> Vector:
    return Vector("embedding", type_, dimensions, metric)


def problem(raw: list[float] | bytes, of: Vector) -> tuple[str, str]:
    with pytest.raises(InvalidError) as caught:
        vectors.parse(raw, of, "vector")
    (found,) = caught.value.problems
    return found.path, found.message


@given(st.lists(FLOAT32, min_size=3, max_size=3))
def test_both_forms_mean_the_same_float32_bytes(components: list[float]) -> None:
    expected = np.array(components, dtype="<f4").tobytes()
    assert vectors.parse(components, vector(), "vector") == expected
    assert vectors.parse(expected, vector(), "vector") == expected
    assert vectors.from_components(np.array(components), vector(), "vector") == expected


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (bytes(3), "3 bytes of base64 are no whole number of float32 components"),
        (bytes(4), "has 1 dimensions, but the collection has 3"),
        (b"", "has 0 dimensions, but the collection has 3"),
    ],
)
def test_bytes_are_as_many_as_the_components_take(raw: bytes, message: str) -> None:
    assert problem(raw, vector())[1].startswith(message)


def test_a_component_beyond_float32_is_named() -> None:
    assert problem([0.0, -1e300, 0.0], vector()) == ("vector[1]", "-1e+300 is beyond float32")


def test_a_length_whose_square_overflows_is_refused() -> None:
    path, message = problem([1e19, 1e19, 0.0], vector())
    assert (path, "exceeds 9.22337e+18" in message) == ("vector", True)
    assert vectors.parse([9e18, 0.0, 0.0], vector(), "vector")


def test_only_cosine_needs_a_direction() -> None:
    for metric in (Metric.L2, Metric.L1, Metric.INNER_PRODUCT):
        assert vectors.parse([0.0, 0.0, 0.0], vector(metric=metric), "vector") == bytes(12)
    for raw in ([0.0, -0.0, 0.0], [1e-30, 0.0, 0.0]):
        assert "no direction" in problem(raw, vector(metric=Metric.COSINE))[1]


def test_halfvec_is_checked_as_it_will_be_stored() -> None:
    half = vector(VectorType.HALFVEC, Metric.COSINE)
    assert problem([1.0, -65505.0, 0.0], half) == ("vector[1]", "-65505 exceeds 65504, the limit of halfvec")
    # float16 keeps nothing of this.
    assert "no direction" in problem([1e-9, 0.0, 0.0], half)[1]
    assert vectors.parse([65504.0, 0.0, 0.0], half, "vector")


def test_an_array_of_another_shape_or_with_nan_is_refused() -> None:
    for components in (
        np.zeros(2),
        np.zeros((3, 1)),
        np.array([1.0, np.nan, 0.0]),
        np.array([1e39, 0.0, 0.0]),
    ):
        with pytest.raises(InvalidError):
            vectors.from_components(components, vector(), "text")
