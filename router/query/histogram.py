"""What share of a column's rows a comparison or a pattern keeps, by its common values and its histogram.

The arithmetic is PostgreSQL's (src/backend/utils/adt/selfuncs.c, like_support.c), but for what is said here.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple

from router.query.statistics import Distribution, Position

__all__ = ["EVERYTHING", "Interval", "Pattern"]


class Interval(NamedTuple):
    """Bounds of the values of one column; None is unbounded."""

    low: Position | None = None
    low_included: bool = False
    high: Position | None = None
    high_included: bool = False

    def narrowed(self, op: str, bound: Any) -> Interval:
        """This one and `op bound` as well."""
        included = op[-1] == "="
        if op[0] == "<":
            if self.high is None or bound < self.high or (bound == self.high and not included):
                return Interval(self.low, self.low_included, bound, included)
        elif self.low is None or bound > self.low or (bound == self.low and not included):
            return Interval(bound, included, self.high, self.high_included)
        return self

    def share(self, order: Distribution, others: float, distinct: float) -> float:
        """scalarineqsel, of both bounds at once.

        `others` is the share of the rows that the histogram stands for, `distinct` their different values;
        without a histogram it has to be 0.
        """
        low: Any = self.low
        high: Any = self.high
        if low is not None and high is not None:
            if low > high or (low == high and not (self.low_included and self.high_included)):
                return 0.0
        common = self._common(order)
        return common + others * self._of_histogram(order, distinct) if others else common

    def and_(self, other: Interval) -> Interval:
        """What is within both."""
        both = self
        if other.low is not None:
            both = both.narrowed(">=" if other.low_included else ">", other.low)
        if other.high is not None:
            both = both.narrowed("<=" if other.high_included else "<", other.high)
        return both

    def _common(self, order: Distribution) -> float:
        common: Sequence[Any] = order.common
        first, last = 0, len(common)
        if self.low is not None:
            first = (bisect_left if self.low_included else bisect_right)(common, self.low)
        if self.high is not None:
            last = (bisect_right if self.high_included else bisect_left)(common, self.high)
        return max(order.below[last] - order.below[first], 0.0)

    def _of_histogram(self, order: Distribution, distinct: float) -> float:
        bounds = order.bounds
        share = 1.0
        if self.high is not None:
            share = _below(bounds, order.quantiles, self.high, self.high_included, distinct)
        if self.low is not None:
            share -= _below(bounds, order.quantiles, self.low, not self.low_included, distinct)
        # The bounds are out of date perhaps: neither nothing nor everything is believed.
        cutoff = 0.01 / (len(bounds) - 1)
        return min(max(share, cutoff), 1.0 - cutoff)


EVERYTHING = Interval()
_DIGITS = 12  # of a text; a float holds no more


def _below(bounds: Sequence[Any], quantiles: bool, value: Any, included: bool, distinct: float) -> float:
    """ineq_histogram_selectivity: of its rows, those below `value`, or equal to it if `included`."""
    if not quantiles:
        return (bisect_right if included else bisect_left)(bounds, value) / len(bounds)
    i = (bisect_right if included else bisect_left)(bounds, value)
    if i in (0, len(bounds)):
        return 1.0 if i else 0.0
    of_one = 1.0 / distinct if distinct > 1 and (i == 1 or not included) else 0.0
    in_bin = _between(bounds[i - 1], bounds[i], value)
    share = (i - 1 + in_bin) / (len(bounds) - 1)
    # A bound is the rightmost value of its bin, but the first is the leftmost.
    if i == 1:
        share += of_one * (1.0 - in_bin)
    return max(share if included else share - of_one, 0.0)


def _between(low: Any, high: Any, value: Any) -> float:
    """convert_to_scalar: how far `value` lies on the way from `low` to `high`, which enclose it."""
    if isinstance(value, str):
        low, high, value = _as_fractions(low, high, value)
    if high <= low:
        return 0.5
    if value <= low:
        return 0.0
    if value >= high:
        return 1.0
    share = (value - low) / (high - low)
    return share if isfinite(share) and 0.0 <= share <= 1.0 else 0.5


def _as_fractions(*texts: str) -> list[float]:
    """convert_string_to_scalar: each text as a fraction, its bytes being digits of a common base."""
    shared = 0
    for characters in zip(*texts, strict=False):
        if len(set(characters)) > 1:
            break
        shared += 1
    values = [text[shared : shared + _DIGITS].encode() for text in texts]
    seen = b"".join(values)
    least, most = min(seen, default=0), max(seen, default=0)
    for first, last in (b"AZ", b"az", b"09"):
        if least <= last and most >= first:
            least, most = min(least, first), max(most, last)
    if most - least < 9:
        least, most = ord(" "), 127
    return [_as_fraction(value[:_DIGITS], least, most) for value in values]


def _as_fraction(value: bytes, least: int, most: int) -> float:
    base = float(most - least + 1)
    fraction, digit = 0.0, base
    for byte in value:
        fraction += (min(max(byte, least - 1), most + 1) - least) / digit
        digit *= base
    return fraction


# Constants of like_support.c: what one more character of a pattern does to the share that matches.
_FIXED_CHARACTER, _ANY_CHARACTER, _ANY_TEXT = 0.2, 0.9, 5.0
# Fewer bounds than this are no sample; from so many on they are all that is asked.
_LEAST_SAMPLE, _FULL_SAMPLE = 10, 100
_LONGEST = 4096


class Pattern:
    """A pattern of `LIKE`.

    `prefix` is what every match begins with; empty where the case does not matter, since no index knows that.
    """

    def __init__(self, pattern: str, ignore_case: bool) -> None:
        fixed, rest = _fixed_prefix(pattern)
        self.prefix = "" if ignore_case else fixed
        self._interval: Interval | None = None
        if not ignore_case and rest in ("", "%"):
            # A prefix and nothing else is an interval, which says more than a sample.
            self._interval = (
                Interval(fixed, True, _after(fixed), False) if rest else Interval(fixed, True, fixed, True)
            )
        # No value that ANALYZE keeps is as long as what such a pattern wants, and compiling it takes long.
        short = len(pattern) <= _LONGEST
        expression = _expression(pattern) if short else "(?!)"
        self._matches = re.compile(expression, re.DOTALL | re.IGNORECASE * ignore_case).fullmatch
        self._by_form = _by_form(pattern if ignore_case else rest)

    def share(self, order: Distribution, others: float, distinct: float) -> float:
        """patternsel: the common values that match, and of the others what the histogram's bounds show."""
        if self._interval is not None:
            return self._interval.share(order, others, distinct)
        below: Sequence[float] = order.below
        common: Any = order.common
        share = sum([below[i + 1] - below[i] for i, text in enumerate(common) if self._matches(text)])
        if others <= 0.0:
            return share
        bounds: Any = order.bounds
        weight, of_others = 0.0, 0.0
        if len(bounds) >= _LEAST_SAMPLE:
            weight = min(len(bounds) / _FULL_SAMPLE, 1.0)
            of_others = weight * sum(map(bool, map(self._matches, bounds[1:-1]))) / (len(bounds) - 2)
        of_others += (1.0 - weight) * self._by_form
        return share + others * min(max(of_others, 0.0001), 0.9999)


def _fixed_prefix(pattern: str) -> tuple[str, str]:
    """What every match begins with, and the rest of the pattern."""
    prefix = ""
    at = 0
    while at < len(pattern) and pattern[at] not in "%_":
        at += pattern[at] == "\\"
        prefix += pattern[at : at + 1]  # none after a last backslash, which PostgreSQL refuses
        at += 1
    return prefix, pattern[at:]


def _after(prefix: str) -> str | None:
    """make_greater_string: the first text after all that begin with `prefix`; None where there is none."""
    prefix = prefix.rstrip(chr(sys.maxunicode))
    if not prefix:
        return None
    # What follows is no character: the halves of a surrogate pair cannot be sent.
    last = ord(prefix[-1]) + 1
    return prefix[:-1] + chr(0xE000 if 0xD800 <= last < 0xE000 else last)


def _expression(pattern: str) -> str:
    """The regular expression that matches what `LIKE` does.

    Each part between two `%` is taken where it first occurs, and never again elsewhere: trying all places of
    k parts in n characters would take n ** k steps, while nothing else of the process goes on.
    """
    parts = [""]
    for part in re.findall(r"\\.|.", pattern, re.DOTALL):
        if part == "%":
            parts.append("")
        else:
            parts[-1] += "." if part == "_" else re.escape(part[-1])
    first, *rest = parts
    if not rest:
        return first
    *middle, last = rest
    return first + "".join(f"(?>.*?{one})" for one in middle if one) + ".*" + last


def _by_form(pattern: str) -> float:
    """like_selectivity: a guess by the pattern alone."""
    share = 1.0
    for part in re.findall(r"\\.|.", pattern.lstrip("%_"), re.DOTALL):
        share *= _ANY_TEXT if part == "%" else _ANY_CHARACTER if part == "_" else _FIXED_CHARACTER
    return min(share, 1.0)
