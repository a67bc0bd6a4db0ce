"""Counts of documents by a field's values: those of many shards become one list. Pure.

Invariant: as long as no shard had more values than it may bring, the counts are those of one table that holds
all documents, however they lie on shards. A value stands for all that PostgreSQL takes for equal: 1 and 1.0,
and NaN, which equals itself there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from router.query.filter import Field
from router.query.types import Row
from shard_config.ordering import rank
from shard_config.values import json_form

__all__ = ["MOST_VALUE_BYTES", "Facet", "FacetField", "FacetValue", "facet_of"]

# Longer values are counted together: nobody chooses by them, and thousands of them are to be held at once.
MOST_VALUE_BYTES = 256


class FacetField(msgspec.Struct, frozen=True):
    """`name` is what the request calls the field."""

    name: str
    field: Field


class FacetValue(msgspec.Struct, frozen=True):
    """One value, as JSON holds it, and how many documents have it."""

    value: object
    count: int


class Facet(msgspec.Struct, frozen=True):
    """The values that most documents have, equal counts by value.

    Attributes:
        missing: documents that have no value.
        too_long: how often a value was not counted by itself because it is too long.
        more: how many further values there are; None where that is not known.
        undercount: by how much each count may be too low, 0 if all are exact.
    """

    field: str
    values: tuple[FacetValue, ...]
    missing: int
    too_long: int = 0
    more: int | None = 0
    undercount: int = 0


def facet_of(field: FacetField, rows: Mapping[str, Sequence[Row]], limit: int, most: int) -> Facet:
    """The first `limit` values of all shards' groups.

    Args:
        rows: of each shard, groups as (value, whether it stands for values that are too long, count), by
            falling count but for those without a value. With more than `most` values there are others.
    """
    missing = too_long = undercount = 0
    counts: dict[object, int] = {}
    shown: dict[object, object] = {}
    for part in rows.values():
        values = 0
        for value, long, count in part:
            if long:
                too_long += count
            elif value is None:
                missing += count
            elif (values := values + 1) > most:
                undercount += count  # no value that is not here has more there
            else:
                key = _json_key(value) if field.field.column is None else _key(value)
                counts[key] = counts.get(key, 0) + count
                shown.setdefault(key, value)
    order = sorted(counts, key=lambda key: (-counts[key], _place(key)))
    form = _shown_json if field.field.column is None else json_form(field.field.column.type)
    first = [(shown[key], counts[key]) for key in order[:limit]]
    return Facet(
        field.name,
        tuple(FacetValue(value if form is None else form(value), count) for value, count in first),
        missing,
        too_long,
        None if undercount else len(order) - len(first),
        undercount,
    )


_NAN = (True, 0)  # as `rank` has it


def _key(value: Any) -> object:
    return _NAN if value != value else value


def _place(key: Any) -> tuple[Any, ...]:
    """Kinds of JSON values one after the other, and NaN above every other number."""
    if isinstance(key, _Json):
        return (key.kind, key.value)
    return (0, *(key if key is _NAN else rank(key)))


class _Json(msgspec.Struct, frozen=True):
    """A JSON value, equal to another one where jsonb says so."""

    kind: int
    value: Any


def _json_key(text: str) -> _Json:
    value = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    match value:
        case bool():
            return _Json(0, value)
        case Decimal():
            return _Json(1, value)
        case str():
            return _Json(2, value)
    return _Json(3, _canonical(value))


def _canonical(value: Any) -> str:
    """Text that is equal for equal objects and arrays."""
    match value:
        case dict():
            members = [f"{json.dumps(name)}:{_canonical(value[name])}" for name in sorted(value)]
            return f"{{{','.join(members)}}}"
        case list():
            return f"[{','.join(map(_canonical, value))}]"
        case Decimal():
            return _plain(value)
    return json.dumps(value)


def _shown_json(text: object) -> msgspec.Raw:
    value = _json_key(str(text))
    return msgspec.Raw((_plain(value.value) if value.kind == 1 else str(text)).encode())


def _plain(value: Decimal) -> str:
    """The one notation of a number, without zeros at its end."""
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text
