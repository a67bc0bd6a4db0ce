"""What share of a column's rows a comparison or a pattern keeps, by its common values and its histogram.

The arithmetic is PostgreSQL's (src/backend/utils/adt/selfuncs.c, like_support.c), but for what is said here.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from router.query.statistics import END, Distribution, Position, TextBin, Texts, lowered

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
        values: Any = order.common
        share = 0.0
        if values:
            first, last = 0, len(values)
            if low is not None:
                first = (bisect_left if self.low_included else bisect_right)(values, low)
            if high is not None:
                last = (bisect_right if self.high_included else bisect_left)(values, high)
            if first < last:
                share = order.below[last] - order.below[first]
        return share + others * self._of_histogram(order, distinct) if others else share

    def _of_histogram(self, order: Distribution, distinct: float) -> float:
        share = 1.0
        if self.high is not None:
            share = _below(order, self.high, self.high_included, distinct)
        if self.low is not None:
            share -= _below(order, self.low, not self.low_included, distinct)
        # The bounds are out of date perhaps: neither nothing nor everything is believed.
        cutoff = 0.01 / (len(order.bounds) - 1)
        return cutoff if share < cutoff else min(share, 1.0 - cutoff)


EVERYTHING = Interval()
_DIGITS = 12  # of a text; a float holds no more


def _below(order: Distribution, value: Any, included: bool, distinct: float) -> float:
    """ineq_histogram_selectivity: of its rows, those below `value`, or equal to it if `included`."""
    bounds: Sequence[Any] = order.bounds
    i = (bisect_right if included else bisect_left)(bounds, value)
    if not order.quantiles:
        return i / len(bounds)
    if i == 0 or i == len(bounds):
        return 1.0 if i else 0.0
    of_one = 1.0 / distinct if distinct > 1 and (i == 1 or not included) else 0.0
    if isinstance(value, str):
        in_bin = _between(order, i, value)
    else:
        in_bin = _on_the_way(bounds[i - 1], bounds[i], value)
    share = (i - 1 + in_bin) / (len(bounds) - 1)
    # A bound is the rightmost value of its bin, but the first is the leftmost.
    if i == 1:
        share += of_one * (1.0 - in_bin)
    return share if included else max(share - of_one, 0.0)


def _on_the_way(low: Any, high: Any, value: Any) -> float:
    """convert_to_scalar: how far `value` lies on the way from `low` to `high`, which enclose it."""
    if high <= low:
        return 0.5
    if value <= low:
        return 0.0
    if value >= high:
        return 1.0
    share: float = (value - low) / (high - low)
    return share if 0.0 <= share <= 1.0 else 0.5


def _between(order: Distribution, i: int, text: str) -> float:
    """How far a text lies on the way through the histogram's bin that ends with its i-th bound.

    convert_string_to_scalar: each text is a fraction, its bytes being digits of a base that all three share.
    """
    bounds: Any = order.bounds
    texts = order.bins.get(i)
    if texts is None:
        texts = order.bins[i] = _bin(bounds[i - 1], bounds[i])
    digits = text[texts.shared : texts.shared + _DIGITS].encode()
    if digits.translate(None, texts.digits):
        # It has others than the ends of the bin.
        texts = _bin(bounds[i - 1], bounds[i], digits)
    return _on_the_way(texts.low, texts.high, _as_fraction(digits, texts.least, texts.most))


def _bin(low: str, high: str, between: bytes = b"") -> TextBin:
    """`between`: the digits of a text between the two."""
    differ = [i for i, (one, other) in enumerate(zip(low, high, strict=False)) if one != other]
    shared = differ[0] if differ else min(len(low), len(high))
    ends = [text[shared : shared + _DIGITS].encode() for text in (low, high)]
    seen = b"".join([*ends, between])
    least, most = min(seen, default=0), max(seen, default=0)
    for first, last in (b"AZ", b"az", b"09"):
        if least <= last and most >= first:
            least, most = min(least, first), max(most, last)
    digits = bytes(range(least, most + 1))
    if most - least < 9:
        least, most = ord(" "), 127
    return TextBin(shared, digits, least, most, *[_as_fraction(end, least, most) for end in ends])


def _as_fraction(digits: bytes, least: int, most: int) -> float:
    base = float(most - least + 1)
    fraction, place = 0.0, base
    for byte in digits[:_DIGITS]:
        fraction += ((least - 1 if byte < least else most + 1 if byte > most else byte) - least) / place
        place *= base
    return fraction


# Constants of like_support.c: what one more character of a pattern does to the share that matches.
_FIXED_CHARACTER, _ANY_CHARACTER, _ANY_TEXT = 0.2, 0.9, 5.0
# Fewer bounds than this are no sample; from so many on they are all that is asked.
_LEAST_SAMPLE, _FULL_SAMPLE = 10, 100
# No value that ANALYZE keeps is as long as what a longer pattern wants, and reading it takes long.
_LONGEST = 4096
# Wildcards, once escapes are gone: halves of a surrogate pair, which no text has.
_TEXT, _CHARACTER = "\ud800", "\udc00"
_WILDCARDS = {"%": _TEXT, "_": _CHARACTER}
_MARKS = re.compile(r"\\(.?)|[%_]", re.DOTALL)


class Pattern:
    """A pattern of `LIKE`.

    `prefix` is what every match begins with; empty where the case does not matter, since no index knows that.
    """

    def __init__(self, pattern: str, ignore_case: bool) -> None:
        marked = _MARKS.sub(lambda found: _WILDCARDS.get(found[0]) or found[1], pattern)
        if ignore_case:
            marked = lowered(marked)
        self._ignore_case = ignore_case
        self._marked = marked
        self._parts = parts = marked.split(_TEXT)
        fixed = parts[0].partition(_CHARACTER)[0]
        self.prefix = "" if ignore_case else fixed
        self._interval: Interval | None = None
        if not ignore_case and parts in ([fixed], [fixed, ""]):
            # A prefix and nothing else is an interval, which says more than a sample.
            whole = len(parts) == 1
            self._interval = Interval(fixed, True, fixed if whole else _after(fixed), whole)
        literal = max(marked.replace(_CHARACTER, _TEXT).split(_TEXT), key=len)
        ending = parts[-1].rpartition(_CHARACTER)[2]
        # The longest that every match has, and whether that is enough.
        self._part = max(literal, ending and ending + END, fixed and END + fixed, key=len)
        self._enough = len(parts) > 1 and "".join(parts) == literal

    def share(self, order: Distribution, others: float, distinct: float) -> float:
        """patternsel: the common values that match, and of the others what the histogram's bounds show."""
        if self._interval is not None:
            return self._interval.share(order, others, distinct)
        texts = order.lowered if self._ignore_case else order.texts
        below: Sequence[float] = order.below
        share = sum([below[i + 1] - below[i] for i in self._matching(texts.common)])
        if others <= 0.0:
            return share
        weight, of_others = 0.0, 0.0
        if len(order.bounds) >= _LEAST_SAMPLE:
            weight = min(len(order.bounds) / _FULL_SAMPLE, 1.0)
            of_others = weight * len(self._matching(texts.inner)) / (len(order.bounds) - 2)
        if weight < 1.0:
            of_others += (1.0 - weight) * self._by_form
        return share + others * min(max(of_others, 0.0001), 0.9999)

    def _matching(self, texts: Texts) -> Sequence[int]:
        """The numbers of those that match."""
        if len(self._marked) > _LONGEST:
            return ()
        found: Sequence[int]
        if self.prefix and self._part[0] == END:
            # Where the case matters, the texts are in order.
            end = _after(self.prefix)
            beyond = len(texts) if end is None else bisect_left(texts, END + end)
            found = range(bisect_left(texts, END + self.prefix), beyond)
        else:
            found = texts.holding(self._part)
        if self._enough or not found:
            return found
        matches = self._expression.fullmatch if _CHARACTER in self._marked else self._in_order
        return [i for i in found if matches(texts[i][1:-1])]

    def _in_order(self, text: str) -> bool:
        """Whether `text` matches if there is no `_`."""
        first, *rest = self._parts
        if not rest:
            return text == first
        *middle, last = rest
        at, end = len(first), len(text) - len(last)
        if at > end or not text.startswith(first) or not text.endswith(last):
            return False
        # Each part between two `%` is taken where it first occurs.
        for part in filter(None, middle):
            at = text.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return True

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        """The regular expression that matches what `LIKE` does.

        Each part between two `%` is taken where it first occurs, and never again elsewhere: trying all places
        of k parts in n characters would take n ** k steps, while nothing else of the process goes on.
        """
        first, *rest = [re.escape(part).replace(_CHARACTER, ".") for part in self._parts]
        expression = first
        if rest:
            *middle, last = rest
            expression += "".join(f"(?>.*?{one})" for one in middle if one) + ".*" + last
        return re.compile(expression, re.DOTALL)

    @cached_property
    def _by_form(self) -> float:
        """like_selectivity: a guess by the pattern alone."""
        share = 1.0
        for character in self._marked[len(self.prefix) :].lstrip(_TEXT + _CHARACTER):
            if character == _TEXT:
                share *= _ANY_TEXT
            else:
                share *= _ANY_CHARACTER if character == _CHARACTER else _FIXED_CHARACTER
        return min(share, 1.0)


def _after(prefix: str) -> str | None:
    """make_greater_string: the first text after all that begin with `prefix`; None where there is none."""
    prefix = prefix.rstrip(chr(sys.maxunicode))
    if not prefix:
        return None
    # What follows is no character: the halves of a surrogate pair cannot be sent.
    last = ord(prefix[-1]) + 1
    return prefix[:-1] + chr(0xE000 if 0xD800 <= last < 0xE000 else last)
