"""What a shard's PostgreSQL knows of the values that filters compare with: `pg_stats`, ready to be looked up.

All sorting and adding up is done here, once for each reading of the statistics, so that an estimate costs
a lookup or a bisection for each condition, however many values ANALYZE has kept.

Values are looked up by equality as they are (`equal_key`), and by order as numbers (`position`): days,
microseconds, the bits of a UUID. Text is ordered by code point, as the statements order it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

import msgspec

from router.query.distribution import Distribution, Position
from router.query.metadata import Digits, digits_of
from shard_config.model import MetadataType
from shard_config.times import DistantTime, days_of, microseconds_of

__all__ = [
    "ColumnStatistics",
    "CombinedStatistics",
    "FilterIndex",
    "Lookup",
    "LookupKey",
    "PathStatistics",
    "Place",
    "TableStatistics",
    "column_statistics",
    "distinct_values",
    "equal_key",
    "from_json",
    "json_key",
    "json_kind",
    "path_statistics",
    "position",
]

# A column's name on the server, or a path within the metadata: () is the document itself.
Place: TypeAlias = str | tuple[str, ...]

_FLOAT_BITS = 1000  # what is larger may be too large to divide by a float
_JSON = json.JSONDecoder(parse_float=Decimal, parse_int=Decimal)
_JSON_KINDS = (Decimal, str, bool)
_ROUNDED = 1e-5
# Of a sample of n values in which something does not occur, it has less than 3/n with probability 0.95.
_RULE_OF_THREE = 3.0
_NAN = "NaN"  # equal to itself, as PostgreSQL has it


class ColumnStatistics(msgspec.Struct, frozen=True):
    """One column's row of `pg_stats`; shares are of all rows, NULLs included.

    Attributes:
        shares: of the most common values, by `equal_key`.
        other: of each other value, on the average.
    """

    nulls: float
    shares: dict[object, float]
    other: float
    order: Distribution


class PathStatistics(msgspec.Struct, frozen=True):
    """What ANALYZE has found at one path of the metadata, from an index or statistics on that expression.

    An array counts for each of its elements as well, since equality looks into arrays.

    Attributes:
        missing: share of the rows that have nothing there, or JSON's null.
        shares, other: as of a column, of scalars, by `json_key`.
        contained: of rows whose value is an array that has this element, among the most common values.
        sampled: of rows whose value is an array that has this element, by the bounds of the histogram.
        unsampled: the most that arrays can be which have an element that no bound has.
        orders: of numbers, strings and booleans; their bounds are a part of the sample.
    """

    missing: float
    shares: dict[object, float]
    other: float
    contained: dict[object, float]
    sampled: dict[object, float]
    unsampled: float
    orders: dict[type, Distribution]


class CombinedStatistics(msgspec.Struct, frozen=True):
    """Extended statistics over several columns.

    Attributes:
        columns: names on the server, in the order of the keys of `common`.
        dependencies: (from columns, to column, degree): knowing the first decides the second in so many rows.
        common: (share, share if the columns were independent) by the `equal_key` of each column's value,
            None for NULL.
        others: the share of the rows whose combination is not among them.
    """

    columns: tuple[str, ...]
    dependencies: tuple[tuple[frozenset[str], str, float], ...] = ()
    common: dict[tuple[object, ...], tuple[float, float]] = {}
    others: float = 1.0


class Lookup(NamedTuple):
    """A kind of condition at one place, which an index may serve.

    Texts have their `range` by code point. A `prefix` is that of a pattern, and an `element` what a value of
    the metadata is, or contains. `of` is the type of the map's index on a path, whose conditions no other
    index serves.
    """

    place: Place
    kind: Literal["equal", "range", "prefix", "element"]
    of: MetadataType | None = None


# The same without its name: a plain tuple is made in a tenth of the time, and equal to one.
LookupKey: TypeAlias = tuple[Place, str, MetadataType | None]


class FilterIndex(msgspec.Struct, frozen=True):
    """A valid index that filters may be read through; its name is the server's.

    Attributes:
        keys: what each of its columns can look up, in their order.
        predicate: of a partial index. It holds a part of the rows, so that only a statement with the very
            condition can use it, and estimates leave it out.
    """

    name: str
    method: str
    keys: tuple[tuple[Lookup, ...], ...]
    unique: bool = False
    predicate: str | None = None


class TableStatistics(msgspec.Struct, frozen=True, weakref=True, dict=True):
    """Of one collection on one shard; `rows` and `pages` are as the planner takes them, at the reading.

    Attributes:
        rows: live rows, estimated; 0 where the table has never been vacuumed or analyzed and is empty.
        counted: whether `rows` rests on a count by VACUUM or ANALYZE, and not on the table's size alone.
        pages, toast_pages: of 8 kB, of the table itself and of the large values kept beside it.
        columns, paths: by the column's name on the server, and by the path in the metadata.
    """

    rows: float
    counted: bool
    pages: int
    toast_pages: int
    columns: dict[str, ColumnStatistics] = {}
    paths: dict[tuple[str, ...], PathStatistics] = {}
    combined: tuple[CombinedStatistics, ...] = ()
    indexes: tuple[FilterIndex, ...] = ()

    @cached_property
    def missing(self) -> dict[Place, float]:
        """The share of the rows that have no value."""
        found: dict[Place, float] = {name: column.nulls for name, column in self.columns.items()}
        return found | {path: min(known.missing, 1.0) for path, known in self.paths.items()}

    @cached_property
    def orders(self) -> dict[object, Distribution]:
        """By the name of a column, or by a path and the kind of its values."""
        found: dict[object, Distribution] = {name: column.order for name, column in self.columns.items()}
        for path, known in self.paths.items():
            found |= {(path, kind): order for kind, order in known.orders.items()}
        return found

    @cached_property
    def serving(self) -> dict[LookupKey, list[FilterIndex]]:
        """The indexes that a condition of this kind may be read through, if alone."""
        found: dict[LookupKey, list[FilterIndex]] = {}
        for index in self.indexes:
            if index.predicate is None:
                # A GIN index is read by any of its keys, a btree by its first.
                for key in index.keys if index.method == "gin" else index.keys[:1]:
                    for lookup in key:
                        found.setdefault(lookup, []).append(index)
        return found

    def unique(self, column: str) -> bool:
        """Whether no two rows have the same value there."""
        key = Lookup(column, "equal")
        return any(
            index.unique and index.predicate is None and len(index.keys) == 1 and key in index.keys[0]
            for index in self.indexes
        )


def distinct_values(n_distinct: float, rows: float) -> float:
    """`pg_stats.n_distinct` as a number of values: a negative one is a share of the rows."""
    return max(n_distinct if n_distinct >= 0 else -n_distinct * rows, 1.0)


def equal_key(value: object) -> object:
    """What is equal and hashes alike for values of one column that PostgreSQL holds to be equal."""
    return _NAN if value != value else value


def json_key(value: object) -> object:
    """The same for scalars of the metadata: numbers are compared digit by digit, and true is not 1."""
    return ("boolean", value) if isinstance(value, bool) else digits_of(value)


def position(value: object) -> Position:
    """Where `value` stands in the order of its type; NaN is above all other numbers."""
    if value != value:
        return math.inf
    match value:
        case str() | float():
            return value
        case int():
            return value if value.bit_length() < _FLOAT_BITS else math.inf if value > 0 else -math.inf
        case Decimal():
            return float(value)
        case datetime():
            return microseconds_of(value)
        case date():
            return days_of(value)
        case DistantTime(_, count):
            return count
        case UUID():
            return value.int
        case Digits(text):
            return float(text)
    raise TypeError(f"values of {type(value).__name__} have no place in an order")


def column_statistics(
    nulls: float,
    distinct: float,
    common: Sequence[tuple[object, float]],
    bounds: Sequence[object],
    *,
    quantiles: bool = True,
) -> ColumnStatistics:
    """Of a column: `common` values with their shares, and the histogram's `bounds`.

    `distinct` counts its values; `quantiles` are bounds that the server sorts as the router does.
    """
    shares = {equal_key(value): share for value, share in common}
    others = _rest(nulls, shares.values())
    distinct_others = max(distinct - len(shares), 1.0)
    return ColumnStatistics(
        nulls,
        shares,
        # var_eq_const: one that is not among the common values is no more frequent than these.
        min(others / distinct_others, *shares.values(), 1.0),
        _distribution(common, bounds, quantiles, others, distinct_others),
    )


def path_statistics(
    nulls: float, distinct: float, common: Sequence[tuple[str, float]], bounds: Sequence[str]
) -> PathStatistics:
    """Of a path in the metadata, whose values came as JSON."""
    values = [(from_json(text), share) for text, share in common]
    sample = [from_json(text) for text in bounds]
    count = len(sample) or 1
    others = _rest(nulls, [share for _, share in values])
    absent = others * sum(value is None for value in sample) / count
    others -= absent
    distinct_others = max(distinct - len(values), 1.0)
    arrays = sum(isinstance(value, list) for value in sample)
    return PathStatistics(
        missing=nulls + absent + sum(share for value, share in values if value is None),
        shares={json_key(value): share for value, share in values if not isinstance(value, (list, dict))},
        other=min(
            others * (1.0 - arrays / count) / distinct_others,
            min((share for _, share in values), default=1.0),
        ),
        contained=_elements(values),
        sampled=_elements([(value, others / count) for value in sample]),
        unsampled=others * min(_RULE_OF_THREE, arrays) / count,
        orders={
            kind: _distribution(
                [(value, share) for value, share in values if type(value) is kind],
                bounds_of_kind := [value for value in sample if type(value) is kind],
                # jsonb orders strings by the database's locale.
                kind is not str,
                others * len(bounds_of_kind) / count,
                distinct_others,
            )
            for kind in _JSON_KINDS
        },
    )


def from_json(text: str) -> object:
    """The value, its numbers with all their digits."""
    value: object = _JSON.decode(text)
    return value


def json_kind(value: object) -> type:
    """What `PathStatistics.orders` has the order of such values by."""
    return type(value) if isinstance(value, (bool, str)) else Decimal


def _rest(nulls: float, shares: Iterable[float]) -> float:
    """What NULLs and common values leave of all rows: nothing, where it is what 4-byte floats round away."""
    rest = 1.0 - nulls - sum(shares)
    return rest if rest > _ROUNDED else 0.0


def _distribution(
    common: Iterable[tuple[object, float]],
    bounds: Sequence[object],
    quantiles: bool,
    others: float,
    distinct: float,
) -> Distribution:
    """`others` is the share of values that are not common, `distinct` how many different ones these are."""
    ordered: list[tuple[Any, float]] = sorted((position(value), share) for value, share in common)
    places: list[Any] = [position(bound) for bound in bounds]
    return Distribution(
        tuple(place for place, _ in ordered),
        (0.0, *accumulate(share for _, share in ordered)),
        tuple(sorted(places)),
        quantiles,
        *((others, distinct, 0.0) if len(places) > 1 else (0.0, 1.0, others)),
    )


def _elements(values: Iterable[tuple[object, float]]) -> dict[object, float]:
    """By scalar: the sum of what the arrays count for that hold it."""
    found: dict[object, float] = {}
    for value, amount in values:
        if isinstance(value, list):
            for key in {json_key(one) for one in value if not isinstance(one, (list, dict))}:
                found[key] = found.get(key, 0.0) + amount
    return found
