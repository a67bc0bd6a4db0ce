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

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import mul
from typing import Any

import msgspec

from router.query.combined_columns import together
from router.query.conditions import (
    Condition,
    ContainsElements,
    Equals,
    Found,
    Missing,
    Ordered,
    Shares,
    Tables,
    are_known,
    equal,
    found_by,
    like,
    place_of,
    within,
)
from router.query.filter import And, Compare, Contains, Exists, Field, Filter, In, Like, Not, Or
from router.query.histogram import Interval
from router.query.statistics import FilterIndex, LookupKey, Place, json_kind, position

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


def estimates(filter: Filter, tables: Tables) -> list[Estimate]:
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


def _prepared(filter: Filter) -> Condition:
    return _KINDS[type(filter)](filter)


def _comparison(filter: Compare) -> Condition:
    field, value = filter.field, filter.value
    if filter.op == "=":
        return equal(field, (value,))
    interval = Interval()
    interval.narrow(filter.op, position(value))
    return within(field, json_kind(value), interval)


def _conjunction(filter: And) -> Condition:
    """All bounds of one value are one condition."""
    conditions: list[Condition] = []
    ranges: dict[tuple[Place, type], tuple[Field, Interval]] = {}
    for part in _flat(filter.parts):
        if type(part) is Compare and part.op != "=":
            field, value = part.field, part.value
            key = place_of(field), json_kind(value) if field.column is None else object
            if key not in ranges:
                ranges[key] = field, Interval()
            ranges[key][1].narrow(part.op, position(value))
        else:
            conditions.append(_prepared(part))
    for (_, kind), (field, interval) in ranges.items():
        conditions.append(within(field, kind, interval))
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


def _disjunction(filter: Or) -> Condition:
    """Equalities with one column exclude each other, and its values that it is missing."""
    alternatives: list[Condition] = []
    equal: dict[str, dict[object, None]] = {}
    values: dict[Place, list[Condition]] = {}
    missing: dict[Place, Condition] = {}
    for part in filter.parts:
        condition = _prepared(part)
        if type(part) is And:
            alternatives.append(condition)
        elif isinstance(condition, Equals):
            equal.setdefault(condition.column, {}).update(dict.fromkeys(condition.keys))
        elif isinstance(condition, Missing):
            missing[condition.place] = condition
        elif isinstance(condition, Ordered):
            values.setdefault(condition.place, []).append(condition)
        else:
            alternatives.append(condition)
    for column, keys in equal.items():
        values.setdefault(column, []).append(Equals(column, [*keys]))
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


def _negation(filter: Not) -> Condition:
    part = filter.part
    return Missing(place_of(part.field)) if type(part) is Exists else _Complement(_prepared(part))


# --- combinations ---


def _times(one: Shares, other: Shares) -> Shares:
    most = [*map(mul, one[0], other[0])]
    return most, most if are_known(one) and are_known(other) else [*map(mul, one[1], other[1])]


class _Compound(Condition):
    """What knows of itself which indexes serve it."""

    def shares(self, tables: Tables) -> Shares:
        return self.read(tables)[0]

    def read(self, tables: Tables) -> tuple[Shares, Found | None]:
        raise NotImplementedError


class _All(_Compound):
    """clauselist_selectivity: as if conditions were independent, unless extended statistics know better."""

    def __init__(self, parts: Sequence[Condition]) -> None:
        self._parts = parts
        self._lookups: dict[LookupKey, list[int]] = {}
        # The first equality with each column, of which extended statistics may speak.
        self._equal: dict[int, Equals] = {}
        columns: set[str] = set()
        for i, part in enumerate(parts):
            if part.lookup is not None:
                self._lookups.setdefault(part.lookup, []).append(i)
            if isinstance(part, Equals) and part.column not in columns:
                self._equal[i] = part
                columns.add(part.column)

    def read(self, tables: Tables) -> tuple[Shares, Found | None]:
        best: Found | None = None
        kept: list[Shares] = []
        for part in self._parts:
            if isinstance(part, _Compound):
                shares, found = part.read(tables)
                best = _cheaper(best, found)
            else:
                shares = part.shares(tables)
            kept.append(shares)
        for lookup in self._lookups:
            for index in tables[0].serving.get(lookup, ()):
                best = _cheaper(best, found_by(self._product(self._served(index), kept, tables), index))
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

    def _product(self, numbers: Sequence[int], kept: Sequence[Shares], tables: Tables) -> Shares:
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

    def _together(self, equal: Sequence[int], kept: Sequence[Shares], tables: Tables) -> Shares:
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
            share = together(alone, keys, table.combined)
            most.append(high * share)
            least.append(low * share)
        return most, most if most == least else least


class _Any(_Compound):
    """clauselist_selectivity_or: as if the conditions were independent; a BitmapOr of all their indexes.

    `exclusive`: no row meets two of them.
    """

    def __init__(self, parts: Sequence[Condition], *, exclusive: bool = False) -> None:
        self._parts = parts
        self._either = _sum if exclusive else _either

    def read(self, tables: Tables) -> tuple[Shares, Found | None]:
        shares, found = self._parts[0].read(tables)
        for part in self._parts[1:]:
            more, indexes = part.read(tables)
            most = self._either(shares[0], more[0])
            known = are_known(shares) and are_known(more)
            shares = most, most if known else self._either(shares[1], more[1])
            found = _both(found, indexes)
        return shares, found


def _either(shares: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one + other - one * other for one, other in zip(shares, others, strict=True)]


def _sum(shares: Sequence[float], others: Sequence[float]) -> list[float]:
    return [min(one + other, 1.0) for one, other in zip(shares, others, strict=True)]


def _both(one: Found | None, other: Found | None) -> Found | None:
    """Two scans of indexes, of which a BitmapOr is made."""
    if one is None or other is None:
        return None
    return [
        (min(most + high, 1.0), min(least + low, 1.0), tuple(sorted({*names, *more})))
        for (most, least, names), (high, low, more) in zip(one, other, strict=True)
    ]


def _cheaper(one: Found | None, other: Found | None) -> Found | None:
    return other if one is None else one if other is None else [*map(min, one, other)]


class _Complement(_Compound):
    """All rows that another condition does not keep, which no index finds."""

    def __init__(self, part: Condition) -> None:
        self._part = part

    def read(self, tables: Tables) -> tuple[Shares, Found | None]:
        shares = self._part.shares(tables)
        least = [1.0 - share for share in shares[0]]
        return (least if are_known(shares) else [1.0 - share for share in shares[1]], least), None


_KINDS: dict[type, Callable[[Any], Condition]] = {
    Compare: _comparison,
    In: lambda filter: equal(filter.field, filter.values),
    And: _conjunction,
    Or: _disjunction,
    Not: _negation,
    Exists: lambda filter: _Complement(Missing(place_of(filter.field))),
    Contains: ContainsElements,
    Like: like,
}
