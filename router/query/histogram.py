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

__all__ = ["EVERYTHING", "Interval", "fixed_prefix", "like_share"]


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

    def within(self, order: Distribution, others: float, distinct: float) -> float:
        """scalarineqsel, of both bounds at once.

        `others` is the share of the rows that the histogram stands for, `distinct` their different values.
        """
        low: Any = self.low
        high: Any = self.high
        if low is not None and high is not None:
            if low > high or (low == high and not (self.low_included and self.high_included)):
                return 0.0
        return self._common(order) + others * self._of_histogram(order, distinct)

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
        if len(bounds) < 2:
            return 0.5
        share = 1.0
        if self.high is not None:
            share = _below(bounds, order.quantiles, self.high, self.high_included, distinct)
        if self.low is not None:
            share -= _below(bounds, order.quantiles, self.low, not self.low_included, distinct)
        # The bounds are out of date perhaps: neither nothing nor everything is believed.
        cutoff = 0.01 / (len(bounds) - 1)
        return min(max(share, cutoff), 1.0 - cutoff)


EVERYTHING = Interval()


def _below(bounds: Sequence[Any], quantiles: bool, value: Any, included: bool, distinct: float) -> float:
    """ineq_histogram_selectivity: of its rows, those below `value`, or equal to it if `included`."""
    if not quantiles:
        return (bisect_right if included else bisect_left)(bounds, value) / len(bounds)
    i = bisect_left(bounds, value)
    if i == len(bounds) or (i == 0 and bounds[0] != value):
        return 1.0 if i else 0.0
    i = i or 1
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
    values = [text[:256].encode() for text in texts]
    seen = b"".join(values)
    least, most = min(seen, default=0), max(seen, default=0)
    for first, last in (b"AZ", b"az", b"09"):
        if least <= last and most >= first:
            least, most = min(least, first), max(most, last)
    if most - least < 9:
        least, most = ord(" "), 127
    shared = 0
    shortest = min(map(len, values))
    while shared < shortest and len({value[shared] for value in values[:2]}) == 1:
        shared += 1
    return [_as_fraction(value[shared : shared + 12], least, most) for value in values]


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


def like_share(order: Distribution, others: float, distinct: float, pattern: str, ignore_case: bool) -> float:
    """patternsel: the common values that match, and of the others what the histogram's bounds show.

    A pattern that is a prefix and nothing else is an interval, which says more.
    """
    prefix, rest = fixed_prefix(pattern)
    if not ignore_case and rest in ("", "%"):
        last = prefix + chr(sys.maxunicode) if rest else prefix
        return Interval(prefix, True, last, True).within(order, others, distinct)
    matches = re.compile(_expression(pattern), re.DOTALL | re.IGNORECASE * ignore_case).fullmatch
    below: Sequence[float] = order.below
    common: Any = order.common
    share = sum([below[i + 1] - below[i] for i, text in enumerate(common) if matches(text)])
    if others <= 0.0:
        return share
    sample: Any = order.bounds[1:-1]
    weight = min(len(order.bounds) / _FULL_SAMPLE, 1.0) if len(order.bounds) >= _LEAST_SAMPLE else 0.0
    of_others = weight * sum(map(bool, map(matches, sample))) / len(sample) if weight else 0.0
    if weight < 1.0:
        of_others += (1.0 - weight) * _by_form(rest if not ignore_case else pattern)
    return share + others * min(max(of_others, 0.0001), 0.9999)


def fixed_prefix(pattern: str) -> tuple[str, str]:
    """What every match begins with, and the rest of the pattern."""
    prefix = ""
    at = 0
    while at < len(pattern) and pattern[at] not in "%_":
        at += pattern[at] == "\\"
        prefix += pattern[at]
        at += 1
    return prefix, pattern[at:]


def _expression(pattern: str) -> str:
    """The regular expression that matches what `LIKE` does."""
    parts = re.findall(r"\\.|.", pattern, re.DOTALL)
    return "".join([_WILDCARDS.get(part) or re.escape(part[-1]) for part in parts])


_WILDCARDS = {"%": ".*", "_": "."}


def _by_form(pattern: str) -> float:
    """like_selectivity: a guess by the pattern alone."""
    share = 1.0
    for part in re.findall(r"\\.|.", pattern.lstrip("%_"), re.DOTALL):
        share *= _ANY_TEXT if part == "%" else _ANY_CHARACTER if part == "_" else _FIXED_CHARACTER
    return min(share, 1.0)
