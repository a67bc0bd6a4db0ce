"""How many of a shard's rows a filter keeps, from what its PostgreSQL knows of the values.

The arithmetic is that of PostgreSQL's planner (src/backend/utils/adt/selfuncs.c, like_support.c,
src/backend/optimizer/path/clausesel.c, src/backend/statistics/), so that the router decides by what the
server would believe too; it departs where a filter means something else than the operators would (two-valued
logic, equality that looks into arrays, comparisons within one type of JSON), and where the planner falls
back on a constant: a condition that no statistics speak of is unknown here.

All shards are estimated at once, condition by condition: what depends on the filter alone is done once.

Invariant: of each share there are the most and the least that the statistics allow; the two differ only by
conditions that are unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import reduce
from itertools import product, repeat
from math import prod
from operator import mul
from typing import Any, TypeAlias

import msgspec

from router.query.filter import And, Compare, Contains, Exists, Field, Filter, In, Like, Not, Or
from router.query.histogram import Interval, Pattern
from router.query.metadata import may_be_index
from router.query.statistics import (
    CombinedStatistics,
    Distribution,
    FilterIndex,
    LookupKey,
    PathStatistics,
    Place,
    TableStatistics,
    equal_key,
    from_json,
    json_key,
    json_kind,
    position,
)
from shard_config.model import MetadataType

__all__ = ["Estimate", "estimates"]


class Estimate(msgspec.Struct, frozen=True):
    """What is known, before a search, of the rows that a filter keeps on one shard.

    Attributes:
        least, most: shares of the shard's rows; equal where statistics stand behind every condition.
        indexes: names of those through which the matching rows can be found; empty where none serves.
        indexed: the share of the rows that these bring, matching or not, at most; None where no index
            serves, and where nothing says how many it brings.
    """

    least: float
    most: float
    indexes: tuple[str, ...] = ()
    indexed: float | None = None

    @property
    def known(self) -> bool:
        return self.least == self.most

    @property
    def share(self) -> float:
        """The share of the rows that match; where it is not `known`, the most that it can be."""
        return self.most


# Shares of the rows of some tables: the most and the least of each. One list where all of them are known.
_Shares: TypeAlias = tuple[list[float], list[float]]
# For each table: the share of its rows that indexes bring, at most and at least, and which. The lesser of two
# is the one to take: what is known to bring few comes before what may.
_Found: TypeAlias = list[tuple[float, float, tuple[str, ...]]]
_Tables: TypeAlias = Sequence[TableStatistics]

# Of a sample of n values in which something does not occur, it has less than 3/n with probability 0.95.
_RULE_OF_THREE = 3.0
# As in router.postgres.conditions: longer lists of JSON are looked up in a hash table, and not in an index.
_LISTED = 16
# Of a column or path without statistics.
_UNSEEN = Distribution(unknown=1.0)


def estimates(filter: Filter, tables: _Tables) -> list[Estimate]:
    """The share of each table's rows that the filter keeps, and the share that an index for it brings."""
    if any([table.indexes is not tables[0].indexes for table in tables]):
        # Which index serves what is decided for all of them.
        return [one for table in tables for one in estimates(filter, [table])]
    (most, least), found = _prepared(filter).read(tables)
    if found is None:
        return [*map(Estimate, least, most)]
    return [
        Estimate(low, high, names, None if brought == 1.0 and surely == 0.0 else max(brought, high))
        for low, high, (brought, surely, names) in zip(least, most, found, strict=True)
    ]


class _Condition:
    """A filter or a part of one; `lookup` is how an index may find what it keeps."""

    lookup: LookupKey | None = None

    def shares(self, tables: _Tables) -> _Shares:
        """What it keeps of each table."""
        raise NotImplementedError

    def read(self, tables: _Tables) -> tuple[_Shares, _Found | None]:
        """The shares that it keeps, and those that the cheapest index for it brings."""
        shares = self.shares(tables)
        indexes = self.lookup and tables[0].serving.get(self.lookup)
        return shares, _found(shares, indexes[0]) if indexes else None


def _found(shares: _Shares, index: FilterIndex) -> _Found:
    return [*zip(*shares, repeat((index.name,)))]


def _prepared(filter: Filter) -> _Condition:
    return _KINDS[type(filter)](filter)


def _comparison(filter: Compare) -> _Condition:
    field, value = filter.field, filter.value
    if filter.op == "=":
        return _equal(field, (value,))
    interval = Interval()
    interval.narrow(filter.op, position(value))
    return _within(field, json_kind(value), interval)


def _conjunction(filter: And) -> _Condition:
    """All bounds of one value are one condition."""
    conditions: list[_Condition] = []
    ranges: dict[tuple[Place, type], tuple[Field, Interval]] = {}
    for part in _flat(filter.parts):
        if type(part) is Compare and part.op != "=":
            field, value = part.field, part.value
            key = _place(field), json_kind(value) if field.column is None else object
            if key not in ranges:
                ranges[key] = field, Interval()
            ranges[key][1].narrow(part.op, position(value))
        else:
            conditions.append(_prepared(part))
    for (_, kind), (field, interval) in ranges.items():
        conditions.append(_within(field, kind, interval))
    return conditions[0] if len(conditions) == 1 else _All(conditions)


def _flat(parts: Iterable[Filter]) -> list[Filter]:
    """The parts, and those of conjunctions among them."""
    flat: list[Filter] = []
    for part in parts:
        if type(part) is And:
            flat += _flat(part.parts)
        else:
            flat.append(part)
    return flat


def _disjunction(filter: Or) -> _Condition:
    """Equalities with one column exclude each other, and its values that it is missing."""
    alternatives: list[_Condition] = []
    equal: dict[str, dict[object, None]] = {}
    values: dict[Place, list[_Condition]] = {}
    missing: dict[Place, _Condition] = {}
    for part in filter.parts:
        condition = _prepared(part)
        if type(part) is And:
            alternatives.append(condition)
        elif isinstance(condition, _Equals):
            equal.setdefault(condition.column, {}).update(dict.fromkeys(condition.keys))
        elif isinstance(condition, _Missing):
            missing[condition.place] = condition
        elif isinstance(condition, _Ordered):
            values.setdefault(condition.place, []).append(condition)
        else:
            alternatives.append(condition)
    for column, keys in equal.items():
        values.setdefault(column, []).append(_Equals(column, [*keys]))
    for place, conditions in values.items():
        if place in missing:
            present = conditions[0] if len(conditions) == 1 else _Any(conditions)
            alternatives.append(_Any([present, missing.pop(place)], exclusive=True))
        else:
            alternatives += conditions
    alternatives += missing.values()
    if not alternatives:
        return _Complement(_All([]))
    if len(alternatives) == 1 and isinstance(alternatives[0], _Compound):
        return alternatives[0]
    return _Any(alternatives)


def _negation(filter: Not) -> _Condition:
    part = filter.part
    return _Missing(_place(part.field)) if type(part) is Exists else _Complement(_prepared(part))


def _place(field: Field) -> Place:
    return field.path if field.column is None else field.column.column


def _times(one: _Shares, other: _Shares) -> _Shares:
    most = [*map(mul, one[0], other[0])]
    return most, most if _known(one) and _known(other) else [*map(mul, one[1], other[1])]


def _known(shares: _Shares) -> bool:
    return shares[0] is shares[1]


def _opened(shares: list[float | None]) -> _Shares:
    """None is unknown."""
    if None in shares:
        return [1.0 if one is None else one for one in shares], [one or 0.0 for one in shares]
    known: Any = shares
    return known, known


# --- combinations ---


class _Compound(_Condition):
    """What knows of itself which indexes serve it."""

    def shares(self, tables: _Tables) -> _Shares:
        return self.read(tables)[0]

    def read(self, tables: _Tables) -> tuple[_Shares, _Found | None]:
        raise NotImplementedError


class _All(_Compound):
    """clauselist_selectivity: as if conditions were independent, unless extended statistics know better."""

    def __init__(self, parts: Sequence[_Condition]) -> None:
        self._parts = parts
        self._lookups: dict[LookupKey, list[int]] = {}
        # The first equality with each column, of which extended statistics may speak.
        self._equal: dict[int, _Equals] = {}
        columns: set[str] = set()
        for i, part in enumerate(parts):
            if part.lookup is not None:
                self._lookups.setdefault(part.lookup, []).append(i)
            if isinstance(part, _Equals) and part.column not in columns:
                self._equal[i] = part
                columns.add(part.column)

    def read(self, tables: _Tables) -> tuple[_Shares, _Found | None]:
        best: _Found | None = None
        kept: list[_Shares] = []
        for part in self._parts:
            if isinstance(part, _Compound):
                shares, found = part.read(tables)
                best = _cheaper(best, found)
            else:
                shares = part.shares(tables)
            kept.append(shares)
        for lookup in self._lookups:
            for index in tables[0].serving.get(lookup, ()):
                best = _cheaper(best, _found(self._product(self._served(index), kept, tables), index))
        return self._product(range(len(kept)), kept, tables), best

    def _served(self, index: FilterIndex) -> list[int]:
        """Numbers of the conditions that decide which part of the index is read."""
        served: list[int] = []
        for key in index.keys:
            goes_on = index.method == "gin"
            for lookup in key:
                for i in self._lookups.get(lookup, ()):
                    served.append(i)
                    # A btree is read by its next key as well while the one before has to be equal.
                    goes_on = goes_on or lookup.kind == "equal"
            if not goes_on:
                break
        return served

    def _product(self, numbers: Sequence[int], kept: Sequence[_Shares], tables: _Tables) -> _Shares:
        """Of the conditions with these numbers."""
        equal = [i for i in numbers if i in self._equal] if len(self._equal) > 1 else ()
        if len(equal) > 1 and any([table.combined for table in tables]):
            parts = [self._together(equal, kept, tables), *[kept[i] for i in numbers if i not in equal]]
        else:
            parts = [kept[i] for i in numbers]
        if not parts:
            every = [1.0] * len(tables)
            return every, every
        return reduce(_times, parts)

    def _together(self, equal: Sequence[int], kept: Sequence[_Shares], tables: _Tables) -> _Shares:
        """Of equalities with different columns, which are not independent perhaps."""
        keys = {self._equal[i].column: self._equal[i].keys for i in equal}
        most: list[float] = []
        least: list[float] = []
        for of_table, table in enumerate(tables):
            high = low = 1.0
            alone: dict[str, float] = {}
            for i, column in zip(equal, keys, strict=True):
                upper, lower = kept[i][0][of_table], kept[i][1][of_table]
                if upper == lower:
                    alone[column] = upper
                else:
                    high *= upper
                    low *= lower
            share = _together(alone, keys, table.combined)
            most.append(high * share)
            least.append(low * share)
        return most, most if most == least else least


class _Any(_Compound):
    """clauselist_selectivity_or: as if the conditions were independent; a BitmapOr of all their indexes.

    `exclusive`: no row meets two of them.
    """

    def __init__(self, parts: Sequence[_Condition], *, exclusive: bool = False) -> None:
        self._parts = parts
        self._either = _sum if exclusive else _either

    def read(self, tables: _Tables) -> tuple[_Shares, _Found | None]:
        shares, found = self._parts[0].read(tables)
        for part in self._parts[1:]:
            more, indexes = part.read(tables)
            most = self._either(shares[0], more[0])
            known = _known(shares) and _known(more)
            shares = most, most if known else self._either(shares[1], more[1])
            found = _both(found, indexes)
        return shares, found


def _either(shares: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one + other - one * other for one, other in zip(shares, others, strict=True)]


def _sum(shares: Sequence[float], others: Sequence[float]) -> list[float]:
    return [min(one + other, 1.0) for one, other in zip(shares, others, strict=True)]


def _both(one: _Found | None, other: _Found | None) -> _Found | None:
    """Two scans of indexes, of which a BitmapOr is made."""
    if one is None or other is None:
        return None
    return [
        (min(most + high, 1.0), min(least + low, 1.0), tuple(sorted({*names, *more})))
        for (most, least, names), (high, low, more) in zip(one, other, strict=True)
    ]


def _cheaper(one: _Found | None, other: _Found | None) -> _Found | None:
    return other if one is None else one if other is None else [*map(min, one, other)]


class _Complement(_Compound):
    """All rows that another condition does not keep, which no index finds."""

    def __init__(self, part: _Condition) -> None:
        self._part = part

    def read(self, tables: _Tables) -> tuple[_Shares, _Found | None]:
        shares = self._part.shares(tables)
        least = [1.0 - share for share in shares[0]]
        return (least if _known(shares) else [1.0 - share for share in shares[1]], least), None


# --- single conditions ---


def _equal(field: Field, values: Iterable[object]) -> _Condition:
    if field.column is None:
        return _JsonEquals(field, [*dict.fromkeys(map(json_key, values))])
    return _Equals(field.column.column, [*dict.fromkeys(map(equal_key, values))])


def _typed(field: Field, values: Sequence[object]) -> MetadataType | None:
    """The type of the map's index on a path if it is that of all `values`, given by `json_key`."""
    if field.index is None or field.index is MetadataType.ARRAY:
        return None
    kinds = (str,) if field.index is MetadataType.TEXT else (int, Decimal)
    fits = all(isinstance(one, kinds) and not isinstance(one, bool) for one in values)
    return field.index if fits else None


class _Equals(_Condition):
    """A column is one of some different values, given by `equal_key`."""

    def __init__(self, column: str, keys: Sequence[object]) -> None:
        self.column = column
        self.keys = keys
        self.lookup = column, "equal", None

    def shares(self, tables: _Tables) -> _Shares:
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


class _JsonEquals(_Condition):
    """The value at a path of the metadata, or an element of the array there, is one of some scalars."""

    def __init__(self, field: Field, keys: Sequence[object]) -> None:
        self._path = field.path
        self._keys = keys
        if len(keys) <= _LISTED:
            of = _typed(field, keys)
            self.lookup = field.path, "element" if of is None else "equal", of

    def shares(self, tables: _Tables) -> _Shares:
        return _of_path(self._path, self._share, tables, unknown=bool(self._keys))

    def _share(self, known: PathStatistics) -> tuple[float, float]:
        most = least = 0.0
        for key in self._keys:
            share = known.shares.get(key, known.other)
            high, low = _in_arrays(known, key)
            most += share + high
            least += share + low
        return min(most, 1.0), min(least, 1.0)


class _Contains(_Condition):
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

    def shares(self, tables: _Tables) -> _Shares:
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
    tables: _Tables,
    *,
    unknown: bool,
) -> _Shares:
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
    if not known.arrays:
        return share, share
    found = known.sampled.get(key, 0.0)
    if found:
        share += known.others * found / known.sample
        return share, share
    return share + known.others * min(_RULE_OF_THREE, known.arrays) / known.sample, share


class _Missing(_Condition):
    """There is no value, which an index in order finds of a column as it finds a value."""

    def __init__(self, place: Place) -> None:
        self.place = place
        if isinstance(place, str):
            self.lookup = place, "range", None

    def shares(self, tables: _Tables) -> _Shares:
        return _opened([table.missing.get(self.place) for table in tables])


class _Ordered(_Condition):
    """What is read from the order of the values: of a column, or of those of one kind in the metadata."""

    def __init__(self, field: Field, kind: type, kept: Interval | Pattern, lookup: LookupKey | None) -> None:
        self.place = place = _place(field)
        self.lookup = lookup
        self._order = place if field.column is not None else (place, kind)
        self._kept = kept

    def shares(self, tables: _Tables) -> _Shares:
        orders = [table.orders.get(self._order, _UNSEEN) for table in tables]
        least = self._kept.shares(orders)
        unknown = [order.unknown for order in orders]
        return [min(sum(one), 1.0) for one in zip(least, unknown, strict=True)] if any(
            unknown
        ) else least, least


def _within(field: Field, kind: type, interval: Interval) -> _Ordered:
    if field.column is not None:
        return _Ordered(field, kind, interval, (field.column.column, "range", None))
    of = _typed(field, [kind()])
    # Texts of the metadata are compared as such, and not as jsonb, which is what a btree has there.
    served = kind is not str or of is not None
    return _Ordered(field, kind, interval, (field.path, "range", of) if served else None)


def _like(filter: Like) -> _Ordered:
    field, pattern = filter.field, Pattern(filter.pattern, filter.ignore_case)
    lookup = (_place(field), "prefix", _typed(field, [""])) if pattern.prefix else None
    return _Ordered(field, str, pattern, lookup)


_KINDS: dict[type, Callable[[Any], _Condition]] = {
    Compare: _comparison,
    In: lambda filter: _equal(filter.field, filter.values),
    And: _conjunction,
    Or: _disjunction,
    Not: _negation,
    Exists: lambda filter: _Complement(_Missing(_place(filter.field))),
    Contains: _Contains,
    Like: _like,
}


# --- extended statistics ---


def _together(
    alone: dict[str, float], keys: Mapping[str, Sequence[object]], combined: Sequence[CombinedStatistics]
) -> float:
    """statext_clauselist_selectivity: by the columns' common combinations, then by what decides what.

    `alone` are the shares of equalities with these columns; it is used up.
    """
    share = 1.0
    for known in combined:
        if known.common and len(alone) > 1 and all(map(alone.__contains__, known.columns)):
            values = [keys[name] for name in known.columns]
            share *= _by_combinations(known, values, [alone.pop(name) for name in known.columns])
    for known in combined:
        names = {*alone}
        for given, decided, degree in known.dependencies if len(names) > 1 else ():
            if decided in names and given <= names:
                # clauselist_apply_dependencies
                before, after = prod([alone[name] for name in given]), alone.pop(decided)
                implied = degree if before <= after else degree * after / before
                share *= implied + (1.0 - degree) * after
                names.discard(decided)
    return min(share * prod(alone.values()), 1.0)


def _by_combinations(
    known: CombinedStatistics, keys: Sequence[Sequence[object]], alone: Sequence[float]
) -> float:
    """mcv_combine_selectivities: the combinations that match, and what the columns say of the others."""
    common = known.common
    if prod(map(len, keys)) <= len(common):
        found = [common[one] for one in product(*keys) if one in common]
    else:
        sets = [set(some) for some in keys]
        found = [shares for one, shares in common.items() if all(map(set.__contains__, sets, one))]
    share = independent = 0.0
    for actual, as_if in found:
        share += actual
        independent += as_if
    others = prod(alone) - independent
    return share + min(others, known.others) if others > 0.0 else share
