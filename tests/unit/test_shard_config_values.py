"""Values of columns: what is taken for a type, what it becomes, and what is refused."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from shard_config.values import TYPE_NAMES, ValueType, coerce, from_text, json_form, parse_type

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
        (T.FLOAT8, 10**400, "within the range of double precision"),
        (T.FLOAT4, 1e39, "within the range of real"),
        (T.FLOAT4, 3.4028235677973366e38, "within the range of real"),
        (T.FLOAT8, "1.5", "a number"),
        (T.NUMERIC, "1e131072", "at most 131072 digits before the point and 16383 after"),
        (T.NUMERIC, "1e-16384", "at most 131072 digits before the point and 16383 after"),
        (T.NUMERIC, "1" + "0" * 131072, "at most 131072 digits"),
        (T.DATE, "2026-02-30", "a date"),
        (T.DATE, datetime(2026, 1, 1), "a date"),
        (T.TIMESTAMP, "2026-01-31T12:00:00Z", "without an offset"),
        (T.TIMESTAMPTZ, "2026-01-31T12:00:00", "with an offset"),
        (T.DATE, 5, "a date"),
        (T.DATE, "4715-11-24 BC", "a date from 4714-11-24 BC to 5874897-12-31"),
        (T.DATE, "5874898-01-01", "a date from 4714-11-24 BC to 5874897-12-31"),
        (T.TIMESTAMP, "294277-01-01", "a timestamp from 4714-11-24 BC to 294276-12-31"),
        (T.TIMESTAMPTZ, "4714-11-24T00:00:00+01:00 BC", "a timestamp from 4714-11-24 BC"),
        (T.TIMESTAMP, "2026-01-31T12:00:00.1234567", "a fraction of a microsecond"),
        (T.TIMESTAMPTZ, "2026-01-31T12:00:00.0000001Z", "a fraction of a microsecond"),
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
        (T.TIMESTAMPTZ, "2026-01-31", "'2026-01-31'"),
        (T.DATE, datetime(2026, 1, 31), "'2026-01-31T00:00:00'"),
        (T.DATE, "0000-01-01", "'0000-01-01'"),
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
    [
        (T.BIGINT, "4_2"),
        (T.BIGINT, "x"),
        (T.BIGINT, "9" * 31),
        (T.BOOLEAN, "1"),
        (T.FLOAT8, "1_0"),
        (T.FLOAT8, " 1"),
        (T.FLOAT8, "１"),
        (T.FLOAT8, "inf"),
        (T.FLOAT8, "x"),
        (T.NUMERIC, "inf"),
        (T.UUID, ""),
        (T.TEXT, "\0"),
    ],
)
def test_bare_text_of_another_kind_is_refused(type_: ValueType, text: str) -> None:
    with pytest.raises(ValueError):
        from_text(type_, text)


@pytest.mark.parametrize(
    "text",
    [
        f"{{{A_UUID}}}",
        f"urn:uuid:{A_UUID}",
        f" {A_UUID}",
        f"{A_UUID}\n",
        "0x345678-1234-5678-1234-567812345678",
        "1234567_-1234-5678-1234-567812345678",
        "１2345678-1234-5678-1234-567812345678",
        "1-2" * 12,
        "12345678-12345678-1234-567812345678",
        "1234567812345678-1234-567812345678",
        "0x345678123456781234567812345678",
    ],
)
def test_a_uuid_is_its_digits_and_nothing_else(text: str) -> None:
    with pytest.raises(ValueError, match="expected a UUID"):
        coerce(T.UUID, text)


def test_a_uuid_may_be_written_in_either_case_and_without_hyphens() -> None:
    for text in (str(A_UUID).upper(), A_UUID.hex, A_UUID.hex.upper()):
        assert coerce(T.UUID, text) == A_UUID


@pytest.mark.parametrize(
    "text",
    [
        "1_000",
        " 1",
        "1 ",
        "1\n",
        "１",
        "٣",
        "0x10",
        "1e",
        "1,5",
        "--1",
        "+",
        ".",
        "",
        "inf",
        "sNaN",
        "nan1",
        "1e1000000000",
    ],
)
def test_a_number_in_a_string_is_decimal_digits_and_nothing_else(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        coerce(T.NUMERIC, text)


@pytest.mark.parametrize("text", ["1", "-1.50", "+.5", "5.", "1e3", "1E-10", "0.1234567", "1" * 131072])
def test_a_number_in_a_string_keeps_each_digit(text: str) -> None:
    assert coerce(T.NUMERIC, text) == Decimal(text)
    assert str(coerce(T.NUMERIC, "0.10")) == "0.10"
    assert str(coerce(T.NUMERIC, "0e5")) == "0"


@pytest.mark.parametrize("type_", [T.FLOAT8, T.FLOAT4, T.NUMERIC])
@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_lacks_are_words_both_ways(type_: ValueType, word: str) -> None:
    value = coerce(type_, word)
    form = json_form(type_)
    assert form is not None
    assert form(value) == word
    assert form(coerce(type_, form(value))) == word
    # The same object for each NaN, whatever it came from, so that lists of values can hold it.
    assert {value: 1}[coerce(type_, word.lower())] == 1
    assert {value: 1}[coerce(type_, Decimal(word))] == 1
    assert {value: 1}[coerce(type_, float(word))] == 1
    assert from_text(type_, word) is value


def test_the_usual_spelling_of_the_largest_real_is_taken() -> None:
    largest = 3.4028234663852886e38
    assert coerce(T.FLOAT4, 3.4028235e38) == largest
    assert coerce(T.FLOAT4, -3.4028235e38) == -largest
    assert coerce(T.FLOAT4, Decimal("3.4028235e38")) == largest


@pytest.mark.parametrize("number", [0.1, 0.1234567, 3.4028235e38, 1e-45, 16777216.0, -0.0, 1.5])
def test_a_real_is_shown_by_the_shortest_number_that_stands_for_it(number: float) -> None:
    form = json_form(T.FLOAT4)
    assert form is not None
    assert repr(form(coerce(T.FLOAT4, number))) == repr(number)


def test_types_that_json_has_need_no_form() -> None:
    for type_ in (T.BIGINT, T.INTEGER, T.SMALLINT, T.TEXT, T.UUID, T.BOOLEAN):
        assert json_form(type_) is None
