"""Which shard a key value belongs to: for one, for many, for a range.

Pure, and in agreement with `sql_predicate`: a row is where `locate` says exactly when the predicate of
that shard is true for it. Values are what `coerce` gives for the key's type; a NULL key has no place.
"""

from __future__ import annotations

import uuid
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shard_config import hashing
from shard_config.hashing import Keys
from shard_config.model import HashSharding, ListSharding, RangePart, RangeSharding, Sharding
from shard_config.ordering import below, rank
from shard_config.predicate import sql_predicate
from shard_config.values import ValueType, shown

__all__ = [
    "NoPlaceError",
    "bucket",
    "locate",
    "locate_many",
    "shard_names",
    "shards_for_range",
    "shards_for_values",
    "sql_predicate",
]

_INTEGERS = (ValueType.BIGINT, ValueType.INTEGER, ValueType.SMALLINT)


class NoPlaceError(ValueError):
    """A key value that no shard of the collection holds; `position` says which of many."""

    def __init__(self, sharding: Sharding, value: object, position: int | None = None) -> None:
        self.value, self.position = value, position
        super().__init__(f"no shard holds the {sharding.key.name} {shown(value)}")


def shard_names(sharding: Sharding) -> tuple[str, ...]:
    """Every shard that `sharding` places something on, once, in the order of the placement."""
    match sharding:
        case HashSharding():
            return tuple(dict.fromkeys(sharding.placement))
        case ListSharding():
            default = () if sharding.default is None else (sharding.default,)
            return tuple(dict.fromkeys((*sharding.values.values(), *default)))
        case RangeSharding():
            return tuple(dict.fromkeys(part.shard for part in sharding.parts))


def bucket(sharding: HashSharding, value: object) -> int:
    """The bucket of one key value.

    Raises:
        NoPlaceError: the value is None.
    """
    if value is None:
        raise NoPlaceError(sharding, value)
    return hashing.bucket(sharding.key.type, value, sharding.buckets)


def locate(sharding: Sharding, value: object) -> str:
    """The shard that holds documents with this key value.

    Raises:
        NoPlaceError: no shard does: the value is None, in no list without a default, or out of range.
    """
    shard = None
    match sharding:
        case HashSharding():
            return sharding.placement[bucket(sharding, value)]
        case ListSharding() if value is not None:
            shard = sharding.values.get(value, sharding.default)
        case RangeSharding() if value is not None:
            shard = _part_of(sharding.parts, value)
    if shard is None:
        raise NoPlaceError(sharding, value)
    return shard


def locate_many(sharding: Sharding, values: Keys) -> NDArray[np.int64]:
    """`locate` of many values at once, for bulk loads.

    Args:
        values: Python values, an integer array, or for UUIDs also their bytes of shape (n, 16).

    Returns:
        For each value the index of its shard in `shard_names(sharding)`.

    Raises:
        NoPlaceError: for the first value that no shard holds, with its position.
    """
    if not isinstance(values, np.ndarray) or values.dtype == object:
        _refuse_nulls(sharding, values)
    at = {name: index for index, name in enumerate(shard_names(sharding))}
    match sharding:
        case HashSharding():
            owners = np.array([at[name] for name in sharding.placement], dtype=np.int64)
            return owners[hashing.buckets(sharding.key.type, values, sharding.buckets)]
        case ListSharding():
            found = _look_up(sharding, _objects(sharding.key.type, values), at)
        case RangeSharding():
            found = _search(sharding, _objects(sharding.key.type, values), at)
    lost = np.flatnonzero(found < 0)
    if lost.size:
        raise NoPlaceError(sharding, _objects(sharding.key.type, values)[lost[0]], int(lost[0]))
    return found


def shards_for_values(sharding: Sharding, values: Iterable[object]) -> frozenset[str]:
    """The shards that can hold a document whose key is one of `values`; a value without place adds none."""
    found = set()
    for value in values:
        try:
            found.add(locate(sharding, value))
        except NoPlaceError:
            continue
    return frozenset(found)


def shards_for_range(
    sharding: Sharding,
    lower: object | None,
    lower_inclusive: bool,
    upper: object | None,
    upper_inclusive: bool,
) -> frozenset[str]:
    """The shards that can hold a document whose key is between the two ends; None is no end.

    Narrower than all shards for range sharding only: the other strategies scatter neighbours.
    """
    if not isinstance(sharding, RangeSharding):
        return frozenset(shard_names(sharding))
    if sharding.key.type in _INTEGERS and isinstance(lower, int) and not lower_inclusive:
        lower, lower_inclusive = lower + 1, True  # nothing lies between n and n + 1
    if lower is not None and upper is not None:
        both = lower_inclusive and upper_inclusive
        if below(upper, lower) or (not both and not below(lower, upper)):
            return frozenset()
    return frozenset(
        part.shard
        for part in sharding.parts
        if (lower is None or part.upper is None or below(lower, part.upper))
        and (upper is None or part.lower is None or _begins_within(part.lower, upper, upper_inclusive))
    )


def _begins_within(start: object, upper: object, inclusive: bool) -> bool:
    return below(start, upper) or (inclusive and not below(upper, start))


def _part_of(parts: tuple[RangePart, ...], value: Any) -> str | None:
    # The parts meet, so the first whose upper end is beyond the value is the only candidate.
    part = parts[bisect_right(parts, rank(value), hi=len(parts) - 1, key=lambda part: rank(part.upper))]
    outside = (part.lower is not None and below(value, part.lower)) or (
        part.upper is not None and not below(value, part.upper)
    )
    return None if outside else part.shard


def _refuse_nulls(sharding: Sharding, values: Keys) -> None:
    for position, value in enumerate(values):
        if value is None:
            raise NoPlaceError(sharding, value, position)


def _objects(type_: ValueType, values: Keys) -> NDArray[Any]:
    """The values in an array that compares and hashes as the Python values do."""
    if not isinstance(values, np.ndarray):
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    if values.dtype.kind == "i":
        return values
    if type_ is ValueType.UUID and values.ndim == 2:
        return _objects(type_, [uuid.UUID(bytes=row.tobytes()) for row in values])
    return _objects(type_, values.tolist())


def _look_up(sharding: ListSharding, values: NDArray[Any], at: Mapping[str, int]) -> NDArray[np.int64]:
    placed = {value: at[shard] for value, shard in sharding.values.items()}
    rest = -1 if sharding.default is None else at[sharding.default]
    return np.fromiter((placed.get(value, rest) for value in values.tolist()), np.int64, len(values))


def _search(sharding: RangeSharding, values: NDArray[Any], at: Mapping[str, int]) -> NDArray[np.int64]:
    parts = sharding.parts
    if values.dtype.kind != "i":
        places = (_part_of(parts, value) for value in values.tolist())
        return np.fromiter((-1 if name is None else at[name] for name in places), np.int64, len(values))
    owners = np.array([at[part.shard] for part in parts], dtype=np.int64)
    bounds = np.array([part.upper for part in parts[:-1]], dtype=np.int64)
    found = owners[np.searchsorted(bounds, values, side="right")]
    lowest, highest = parts[0].lower, parts[-1].upper
    if lowest is not None:
        found[np.asarray(values < lowest, dtype=bool)] = -1
    if highest is not None:
        found[np.asarray(values >= highest, dtype=bool)] = -1
    return found
