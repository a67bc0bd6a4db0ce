"""Dates and timestamps over PostgreSQL's whole range, of which Python's calendar is a small part.

A value within the years 1 to 9999 is a `date` or `datetime`, with UTC where the type has an offset. What
PostgreSQL holds beyond them, from 4714 BC to the year 5874897 (timestamps: 294276) and the two
infinities, is a `DistantTime`. The two kinds compare with each other as PostgreSQL compares them.

On the wire both types are counts from 2000-01-01: days, or microseconds (in UTC where there is an offset).
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Literal, TypeAlias

import msgspec

__all__ = [
    "DistantTime",
    "Kind",
    "date_of",
    "days_of",
    "from_1970",
    "microseconds_of",
    "parse_date",
    "parse_timestamp",
    "timestamp_of",
    "timestamptz_of",
]

Kind: TypeAlias = Literal["date", "timestamp", "timestamptz"]

# Bounds of PostgreSQL's types, as in src/include/datatype/timestamp.h; its infinities are the ends of
# the integers on the wire.
_DAYS = (-2_451_545, 2_145_031_948)
_MICROSECONDS = (-211_813_488_000_000_000, 9_223_371_331_199_999_999)
_INFINITY = {"date": 2**31 - 1, "timestamp": 2**63 - 1, "timestamptz": 2**63 - 1}
_RANGE = {"date": "5874897-12-31", "timestamp": "294276-12-31", "timestamptz": "294276-12-31"}

_DAY = 86_400_000_000
_EPOCH_ORDINAL = date(2000, 1, 1).toordinal()
_EPOCH = datetime(2000, 1, 1)
_EPOCH_UTC = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_EPOCH_1970 = _EPOCH_ORDINAL - date(1970, 1, 1).toordinal()
_FRACTION = "has a fraction of a microsecond, which PostgreSQL does not keep"
# The Gregorian calendar repeats itself after this many years, which are this many days.
_CYCLE_YEARS, _CYCLE_DAYS = 400, 146_097

_DATE = r"([0-9]{4,7})-([0-9]{2})-([0-9]{2})"
_TIME = r"([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]+))?)?"
_OFFSET = r"[Zz]|([+-])([0-9]{2})(?::?([0-9]{2})(?::?([0-9]{2}))?)?"
_DATE_TEXT = re.compile(rf"{_DATE}( BC)?")
_TIMESTAMP_TEXT = re.compile(rf"{_DATE}(?:[Tt ]{_TIME}({_OFFSET})?)?( BC)?")


class DistantTime(msgspec.Struct, frozen=True, array_like=True, tag="distant"):
    """A date or timestamp that Python has no value for; `count` is as on the wire.

    `str` is what answers show and requests may send: `infinity`, `0044-03-15 BC`,
    `10000-01-01T00:00:00Z`.
    """

    kind: Kind
    count: int

    def __str__(self) -> str:
        if abs(self.count) >= _INFINITY[self.kind]:
            return "infinity" if self.count > 0 else "-infinity"
        if self.kind == "date":
            return "".join(_calendar(self.count))
        days, rest = divmod(self.count, _DAY)
        day, era = _calendar(days)
        time = (datetime.min + timedelta(microseconds=rest)).time().isoformat()
        return f"{day}T{time}{'Z' if self.kind == 'timestamptz' else ''}{era}"

    # Compared with a date or datetime it lies beyond one of the calendar's ends.

    def __lt__(self, other: object) -> bool:
        return self.count < (other.count if isinstance(other, DistantTime) else 0)

    def __gt__(self, other: object) -> bool:
        return self.count > (other.count if isinstance(other, DistantTime) else 0)

    def __le__(self, other: object) -> bool:
        return not self > other

    def __ge__(self, other: object) -> bool:
        return not self < other


# These run for every time in every row of an answer. To try and catch the error of a time beyond Python's
# calendar takes two thirds of the time that a check before does.


def date_of(days: int) -> date | DistantTime:
    """The date that is `days` after 2000-01-01."""
    try:
        return date.fromordinal(days + _EPOCH_ORDINAL)
    except (ValueError, OverflowError):
        return DistantTime("date", days)


def timestamp_of(microseconds: int) -> datetime | DistantTime:
    """The moment that is `microseconds` after 2000-01-01, where there are no offsets."""
    try:
        return _EPOCH + timedelta(0, 0, microseconds)
    except OverflowError:
        return DistantTime("timestamp", microseconds)


def timestamptz_of(microseconds: int) -> datetime | DistantTime:
    """The moment that is `microseconds` after 2000-01-01 in UTC."""
    try:
        return _EPOCH_UTC + timedelta(0, 0, microseconds)
    except OverflowError:
        return DistantTime("timestamptz", microseconds)


def days_of(value: date | DistantTime) -> int:
    return value.count if isinstance(value, DistantTime) else value.toordinal() - _EPOCH_ORDINAL


def microseconds_of(value: datetime | DistantTime) -> int:
    if isinstance(value, DistantTime):
        return value.count
    return (value - (_EPOCH if value.tzinfo is None else _EPOCH_UTC)) // _MICROSECOND


def from_1970(kind: Kind, count: int, parts: int) -> date | datetime | DistantTime:
    """What lies `count` parts of a day (of a microsecond, for timestamps) after 1970-01-01.

    Raises:
        ValueError: PostgreSQL's type does not reach that far, or does not divide its unit.
    """
    whole, rest = divmod(count, parts)
    if rest:
        raise ValueError("expected a date, got a time within a day" if kind == "date" else _FRACTION)
    moved = whole - (_EPOCH_1970 if kind == "date" else _EPOCH_1970 * _DAY)
    made = {"date": date_of, "timestamp": timestamp_of, "timestamptz": timestamptz_of}[kind]
    return made(_in_range(kind, moved))


def _in_range(kind: Kind, count: int) -> int:
    """
    Raises:
        ValueError: PostgreSQL's type does not reach that far.
    """
    low, high = _DAYS if kind == "date" else _MICROSECONDS
    if not low <= count <= high:
        raise ValueError(f"expected a {_noun(kind)} from 4714-11-24 BC to {_RANGE[kind]}")
    return count


def parse_date(text: str) -> date | DistantTime | None:
    """The date that `text` writes as `2026-01-31`, with any year of PostgreSQL's; None if it is none.

    Raises:
        ValueError: it lies beyond PostgreSQL's range.
    """
    infinite = _infinite("date", text)
    if infinite is not None:
        return infinite
    found = _DATE_TEXT.fullmatch(text)
    days = None if found is None else _days(found[1], found[2], found[3], found[4] is not None)
    return None if days is None else date_of(_in_range("date", days))


def parse_timestamp(text: str, *, zoned: bool) -> datetime | DistantTime | None:
    """The moment that `text` writes as `2026-01-31T12:00:00Z`; None if it is none, or has an offset
    where there should be none, or none where there should be one.

    Raises:
        ValueError: it lies beyond PostgreSQL's range, or has a fraction of a microsecond.
    """
    kind: Kind = "timestamptz" if zoned else "timestamp"
    infinite = _infinite(kind, text)
    if infinite is not None:
        return infinite
    found = _TIMESTAMP_TEXT.fullmatch(text)
    if found is None or (found[8] is not None) != zoned:
        return None
    days = _days(found[1], found[2], found[3], found[13] is not None)
    hours, minutes, seconds = (int(part or 0) for part in found.group(4, 5, 6))
    if days is None or hours > 23 or minutes > 59 or seconds > 59:
        return None
    offset = _offset(found.group(9, 10, 11, 12))
    if offset is None:
        return None
    count = days * _DAY + ((hours * 60 + minutes) * 60 + seconds - offset) * 1_000_000 + _fraction(found[7])
    return (timestamptz_of if zoned else timestamp_of)(_in_range(kind, count))


def _infinite(kind: Kind, text: str) -> DistantTime | None:
    if text.lower() not in ("infinity", "-infinity"):
        return None
    # The lower one is an integer's least value, one further from zero than the greatest.
    return DistantTime(kind, -_INFINITY[kind] - 1 if text[0] == "-" else _INFINITY[kind])


def _days(year: str, month: str, day: str, bc: bool) -> int | None:
    """Days after 2000-01-01; None for a day that no calendar has. The year before 1 is 1 BC."""
    if not int(year):
        return None
    number = 1 - int(year) if bc else int(year)
    cycles, rest = divmod(number - 1, _CYCLE_YEARS)
    try:
        ordinal = date(rest + 1, int(month), int(day)).toordinal()
    except ValueError:
        return None
    return cycles * _CYCLE_DAYS + ordinal - _EPOCH_ORDINAL


def _calendar(days: int) -> tuple[str, str]:
    """The day as `year-month-day`, and ` BC` where that is needed."""
    cycles, rest = divmod(days + _EPOCH_ORDINAL - 1, _CYCLE_DAYS)
    day = date.fromordinal(rest + 1)
    year = day.year + cycles * _CYCLE_YEARS
    number, era = (year, "") if year > 0 else (1 - year, " BC")
    return f"{number:04}-{day.month:02}-{day.day:02}", era


def _fraction(digits: str | None) -> int:
    """
    Raises:
        ValueError: PostgreSQL would not keep all of it.
    """
    if digits is None:
        return 0
    if digits[6:].strip("0"):
        raise ValueError(_FRACTION)
    return int(digits[:6].ljust(6, "0"))


def _offset(parts: tuple[str | None, ...]) -> int | None:
    """Seconds east of UTC; None for an offset of a day or more."""
    sign, hours, minutes, seconds = parts
    if sign is None:
        return 0
    h, m, s = int(hours or 0), int(minutes or 0), int(seconds or 0)
    if h > 23 or m > 59 or s > 59:
        return None
    total = (h * 60 + m) * 60 + s
    return -total if sign == "-" else total


def _noun(kind: Kind) -> str:
    return "date" if kind == "date" else "timestamp"
