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
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from hashlib import blake2b
from time import monotonic
from typing import NamedTuple, Self, TypeAlias

import msgspec
from cachetools import LRUCache

from router.query.filter import And, Compare, Contains, Exists, Filter, In, Like, Not, Or
from router.query.selectivity import Estimate, estimates
from router.query.statistics import TableStatistics
from router.query.way import USUALLY_SHORT, Choice, Costs, Need, Remembered, Way, choose, scan_ms

__all__ = ["Chosen", "Outcome", "Pace", "Ways"]

Statistics: TypeAlias = Callable[[str, str], TableStatistics | None]

# Filters, and shapes, times shards.
_FILTERS, _SHAPES = 32_768, 8192
# Searches that further pages may be asked of, times shards.
_PAGES = 32_768
# Choosing again for the same filter after so long, unless something unexpected was found before.
_CHOICE_SECONDS = 1.0
# A count is believed for so long, and half as much is thought of how often scans came up short.
_COUNT_SECONDS, _HALF_LIFE_SECONDS = 300.0, 120.0
# It is counted again after so long: that takes a fifth of an exact read's time.
_RECOUNT_SECONDS = 10.0
# A count that differs from the last by less is no news.
_AGREES = 1.2
# Of one search.
_SHORT_WEIGHT, _SHAPE_WEIGHT, _PACE_WEIGHT, _LOAD_WEIGHT = 0.3, 0.2, 0.05, 0.2
_MOST_ERROR, _MOST_STEP = math.log(8.0), math.log(2.0)
# Searches that an exact read is expected to be shared by are counted up to two to the power of this.
_MOST_SHARING_BITS = 4
# A filter's index that takes longer than this, beside other ways, is dearer than it looks.
_DEAR, _DEAR_WEIGHT, _DEAR_MS = math.log(1.5), 0.5, 1.0
_PACE_SECONDS, _PACE_HALF_LIFE_SECONDS = 0.05, 600.0
_AS_EXPECTED = Costs(1.0, 1.0, 1.0)


class Outcome(NamedTuple):
    """What a search has found on one shard.

    Attributes:
        exact: whether it was read exactly.
        matched: rows that match, where they were counted.
        visited: rows that the scan has visited to find its candidates; None where it ended before.
        milliseconds: that the server took for it.
        shared: an exact read that was made once for several searches.
    """

    exact: bool
    matched: int | None = None
    visited: int | None = None
    milliseconds: float = 0.0
    shared: bool = False


class Pace:
    """How much longer each way takes than expected, beside the others; 1 for one that was not measured."""

    def __init__(self) -> None:
        self._load = 0.0
        self._ways = dict.fromkeys(Way, 0.0)
        self._at = dict.fromkeys(Way, -math.inf)
        self._scale, self._scaled_at = _AS_EXPECTED, -math.inf

    def __repr__(self) -> str:
        return f"<Pace {', '.join(f'{way}: {math.exp(error):.2f}' for way, error in self._ways.items())}>"

    def due(self, way: Way, now: float) -> bool:
        """Whether it is worth measuring again."""
        return now - self._at[way] >= _PACE_SECONDS

    def error(self, milliseconds: float, expected: float) -> float:
        """How much longer it took than all that was measured lately, as a logarithm."""
        return _error(milliseconds, expected) - self._load

    def took(self, way: Way, milliseconds: float, expected: float, now: float) -> None:
        """`expected` was on the scale known then."""
        error = _error(milliseconds, expected)
        self._load += _LOAD_WEIGHT * (error - self._load)
        beside = min(max(error - self._load, -_MOST_STEP), _MOST_STEP)
        own = self._faded(way, now) + _PACE_WEIGHT * beside
        self._ways[way] = min(max(own, -_MOST_ERROR), _MOST_ERROR)
        self._at[way] = now
        self._scaled_at = -math.inf

    def scale(self, now: float) -> Costs:
        if now - self._scaled_at >= _PACE_SECONDS:
            self._scale = Costs(*[math.exp(self._faded(way, now)) for way in Way])
            self._scaled_at = now
        return self._scale

    def _faded(self, way: Way, now: float) -> float:
        """A way that is not taken any more is given another chance in time."""
        error = self._ways[way]
        return error and error * math.exp2((self._at[way] - now) / _PACE_HALF_LIFE_SECONDS)


class _Seen(msgspec.Struct):
    """What searches have found of a filter on a shard, or of all filters of its shape.

    Attributes:
        error: of the last search, see `Pace.error`.
        table, estimate: the last estimate of the filter, and what it was made from.
        choice, asked: the last choice, and for what it was made.
    """

    share: float | None = None
    counted_at: float = -math.inf
    dear: float = 0.0
    dear_at: float = -math.inf
    error: float = 0.0
    short: float | None = None
    short_at: float = -math.inf
    table: weakref.ref[TableStatistics] | None = None
    estimate: Estimate | None = None
    choice: Choice | None = None
    asked: tuple[object, ...] = ()
    chosen_at: float = -math.inf

    def shortness(self, now: float, usual: float) -> float:
        """How often scans come up short; what was seen of that fades towards what is usual."""
        if self.short is None:
            return usual
        return usual + (self.short - usual) * math.exp2((self.short_at - now) / _HALF_LIFE_SECONDS)

    def dearness(self, now: float) -> float:
        """How much longer than others the filter's index has taken, as a logarithm; 0 if not."""
        return self.dear and self.dear * math.exp2((self.dear_at - now) / _HALF_LIFE_SECONDS)

    def scanned(self, short: bool, now: float, usual: float) -> None:
        known = self.shortness(now, usual)
        self.short, self.short_at = known + _SHORT_WEIGHT * (short - known), now


class _Shards(dict[str, _Seen]):
    """By shard; made when it is first asked for."""

    def __missing__(self, shard: str) -> _Seen:
        seen = self[shard] = _Seen()
        return seen


class _OfFilter:
    """What is known of a filter, and of all filters of its shape.

    Attributes:
        under_way: searches with this filter that have not ended.
    """

    __slots__ = ("alike", "own", "under_way")

    def __init__(self, own: _Shards, alike: _Shards) -> None:
        self.own = own
        self.alike = alike
        self.under_way = 0

    @property
    def sharing(self) -> int:
        """How many of them, and one more, wait for a node together: half, while another half is under way.

        Rounded to a power of two, so that a choice stays while a few come and go.
        """
        return 1 << min(max((self.under_way + 1).bit_length() - 2, 0), _MOST_SHARING_BITS)


class Ways:
    """Of all shards and collections.

    Args:
        statistics: is asked for (collection, shard).
        sharing: whether several searches may share an exact read.
    """

    def __init__(
        self, statistics: Statistics, clock: Callable[[], float] = monotonic, *, sharing: bool = True
    ) -> None:
        self.clock = clock
        self._sharing = sharing
        self._statistics = statistics
        self._filters: LRUCache[Hashable, _OfFilter] = LRUCache(_FILTERS, lambda known: len(known.own) or 1)
        self._shapes: LRUCache[Hashable, _Shards] = LRUCache(_SHAPES, lambda known: len(known) or 1)
        self._pages: LRUCache[Hashable, dict[str, Choice]] = LRUCache(_PAGES, lambda known: len(known) or 1)
        self._paces: dict[tuple[str, str], Pace] = {}
        self._largest: dict[str, tuple[float, float]] = {}

    def __repr__(self) -> str:
        return f"<Ways {len(self._filters)} filters of {len(self._shapes)} shapes>"

    def table(self, collection: str, shard: str) -> TableStatistics | None:
        return self._statistics(collection, shard)

    def most_rows(self, collection: str, shards: Sequence[str]) -> float:
        """About how many rows the largest of `shards`, all of the collection's, has; 0 if not known."""
        now = self.clock()
        rows, at = self._largest.get(collection, (0.0, -math.inf))
        if now - at >= _CHOICE_SECONDS:
            tables = [self._statistics(collection, shard) for shard in shards]
            rows = max([table.rows for table in tables if table is not None], default=0.0)
            self._largest[collection] = rows, now
        return rows

    def choose(
        self,
        collection: str,
        filter: Filter,
        shards: Sequence[str],
        need: Need,
        *,
        exact: bool = False,
        by_index: bool = False,
        alone: bool = False,
        search: Hashable = None,
        goes_on: bool = False,
    ) -> Chosen:
        """The way on each of `shards`.

        Args:
            alone: it shares its exact reads with no other.
            search: equal for all pages of a search by its vector and k.
            goes_on: this is a page beyond the first, which takes the ways that the one before it took: else
                rows that one way finds and another does not would be repeated or lost between them.
        """
        now = self.clock()
        name = _name(filter)
        known = self._known(collection, filter, name, shards)
        page = collection, name, hash(search), need, exact, by_index
        before = self._pages.get(page) if goes_on else None
        if before is not None and before.keys() == set(shards):
            return Chosen(self, collection, known, need, before)
        sharing = known.sharing if self._sharing and not alone else 1
        tables = {shard: self._statistics(collection, shard) for shard in shards}
        _estimate(filter, known.own, tables)
        asked = need, exact, by_index, sharing
        choices: dict[str, Choice] = {}
        for shard, table in tables.items():
            seen = known.own[shard]
            if seen.choice is not None and seen.asked == asked and now - seen.chosen_at < _CHOICE_SECONDS:
                choices[shard] = seen.choice
                continue
            pace = self._paces.get((collection, shard))
            scale = _AS_EXPECTED if pace is None else pace.scale(now)
            if dear := seen.dearness(now):
                scale = scale._replace(filter_index=scale.filter_index * math.exp(dear))
            choices[shard] = seen.choice = choose(
                table,
                seen.estimate,
                need,
                _remembered(seen, known.alike[shard], now),
                scale,
                exact=exact,
                by_index=by_index,
                sharing=sharing,
            )
            seen.asked, seen.chosen_at = asked, now
        self._pages[page] = choices
        return Chosen(self, collection, known, need, choices)

    def pace(self, collection: str, shard: str) -> Pace:
        pace = self._paces.get((collection, shard))
        if pace is None:
            pace = self._paces[collection, shard] = Pace()
        return pace

    def _known(self, collection: str, filter: Filter, name: bytes, shards: Sequence[str]) -> _OfFilter:
        known = self._filters.get((collection, name))
        if known is None:
            # Its hash alone: a path in the metadata may be as long as a client likes.
            shape = collection, hash(_shape(filter))
            alike = self._shapes.get(shape)
            if alike is None:
                alike = _Shards((shard, _Seen()) for shard in shards)
                self._shapes[shape] = alike
            known = _OfFilter(_Shards((shard, _Seen()) for shard in shards), alike)
            self._filters[collection, name] = known
        return known


class Chosen:
    """The ways of one search, which tells what it has found."""

    __slots__ = ("_collection", "_known", "_need", "_ways", "choices", "scans")

    def __init__(
        self, ways: Ways, collection: str, known: _OfFilter, need: Need, choices: dict[str, Choice]
    ) -> None:
        self.choices = choices
        # Whether any shard is to be asked by its vector index.
        self.scans = Way.VECTOR_INDEX in [choice.way for choice in choices.values()]
        self._ways = ways
        self._collection = collection
        self._known = known
        self._need = need

    def __enter__(self) -> Self:
        """While it is under way, others with the same filter may expect to share exact reads with it."""
        self._known.under_way += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._known.under_way -= 1

    def counts(self, shard: str) -> bool:
        """Whether it is time that an exact read says how many rows match."""
        return self._ways.clock() - self._known.own[shard].counted_at >= _RECOUNT_SECONDS

    def learn(self, shard: str, outcome: Outcome, candidates: int) -> None:
        """Take what a search for so many candidates has found."""
        now = self._ways.clock()
        seen, alike = self._known.own[shard], self._known.alike[shard]
        # None where nothing says of how many rows a count is a share.
        known = self.choices[shard].rows
        rows = None if known is None else max(known, 1.0)
        if not outcome.exact:
            short = outcome.visited is None
            usual = alike.shortness(now, USUALLY_SHORT)
            if short or usual > USUALLY_SHORT or seen.short is not None:
                seen.scanned(short, now, usual)
                alike.scanned(short, now, USUALLY_SHORT)
                seen.choice = None
            # What a scan has met about its query is no count of the shard.
            if outcome.visited and rows is not None and now - seen.counted_at > _COUNT_SECONDS:
                self._found(shard, min(candidates / outcome.visited, 1.0), rows)
        elif outcome.matched is not None and rows is not None:
            self._found(shard, outcome.matched / max(rows, outcome.matched), rows)
            seen.counted_at = now
        if candidates == self._need.candidates and not outcome.shared:
            self._took(shard, outcome, now)

    def _found(self, shard: str, share: float, rows: float) -> None:
        seen, alike, least = self._known.own[shard], self._known.alike[shard], 0.5 / rows
        if seen.share is None or not 1 / _AGREES < (share + least) / (seen.share + least) < _AGREES:
            seen.choice = None
            seen.share = share
        known = math.log(max(alike.share or share, least))
        alike.share = math.exp(known + _SHAPE_WEIGHT * (math.log(max(share, least)) - known))

    def _took(self, shard: str, outcome: Outcome, now: float) -> None:
        """Compare with what was expected, where that was right about the rows."""
        choice = self.choices[shard]
        if outcome.exact == (choice.way is Way.VECTOR_INDEX) or choice.matching is None:
            return
        if outcome.exact and choice.sharing > 1:
            return  # what was expected is the share of one of several
        pace = self._ways.pace(self._collection, shard)
        if not pace.due(choice.way, now):
            return
        if choice.way is Way.VECTOR_INDEX:
            if outcome.visited is not None:
                table = self._ways.table(self._collection, shard)
                pages = 0 if table is None else table.pages
                expected = scan_ms(outcome.visited, self._need, pages) * pace.scale(now).vector_index
                pace.took(choice.way, outcome.milliseconds, expected, now)
            return
        expected_ms = choice.filter_index_ms if choice.way is Way.FILTER_INDEX else choice.all_rows_ms
        matched = choice.matching if outcome.matched is None else outcome.matched
        if expected_ms is None or not 0.5 <= (matched + 10) / (choice.matching + 10) <= 2:
            return
        if choice.way is Way.FILTER_INDEX:
            # An index that the statistics take for one of the filter's may be none that PostgreSQL uses. Any
            # single search may be slow, such as the first of a connection.
            seen = self._known.own[shard]
            error = pace.error(outcome.milliseconds, expected_ms)
            known, twice = seen.dearness(now), min(error, seen.error)
            seen.error = error
            dear = min(max(known + _DEAR_WEIGHT * twice, 0.0), _MOST_ERROR)
            if max(dear, known) > _DEAR and outcome.milliseconds - expected_ms > _DEAR_MS:
                seen.dear, seen.dear_at, seen.choice = dear, now, None
        pace.took(choice.way, outcome.milliseconds, expected_ms, now)


def _estimate(filter: Filter, own: _Shards, tables: Mapping[str, TableStatistics | None]) -> None:
    """Estimate the filter where statistics have changed since it was last estimated."""
    changed: list[TableStatistics] = []
    of: list[_Seen] = []
    for shard, table in tables.items():
        seen = own[shard]
        # Not the table itself: each reading makes another, which what was seen would keep.
        mark = None if table is None else weakref.ref(table)
        if seen.table is not mark:
            seen.table, seen.estimate, seen.choice = mark, None, None
            if table is not None:
                changed.append(table)
                of.append(seen)
    if changed:
        for seen, estimate in zip(of, estimates(filter, changed), strict=True):
            seen.estimate = estimate


def _name(filter: Filter) -> bytes:
    """16 bytes; Python's own hash is the same for -1 and -2, and for 1 and true."""
    try:
        encoded = msgspec.msgpack.encode(filter)
    except OverflowError:  # beyond 64 bits
        encoded = repr(filter).encode()
    return blake2b(encoded, digest_size=16).digest()


def _error(milliseconds: float, expected: float) -> float:
    return math.log(max(milliseconds, 0.01) / max(expected, 0.01))


def _remembered(seen: _Seen, alike: _Seen, now: float) -> Remembered:
    short = seen.shortness(now, alike.shortness(now, USUALLY_SHORT))
    if now - seen.counted_at <= _COUNT_SECONDS:
        return Remembered(seen.share, True, short)
    return Remembered(alike.share if seen.share is None else seen.share, False, short)


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
