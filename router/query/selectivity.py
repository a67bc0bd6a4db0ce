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

from collections.abc import Iterable, Mapping, Sequence
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
        self._root = _prepared(filter)

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
        share = self.share(table)
        if self.lookup is not None and (indexes := table.serving.get(self.lookup)):
            return share, _Found(share, (indexes[0].name,))
        return share, None


def _prepared(filter: Filter) -> _Condition:
    if isinstance(filter, Compare):
        field, value = filter.field, filter.value
        if filter.op == "=":
            return _equal(field, (value,))
        return _within(field, json_kind(value), EVERYTHING.narrowed(filter.op, position(value)))
    match filter:
        case In(field, values):
            return _equal(field, values)
        case And(parts):
            conditions = _conditions(parts)
            return conditions[0] if len(conditions) == 1 else _All(conditions)
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
            return _like(field, Pattern(pattern, ignore_case))


def _conditions(parts: Iterable[Filter]) -> list[_Condition]:
    """Of a conjunction; all bounds of one value are one condition."""
    conditions: list[_Condition] = []
    ranges: dict[tuple[Place, type], tuple[Field, Interval]] = {}
    for part in _flat(parts):
        if isinstance(part, Compare) and part.op != "=":
            field, value = part.field, part.value
            key = _place(field), json_kind(value) if field.column is None else object
            known = ranges[key][1] if key in ranges else EVERYTHING
            ranges[key] = field, known.narrowed(part.op, position(value))
        else:
            conditions.append(_prepared(part))
    for (_, kind), (field, interval) in ranges.items():
        conditions.append(_within(field, kind, interval))
    return conditions


def _flat(parts: Iterable[Filter]) -> Iterable[Filter]:
    """The parts, and those of conjunctions among them."""
    return [one for part in parts for one in (_flat(part.parts) if isinstance(part, And) else (part,))]


def _alternatives(parts: Iterable[Filter]) -> Iterable[_Condition]:
    """Of a disjunction; equalities with one column exclude each other, and its values that it is missing."""
    equal: dict[str, list[object]] = {}
    values: dict[Place, list[_Condition]] = {}
    missing: dict[Place, _Condition] = {}
    for part in parts:
        condition = _prepared(part)
        if type(part) is And:
            yield condition
        elif isinstance(condition, _Equals):
            equal.setdefault(condition.column, []).extend(condition.keys)
        elif isinstance(condition, _Missing):
            missing[condition.place] = condition
        elif isinstance(condition, _Ordered):
            values.setdefault(condition.place, []).append(condition)
        else:
            yield condition
    for column, keys in equal.items():
        values.setdefault(column, []).append(_Equals(column, [*dict.fromkeys(keys)]))
    for place, conditions in values.items():
        if place in missing:
            present = conditions[0] if len(conditions) == 1 else _Any(conditions)
            yield _Exclusive([present, missing.pop(place)])
        else:
            yield from conditions
    yield from missing.values()


def _place(field: Field) -> Place:
    return field.path if field.column is None else field.column.column


def _fewer(one: Share, other: Share) -> bool:
    """Fewer at most, or else at least: what is known to bring few comes before what may."""
    return one[1] < other[1] or (one[1] == other[1] and one[0] < other[0])


def _clamped(share: float) -> float:
    return 0.0 if share < 0.0 else 1.0 if share > 1.0 else share


# --- combinations ---


class _Compound(_Condition):
    """What knows of itself which indexes serve it."""

    def read(self, table: TableStatistics) -> tuple[Share, _Found | None]:
        return self.share(table), None


class _All(_Compound):
    """clauselist_selectivity: as if conditions were independent, unless extended statistics know better."""

    def __init__(self, parts: Sequence[_Condition]) -> None:
        self._parts = parts
        self._every = range(len(parts))
        self._lookups: dict[Lookup, list[int]] = {}
        # Equalities with each column, and the column of each condition that is one.
        self._keys: dict[str, Sequence[object]] = {}
        self._columns: list[str | None] = []
        for i, part in enumerate(parts):
            if part.lookup is not None:
                self._lookups.setdefault(part.lookup, []).append(i)
            if isinstance(part, _Equals):
                self._columns.append(part.column)
                self._keys.setdefault(part.column, part.keys)
            else:
                self._columns.append(None)
        # Whether an index of one key can serve no more than one condition.
        self._apart = len({lookup.place for lookup in self._lookups}) == len(self._lookups)

    def share(self, table: TableStatistics) -> Share:
        return self._product(self._every, [part.share(table) for part in self._parts], table, {})

    def read(self, table: TableStatistics) -> tuple[Share, _Found | None]:
        shares: list[Share] = []
        best: _Found | None = None
        for part in self._parts:
            if isinstance(part, _Compound):
                share, found = part.read(table)
                if found is not None and (best is None or _fewer(found.share, best.share)):
                    best = found
            else:
                share = part.share(table)
            shares.append(share)
        together: dict[tuple[str, ...], float] = {}
        for lookup, numbers in self._lookups.items():
            for index in table.serving.get(lookup, ()):
                served = numbers if self._apart and len(index.keys) == 1 else self._served(index)
                if len(served) == 1:
                    share = shares[served[0]]
                else:
                    share = self._product(served, shares, table, together)
                if best is None or _fewer(share, best.share):
                    best = _Found(share, (index.name,))
        return self._product(self._every, shares, table, together), best

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

    def _product(
        self,
        numbers: Sequence[int],
        shares: Sequence[Share],
        table: TableStatistics,
        together: dict[tuple[str, ...], float],
    ) -> Share:
        """`together` keeps what extended statistics say of equalities with these columns."""
        columns = self._columns if table.combined else None
        alone: dict[str, float] = {}
        least = most = 1.0
        for i in numbers:
            low, high = shares[i]
            if columns is None or (column := columns[i]) is None or low != high or column in alone:
                least *= low
                most *= high
            else:
                alone[column] = low
        if alone:
            names = (*alone,)
            share = together.get(names)
            if share is None:
                share = together[names] = _together(alone, self._keys, table)
            least *= share
            most *= share
        return least, most


class _Any(_Compound):
    """clauselist_selectivity_or: as if the conditions were independent; a BitmapOr of all their indexes."""

    def __init__(self, parts: Sequence[_Condition]) -> None:
        self._parts = parts

    def share(self, table: TableStatistics) -> Share:
        return self._either([part.share(table) for part in self._parts])

    def read(self, table: TableStatistics) -> tuple[Share, _Found | None]:
        shares: list[Share] = []
        names: list[str] = []
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
                names += found.names
        share = self._either(shares)
        if not served:
            return share, None
        return share, _Found((_clamped(least), _clamped(most)), tuple(sorted(set(names))))

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

    def __init__(self, place: Place, kind: type, kept: Interval | Pattern, lookup: Lookup | None) -> None:
        self.place = place
        self.lookup = lookup
        self._kind = kind
        self._kept = kept

    def share(self, table: TableStatistics) -> Share:
        place = self.place
        if isinstance(place, str):
            column = table.columns.get(place)
            if column is None:
                return _UNKNOWN
            order, others, distinct = column.order, column.others, column.distinct_others
        else:
            path = table.paths.get(place)
            if path is None:
                return _UNKNOWN
            order = path.orders[self._kind]
            # What the bounds of this kind stand for.
            others = path.others * len(order.bounds) / path.sample if path.sample else 0.0
            distinct = path.distinct_others
        if len(order.bounds) < 2:
            # Of those that are not common, nothing is known but how many they are.
            common = self._kept.share(order, 0.0, distinct)
            return _clamped(common), _clamped(common + others)
        share = _clamped(self._kept.share(order, others, distinct))
        return share, share


def _within(field: Field, kind: type, interval: Interval) -> _Ordered:
    place = _place(field)
    if field.column is not None:
        return _Ordered(place, kind, interval, Lookup(place, "range"))
    of = _typed(field, [kind()])
    # Texts of the metadata are compared as such, and not as jsonb, which is what a btree has there.
    served = kind is not str or of is not None
    return _Ordered(place, kind, interval, Lookup(place, "range", of) if served else None)


def _like(field: Field, pattern: Pattern) -> _Ordered:
    place = _place(field)
    lookup = Lookup(place, "prefix", _typed(field, [""])) if pattern.prefix else None
    return _Ordered(place, str, pattern, lookup)


# --- extended statistics ---


def _together(alone: dict[str, float], keys: Mapping[str, Sequence[object]], table: TableStatistics) -> float:
    """statext_clauselist_selectivity: by the columns' common combinations, then by what decides what.

    `alone` are the shares of equalities with these columns; it is used up.
    """
    share = 1.0
    for known in table.combined if len(alone) > 1 else ():
        if known.common and alone.keys() >= set(known.columns):
            values = [keys[name] for name in known.columns]
            share *= _by_combinations(known, values, [alone.pop(name) for name in known.columns])
    for known in table.combined if len(alone) > 1 else ():
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
