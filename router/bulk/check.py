"""Vectors of a whole chunk held to what a single request's vector is held to.

One pass of arithmetic finds the rows that may be wrong; what is wrong with them, if anything, is said by
the function that judges requests, so that the two can never disagree.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from router.decode.vectors import check_indexed, from_components
from router.query.errors import InvalidError
from shard_config.model import Collection, Metric, Quantization, Vector, VectorType

__all__ = ["beyond_index", "to_float32", "wrong_vectors"]

_HALF_BEYOND = 65520.0  # the least that rounds to infinity, not to 65504
# Float32 sums differ in their last digits by the order of their terms; what is near the bound is looked
# at one by one.
_SUSPECT_NORM2 = 3.4028234663852886e38 / 4 * 0.99
# Below these squared norms per dimension a direction may lose digits, with room for the rounding of sums.
_SHORT2 = 2.0**-124
_SHORT_HALF2 = 2.0**-26


def to_float32(components: NDArray[np.floating]) -> NDArray[np.float32]:
    """The same numbers as native float32; what is beyond it becomes infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(components, dtype=np.float32)


def wrong_vectors(vectors: NDArray[np.float32], vector: Vector) -> dict[int, str]:
    """By position, why a row of `vectors`, whose dimensions are right, cannot be stored."""
    wrong = {}
    for at in np.flatnonzero(_suspects(vectors, vector)).tolist():
        try:
            from_components(vectors[at], vector, "vector")
        except InvalidError as exc:
            wrong[at] = exc.detail
    return wrong


def beyond_index(vectors: NDArray[np.float32], collection: Collection) -> dict[int, str]:
    """By position, why a row that the table takes cannot stand in the collection's index.

    A single document is refused by the index that is there; one that is built after the rows would fail
    when they are committed, and not say which of them it was.
    """
    if collection.index.quantization is not Quantization.HALFVEC:
        return {}
    suspect = np.abs(vectors).max(axis=1, initial=0.0) >= _HALF_BEYOND
    if collection.vector.metric is Metric.COSINE:
        with np.errstate(over="ignore"):
            suspect |= ~vectors.astype(np.float16).any(axis=1)
    found = {}
    for at in np.flatnonzero(suspect).tolist():
        try:
            check_indexed(vectors[at].astype("<f4").tobytes(), collection, "vector")
        except InvalidError as exc:
            found[at] = exc.detail
    return found


def _suspects(vectors: NDArray[np.float32], vector: Vector) -> NDArray[np.bool_]:
    with np.errstate(over="ignore", invalid="ignore"):
        norm2 = np.einsum("ij,ij->i", vectors, vectors)
    # Written so that NaN is suspect.
    suspect: NDArray[np.bool_] = ~(norm2 <= _SUSPECT_NORM2)
    if vector.metric is Metric.COSINE:
        half = vector.type is VectorType.HALFVEC
        suspect |= norm2 <= vector.dimensions * (_SHORT_HALF2 if half else _SHORT2)
    if vector.type is VectorType.HALFVEC:
        # A component beyond float16's range has a norm beyond it too.
        large = np.flatnonzero(norm2 > 0.99 * _HALF_BEYOND**2)
        suspect[large] |= np.abs(vectors[large]).max(axis=1) >= _HALF_BEYOND
    return suspect
