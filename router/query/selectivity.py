"""How many of a shard's rows a filter keeps, from what its PostgreSQL knows of the values.

The arithmetic is that of PostgreSQL's planner (src/backend/utils/adt/selfuncs.c, like_support.c,
src/backend/optimizer/path/clausesel.c, src/backend/statistics/), so that the router decides by what the
server would believe too; it departs where a filter means something else than the operators would (two-valued
logic, equality that looks into arrays, comparisons within one type of JSON), and where the planner falls
back on a constant: a condition that no statistics speak of is unknown here.

Invariant: a share is a pair, the least and the most that the statistics allow; the two differ only by
conditions that are unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from math import prod
from typing import Any, TypeAlias

import msgspec

from router.query.filter import And, Compare, Contains, Exists, Filter, In, Like, Not, Or
from router.query.histogram import EVERYTHING, Interval, like_share
from router.query.indexable import place, served
from router.query.statistics import (
    ColumnStatistics,
    CombinedStatistics,
    Distribution,
    PathStatistics,
    Place,
    TableStatistics,
    equal_key,
    from_json,
    json_key,
    json_kind,
    position,
)

__all__ = ["Estimate", "estimate"]


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

_NONE: Share = (0.0, 0.0)
_UNKNOWN: Share = (0.0, 1.0)
# Of a sample of n values in which something does not occur, it has less than 3/n with probability 0.95.
_RULE_OF_THREE = 3.0


def estimate(filter: Filter, table: TableStatistics) -> Estimate:
    """The share of the table's rows that `filter` keeps, and the share that an index for it brings."""
    least, most = _share(filter, table)
    found = _through_indexes(filter, table) if table.indexes else None
    if found is None:
        return Estimate(least, most)
    brought, names = found
    return Estimate(least, most, names, None if brought == _UNKNOWN else max(brought[1], most))


def _share(filter: Filter, table: TableStatistics) -> Share:
    match filter:
        case And(parts):
            return _all_of(parts, table)
        case Or(parts):
            return _any_of([_share(part, table) for part in parts])
        case Not(part):
            least, most = _share(part, table)
            return 1.0 - most, 1.0 - least
        case Contains(field, elements, every):
            return _containing(table.paths.get(field.path), elements, every)
    column = filter.field.column
    if column is None:
        path = table.paths.get(filter.field.path)
        return _UNKNOWN if path is None else _at_path(filter, path)
    known = table.columns.get(column.column)
    if known is None:
        # var_eq_const: of a unique column, no statistics are needed.
        if isinstance(filter, (Compare, In)) and table.rows >= 1 and table.unique(column.column):
            values = filter.values if isinstance(filter, In) else (filter.value,)
            if isinstance(filter, In) or filter.op == "=":
                return _sure(len(set(map(equal_key, values))) / table.rows)
        return _UNKNOWN
    return _sure(_of_column(filter, known))


def _sure(share: float) -> Share:
    share = min(max(share, 0.0), 1.0)
    return share, share


def _all_of(parts: Sequence[Filter], table: TableStatistics) -> Share:
    """clauselist_selectivity: as if the parts were independent, but for the bounds of one value.

    Of those that ask for equality, extended statistics may know better.
    """
    least = most = 1.0
    intervals: dict[tuple[Place, object], Interval] = {}
    equalities: dict[str, Compare | In] = {}
    for part in _conjuncts(parts):
        if type(part) is Compare and part.op != "=":
            key = (place(part.field), json_kind(part.value) if part.field.column is None else None)
            intervals[key] = intervals.get(key, EVERYTHING).narrowed(part.op, position(part.value))
            continue
        if table.combined and isinstance(part, (Compare, In)) and part.field.column is not None:
            name = part.field.column.column
            if name in table.columns and name not in equalities:
                equalities[name] = part
                continue
        low, high = _share(part, table)
        least *= low
        most *= high
    for (at, of_kind), interval in intervals.items():
        low, high = _within(interval, at, of_kind, table)
        least *= low
        most *= high
    if equalities:
        share = _together(equalities, table)
        least *= share
        most *= share
    return least, most


def _conjuncts(parts: Sequence[Filter]) -> Iterable[Filter]:
    for part in parts:
        if type(part) is And:
            yield from _conjuncts(part.parts)
        else:
            yield part


def _within(interval: Interval, at: Place, kind: object, table: TableStatistics) -> Share:
    if isinstance(at, str):
        known = table.columns.get(at)
        return _UNKNOWN if known is None else _sure(_in_column(interval, known))
    path = table.paths.get(at)
    return _UNKNOWN if path is None else _sure(_in_kind(interval, kind, path))


def _any_of(shares: Iterable[Share]) -> Share:
    """clauselist_selectivity_or: as if the parts were independent."""
    least = most = 0.0
    for low, high in shares:
        least += low - least * low
        most += high - most * high
    return least, most


def _of_column(filter: Compare | In | Exists | Like, known: ColumnStatistics) -> float:
    match filter:
        case Compare(_, "=", value):
            return _equal(known, value)
        case Compare(_, op, value):
            return _in_column(EVERYTHING.narrowed(op, position(value)), known)
        case In(_, values):
            # scalararraysel: different values exclude each other.
            return sum([_equal(known, value) for value in _different(values)])
        case Exists():
            return 1.0 - known.nulls
        case Like(_, pattern, ignore_case):
            distinct = known.distinct - len(known.shares)
            return like_share(known.order, known.others, distinct, pattern, ignore_case)


def _in_column(interval: Interval, known: ColumnStatistics) -> float:
    return interval.within(known.order, known.others, known.distinct - len(known.shares))


def _different(values: Sequence[object]) -> Iterable[object]:
    return {equal_key(value): value for value in values}.values()


def _equal(known: ColumnStatistics, value: object) -> float:
    """var_eq_const: a common value's share, or an equal part of what the common ones leave."""
    share = known.shares.get(equal_key(value))
    if share is not None:
        return share
    return min(known.others / max(known.distinct - len(known.shares), 1.0), known.least_common)


def _at_path(filter: Compare | In | Exists | Like, path: PathStatistics) -> Share:
    match filter:
        case Compare(_, "=", value):
            return _json_equal(path, value)
        case Compare(_, op, value):
            return _sure(_in_kind(EVERYTHING.narrowed(op, position(value)), json_kind(value), path))
        case In(_, values):
            shares = [_json_equal(path, value) for value in {json_key(one): one for one in values}.values()]
            return _sure(sum(low for low, _ in shares))[0], _sure(sum(high for _, high in shares))[1]
        case Exists():
            return _sure(1.0 - path.missing)
        case Like(_, pattern, ignore_case):
            order = path.orders[str]
            others, distinct = _of_kind(order, path), path.distinct - path.common
            return _sure(like_share(order, others, distinct, pattern, ignore_case))


def _json_equal(path: PathStatistics, value: object) -> Share:
    """Rows with this very value, and those with an array that holds it."""
    key = json_key(value)
    share = path.shares.get(key)
    if share is None:
        scalars = 1.0 - path.arrays / path.sample if path.sample else 1.0
        share = min(path.others * scalars / max(path.distinct - path.common, 1.0), path.least_common)
    low, high = _in_arrays(path, key)
    return _sure(share + low)[0], _sure(share + high)[1]


def _in_arrays(path: PathStatistics, key: object) -> Share:
    """Rows with an array that has this element."""
    share = path.contained.get(key, 0.0)
    if not path.arrays:
        return share, share
    found = path.sampled.get(key, 0.0)
    if found:
        share += path.others * found / path.sample
        return share, share
    return share, share + path.others * min(_RULE_OF_THREE / path.sample, path.arrays / path.sample)


def _containing(path: PathStatistics | None, elements: Sequence[str], every: bool) -> Share:
    if path is None or any(element.startswith("{") for element in elements):
        return _NONE if not elements and not every else _UNKNOWN
    keys = {json_key(from_json(element)) for element in elements}
    shares = [_in_arrays(path, key) for key in keys]
    if every:
        return prod(low for low, _ in shares), prod(high for _, high in shares)
    return _sure(sum(low for low, _ in shares))[0], _sure(sum(high for _, high in shares))[1]


def _in_kind(interval: Interval, kind: Any, path: PathStatistics) -> float:
    order = path.orders[kind]
    return interval.within(order, _of_kind(order, path), path.distinct - path.common)


def _of_kind(order: Distribution, path: PathStatistics) -> float:
    """The share of the rows that the bounds of this kind stand for."""
    return path.others * len(order.bounds) / path.sample if path.sample else 0.0


def _together(equalities: dict[str, Compare | In], table: TableStatistics) -> float:
    """statext_clauselist_selectivity: by the columns' common combinations, then by what decides what."""
    alone = {name: _sure(_of_column(part, table.columns[name]))[0] for name, part in equalities.items()}
    share = 1.0
    for known in table.combined:
        if len(known.columns) > 1 and known.common and alone.keys() >= set(known.columns):
            share *= _by_combinations(known, equalities, [alone.pop(name) for name in known.columns])
    for known in table.combined:
        for given, decided, degree in known.dependencies:
            if decided in alone and alone.keys() >= set(given):
                # clauselist_apply_dependencies
                before, after = prod(alone[name] for name in given), alone[decided]
                implied = degree if before <= after else degree * after / before
                alone[decided] = implied + (1.0 - degree) * after
                share *= alone.pop(decided)
    return min(share * prod(alone.values()), 1.0)


def _by_combinations(
    known: CombinedStatistics, equalities: dict[str, Compare | In], alone: Sequence[float]
) -> float:
    """mcv_combine_selectivities: the combinations that match, and what the columns say of the others."""
    wanted = [_wanted(equalities[name]) for name in known.columns]
    if prod(map(len, wanted)) <= len(known.common):
        found = [known.common[one] for one in product(*wanted) if one in known.common]
    else:
        sets = [set(values) for values in wanted]
        found = [shares for one, shares in known.common.items() if all(map(set.__contains__, sets, one))]
    share = sum(actual for actual, _ in found)
    others = max(prod(alone) - sum(independent for _, independent in found), 0.0)
    return share + min(others, known.others)


def _wanted(part: Compare | In) -> list[object]:
    return list(dict.fromkeys(map(equal_key, part.values if isinstance(part, In) else (part.value,))))


def _through_indexes(filter: Filter, table: TableStatistics) -> tuple[Share, tuple[str, ...]] | None:
    """The share that the cheapest index brings for `filter`, and the names; None if none serves."""
    if isinstance(filter, Or):
        # A BitmapOr.
        branches = [_through_indexes(part, table) for part in filter.parts]
        found = [branch for branch in branches if branch is not None]
        if len(found) < len(branches) or not found:
            return None
        names = tuple(dict.fromkeys(name for _, names in found for name in names))
        return (min(sum(f[0][0] for f in found), 1.0), min(sum(f[0][1] for f in found), 1.0)), names
    parts = [*_conjuncts((filter,))]
    ways = [_through_indexes(part, table) for part in parts if isinstance(part, Or)]
    for index in table.indexes:
        looked_up = served(index, parts)
        if looked_up:
            ways.append((_all_of(looked_up, table), (index.name,)))
    # One that is known to bring few before one that may.
    return min((way for way in ways if way is not None), key=lambda way: (way[0][1], way[0][0]), default=None)
