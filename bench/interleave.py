"""Variants measured in turns, so that what changes on the machine meanwhile meets all of them.

A ratio is taken within each round, between neighbours in time; what is reported is the median of the
rounds' ratios, with the least and the greatest beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

__all__ = ["Spread", "interleave", "ratios", "spread"]

T = TypeVar("T")


class Spread(msgspec.Struct, frozen=True):
    """Median, least and greatest of `count` rounds."""

    median: float
    low: float
    high: float
    count: int

    def scaled(self, factor: float) -> Spread:
        """The same in another unit; `factor` is above 0."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.count)


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratios(values: Sequence[float], base: Sequence[float]) -> Spread | None:
    """Of `values` to `base`, round by round; None where a base is zero, and nothing can be said."""
    if not values or not all(base):
        return None
    return spread([value / against for value, against in zip(values, base, strict=True)])


def interleave(
    variants: Mapping[str, Callable[[], T]], rounds: int, step: Callable[[str, int], object] = lambda *_: None
) -> dict[str, list[T]]:
    """Each variant's results, one per round; whoever is first changes from round to round.

    `step` hears of each measurement before it begins: its variant and its round, from 1.
    """
    found: dict[str, list[T]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            step(name, turn + 1)
            found[name].append(variants[name]())
    return found
