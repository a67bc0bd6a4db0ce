"""A vector of a request becomes little-endian float32 bytes that every distance is defined for.

Invariant: what `parse` returns has the collection's dimensions, finite components that its type can
hold, a squared norm that float32 sums without overflow, and where the metric is cosine a direction that
keeps its digits. One dot product tells all of that about a good vector; only a bad one is searched for
the reason.
"""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray

from router.query.errors import InvalidError
from shard_config.model import Collection, Metric, Quantization, Vector, VectorType

__all__ = ["check_indexed", "from_components", "parse"]

_FLOAT32_MAX = 3.4028234663852886e38
_HALF_MAX = 65504.0
# The squared distance of two vectors is at most four times the larger squared norm.
_NORM2_MAX = _FLOAT32_MAX / 4
# pgvector's cosine sums squares and products in float32, where each of them is off by at most 2**-150 if it
# is below the normal range. The squared norm that is this times the dimensions hides that in its last bit.
_COSINE_NORM2 = 2.0**-126
# Float16 rounds components below its normal range to multiples of 2**-24. The same for its last bit, of 11.
_COSINE_HALF_NORM2 = 2.0**-28


def parse(raw: list[float] | bytes, vector: Vector, path: str) -> bytes:
    """Components, or little-endian float32, as checked float32 bytes.

    Raises:
        InvalidError: with `path`, and the component that is at fault.
    """
    if isinstance(raw, bytes):
        data = raw
        _check_length(data, vector.dimensions, path)
    else:
        data = _pack(raw, vector.dimensions, path)
    _check(np.frombuffer(data, dtype="<f4"), vector, path)
    return data


def from_components(components: NDArray[np.floating], vector: Vector, path: str) -> bytes:
    """The same for an array of any float type.

    Raises:
        InvalidError: as `parse`.
    """
    if components.shape != (vector.dimensions,):
        raise _dimensions(components.size, vector.dimensions, path)
    with np.errstate(over="ignore"):
        single = components.astype("<f4")
    _check(single, vector, path)
    return single.tobytes()


def check_indexed(data: bytes, collection: Collection, path: str) -> None:
    """Refuse a parsed vector that the collection's index, holding less than its column, cannot hold.

    Raises:
        InvalidError: as `parse`.
    """
    if collection.index.quantization is not Quantization.HALFVEC:
        return
    norm2 = _check_half(np.frombuffer(data, dtype="<f4"), path, "the index's halfvec")
    if norm2 == 0.0 and collection.vector.metric is Metric.COSINE:
        raise InvalidError.at(path, "is zero in the index's halfvec, which leaves cosine no direction")


def _pack(components: list[float], dimensions: int, path: str) -> bytes:
    if len(components) != dimensions:
        raise _dimensions(len(components), dimensions, path)
    try:
        return struct.pack(f"<{dimensions}f", *components)
    except OverflowError:
        i = next(i for i, x in enumerate(components) if _overflows(x))
        raise InvalidError.at(f"{path}[{i}]", f"{components[i]:g} is beyond float32") from None


def _overflows(component: float) -> bool:
    """Whether float32's nearest is infinite: not so for 3.4028235e38, the usual spelling of its largest."""
    try:
        struct.pack("<f", component)
    except OverflowError:
        return True
    return False


def _check_length(data: bytes, dimensions: int, path: str) -> None:
    if len(data) % 4:
        raise InvalidError.at(path, f"{len(data)} bytes of base64 are no whole number of float32 components")
    if len(data) != 4 * dimensions:
        raise _dimensions(len(data) // 4, dimensions, path)


def _check(components: NDArray[np.float32], vector: Vector, path: str) -> None:
    # Overflow is what this looks for; numpy would warn of it as well.
    with np.errstate(over="ignore", invalid="ignore"):
        norm2 = float(np.dot(components, components))
    # Written so that NaN fails it.
    if not norm2 <= _NORM2_MAX:
        raise _too_large(components, path)
    half = vector.type is VectorType.HALFVEC
    if half:
        norm2 = _check_half(components, path, "halfvec")
    if vector.metric is Metric.COSINE:
        least = len(components) * (_COSINE_HALF_NORM2 if half else _COSINE_NORM2)
        # A float32 sum of such squares has lost digits itself.
        if norm2 < 2 * least:
            _check_direction(components, least, half, path)


def _check_direction(components: NDArray[np.float32], least: float, half: bool, path: str) -> None:
    kept = (components.astype(np.float16) if half else components).astype(np.float64)
    norm2 = float(np.dot(kept, kept))
    if norm2 == 0.0:
        raise InvalidError.at(path, "a zero vector has no direction, which cosine distance needs")
    if norm2 < least:
        limit = f"its length {math.sqrt(norm2):.3g} is below {math.sqrt(least):.3g}"
        why = "halfvec would keep too few digits" if half else "its squares would lose digits in float32"
        raise InvalidError.at(path, f"{limit}: {why}; cosine distance takes the vector at any larger scale")


def _check_half(components: NDArray[np.float32], path: str, type_: str) -> float:
    """The squared norm of what float16 keeps of them: small components become zero."""
    with np.errstate(over="ignore"):
        kept = components.astype(np.float16).astype(np.float32)
    i = int(np.argmax(np.abs(components)))
    # What rounds to the largest, such as 65510, is taken.
    if math.isinf(kept[i]):
        raise InvalidError.at(
            f"{path}[{i}]", f"{components[i]:g} exceeds {_HALF_MAX:g}, the limit of {type_}"
        )
    return float(np.dot(kept, kept))


def _too_large(components: NDArray[np.float32], path: str) -> InvalidError:
    bad = np.flatnonzero(~np.isfinite(components))
    if bad.size:
        i = int(bad[0])
        return InvalidError.at(f"{path}[{i}]", f"{components[i]} is not a finite number")
    norm = math.sqrt(float(np.dot(components.astype(np.float64), components.astype(np.float64))))
    limit = math.sqrt(_NORM2_MAX)
    return InvalidError.at(path, f"its length {norm:g} exceeds {limit:g}: distances would overflow float32")


def _dimensions(got: int, wanted: int, path: str) -> InvalidError:
    return InvalidError.at(path, f"has {got} dimensions, but the collection has {wanted}")
