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
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum

__all__ = ["TYPE_NAMES", "ValueType", "coerce", "from_text", "parse_type", "shown"]


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
_FLOAT4_MAX = 3.4028234663852886e38
# PostgreSQL's numeric holds far more; this bound keeps one value from being a megabyte of digits.
_NUMERIC_DIGITS = 1000


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
    exactly where the type has one. The one rounding is that of `real`: the result is the number that
    the server will hold, so that comparing it here and there gives the same answer.

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
            try:
                return coerce(type_, float(text))
            except ValueError:
                raise _expected("a finite number", text) from None
    return coerce(type_, text)


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
    try:
        return uuid.UUID(value) if isinstance(value, str) else uuid.UUID("")
    except ValueError:
        raise _expected("a UUID", value) from None


def _float(type_: ValueType, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _expected("a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or (type_ is ValueType.FLOAT4 and abs(number) > _FLOAT4_MAX):
        raise _expected(f"a finite number within the range of {type_}", value)
    if type_ is ValueType.FLOAT4:
        number = struct.unpack("<f", struct.pack("<f", number))[0]
    return number


def _numeric(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        raise _expected("a number", value)
    try:
        number = Decimal(str(value)) if isinstance(value, float) else Decimal(value)
    except InvalidOperation:
        raise _expected("a number", value) from None
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int):
        raise _expected("a finite number", value)
    if len(number.as_tuple().digits) + abs(exponent) > _NUMERIC_DIGITS:
        raise ValueError(f"a number of more than {_NUMERIC_DIGITS} digits")
    return number


def _date(value: object) -> date:
    found = value
    if isinstance(value, str):
        try:
            found = date.fromisoformat(value)
        except ValueError:
            found = None
    if not isinstance(found, date) or isinstance(found, datetime):
        raise _expected("a date such as 2026-01-31", value)
    # asyncpg writes and reads the two ends of Python's calendar as PostgreSQL's infinities.
    if found in (date.min, date.max):
        raise _expected("a date from 0001-01-02 to 9999-12-30", value)
    return found


def _timestamp(type_: ValueType, value: object) -> datetime:
    wants_offset = type_ is ValueType.TIMESTAMPTZ
    example = "2026-01-31T12:00:00Z" if wants_offset else "2026-01-31T12:00:00"
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise _expected(f"a timestamp such as {example}", value) from None
    if not isinstance(value, datetime) or (value.tzinfo is not None) != wants_offset:
        offset = "with" if wants_offset else "without"
        raise _expected(f"a timestamp {offset} an offset, such as {example}", value)
    try:
        in_utc = value.astimezone(UTC).replace(tzinfo=None) if wants_offset else value
    except OverflowError:
        in_utc = datetime.max
    if in_utc in (datetime.min, datetime.max):  # infinities to asyncpg, as with dates
        raise _expected("a timestamp between the ends of the years 1 and 9999 in UTC", value)
    return value
