"""Values of columns: what is taken for a type, what it becomes, and what is refused."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from shard_config.values import TYPE_NAMES, ValueType, coerce, from_text, parse_type

T = ValueType
A_UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


def test_every_name_of_a_type_is_known() -> None:
    assert {parse_type(name) for name in TYPE_NAMES} == set(ValueType)
    assert parse_type("int8") is T.BIGINT
    assert parse_type("timestamptz") is T.TIMESTAMPTZ
    with pytest.raises(ValueError, match=r"unknown type 'money'; known types are .*uuid"):
        parse_type("money")


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        (T.BIGINT, -(2**63), -(2**63)),
        (T.SMALLINT, 32767, 32767),
        (T.TEXT, "é😀", "é😀"),
        (T.UUID, str(A_UUID), A_UUID),
        (T.UUID, A_UUID, A_UUID),
        (T.BOOLEAN, False, False),
        (T.FLOAT8, 1, 1.0),
        (T.FLOAT4, 0.1, 0.10000000149011612),
        (T.NUMERIC, 0.1, Decimal("0.1")),
        (T.NUMERIC, "1.10", Decimal("1.10")),
        (T.DATE, "2026-01-31", date(2026, 1, 31)),
        (T.TIMESTAMP, "2026-01-31T12:00:00", datetime(2026, 1, 31, 12)),
        (T.TIMESTAMPTZ, "2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
    ],
)
def test_a_value_becomes_what_the_driver_binds(type_: ValueType, value: object, expected: object) -> None:
    found = coerce(type_, value)
    assert (found, type(found)) == (expected, type(expected))
    assert coerce(type_, found) == found


@pytest.mark.parametrize(
    ("type_", "value", "message"),
    [
        (T.BIGINT, 2**63, "an integer from -9223372036854775808"),
        (T.INTEGER, 2**31, "an integer from -2147483648"),
        (T.BIGINT, 1.0, "an integer"),
        (T.BIGINT, True, "an integer"),
        (T.BIGINT, "1", "an integer"),
        (T.TEXT, 1, "a string"),
        (T.TEXT, "a\0b", "U\\+0000"),
        (T.TEXT, "\ud800", "surrogate"),
        (T.UUID, "x", "a UUID"),
        (T.UUID, 5, "a UUID"),
        (T.BOOLEAN, 1, "true or false"),
        (T.FLOAT8, "1", "a number"),
        (T.FLOAT8, 10**400, "a finite number"),
        (T.FLOAT4, 1e39, "within the range of real"),
        (T.NUMERIC, "NaN", "a finite number"),
        (T.NUMERIC, "1e2000", "more than 1000 digits"),
        (T.DATE, "2026-02-30", "a date"),
        (T.DATE, datetime(2026, 1, 1), "a date"),
        (T.TIMESTAMP, "2026-01-31T12:00:00Z", "without an offset"),
        (T.TIMESTAMPTZ, "2026-01-31T12:00:00", "with an offset"),
        (T.DATE, "9999-12-31", "from 0001-01-02 to 9999-12-30"),
        (T.DATE, 5, "a date"),
        (T.TIMESTAMP, datetime.max, "ends of the years 1 and 9999"),
        (T.TIMESTAMP, "0001-01-01", "ends of the years 1 and 9999"),
        (T.TIMESTAMPTZ, "0001-01-01T00:00:00+14:00", "ends of the years 1 and 9999"),
        (T.TIMESTAMPTZ, "9999-12-31T23:59:59.999999Z", "ends of the years 1 and 9999"),
    ],
)
def test_a_value_of_another_kind_is_refused(type_: ValueType, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coerce(type_, value)


@pytest.mark.parametrize(
    ("type_", "value", "shown"),
    [
        (T.TEXT, None, "null"),
        (T.TEXT, True, "true"),
        (T.TEXT, {"a": [None, "b"]}, "an object"),
        (T.FLOAT8, [[1.5]], "an array"),
        (T.FLOAT8, "x", "'x'"),
        (T.TEXT, Decimal("1.50"), "1.50"),
        (T.TIMESTAMPTZ, "2026-01-31", "'2026-01-31T00:00:00'"),
        (T.DATE, datetime(2026, 1, 31), "'2026-01-31T00:00:00'"),
        (T.DATE, "0001-01-01", "'0001-01-01'"),
    ],
)
def test_a_value_is_shown_as_it_is_sent(type_: ValueType, value: object, shown: str) -> None:
    with pytest.raises(ValueError) as caught:
        coerce(type_, value)
    assert str(caught.value).endswith(f"got {shown}")


def test_a_huge_integer_is_refused_without_writing_it_out() -> None:
    with pytest.raises(ValueError, match="got an integer of more than 300 digits"):
        coerce(T.BIGINT, 10**5000)


@pytest.mark.parametrize(
    ("type_", "text", "expected"),
    [
        (T.BIGINT, "-42", -42),
        (T.BOOLEAN, "true", True),
        (T.FLOAT8, "1e3", 1000.0),
        (T.NUMERIC, "1.10", Decimal("1.10")),
        (T.TEXT, "42", "42"),
        (T.UUID, str(A_UUID), A_UUID),
        (T.DATE, "2026-01-31", date(2026, 1, 31)),
    ],
)
def test_bare_text_becomes_a_value(type_: ValueType, text: str, expected: Any) -> None:
    assert from_text(type_, text) == expected


@pytest.mark.parametrize(
    ("type_", "text"),
    [(T.BIGINT, "4_2"), (T.BIGINT, "x"), (T.BIGINT, "9" * 31), (T.BOOLEAN, "1"), (T.FLOAT8, "nan"),
     (T.FLOAT8, "inf"), (T.FLOAT8, "x"), (T.NUMERIC, "inf"), (T.UUID, ""), (T.TEXT, "\0")],
)  # fmt: skip
def test_bare_text_of_another_kind_is_refused(type_: ValueType, text: str) -> None:
    with pytest.raises(ValueError):
        from_text(type_, text)
