"""Dates and timestamps beyond Python's calendar, and the one grammar for all of them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_config.times import (
    DistantTime,
    date_of,
    days_of,
    microseconds_of,
    parse_date,
    parse_timestamp,
    timestamp_of,
    timestamptz_of,
)
from shard_config.values import ValueType, coerce, json_form

T = ValueType


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("2000-01-01", 0),
        ("0001-01-01", -730119),
        ("9999-12-31", 2921939),
        # By `SELECT date '…' - date '2000-01-01'` of PostgreSQL 18.
        ("0001-12-31 BC", -730120),
        ("0044-03-15 BC", -746117),
        ("0005-02-29 BC", -731887),
        ("4714-11-24 BC", -2451545),
        ("10000-01-01", 2921940),
        ("5874897-12-31", 2145031948),
        ("infinity", 2**31 - 1),
        ("-infinity", -(2**31)),
    ],
)
def test_a_date_is_what_postgresql_counts_and_reads_back_as_written(text: str, days: int) -> None:
    found = parse_date(text)
    assert found is not None
    assert days_of(found) == days
    assert str(found) == text
    assert date_of(days) == found


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("2000-01-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00Z", -63082281600000000),
        # By `SELECT extract(epoch from timestamptz '…' - timestamptz '2000-01-01 00:00Z') * 1000000`.
        ("0044-03-15T12:00:00.5Z BC", -64464465599500000),
        ("0001-12-31T23:59:59.999999Z BC", -63082281600000001),
        ("4714-11-24T00:00:00Z BC", -211813488000000000),
        ("10000-01-01T00:00:00Z", 252455616000000000),
        ("294276-12-31T23:59:59.999999Z", 9223371331199999999),
        ("infinity", 2**63 - 1),
        ("-infinity", -(2**63)),
    ],
)
def test_a_timestamp_is_what_postgresql_counts_and_reads_back(text: str, microseconds: int) -> None:
    found = parse_timestamp(text, zoned=True)
    assert found is not None
    assert microseconds_of(found) == microseconds
    assert timestamptz_of(microseconds) == found
    shown = json_form(T.TIMESTAMPTZ)
    assert shown is not None
    assert coerce(T.TIMESTAMPTZ, shown(found)) == found
    naive = parse_timestamp(text.replace("Z", ""), zoned=False)
    assert naive is not None
    assert microseconds_of(naive) == microseconds


@given(st.integers(-2_451_545, 2_145_031_948))
def test_every_date_is_read_back_as_it_is_shown(days: int) -> None:
    assert parse_date(str(date_of(days))) == date_of(days)


@given(st.integers(-211_813_488_000_000_000, 9_223_371_331_199_999_999))
def test_every_timestamp_is_read_back_as_it_is_shown(count: int) -> None:
    for zoned, made in ((True, timestamptz_of), (False, timestamp_of)):
        moment = made(count)
        text = str(moment) if isinstance(moment, DistantTime) else moment.isoformat()
        assert parse_timestamp(text, zoned=zoned) == moment
        assert microseconds_of(moment) == count


@given(st.datetimes(timezones=st.just(UTC)) | st.datetimes())
def test_within_the_calendar_it_is_python_s_own_value(moment: datetime) -> None:
    zoned = moment.tzinfo is not None
    assert parse_timestamp(moment.isoformat(), zoned=zoned) == moment
    assert (timestamptz_of if zoned else timestamp_of)(microseconds_of(moment)) == moment


def test_values_are_ordered_as_postgresql_orders_them() -> None:
    written = [
        "-infinity",
        "4714-11-24 BC",
        "0001-12-31 BC",
        "0001-01-01",
        "9999-12-31",
        "10000-01-01",
        "infinity",
    ]
    for kind in (T.DATE, T.TIMESTAMP):
        values = [coerce(kind, text) for text in written]
        for lower, upper in pairwise(values):
            assert lower < upper  # type: ignore[operator]
            assert upper > lower  # type: ignore[operator]
            assert lower <= upper  # type: ignore[operator]
            assert not lower >= upper  # type: ignore[operator]
            assert lower != upper
        assert sorted(reversed(values)) == values  # type: ignore[type-var]


def test_an_offset_may_lead_out_of_the_calendar_and_into_it() -> None:
    assert str(coerce(T.TIMESTAMPTZ, "0001-01-01T00:00:00+14:00")) == "0001-12-31T10:00:00Z BC"
    assert str(coerce(T.TIMESTAMPTZ, "9999-12-31T23:00:00-05:00")) == "10000-01-01T04:00:00Z"
    assert coerce(T.TIMESTAMPTZ, "10000-01-01T00:00:00+01") == datetime(9999, 12, 31, 23, tzinfo=UTC)
    west = timezone(timedelta(hours=-5))
    assert str(coerce(T.TIMESTAMPTZ, datetime(9999, 12, 31, 23, tzinfo=west))) == "10000-01-01T04:00:00Z"


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31T12:00:00Z",
        "2026-01-31t12:00:00z",
        "2026-01-31 12:00:00+00",
        "2026-01-31T12:00Z",
        "2026-01-31T13:30:00+01:30",
        "2026-01-31T13:30:00+0130",
        "2026-01-31T12:00:00.000000000Z",
        "2026-01-31T12:00:00,0Z",
        "2026-01-31T11:59:30-00:00:30",
    ],
)
def test_the_usual_ways_to_write_a_moment_mean_the_same(text: str) -> None:
    assert coerce(T.TIMESTAMPTZ, text) == datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "２０２６-01-31T12:00:00Z",
        "2026-01-31T12:00:00 Z",
        " 2026-01-31T12:00:00Z",
        "2026-01-31T12:00:00Z\n",
        "2026-02-29T00:00Z",
        "2026-01-31T24:00:00Z",
        "2026-01-31T12:60:00Z",
        "2026-01-31T12:00:60Z",
        "2026-01-31T12:00:00+24:00",
        "0000-01-01T00:00Z",
        "2026-01-31x12:00:00Z",
        "-2026-01-31T00:00Z",
        "2026-1-31T00:00Z",
        "2026-01-31T12:00:00.Z",
        "now",
        "",
        "today",
    ],
)
def test_whatever_else_looks_like_a_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a timestamp with an offset"):
        coerce(T.TIMESTAMPTZ, text)


def test_a_date_is_no_timestamp_and_the_other_way_round() -> None:
    for type_, other in ((T.DATE, T.TIMESTAMP), (T.TIMESTAMP, T.DATE), (T.TIMESTAMP, T.TIMESTAMPTZ)):
        with pytest.raises(ValueError, match="expected a"):
            coerce(type_, coerce(other, "infinity"))
    assert coerce(T.DATE, "9999-12-31") == date.max
    assert coerce(T.TIMESTAMP, "9999-12-31T23:59:59.999999") == datetime.max
