"""Filters that keep about a wanted share of a collection, made from sampled values of its columns. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from router.query.filter import Compare, Field, Filter, In
from shard_config.model import Collection, Column
from shard_config.values import ValueType, json_form

__all__ = ["Selective", "filters_of_share"]

# Beyond this factor from the wanted share a filter stands for another case.
_NEAR = 2.0
_MOST = 0.9  # what keeps more is hardly a filter
_IN_MOST = 100
# A share estimated from fewer sampled rows than these says little.
_LEAST_ROWS = 5
# Their order in PostgreSQL is the one that Python sorts by.
_ORDERED = frozenset(ValueType) - {ValueType.TEXT, ValueType.UUID, ValueType.BOOLEAN}


class Selective(msgspec.Struct, frozen=True):
    """A filter, how a request would say it, and the share of the sample that it keeps."""

    filter: Filter
    said: str
    share: float


def filters_of_share(
    collection: Collection, rows: Sequence[Sequence[object]], wanted: Sequence[float]
) -> list[Selective]:
    """For each wanted share the best filter over the sampled rows, where the columns allow one.

    An equality is taken before a list of values, and that before a range; among the same kind, the one
    that comes nearest. A filter stands for one share only.

    Args:
        rows: a value per column, in the order of `collection.columns`; None where there is none.
    """
    columns = list(collection.columns.values())
    found: list[Selective] = []
    for share in wanted:
        near: list[tuple[int, float, int, Selective]] = []
        for at, column in enumerate(columns):
            values = [row[at] for row in rows if row[at] is not None and row[at] == row[at]]
            for kind, offered in _offered(column, values, len(rows), share):
                distance = abs(math.log(offered.share / share))
                if distance <= math.log(_NEAR) and offered.share <= _MOST and offered not in found:
                    near.append((kind, distance, at, offered))
        if near:
            found.append(min(near, key=lambda one: one[:3])[3])
    return found


def _offered(
    column: Column, values: list[object], rows: int, share: float
) -> Iterator[tuple[int, Selective]]:
    """The filters over one column that come nearest to `share`, as (kind, filter)."""
    field = Field(column)
    counts = Counter(values).most_common()
    if not counts:
        return
    value, count = min(counts, key=lambda one: abs(one[1] - share * rows))
    if count >= _LEAST_ROWS:
        yield 0, Selective(Compare(field, "=", value), _said(column, None, [value]), count / rows)
    if counts[0][1] >= _LEAST_ROWS:
        chosen, total = _together(counts, share * rows)
        if len(chosen) > 1:
            yield 1, Selective(In(field, chosen), _said(column, "$in", chosen), total / rows)
    if column.type in _ORDERED:
        ordered = sorted(values)  # type: ignore[type-var]
        bound = ordered[-min(max(1, round(share * rows)), len(ordered))]
        kept = sum(one >= bound for one in ordered)  # type: ignore[operator]
        if kept >= _LEAST_ROWS:
            yield 2, Selective(Compare(field, ">=", bound), _said(column, "$gte", [bound]), kept / rows)


def _together(counts: Sequence[tuple[object, int]], wanted: float) -> tuple[tuple[object, ...], int]:
    """Values, the most frequent first, whose rows together come near to `wanted` and not far beyond."""
    chosen: list[object] = []
    total = 0
    for value, count in counts:
        if len(chosen) < _IN_MOST and total + count <= 1.25 * wanted:
            chosen.append(value)
            total += count
    return tuple(chosen), total


def _said(column: Column, operator: str | None, values: Sequence[object]) -> str:
    form = json_form(column.type)
    shown = values if form is None else [form(value) for value in values]
    operand = shown if operator == "$in" else shown[0]
    condition = operand if operator is None else {operator: operand}
    text = msgspec.json.encode({column.name: condition}).decode()
    return text if len(text) <= 80 else text[:77] + "..."
