"""What share of the rows of some tables a single condition of a filter keeps.

The arithmetic is that of PostgreSQL's planner (src/backend/utils/adt/selfuncs.c); `router.query.selectivity`
says where it departs, and combines the conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from itertools import repeat
from math import prod
from typing import Any, TypeAlias

from router.query.distribution import Distribution
from router.query.filter import Contains, Field, Like
from router.query.histogram import Interval, Pattern
from router.query.metadata import may_be_index
from router.query.statistics import (
    FilterIndex,
    LookupKey,
    PathStatistics,
    Place,
    TableStatistics,
    equal_key,
    from_json,
    json_key,
)
from shard_config.model import MetadataType

__all__ = [
    "Condition",
    "ContainsElements",
    "Equals",
    "Found",
    "Missing",
    "Ordered",
    "Shares",
    "Tables",
    "are_known",
    "equal",
    "found_by",
    "like",
    "place_of",
    "within",
]

# Shares of the rows of some tables: the most and the least of each. One list where all of them are known.
Shares: TypeAlias = tuple[list[float], list[float]]
# For each table: the share of its rows that indexes bring, at most and at least, and which. The lesser of two
# is the one to take: what is known to bring few comes before what may.
Found: TypeAlias = list[tuple[float, float, tuple[str, ...]]]
Tables: TypeAlias = Sequence[TableStatistics]

# As in router.postgres.conditions: longer lists of JSON are looked up in a hash table, and not in an index.
_LISTED = 16
# Of a column or path without statistics.
_UNSEEN = Distribution(unknown=1.0)


class Condition:
    """A filter or a part of one; `lookup` is how an index may find what it keeps."""

    lookup: LookupKey | None = None

    def shares(self, tables: Tables) -> Shares:
        """What it keeps of each table."""
        raise NotImplementedError

    def read(self, tables: Tables) -> tuple[Shares, Found | None]:
        """The shares that it keeps, and those that the cheapest index for it brings."""
        shares = self.shares(tables)
        indexes = self.lookup and tables[0].serving.get(self.lookup)
        return shares, found_by(shares, indexes[0]) if indexes else None


def found_by(shares: Shares, index: FilterIndex) -> Found:
    return [*zip(*shares, repeat((index.name,)))]


def are_known(shares: Shares) -> bool:
    """Of every table."""
    return shares[0] is shares[1]


def _opened(shares: list[float | None]) -> Shares:
    """None is unknown."""
    if None in shares:
        return [1.0 if one is None else one for one in shares], [one or 0.0 for one in shares]
    known: Any = shares
    return known, known


def place_of(field: Field) -> Place:
    return field.path if field.column is None else field.column.column


def equal(field: Field, values: Iterable[object]) -> Condition:
    if field.column is None:
        return _JsonEquals(field, [*dict.fromkeys(map(json_key, values))])
    return Equals(field.column.column, [*dict.fromkeys(map(equal_key, values))])


def _typed(field: Field, values: Sequence[object]) -> MetadataType | None:
    """The type of the map's index on a path if it is that of all `values`, given by `json_key`."""
    if field.index is None or field.index is MetadataType.ARRAY:
        return None
    kinds = (str,) if field.index is MetadataType.TEXT else (int, Decimal)
    fits = all(isinstance(one, kinds) and not isinstance(one, bool) for one in values)
    return field.index if fits else None


class Equals(Condition):
    """A column is one of some different values, given by `equal_key`."""

    def __init__(self, column: str, keys: Sequence[object]) -> None:
        self.column = column
        self.keys = keys
        self.lookup = column, "equal", None

    def shares(self, tables: Tables) -> Shares:
        keys = self.keys
        shares: list[float | None] = []
        for table in tables:
            known = table.columns.get(self.column)
            if known is not None and len(keys) == 1:
                shares.append(known.shares.get(keys[0], known.other))
            elif known is not None:
                # scalararraysel: different values exclude each other.
                shares.append(min(sum(map(known.shares.get, keys, repeat(known.other))), 1.0))
            elif not keys:
                shares.append(0.0)
            elif table.rows >= 1.0 and table.unique(self.column):
                # var_eq_const: of a unique column, no statistics are needed.
                shares.append(min(len(keys) / table.rows, 1.0))
            else:
                shares.append(None)
        return _opened(shares)


class _JsonEquals(Condition):
    """The value at a path of the metadata, or an element of the array there, is one of some scalars."""

    def __init__(self, field: Field, keys: Sequence[object]) -> None:
        self._path = field.path
        self._keys = keys
        if len(keys) <= _LISTED:
            of = _typed(field, keys)
            self.lookup = field.path, "element" if of is None else "equal", of

    def shares(self, tables: Tables) -> Shares:
        return _of_path(self._path, self._share, tables, unknown=bool(self._keys))

    def _share(self, known: PathStatistics) -> tuple[float, float]:
        most = least = 0.0
        for key in self._keys:
            share = known.shares.get(key, known.other)
            high, low = _in_arrays(known, key)
            most += share + high
            least += share + low
        return min(most, 1.0), min(least, 1.0)


class ContainsElements(Condition):
    """An array of the metadata has one of some elements, or every one; objects are not known."""

    def __init__(self, filter: Contains) -> None:
        elements, path = filter.elements, filter.field.path
        self._path = path
        self._every = filter.every
        self._scalar = not any(element.startswith("{") for element in elements)
        self._keys = [*dict.fromkeys(json_key(from_json(one)) for one in elements)] if self._scalar else []
        if self._every or not self._scalar or len(elements) <= _LISTED:
            whole = filter.field.index is None and not any(map(may_be_index, path))
            self.lookup = () if whole else path, "element", None

    def shares(self, tables: Tables) -> Shares:
        return _of_path(self._path, self._share, tables, unknown=bool(self._keys) or not self._scalar)

    def _share(self, known: PathStatistics) -> tuple[float, float]:
        if not self._scalar:
            return 1.0, 0.0
        shares = [_in_arrays(known, key) for key in self._keys]
        if self._every:
            return prod([high for high, _ in shares]), prod([low for _, low in shares])
        return min(sum([high for high, _ in shares]), 1.0), min(sum([low for _, low in shares]), 1.0)


def _of_path(
    path: tuple[str, ...],
    share: Callable[[PathStatistics], tuple[float, float]],
    tables: Tables,
    *,
    unknown: bool,
) -> Shares:
    most: list[float] = []
    least: list[float] = []
    for table in tables:
        known = table.paths.get(path)
        high, low = (float(unknown), 0.0) if known is None else share(known)
        most.append(high)
        least.append(low)
    return most, most if most == least else least


def _in_arrays(known: PathStatistics, key: object) -> tuple[float, float]:
    """Rows with an array that has this element."""
    share = known.contained.get(key, 0.0)
    sampled = known.sampled.get(key)
    if sampled is None:
        return share + known.unsampled, share
    return share + sampled, share + sampled


class Missing(Condition):
    """There is no value, which an index in order finds of a column as it finds a value."""

    def __init__(self, place: Place) -> None:
        self.place = place
        if isinstance(place, str):
            self.lookup = place, "range", None

    def shares(self, tables: Tables) -> Shares:
        return _opened([table.missing.get(self.place) for table in tables])


class Ordered(Condition):
    """What is read from the order of the values: of a column, or of those of one kind in the metadata."""

    def __init__(self, field: Field, kind: type, kept: Interval | Pattern, lookup: LookupKey | None) -> None:
        self.place = place = place_of(field)
        self.lookup = lookup
        self._order = place if field.column is not None else (place, kind)
        self._kept = kept

    def shares(self, tables: Tables) -> Shares:
        orders = [table.orders.get(self._order, _UNSEEN) for table in tables]
        least = self._kept.shares(orders)
        unknown = [order.unknown for order in orders]
        if not any(unknown):
            return least, least
        return [min(sum(both), 1.0) for both in zip(least, unknown, strict=True)], least


def within(field: Field, kind: type, interval: Interval) -> Ordered:
    if field.column is not None:
        return Ordered(field, kind, interval, (field.column.column, "range", None))
    of = _typed(field, [kind()])
    # Texts of the metadata are compared as such, and not as jsonb, which is what a btree has there.
    served = kind is not str or of is not None
    return Ordered(field, kind, interval, (field.path, "range", of) if served else None)


def like(filter: Like) -> Ordered:
    field, pattern = filter.field, Pattern(filter.pattern, filter.ignore_case)
    lookup = (place_of(field), "prefix", _typed(field, [""])) if pattern.prefix else None
    return Ordered(field, str, pattern, lookup)
