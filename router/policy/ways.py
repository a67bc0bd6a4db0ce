"""Chooses the way of filtered searches on each shard, and learns from what they find. Pure; clock injected.

Statistics are not always right, and say nothing of conditions that PostgreSQL keeps none for. So what
searches have found is remembered: how many rows matched the very filter, how many match filters of its shape
with other values, and how often a scan of the vector index came up short. It is bounded, fades, and is not
shared between processes.

How long each way takes beside what was expected is remembered for each shard, too. Load makes all ways
slower, which says nothing about which one to take: so a way is compared with the others lately measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from time import monotonic
from typing import TypeAlias

import msgspec
from cachetools import LRUCache

from router.query.filter import And, Compare, Contains, Exists, Filter, In, Like, Not, Or
from router.query.selectivity import Estimate, PreparedFilter
from router.query.statistics import TableStatistics
from router.query.way import USUALLY_SHORT, Choice, Costs, Need, Remembered, Way, choose, scan_ms

__all__ = ["Outcome", "Pace", "Ways"]

Statistics: TypeAlias = Callable[[str, str], TableStatistics | None]

_FILTERS, _SHAPES, _SHARDS = 8192, 2048, 1024
# A count is believed for so long, and half as much is thought of how often scans came up short.
_COUNT_SECONDS, _HALF_LIFE_SECONDS = 300.0, 120.0
# Of one search.
_SHORT_WEIGHT, _SHAPE_WEIGHT, _PACE_WEIGHT, _LOAD_WEIGHT = 0.3, 0.2, 0.05, 0.2
_MOST_ERROR = math.log(8.0)
_PACE_HALF_LIFE_SECONDS = 600.0


class Outcome(msgspec.Struct, frozen=True):
    """What a search has found on one shard.

    Attributes:
        exact: whether it was read exactly.
        matched: rows that match, where they were counted.
        visited: rows that the scan has visited to find its candidates; None where it ended before.
        milliseconds: that the server took for it.
    """

    exact: bool
    matched: int | None = None
    visited: int | None = None
    milliseconds: float = 0.0


class _Seen:
    """What searches have found of a filter on a shard, or of all filters of a shape.

    `table` and `estimate` are the last estimate of the filter and what it was made from.
    """

    __slots__ = ("_short", "_short_at", "counted_at", "estimate", "share", "table")

    def __init__(self) -> None:
        self.share: float | None = None
        self.counted_at = -math.inf
        self._short: float | None = None
        self._short_at = -math.inf
        self.table: TableStatistics | None = None
        self.estimate: Estimate | None = None

    def short(self, now: float, usual: float) -> float:
        """How often scans come up short; what was seen of that fades towards what is usual."""
        if self._short is None:
            return usual
        return usual + (self._short - usual) * math.exp2((self._short_at - now) / _HALF_LIFE_SECONDS)

    def scanned(self, short: bool, now: float, usual: float) -> None:
        known = self.short(now, usual)
        self._short, self._short_at = known + _SHORT_WEIGHT * (short - known), now


class Pace:
    """How much longer each way takes than expected, beside the others; 1 for one that was not measured."""

    def __init__(self) -> None:
        self._load = 0.0
        self._ways = dict.fromkeys(Way, 0.0)
        self._at = dict.fromkeys(Way, -math.inf)

    def __repr__(self) -> str:
        return f"<Pace {', '.join(f'{way}: {math.exp(error):.2f}' for way, error in self._ways.items())}>"

    def took(self, way: Way, milliseconds: float, expected: float, now: float) -> None:
        """`expected` was on the scale known then."""
        error = math.log(max(milliseconds, 0.01) / max(expected, 0.01))
        error = min(max(error, -_MOST_ERROR), _MOST_ERROR)
        self._load += _LOAD_WEIGHT * (error - self._load)
        own = self._faded(way, now) + _PACE_WEIGHT * (error - self._load)
        self._ways[way] = min(max(own, -_MOST_ERROR), _MOST_ERROR)
        self._at[way] = now

    def scale(self, now: float) -> Costs:
        return Costs(*[math.exp(self._faded(way, now)) for way in Way])

    def _faded(self, way: Way, now: float) -> float:
        """A way that is not taken any more is given another chance in time."""
        return self._ways[way] * math.exp2((self._at[way] - now) / _PACE_HALF_LIFE_SECONDS)


class Ways:
    """Of all shards and collections; `statistics` is asked for (collection, shard)."""

    def __init__(self, statistics: Statistics, clock: Callable[[], float] = monotonic) -> None:
        self._statistics = statistics
        self._clock = clock
        self._filters: LRUCache[Hashable, _Seen] = LRUCache(_FILTERS)
        self._shapes: LRUCache[Hashable, _Seen] = LRUCache(_SHAPES)
        self._paces: LRUCache[tuple[str, str], Pace] = LRUCache(_SHARDS)

    def __repr__(self) -> str:
        return f"<Ways {len(self._filters)} filters of {len(self._shapes)} shapes>"

    def table(self, collection: str, shard: str) -> TableStatistics | None:
        return self._statistics(collection, shard)

    def choose(
        self,
        collection: str,
        filter: Filter,
        shards: Iterable[str],
        need: Need,
        *,
        exact: bool = False,
        by_index: bool = False,
    ) -> dict[str, Choice]:
        """The way on each of `shards`."""
        now = self._clock()
        name, shape = hash(filter), _shape(filter)
        prepared: PreparedFilter | None = None
        choices: dict[str, Choice] = {}
        for shard in shards:
            table = self._statistics(collection, shard)
            seen = _of(self._filters, (collection, shard, name))
            if seen.table is not table:
                seen.table, seen.estimate = table, None
                if table is not None:
                    prepared = prepared or PreparedFilter(filter)
                    seen.estimate = prepared.estimate(table)
            alike = _of(self._shapes, (collection, shard, shape))
            pace = self._paces.get((collection, shard))
            choices[shard] = choose(
                table,
                seen.estimate,
                need,
                _remembered(seen, alike, now),
                _AS_EXPECTED if pace is None else pace.scale(now),
                exact=exact,
                by_index=by_index,
            )
        return choices

    def learn(
        self, collection: str, filter: Filter, shard: str, choice: Choice, need: Need, outcome: Outcome
    ) -> None:
        """Take what a search has found; `choice` is what was expected of it."""
        now = self._clock()
        seen = _of(self._filters, (collection, shard, hash(filter)))
        alike = _of(self._shapes, (collection, shard, _shape(filter)))
        share = None
        if not outcome.exact:
            usual = alike.short(now, USUALLY_SHORT)
            seen.scanned(outcome.visited is None, now, usual)
            alike.scanned(outcome.visited is None, now, USUALLY_SHORT)
            if outcome.visited is not None:
                share = min(need.candidates / max(outcome.visited, 1), 1.0)
        elif outcome.matched is not None:
            share = outcome.matched / max(choice.rows or 0.0, outcome.matched, 1.0)
        # What a scan has met about its query is no count of the shard.
        if share is not None and (outcome.exact or now - seen.counted_at > _COUNT_SECONDS):
            seen.share = share
            seen.counted_at = now if outcome.exact else -math.inf
            least = 0.5 / max(choice.rows or 1.0, 1.0)
            known = math.log(max(alike.share or share, least))
            alike.share = math.exp(known + _SHAPE_WEIGHT * (math.log(max(share, least)) - known))
        self._took(collection, shard, choice, need, outcome, now)

    def _took(
        self, collection: str, shard: str, choice: Choice, need: Need, outcome: Outcome, now: float
    ) -> None:
        """Compare with what was expected, where that was right about the rows."""
        if outcome.exact == (choice.way is Way.VECTOR_INDEX) or choice.matching is None:
            return
        pace = self._paces.get((collection, shard))
        if pace is None:
            pace = self._paces[collection, shard] = Pace()
        if choice.way is Way.VECTOR_INDEX:
            if outcome.visited is not None:
                expected = scan_ms(outcome.visited, need) * pace.scale(now).vector_index
                pace.took(choice.way, outcome.milliseconds, expected, now)
            return
        expected_ms = choice.filter_index_ms if choice.way is Way.FILTER_INDEX else choice.all_rows_ms
        matched = choice.matching if outcome.matched is None else outcome.matched
        if expected_ms is not None and 0.5 <= (matched + 10) / (choice.matching + 10) <= 2:
            pace.took(choice.way, outcome.milliseconds, expected_ms, now)


_AS_EXPECTED = Costs(1.0, 1.0, 1.0)


def _remembered(seen: _Seen, alike: _Seen, now: float) -> Remembered:
    short = seen.short(now, alike.short(now, USUALLY_SHORT))
    if now - seen.counted_at <= _COUNT_SECONDS:
        return Remembered(seen.share, True, short)
    return Remembered(alike.share if seen.share is None else seen.share, False, short)


def _of(known: LRUCache[Hashable, _Seen], key: Hashable) -> _Seen:
    seen = known.get(key)
    if seen is None:
        seen = known[key] = _Seen()
    return seen


def _shape(filter: Filter) -> Hashable:
    """The filter without its values."""
    match filter:
        case And(parts) | Or(parts):
            return type(filter), *[_shape(part) for part in parts]
        case Not(part):
            return Not, _shape(part)
        case Compare(field, op, _):
            return field, op
        case Like(field, _, ignore_case):
            return field, ignore_case
        case Contains(field, _, every):
            return Contains, field, every
        case In(field, _) | Exists(field):
            return type(filter), field
