"""Single values in PostgreSQL's binary format, with their length in front, as COPY wants them."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from shard_config.times import days_of, microseconds_of
from shard_config.values import ValueType

__all__ = ["JSONB", "NULL", "encoder"]

JSONB = "jsonb"
NULL = b"\xff\xff\xff\xff"

_LENGTH = struct.Struct(">i")
_NEGATIVE = 0x4000
_SPECIAL = {"NaN": 0xC000, "Infinity": 0xD000, "-Infinity": 0xF000}


def encoder(type_: str) -> Callable[[Any], bytes]:
    """What turns a value that `coerce` gave for `type_`, or None, into bytes."""
    encode = _ENCODERS[type_]

    def field(value: object) -> bytes:
        return NULL if value is None else encode(value)

    return field


def _packer(format_: str) -> Callable[[Any], bytes]:
    packed = struct.Struct(f">i{format_}")
    size = packed.size - _LENGTH.size

    def encode(value: Any) -> bytes:
        return packed.pack(size, value)

    return encode


def _counted(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _text(value: str) -> bytes:
    return _counted(value.encode())


def _uuid(value: uuid.UUID) -> bytes:
    return _counted(value.bytes)


def _jsonb(value: str) -> bytes:
    # The version of the format comes first.
    return _counted(b"\x01" + value.encode())


_pack_day = _packer("i")
_pack_moment = _packer("q")


def _date(value: Any) -> bytes:
    return _pack_day(days_of(value))


def _timestamp(value: Any) -> bytes:
    return _pack_moment(microseconds_of(value))


def _numeric(value: Decimal) -> bytes:
    """Groups of four decimal digits, as numeric_recv in src/backend/utils/adt/numeric.c reads them."""
    if not value.is_finite():
        return _counted(struct.pack(">hhHh", 0, 0, _SPECIAL[str(value)], 0))
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits)) + "0" * max(0, exponent)
    scale = max(0, -exponent)
    whole, fraction = (text[:-scale], text[-scale:].rjust(scale, "0")) if scale else (text, "")
    whole = whole.rjust(-(-len(whole) // 4) * 4, "0")
    text = whole + fraction.ljust(-(-len(fraction) // 4) * 4, "0")
    groups = [int(text[at : at + 4]) for at in range(0, len(text), 4)]
    weight = len(whole) // 4 - 1
    while groups and groups[0] == 0:
        del groups[0]
        weight -= 1
    while groups and groups[-1] == 0:
        del groups[-1]
    header = (len(groups), weight if groups else 0, _NEGATIVE if sign and groups else 0, scale)
    return _counted(struct.pack(f">hhHh{len(groups)}h", *header, *groups))


_ENCODERS: dict[str, Callable[[Any], bytes]] = {
    ValueType.BIGINT: _packer("q"),
    ValueType.INTEGER: _packer("i"),
    ValueType.SMALLINT: _packer("h"),
    ValueType.TEXT: _text,
    ValueType.UUID: _uuid,
    ValueType.BOOLEAN: _packer("?"),
    ValueType.FLOAT8: _packer("d"),
    ValueType.FLOAT4: _packer("f"),
    ValueType.NUMERIC: _numeric,
    ValueType.DATE: _date,
    ValueType.TIMESTAMP: _timestamp,
    ValueType.TIMESTAMPTZ: _timestamp,
    JSONB: _jsonb,
}
