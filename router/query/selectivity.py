"""How many of a shard's rows a filter keeps, from what its PostgreSQL knows of the values.

The arithmetic is that of PostgreSQL's planner (src/backend/utils/adt/selfuncs.c, like_support.c,
src/backend/optimizer/path/clausesel.c, src/backend/statistics/), so that the router decides by what the
server would believe too; it departs where a filter means something else than the operators would (two-valued
logic, equality that looks into arrays, comparisons within one type of JSON), and where the planner falls
back on a constant: a condition that no statistics speak of is unknown here.

A filter is prepared once and then estimated for shard after shard: what depends on the filter alone is done
before the first.

Invariant: a share is a pair, the least and the most that the statistics allow; the two differ only by
conditions that are unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import product
from math import prod
from typing import TypeAlias

import msgspec

from router.query.filter import And, Compare, Contains, Exists, Field, Filter, In, Like, Not, Or
from router.query.histogram import EVERYTHING, Interval, Pattern
from router.query.metadata import may_be_index
from router.query.statistics import (
    CombinedStatistics,
    Distribution,
    FilterIndex,
    Lookup,
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

__all__ = ["Estimate", "PreparedFilter", "estimate"]


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


Share: TypeAlias = tuple[float, float]

_NOTHING: Share = (0.0, 0.0)
_UNKNOWN: Share = (0.0, 1.0)
# Of a sample of n values in which something does not occur, it has less than 3/n with probability 0.95.
_RULE_OF_THREE = 3.0
# As in router.postgres.conditions: longer lists of JSON are looked up in a hash table, and not in an index.
_LISTED = 16


def estimate(filter: Filter, table: TableStatistics) -> Estimate:
    """`PreparedFilter.estimate` for one table alone."""
    return PreparedFilter(filter).estimate(table)


class PreparedFilter:
    """A filter, ready to be estimated for several shards."""

    def __init__(self, filter: Filter) -> None:
        prepared = _prepared(filter)
        self._root = prepared if isinstance(prepared, _Compound) else _All([prepared])

    def estimate(self, table: TableStatistics) -> Estimate:
        """The share of the table's rows that the filter keeps, and the share that an index for it brings."""
        (least, most), found = self._root.read(table)
        if found is None:
            return Estimate(least, most)
        return Estimate(
            least, most, found.names, None if found.share == _UNKNOWN else max(found.share[1], most)
        )


class _Found(msgspec.Struct, frozen=True):
    """The share of the rows that indexes bring, and which."""

    share: Share
    names: tuple[str, ...]


class _Condition:
    """A filter or a part of one; `lookup` is how an index may find what it keeps."""

    lookup: Lookup | None = None

    def share(self, table: TableStatistics) -> Share:
        raise NotImplementedError

    def read(self, table: TableStatistics) -> tuple[Share, _Found | None]:
        """The share that it keeps, and the share that the cheapest index for it brings."""
        return self.share(table), None


def _prepared(filter: Filter) -> _Condition:
    match filter:
        case And(parts):
            return _All([*_conditions(parts)])
        case Or(parts):
            return _Any([*_alternatives(parts)])
        case Not(Exists(field)):
            return _Missing(_place(field))
        case Not(part):
            return _Complement(_prepared(part))
        case Contains(field, elements, every):
            return _Contains(field, elements, every)
        case Exists(field):
            return _Complement(_Missing(_place(field)))
        case Like(field, pattern, ignore_case):
            return _Matches(field, Pattern(pattern, ignore_case))
        case In(field, values):
            return _equal(field, values)
        case Compare(field, "=", value):
            return _equal(field, [value])
        case Compare(field, op, value):
            return _Within(field, json_kind(value), EVERYTHING.narrowed(op, position(value)))


def _conditions(parts: Iterable[Filter]) -> Iterable[_Condition]:
    """Of a conjunction; all bounds of one value are one condition."""
    ranges: dict[tuple[Place, type], _Within] = {}
    for part in parts:
        if type(part) is And:
            nested = [*_conditions(part.parts)]
        else:
            nested = [_prepared(part)]
        for condition in nested:
            if not isinstance(condition, _Within):
                yield condition
            elif (known := ranges.get(condition.key)) is not None:
                known.interval = known.interval.and_(condition.interval)
            else:
                ranges[condition.key] = condition
    yield from ranges.values()


def _alternatives(parts: Iterable[Filter]) -> Iterable[_Condition]:
    """Of a disjunction; equalities with one column exclude each other, and its values that it is missing."""
    equal: dict[str, list[object]] = {}
    values: dict[Place, list[_Condition]] = {}
    missing: dict[Place, _Condition] = {}
    for part in parts:
        condition = _prepared(part)
        if isinstance(condition, _Equals):
            equal.setdefault(condition.column, []).extend(condition.keys)
        elif isinstance(condition, _Missing):
            missing[condition.place] = _All([condition])
        elif isinstance(condition, _Ordered):
            values.setdefault(condition.key[0], []).append(_All([condition]))
        else:
            yield condition if isinstance(condition, _Compound) else _All([condition])
    for column, keys in equal.items():
        values.setdefault(column, []).append(_All([_Equals(column, [*dict.fromkeys(keys)])]))
    for place, conditions in values.items():
        if place in missing:
            present = conditions[0] if len(conditions) == 1 else _Any(conditions)
            yield _Exclusive([present, missing.pop(place)])
        else:
            yield from conditions
    yield from missing.values()


def _place(field: Field) -> Place:
    return field.path if field.column is None else field.column.column


def _clamped(share: float) -> float:
    return 0.0 if share < 0.0 else 1.0 if share > 1.0 else share


# --- combinations ---


class _Compound(_Condition):
    """What knows of itself which indexes serve it."""


class _All(_Compound):
    """clauselist_selectivity: as if conditions were independent, unless extended statistics know better."""

    def __init__(self, parts: Sequence[_Condition]) -> None:
        self._parts = parts
        self._lookups: dict[Lookup, list[int]] = {}
        for i, part in enumerate(parts):
            if part.lookup is not None:
                self._lookups.setdefault(part.lookup, []).append(i)

    def share(self, table: TableStatistics) -> Share:
        return self._product(range(len(self._parts)), [part.share(table) for part in self._parts], table)

    def read(self, table: TableStatistics) -> tuple[Share, _Found | None]:
        if len(self._parts) == 1:
            return self._read_one(self._parts[0], table)
        shares: list[Share] = []
        found: list[_Found] = []
        for part in self._parts:
            share, within = part.read(table)
            shares.append(share)
            if within is not None:
                found.append(within)
        indexes = {index.name: index for key in self._lookups for index in table.serving.get(key, ())}
        found += [
            _Found(self._product(self._served(index), shares, table), (name,))
            for name, index in indexes.items()
        ]
        # One that is known to bring few before one that may.
        best = min(found, key=lambda one: (one.share[1], one.share[0])) if found else None
        return self._product(range(len(shares)), shares, table), best

    def _read_one(self, part: _Condition, table: TableStatistics) -> tuple[Share, _Found | None]:
        """What most filters are, and most parts of others."""
        share, within = part.read(table)
        if part.lookup is not None and (indexes := table.serving.get(part.lookup)):
            return share, _Found(share, (indexes[0].name,))
        return share, within

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

    def _product(self, numbers: Sequence[int], shares: Sequence[Share], table: TableStatistics) -> Share:
        if len(numbers) == 1:
            return shares[numbers[0]]
        least = most = 1.0
        equalities: dict[str, tuple[_Equals, float]] = {}
        for i in numbers:
            low, high = shares[i]
            part = self._parts[i]
            if table.combined and isinstance(part, _Equals) and low == high and part.column not in equalities:
                equalities[part.column] = part, low
                continue
            least *= low
            most *= high
        if equalities:
            together = _together(equalities, table)
            return least * together, most * together
        return least, most


class _Any(_Compound):
    """clauselist_selectivity_or: as if the conditions were independent; a BitmapOr of all their indexes."""

    def __init__(self, parts: Sequence[_Condition]) -> None:
        self._parts = parts

    def share(self, table: TableStatistics) -> Share:
        return self._either([part.share(table) for part in self._parts])

    def read(self, table: TableStatistics) -> tuple[Share, _Found | None]:
        shares: list[Share] = []
        names: set[str] = set()
        least = most = 0.0
        served = bool(self._parts)
        for part in self._parts:
            share, found = part.read(table)
            shares.append(share)
            if found is None:
                served = False
            else:
                least += found.share[0]
                most += found.share[1]
                names.update(found.names)
        share = self._either(shares)
        if not served:
            return share, None
        return share, _Found((_clamped(least), _clamped(most)), tuple(sorted(names)))

    def _either(self, shares: Sequence[Share]) -> Share:
        least = most = 0.0
        for low, high in shares:
            least += low - least * low
            most += high - most * high
        return least, most


class _Exclusive(_Any):
    """Conditions of which no row meets two."""

    def _either(self, shares: Sequence[Share]) -> Share:
        return _clamped(sum([low for low, _ in shares])), _clamped(sum([high for _, high in shares]))


class _Complement(_Compound):
    """All rows that another condition does not keep, which no index finds."""

    def __init__(self, part: _Condition) -> None:
        self._part = part

    def share(self, table: TableStatistics) -> Share:
        least, most = self._part.share(table)
        return 1.0 - most, 1.0 - least


# --- single conditions ---


def _equal(field: Field, values: Iterable[object]) -> _Condition:
    if field.column is None:
        return _JsonEquals(field, [*{json_key(value): None for value in values}])
    return _Equals(field.column.column, [*{equal_key(value): None for value in values}])


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
        self.lookup = Lookup(column, "equal")

    def share(self, table: TableStatistics) -> Share:
        known = table.columns.get(self.column)
        if known is None:
            # var_eq_const: of a unique column, no statistics are needed.
            if not table.unique(self.column) or table.rows < 1.0:
                return _UNKNOWN if self.keys else _NOTHING
            share = len(self.keys) / table.rows
        else:
            shares, other = known.shares, known.other
            # scalararraysel: different values exclude each other.
            share = sum([shares.get(key, other) for key in self.keys])
        share = _clamped(share)
        return share, share


class _JsonEquals(_Condition):
    """The value at a path of the metadata, or an element of the array there, is one of some scalars."""

    def __init__(self, field: Field, keys: Sequence[object]) -> None:
        self._path = field.path
        self._keys = keys
        if len(keys) <= _LISTED:
            of = _typed(field, keys)
            self.lookup = Lookup(field.path, "element" if of is None else "equal", of)

    def share(self, table: TableStatistics) -> Share:
        known = table.paths.get(self._path)
        if known is None:
            return _UNKNOWN if self._keys else _NOTHING
        least = most = 0.0
        for key in self._keys:
            share = known.shares.get(key, known.other)
            low, high = _in_arrays(known, key)
            least += share + low
            most += share + high
        return _clamped(least), _clamped(most)


class _Contains(_Condition):
    """An array of the metadata has one of some elements, or every one; objects are not known."""

    def __init__(self, field: Field, elements: Sequence[str], every: bool) -> None:
        self._path = path = field.path
        self._every = every
        self._scalar = not any(element.startswith("{") for element in elements)
        self._keys = [*{json_key(from_json(one)): None for one in elements}] if self._scalar else []
        if every or not self._scalar or len(elements) <= _LISTED:
            whole = field.index is None and not any(may_be_index(step) for step in path)
            self.lookup = Lookup(() if whole else path, "element")

    def share(self, table: TableStatistics) -> Share:
        known = table.paths.get(self._path)
        if known is None or not self._scalar:
            return _UNKNOWN if self._keys or not self._scalar else _NOTHING
        shares = [_in_arrays(known, key) for key in self._keys]
        if self._every:
            return prod([low for low, _ in shares]), prod([high for _, high in shares])
        return _clamped(sum([low for low, _ in shares])), _clamped(sum([high for _, high in shares]))


def _in_arrays(known: PathStatistics, key: object) -> Share:
    """Rows with an array that has this element."""
    share = known.contained.get(key, 0.0)
    if not known.arrays:
        return share, share
    found = known.sampled.get(key, 0.0)
    if found:
        share += known.others * found / known.sample
        return share, share
    return share, share + known.others * min(_RULE_OF_THREE, known.arrays) / known.sample


class _Missing(_Condition):
    """There is no value, which an index in order finds of a column as it finds a value."""

    def __init__(self, place: Place) -> None:
        self.place = place
        if isinstance(place, str):
            self.lookup = Lookup(place, "range")

    def share(self, table: TableStatistics) -> Share:
        if isinstance(self.place, str):
            column = table.columns.get(self.place)
            share = None if column is None else column.nulls
        else:
            path = table.paths.get(self.place)
            share = None if path is None else _clamped(path.missing)
        return _UNKNOWN if share is None else (share, share)


class _Ordered(_Condition):
    """What is read from the order of the values: of a column, or of those of one kind in the metadata."""

    def __init__(self, place: Place, kind: type) -> None:
        self.key = place, kind

    def share(self, table: TableStatistics) -> Share:
        place, kind = self.key
        if isinstance(place, str):
            column = table.columns.get(place)
            if column is None:
                return _UNKNOWN
            order, others, distinct = column.order, column.others, column.distinct_others
        else:
            path = table.paths.get(place)
            if path is None:
                return _UNKNOWN
            order = path.orders[kind]
            # What the bounds of this kind stand for.
            others = path.others * len(order.bounds) / path.sample if path.sample else 0.0
            distinct = path.distinct_others
        if len(order.bounds) < 2:
            # Of those that are not common, nothing is known but how many they are.
            common = self._of(order, 0.0, distinct)
            return _clamped(common), _clamped(common + others)
        share = _clamped(self._of(order, others, distinct))
        return share, share

    def _of(self, order: Distribution, others: float, distinct: float) -> float:
        raise NotImplementedError


class _Within(_Ordered):
    def __init__(self, field: Field, kind: type, interval: Interval) -> None:
        super().__init__(_place(field), kind if field.column is None else object)
        self.interval = interval
        of = _typed(field, [kind()])
        # Texts of the metadata are compared as such, and not as jsonb, which is what a btree has there.
        if field.column is not None or kind is not str or of is not None:
            self.lookup = Lookup(self.key[0], "range", of)

    def _of(self, order: Distribution, others: float, distinct: float) -> float:
        return self.interval.share(order, others, distinct)


class _Matches(_Ordered):
    def __init__(self, field: Field, pattern: Pattern) -> None:
        super().__init__(_place(field), str)
        self._pattern = pattern
        if pattern.prefix:
            self.lookup = Lookup(self.key[0], "prefix", _typed(field, [""]))

    def _of(self, order: Distribution, others: float, distinct: float) -> float:
        return self._pattern.share(order, others, distinct)


# --- extended statistics ---


def _together(equalities: dict[str, tuple[_Equals, float]], table: TableStatistics) -> float:
    """statext_clauselist_selectivity: by the columns' common combinations, then by what decides what."""
    alone = {name: share for name, (_, share) in equalities.items()}
    share = 1.0
    for known in table.combined:
        if known.common and alone.keys() >= set(known.columns):
            keys = [equalities[name][0].keys for name in known.columns]
            share *= _by_combinations(known, keys, [alone.pop(name) for name in known.columns])
    for known in table.combined:
        for given, decided, degree in known.dependencies:
            if decided in alone and alone.keys() >= set(given):
                # clauselist_apply_dependencies
                before, after = prod([alone[name] for name in given]), alone.pop(decided)
                implied = degree if before <= after else degree * after / before
                share *= implied + (1.0 - degree) * after
    return _clamped(share * prod(alone.values()))


def _by_combinations(
    known: CombinedStatistics, keys: Sequence[Sequence[object]], alone: Sequence[float]
) -> float:
    """mcv_combine_selectivities: the combinations that match, and what the columns say of the others."""
    if prod(map(len, keys)) <= len(known.common):
        found = [known.common[one] for one in product(*keys) if one in known.common]
    else:
        sets = [set(some) for some in keys]
        found = [shares for one, shares in known.common.items() if all(map(set.__contains__, sets, one))]
    share = sum([actual for actual, _ in found])
    others = max(prod(alone) - sum([independent for _, independent in found]), 0.0)
    return share + min(others, known.others)
