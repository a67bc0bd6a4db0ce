"""Counts of documents by a field's values: those of many shards become one list. Pure.

Invariant: as long as no shard had more values than it may bring, the counts are those of one table that holds
all documents, however they lie on shards. A value stands for all that PostgreSQL takes for equal: 1 and 1.0,
and NaN, which equals itself there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from enum import IntEnum
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
    counts: dict[Any, int] = {}
    is_json = field.field.column is None
    for part in rows.values():
        values = 0
        for value, long, count in part:
            if long:
                too_long += count
            elif value is None:
                missing += count
            elif (values := values + 1) > most:
                undercount += count  # no value that is not among them has more there
            else:
                key = _json_key(value) if is_json else _key(value)
                counts[key] = counts.get(key, 0) + count
    order = sorted(counts, key=lambda key: (-counts[key], key.place if is_json else rank(key)))
    form = _Json.shown if is_json else _form(field)
    return Facet(
        field.name,
        tuple(FacetValue(form(key), counts[key]) for key in order[:limit]),
        missing,
        too_long,
        None if undercount else len(order[limit:]),
        undercount,
    )


def _key(value: Any) -> Any:
    """The one value that stands for all that are equal."""
    if isinstance(value, (float, Decimal)):
        if value != value:
            return _NAN[type(value)]
        return value + 0.0 if isinstance(value, float) else _plain(value)
    return value


# One object each: NaN is not equal to itself, but a dictionary finds an object that it holds.
_NAN: Mapping[type, object] = {float: float("nan"), Decimal: Decimal("nan")}


def _form(field: FacetField) -> Callable[[Any], object]:
    assert field.field.column is not None
    return json_form(field.field.column.type) or (lambda value: value)


class _Json(msgspec.Struct, frozen=True):
    """A JSON value, equal to another one where jsonb says so; kinds come one after the other."""

    kind: int
    value: Any

    @property
    def place(self) -> tuple[int, Any]:
        return self.kind, self.value

    def shown(self) -> msgspec.Raw:
        return msgspec.Raw((self.value if self.kind == _Kind.TREE else _canonical(self.value)).encode())


class _Kind(IntEnum):
    BOOLEAN = 0
    NUMBER = 1
    STRING = 2
    TREE = 3  # as text


def _json_key(text: str) -> _Json:
    value = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    match value:
        case bool():
            return _Json(_Kind.BOOLEAN, value)
        case Decimal():
            return _Json(_Kind.NUMBER, _plain(value))
        case str():
            return _Json(_Kind.STRING, value)
    return _Json(_Kind.TREE, _canonical(value))


def _canonical(value: Any) -> str:
    """JSON that is the same for equal values."""
    match value:
        case dict():
            return f"{{{', '.join(f'{_string(name)}: {_canonical(value[name])}' for name in sorted(value))}}}"
        case list():
            return f"[{', '.join(map(_canonical, value))}]"
        case Decimal():
            return f"{_plain(value):f}"
        case str():
            return _string(value)
    return json.dumps(value)


def _string(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _plain(value: Decimal) -> Decimal:
    """The same number without zeros behind its fraction."""
    if not value.is_finite() or value == 0:
        return value if value else Decimal(0)
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    return Decimal(f"{value:f}".rstrip("0").rstrip(".")) if exponent < 0 else Decimal(f"{value:f}")
