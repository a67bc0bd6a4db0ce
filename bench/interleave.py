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


def spread(values: Sequence[float], factor: float = 1.0) -> Spread:
    """In a unit that is `factor`, above 0, times that of the values."""
    median, low, high = (value * factor for value in (statistics.median(values), min(values), max(values)))
    return Spread(median, low, high, len(values))


def ratios(values: Sequence[float], base: Sequence[float], factor: float = 1.0) -> Spread | None:
    """Of `values` to `base`, round by round; None where a base is zero, and nothing can be said."""
    if not values or not all(base):
        return None
    return spread([value / against for value, against in zip(values, base, strict=True)], factor)


def interleave(
    variants: Mapping[str, Callable[[], T]], rounds: int, done: Callable[[], object] = lambda: None
) -> dict[str, list[T]]:
    """Each variant's results, one per round; whoever is first changes from round to round.

    `done` is called after each measurement.
    """
    found: dict[str, list[T]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(variants[name]())
            done()
    return found
