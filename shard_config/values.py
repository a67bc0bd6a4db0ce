"""Scalar types of columns: their names, and how a JSON or YAML value becomes a checked Python value.

A value that passes `coerce` can be bound to a parameter of that PostgreSQL type without an error
from the server; that is what keeps bad input a matter of one message at the edge.
"""

from __future__ import annotations

import json
import math
import re
import struct
import uuid
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum

import numpy as np

from shard_config.times import DistantTime, microseconds_of, parse_date, parse_timestamp, timestamptz_of

__all__ = ["TYPE_NAMES", "ValueType", "coerce", "from_text", "json_form", "parse_type", "shown"]


class ValueType(StrEnum):
    """The column types that filters, documents and sharding keys know; values are PostgreSQL's names."""

    BIGINT = "bigint"
    INTEGER = "integer"
    SMALLINT = "smallint"
    TEXT = "text"
    UUID = "uuid"
    BOOLEAN = "boolean"
    FLOAT8 = "double precision"
    FLOAT4 = "real"
    NUMERIC = "numeric"
    DATE = "date"
    TIMESTAMP = "timestamp without time zone"
    TIMESTAMPTZ = "timestamp with time zone"


_ALIASES = {
    "int8": ValueType.BIGINT,
    "int": ValueType.INTEGER,
    "int4": ValueType.INTEGER,
    "int2": ValueType.SMALLINT,
    "varchar": ValueType.TEXT,
    "bool": ValueType.BOOLEAN,
    "float": ValueType.FLOAT8,
    "float8": ValueType.FLOAT8,
    "float4": ValueType.FLOAT4,
    "decimal": ValueType.NUMERIC,
    "timestamp": ValueType.TIMESTAMP,
    "timestamptz": ValueType.TIMESTAMPTZ,
}

TYPE_NAMES: tuple[str, ...] = (*ValueType, *_ALIASES)

_INTEGER_BITS = {ValueType.BIGINT: 64, ValueType.INTEGER: 32, ValueType.SMALLINT: 16}
_INTEGER_TEXT = re.compile(r"[+-]?[0-9]{1,30}")
_NUMBER_TEXT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?")
_UUID_TEXT = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# What PostgreSQL's numeric holds before and after the decimal point.
_NUMERIC_WHOLE, _NUMERIC_FRACTION = 131_072, 16_383
# Numbers that JSON has no word for are strings, in answers and in requests. Each NaN is this one object:
# it is not equal to itself, but a dictionary finds an object that it holds.
_FLOAT_WORDS = {"nan": math.nan, "infinity": math.inf, "-infinity": -math.inf}
_NUMERIC_WORDS = {word: Decimal(word) for word in _FLOAT_WORDS}


def parse_type(name: str) -> ValueType:
    """The type that `name` means, PostgreSQL's aliases included.

    Raises:
        ValueError: with the list of known names.
    """
    known = _ALIASES.get(name)
    if known is not None:
        return known
    try:
        return ValueType(name)
    except ValueError:
        names = ", ".join(sorted(TYPE_NAMES))
        raise ValueError(f"unknown type {name!r}; known types are {names}") from None


def coerce(type_: ValueType, value: object) -> object:
    """`value` as the Python value that asyncpg binds for `type_`.

    Accepts what JSON and YAML produce, and values that have the right Python type already. Never
    loses information silently: 1.5 is no integer, "1" is no number, and a timestamp says its offset
    exactly where the type has one, and no more digits than microseconds. The one rounding is that to
    binary floats: the result is the number that the server will hold, so that comparing it here and
    there gives the same answer. Takes back whatever `json_form` gives.

    Raises:
        ValueError: saying what was expected and what came.
    """
    match type_:
        case ValueType.BIGINT | ValueType.INTEGER | ValueType.SMALLINT:
            return _integer(_INTEGER_BITS[type_], value)
        case ValueType.TEXT:
            return _text(value)
        case ValueType.UUID:
            return _uuid(value)
        case ValueType.BOOLEAN:
            if isinstance(value, bool):
                return value
            raise _expected("true or false", value)
        case ValueType.FLOAT8 | ValueType.FLOAT4:
            return _float(type_, value)
        case ValueType.NUMERIC:
            return _numeric(value)
        case ValueType.DATE:
            return _date(value)
        case ValueType.TIMESTAMP | ValueType.TIMESTAMPTZ:
            return _timestamp(type_, value)


def from_text(type_: ValueType, text: str) -> object:
    """`coerce` for a value that came as bare text: a command's argument, a query parameter.

    Raises:
        ValueError: as `coerce`.
    """
    match type_:
        case ValueType.BIGINT | ValueType.INTEGER | ValueType.SMALLINT:
            return coerce(type_, int(text) if _INTEGER_TEXT.fullmatch(text) else text)
        case ValueType.BOOLEAN:
            return coerce(type_, {"true": True, "false": False}.get(text, text))
        case ValueType.FLOAT8 | ValueType.FLOAT4:
            return coerce(type_, float(text) if _NUMBER_TEXT.fullmatch(text) else text)
    return coerce(type_, text)


def json_form(type_: ValueType) -> Callable[[object], object] | None:
    """What makes a value of `type_`, as asyncpg or `coerce` gives it, one that JSON has; None: nothing.

    A `real` becomes the shortest number that stands for it. NaN, infinities, and times that Python has no
    value for become strings.
    """
    return _JSON_FORMS.get(type_)


def shown(value: object) -> str:
    """`value` for a message, in 60 characters: as JSON has it, but for the quotes of a string."""
    # Python refuses to write out integers of more than 4300 digits.
    if isinstance(value, int) and value.bit_length() > 1000:
        return "an integer of more than 300 digits"
    if isinstance(value, (list, dict)):
        return "an array" if isinstance(value, list) else "an object"
    if value is None or isinstance(value, (bool, int, float)):
        text = json.dumps(value)
    elif isinstance(value, Decimal):
        text = str(value)
    else:
        text = repr(value.isoformat() if isinstance(value, date) else str(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _expected(what: str, value: object) -> ValueError:
    return ValueError(f"expected {what}, got {shown(value)}")


def _integer(bits: int, value: object) -> int:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _expected(f"an integer from {low} to {high}", value)
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _expected("a string", value)
    if "\0" in value:
        raise ValueError("a string cannot hold the character U+0000")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("a string cannot hold a lone surrogate") from None
    return value


def _uuid(value: object) -> uuid.UUID:
    if isinstance(value, uuid.UUID):
        return value
    # UUID itself would read 0x, underscores, blanks and the digits of other scripts as well.
    if not isinstance(value, str) or not _UUID_TEXT.fullmatch(value):
        raise _expected("a UUID such as 6f1d7c1e-2b57-4a0e-9a52-1f0c5f3c8c11", value)
    return uuid.UUID(value)


def _float(type_: ValueType, value: object) -> float:
    if isinstance(value, str) and value.lower() in _FLOAT_WORDS:
        return _FLOAT_WORDS[value.lower()]
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise _expected("a number", value)
    if value != value:
        return math.nan
    try:
        number = float(value)
        if type_ is ValueType.FLOAT4:
            # Rounds to the nearest, as the server does; what that takes to infinity is out of range.
            number = struct.unpack("<f", struct.pack("<f", number))[0]
    except OverflowError:
        number = math.inf
    if math.isinf(number) and not _is_infinite(value):
        raise _expected(f"a number within the range of {type_}", value)
    return number


def _is_infinite(value: float | Decimal) -> bool:
    return value in (math.inf, -math.inf)


def _numeric(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        raise _expected("a number", value)
    if isinstance(value, str) and value.lower() in _NUMERIC_WORDS:
        return _NUMERIC_WORDS[value.lower()]
    # Decimal itself would read underscores, blanks and the digits of other scripts as well.
    if isinstance(value, str) and not _NUMBER_TEXT.fullmatch(value):
        raise _expected("a number", value)
    number = Decimal(str(value) if isinstance(value, float) else value)
    if not number.is_finite():
        return _NUMERIC_WORDS["nan"] if number.is_nan() else number
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    if -exponent > _NUMERIC_FRACTION or (number and number.adjusted() >= _NUMERIC_WHOLE):
        limits = f"{_NUMERIC_WHOLE} digits before the point and {_NUMERIC_FRACTION} after it"
        raise ValueError(f"expected a number of at most {limits}")
    return number if number or exponent <= 0 else Decimal(0)


def _date(value: object) -> date | DistantTime:
    found = parse_date(value) if isinstance(value, str) else value
    if isinstance(found, DistantTime) and found.kind == "date":
        return found
    if not isinstance(found, date) or isinstance(found, datetime):
        raise _expected("a date such as 2026-01-31", value)
    return found


def _timestamp(type_: ValueType, value: object) -> datetime | DistantTime:
    zoned = type_ is ValueType.TIMESTAMPTZ
    example = "2026-01-31T12:00:00Z" if zoned else "2026-01-31T12:00:00"
    found = parse_timestamp(value, zoned=zoned) if isinstance(value, str) else value
    if isinstance(found, DistantTime) and found.kind == ("timestamptz" if zoned else "timestamp"):
        return found
    if not isinstance(found, datetime) or (found.tzinfo is not None) != zoned:
        raise _expected(f"a timestamp {'with' if zoned else 'without'} an offset, such as {example}", value)
    # In UTC, so that what lies within Python's calendar is told by one measure.
    return timestamptz_of(microseconds_of(found)) if zoned else found


def _json_float(value: object) -> object:
    assert isinstance(value, (float, Decimal))
    if math.isfinite(value):
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def _json_real(value: object) -> object:
    assert isinstance(value, float)
    return float(str(np.float32(value))) if math.isfinite(value) else _json_float(value)


def _json_time(value: object) -> object:
    return str(value) if isinstance(value, DistantTime) else value


_JSON_FORMS: dict[ValueType, Callable[[object], object]] = {
    ValueType.FLOAT8: _json_float,
    ValueType.FLOAT4: _json_real,
    ValueType.NUMERIC: _json_float,
    ValueType.DATE: _json_time,
    ValueType.TIMESTAMP: _json_time,
    ValueType.TIMESTAMPTZ: _json_time,
}
