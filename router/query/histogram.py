"""What share of a column's rows a comparison or a pattern keeps, by its common values and its histogram.

The arithmetic is PostgreSQL's (src/backend/utils/adt/selfuncs.c, like_support.c), but for what is said here.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from router.query.distribution import END, Distribution, TextBin, Texts, lowered

__all__ = ["Interval", "Pattern"]


class Interval:
    """Bounds of the values of one column; None is unbounded."""

    __slots__ = ("high", "high_included", "low", "low_included")

    def __init__(self) -> None:
        self.low: Any = None
        self.low_included = False
        self.high: Any = None
        self.high_included = False

    def narrow(self, op: str, bound: Any) -> None:
        """To what is `op bound` as well."""
        included = op[-1] == "="
        if op[0] == "<":
            if self.high is None or bound < self.high or (bound == self.high and not included):
                self.high, self.high_included = bound, included
        elif self.low is None or bound > self.low or (bound == self.low and not included):
            self.low, self.low_included = bound, included

    def shares(self, orders: Sequence[Distribution]) -> list[float]:
        """Of the rows that each of `orders` stands for."""
        if self.low is not None and self.high is not None:
            if self.low > self.high or (
                self.low == self.high and not (self.low_included and self.high_included)
            ):
                return [0.0] * len(orders)
        return [*map(self._share, orders)]

    def _share(self, order: Distribution) -> float:
        """scalarineqsel, of both bounds at once."""
        low, high = self.low, self.high
        share, kept = 0.0, 1.0
        if order.common:
            values: Any = order.common
            below = order.below
            first = 0 if low is None else (bisect_left if self.low_included else bisect_right)(values, low)
            last = -1 if high is None else (bisect_right if self.high_included else bisect_left)(values, high)
            share = below[last] - below[first]
        if order.others:
            if high is not None:
                kept = _below(order, high, self.high_included)
            if low is not None:
                kept -= _below(order, low, not self.low_included)
            if not 0.01 < kept < 0.99:
                # The bounds are out of date perhaps: neither nothing nor everything is believed.
                cutoff = 0.01 / (len(order.bounds) - 1)
                kept = min(max(kept, cutoff), 1.0 - cutoff)
            share += order.others * kept
        return share if share < 1.0 else 1.0


_DIGITS = 12  # of a text; a float holds no more
# Digits of a bin whose ends say too little; any other byte is the one beside these.
_PRINTABLE = ord(" "), 127
_TO_PRINTABLE = bytes(min(max(byte, _PRINTABLE[0] - 1), _PRINTABLE[1] + 1) for byte in range(256))


def _below(order: Distribution, value: Any, included: bool) -> float:
    """ineq_histogram_selectivity: of its rows, those below `value`, or equal to it if `included`."""
    bounds: Any = order.bounds
    i = (bisect_right if included else bisect_left)(bounds, value)
    if not order.quantiles:
        return i / len(bounds)
    bins = len(bounds) - 1
    if i == 0 or i > bins:
        return 1.0 if i else 0.0
    if isinstance(value, str):
        in_bin = _between(order, i, value)
    else:
        in_bin = _on_the_way(bounds[i - 1], bounds[i], value)
    share: float = (i - 1 + in_bin) / bins
    if order.distinct > 1.0:
        of_one = 1.0 / order.distinct
        # A bound is the rightmost value of its bin, but the first is the leftmost.
        if i == 1:
            share += of_one * (1.0 - in_bin)
        if not included:
            return max(share - of_one, 0.0)
    return share


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
        least, most = _PRINTABLE
    return TextBin(shared, digits, least, most, *[_as_fraction(end, least, most) for end in ends])


def _as_fraction(digits: bytes, least: int, most: int) -> float:
    """`digits` are at least `least` and at most `most`, unless these are `_PRINTABLE`."""
    if (least, most) == _PRINTABLE:
        digits = digits.translate(_TO_PRINTABLE)
    fraction, base = 0.0, most - least + 1
    for byte in reversed(digits[:_DIGITS]):
        fraction = (fraction + byte - least) / base
    return fraction


# Constants of like_support.c: what one more character of a pattern does to the share that matches.
_FIXED_CHARACTER, _ANY_CHARACTER, _ANY_TEXT = 0.2, 0.9, 5.0
# Fewer bounds than this are no sample; from so many on they are all that is asked.
_LEAST_SAMPLE, _FULL_SAMPLE = 10, 100
# No value that ANALYZE keeps is as long as what a longer pattern wants, and reading it takes long.
_LONGEST = 4096
# Wildcards, once escapes are gone: halves of a surrogate pair, which no text has.
_TEXT, _CHARACTER = "\ud800", "\udc00"
_ESCAPED = re.compile(r"\\(.?)|[%_]", re.DOTALL)
# Characters of texts, times `_` of a pattern, that are compared one after the other: at most 0.5 us for each,
# while a regular expression takes 100 us to compile.
_FEW_STEPS = 2000


class Pattern:
    """A pattern of `LIKE`.

    `prefix` is what every match begins with; empty where the case does not matter, since no index knows that.
    """

    def __init__(self, pattern: str, ignore_case: bool) -> None:
        marked = _marked(pattern)
        if ignore_case:
            marked = lowered(marked)
        self._ignore_case = ignore_case
        self._marked = marked
        self._parts = parts = marked.split(_TEXT)
        self._holes = marked.count(_CHARACTER)
        fixed = parts[0].partition(_CHARACTER)[0]
        self.prefix = "" if ignore_case else fixed
        self._beyond = _after(self.prefix)
        self._interval: Interval | None = None
        if not ignore_case and fixed == parts[0] and (len(parts) == 1 or parts[1:] == [""]):
            # A prefix and nothing else is an interval, which says more than a sample.
            self._interval = interval = Interval()
            interval.low_included, interval.high_included = True, len(parts) == 1
            interval.low, interval.high = fixed, fixed if len(parts) == 1 else self._beyond
            return
        literals = marked.replace(_CHARACTER, _TEXT).split(_TEXT) if self._holes else parts
        # The longest beside the prefix that every match has, and whether that is enough.
        self._part = literal = max(literals[1:] if self.prefix else literals, key=len, default="")
        self._enough = len(parts) > 1 and "".join(parts) == literal
        if len(literals[-1]) >= len(self._part):
            self._part = literals[-1] and literals[-1] + END
        if ignore_case and len(fixed) >= len(self._part):
            self._part = fixed and END + fixed

    def shares(self, orders: Sequence[Distribution]) -> list[float]:
        """Of the rows that each of `orders` stands for."""
        if self._interval is not None:
            return self._interval.shares(orders)
        return [*map(self._share, orders)]

    def _share(self, order: Distribution) -> float:
        """patternsel: the common values that match, and of the others what the histogram's bounds show."""
        texts = order.lowered if self._ignore_case else order.texts
        found = [texts.shares[i] for i in self._matching(texts)]
        share = sum(found)
        if order.others <= 0.0:
            return min(share, 1.0)
        weight = of_others = 0.0
        if len(order.bounds) >= _LEAST_SAMPLE:
            weight = min(len(order.bounds) / _FULL_SAMPLE, 1.0)
            of_others = weight * found.count(0.0) / (len(order.bounds) - 2)
        if weight < 1.0:
            of_others += (1.0 - weight) * self._by_form
        return min(share + order.others * min(max(of_others, 0.0001), 0.9999), 1.0)

    def _matching(self, texts: Texts) -> Sequence[int]:
        """The numbers of those that match."""
        if len(self._marked) > _LONGEST:
            return ()
        first, last = 0, len(texts)
        if self.prefix:
            # Where the case matters, they are in order.
            first = bisect_left(texts, END + self.prefix)
            if self._beyond is not None:
                last = bisect_left(texts, END + self._beyond, first)
        found = texts.holding(self._part, first, last)
        if self._enough or not found:
            return found
        by_hand = self._holes * len(found) * texts.longest <= _FEW_STEPS
        matches = self._in_order if by_hand else self._expression.fullmatch
        return [i for i in found if matches(texts[i])]

    def _in_order(self, text: str) -> bool:
        """Whether a text, between its two END, matches."""
        first, middle, last = self._fixed
        at, end = 1 + first.size, len(text) - 1 - last.size
        if at > end or (at < end and len(self._parts) == 1):
            return False
        if not first.fits(text, 1) or not last.fits(text, end):
            return False
        # Each part between two `%` is taken where it first occurs.
        for part in middle:
            at = part.find(text, at, end)
            if at < 0:
                return False
            at += part.size
        return True

    @cached_property
    def _fixed(self) -> tuple[_Part, list[_Part], _Part]:
        """What is before, between and after all `%`."""
        first, *rest = map(_Part, self._parts)
        return first, [part for part in rest[:-1] if part.size], rest[-1] if rest else _Part("")

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
        return re.compile(END + expression + END, re.DOTALL)

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


def _marked(pattern: str) -> str:
    """`pattern` with its wildcards as `_TEXT` and `_CHARACTER`, and nothing escaped."""
    if "\\" not in pattern:
        return pattern.replace("%", _TEXT).replace("_", _CHARACTER)
    wildcards = {"%": _TEXT, "_": _CHARACTER}
    return _ESCAPED.sub(lambda found: wildcards.get(found[0]) or found[1], pattern)


class _Part:
    """What a pattern has between two `%`: literals with one character of any kind between two."""

    def __init__(self, part: str) -> None:
        self.size = len(part)
        self._literals: list[tuple[int, str]] = []
        offset = 0
        for literal in part.split(_CHARACTER):
            if literal:
                self._literals.append((offset, literal))
            offset += len(literal) + 1
        self._longest = max(self._literals, key=lambda one: len(one[1]), default=(0, ""))

    def fits(self, text: str, at: int) -> bool:
        """Whether it is there in `text`, which goes on for as long."""
        for offset, literal in self._literals:
            if not text.startswith(literal, at + offset):
                return False
        return True

    def find(self, text: str, at: int, end: int) -> int:
        """Where it first is between the two; -1 if nowhere."""
        offset, longest = self._longest
        while True:
            at = text.find(longest, at + offset, end) - offset
            if at < 0 or at + self.size > end:
                return -1
            if self.fits(text, at):
                return at
            at += 1


def _after(prefix: str) -> str | None:
    """make_greater_string: the first text after all that begin with `prefix`; None where there is none."""
    prefix = prefix.rstrip(chr(sys.maxunicode))
    if not prefix:
        return None
    # What follows is no character: the halves of a surrogate pair cannot be sent.
    last = ord(prefix[-1]) + 1
    return prefix[:-1] + chr(0xE000 if 0xD800 <= last < 0xE000 else last)
