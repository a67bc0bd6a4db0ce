from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decode import vectors
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
    assert "no direction" in problem([0.0, -0.0, 0.0], vector(metric=Metric.COSINE))[1]


@pytest.mark.parametrize("dimensions", [3, 384, 2000])
def test_cosine_takes_a_vector_whose_squares_keep_their_digits(dimensions: int) -> None:
    """What is taken at all has the distance that its direction has, to a float32's last bits."""
    cosine = vector(metric=Metric.COSINE, dimensions=dimensions)
    rng = np.random.default_rng(dimensions)
    direction = rng.standard_normal(dimensions)
    direction /= np.linalg.norm(direction)
    least = math.sqrt(dimensions) * 2.0**-63
    for factor in (1e-23 / least, 0.5, 0.999):
        path, message = problem((direction * least * factor).tolist(), cosine)
        assert path == "vector"
        assert f"is below {least:.3g}: its squares would lose digits in float32" in message
    other = rng.standard_normal(dimensions).astype(np.float32)
    taken = vectors.parse((direction * least * 1.001).tolist(), cosine, "vector")
    kept = np.frombuffer(taken, "<f4")
    error = abs(as_pgvector(kept, other) - exactly(kept, other))
    assert error < 4e-7 * math.sqrt(dimensions)


def as_pgvector(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine similarity summed in float32, as pgvector's `cosine_distance` does."""
    dot, aa, bb = (np.float32(0), np.float32(0), np.float32(0))
    for x, y in zip(a, b, strict=True):
        dot, aa, bb = dot + x * y, aa + x * x, bb + y * y
    return float(dot) / math.sqrt(float(aa) * float(bb))


def exactly(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    return float(np.dot(x, y) / np.sqrt(np.dot(x, x) * np.dot(y, y)))


def test_a_component_is_refused_by_what_it_rounds_to() -> None:
    assert vectors.parse([65519.0, 0.0, 0.0], vector(VectorType.HALFVEC), "vector")
    assert problem([65520.0, 0.0, 0.0], vector(VectorType.HALFVEC))[0] == "vector[0]"
    # The usual spelling of float32's largest is not what is wrong here.
    assert problem([3.4028235e38, 1e39, 0.0], vector())[0] == "vector[1]"


def test_halfvec_is_checked_as_it_will_be_stored() -> None:
    half = vector(VectorType.HALFVEC, Metric.COSINE)
    assert problem([1.0, -65520.0, 0.0], half) == ("vector[1]", "-65520 exceeds 65504, the limit of halfvec")
    # float16 keeps nothing of this, and little of that.
    assert "no direction" in problem([1e-9, 0.0, 0.0], half)[1]
    assert "is below 0.000106: halfvec would keep too few digits" in problem([1e-6, 2e-6, 0.0], half)[1]
    assert vectors.parse([1.1e-4, 0.0, 0.0], half, "vector")
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
