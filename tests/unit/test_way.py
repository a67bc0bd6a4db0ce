"""Which way a filtered search takes, by what is known and by what was found."""

from __future__ import annotations

import asyncio
import gc
import math
import tracemalloc
import weakref
from contextlib import ExitStack
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.freshness.freshness import Freshness
from router.policy import ways
from router.policy.ways import Outcome, Pace, Ways
from router.query.distribution import Distribution
from router.query.errors import DeadlineError
from router.query.filter import And, Compare, Field, Filter, In, parse
from router.query.selectivity import Estimate
from router.query.statistics import (
    ColumnStatistics,
    FilterIndex,
    Lookup,
    TableStatistics,
)
from router.query.types import Probe, ShardReport, ShardRows, ShardState
from router.query.way import (
    MOST_VISITS,
    Choice,
    Costs,
    Need,
    Remembered,
    Way,
    choose,
    countable,
    most_visits,
    scan_ms,
    shareable,
)
from router.settings import Settings
from router.stages.fanout import Fanout
from router.stages.scatter import Scatter
from shard_config.model import Column
from shard_config.values import ValueType
from tests.unit.queries import collection, query, shard_map

NEED = Need(candidates=10, ef_search=40, vector_bytes=512)
NOTHING = Remembered()
AS_EXPECTED = Costs(1.0, 1.0, 1.0)
LANG = Field(Column("lang", "lang", ValueType.TEXT))
TOPIC = Field(None, ("topic",))
SHARES = {"common": 0.5, "some": 0.05, "few": 0.01, "rare": 0.001}


def table(rows: float = 125_000.0, *, index: bool = False, **changes: Any) -> TableStatistics:
    """Rows of 128 dimensions, 14 to a page, with a column of known shares."""
    column = ColumnStatistics(0.0, SHARES, 0.000439, Distribution())
    lookups = ((Lookup("lang", "equal"),),)
    indexes = (FilterIndex("docs_lang", "btree", lookups),) if index else ()
    made = TableStatistics(rows, True, max(1, int(rows / 14)), 0, {"lang": column}, {}, (), indexes)
    return msgspec.structs.replace(made, **changes)


def way(share: float, rows: float = 125_000.0, *, index: bool = False, **options: Any) -> Choice:
    estimate = Estimate(share, share, ("docs_lang",), share) if index else Estimate(share, share)
    return choose(table(rows), estimate, NEED, options.pop("seen", NOTHING), AS_EXPECTED, **options)


@pytest.mark.parametrize(
    ("rows", "share", "index", "expected"),
    [
        # As measured: the index of the filter up to some percent, the vector index beyond.
        (125_000, 0.0001, True, Way.FILTER_INDEX),
        (125_000, 0.01, True, Way.FILTER_INDEX),
        (125_000, 0.05, True, Way.VECTOR_INDEX),
        (15_000, 0.05, True, Way.FILTER_INDEX),
        (15_000, 0.1, True, Way.VECTOR_INDEX),
        (125_000, 1.0, True, Way.VECTOR_INDEX),
        (125_000, 0.0001, False, Way.ALL_ROWS),
        (125_000, 0.01, False, Way.VECTOR_INDEX),
        (125_000, 0.5, False, Way.VECTOR_INDEX),
        (2_500, 0.01, False, Way.ALL_ROWS),
        (15_000, 0.01, False, Way.ALL_ROWS),
        (15_000, 0.1, False, Way.VECTOR_INDEX),
        (10, 1.0, False, Way.ALL_ROWS),
        (125_000, 0.0, False, Way.ALL_ROWS),
        (0, 0.5, False, Way.ALL_ROWS),
    ],
)
def test_the_way_that_is_cheapest_for_so_many_rows_is_taken(
    rows: int, share: float, index: bool, expected: Way
) -> None:
    assert way(share, rows, index=index).way is expected


shares = st.floats(0.0, 1.0)


@given(
    rows=st.floats(0.0, 1e8),
    least=shares,
    wider=shares,
    indexed=st.none() | shares,
    candidates=st.integers(1, 4000),
    ef_search=st.integers(1, 1000),
    size=st.integers(2, 8000),
    seen=st.none() | shares,
    counted=st.booleans(),
    short=shares,
    scale=st.tuples(*[st.floats(0.125, 8.0)] * 3),
)
def test_no_way_is_ever_taken_that_is_expected_to_cost_more_than_another(
    rows: float,
    least: float,
    wider: float,
    indexed: float | None,
    candidates: int,
    ef_search: int,
    size: int,
    seen: float | None,
    counted: bool,
    short: float,
    scale: tuple[float, float, float],
) -> None:
    most = max(least, wider)
    estimate = Estimate(least, most, ("i",) if indexed is not None else (), indexed)
    need = Need(candidates, ef_search, size)
    made = choose(table(rows), estimate, need, Remembered(seen, counted, short), Costs(*scale))
    costs = {
        Way.VECTOR_INDEX: made.vector_index_ms,
        Way.FILTER_INDEX: made.filter_index_ms,
        Way.ALL_ROWS: made.all_rows_ms,
    }
    known = {way: cost for way, cost in costs.items() if cost is not None}
    assert (indexed is None) == (made.filter_index_ms is None)
    assert known[made.way] == min(known.values())
    assert all(0 < cost < math.inf for cost in known.values())
    assert candidates <= most_visits(made, candidates) <= max(MOST_VISITS, candidates)
    assert made.matching is not None and made.rows is not None
    assert made.matching <= made.rows
    # Even one that comes up short costs no more than its visits beside the exact read that follows.
    exact = min(cost for way, cost in known.items() if way is not Way.VECTOR_INDEX)
    if made.way is Way.VECTOR_INDEX:
        assert scan_ms(0, need, 0) * scale[0] <= exact


def test_a_scan_may_visit_twice_what_it_should_need() -> None:
    assert most_visits(way(0.05), 20) == 800
    assert most_visits(way(0.05), 80) == 3200
    assert most_visits(way(1.0), 20) == 220
    assert most_visits(way(0.00001), 20) == MOST_VISITS
    assert most_visits(way(0.0), 20) == MOST_VISITS
    # Of a shard that nothing is known of, a filter is thought to keep one row of 200.
    assert most_visits(Choice(Way.VECTOR_INDEX), 20) == 8000


def test_what_a_search_insists_on_outweighs_the_cost() -> None:
    assert way(1.0, exact=True).way is Way.ALL_ROWS
    assert way(1.0, exact=True).vector_index_ms is None
    assert way(0.01, exact=True, index=True).way is Way.FILTER_INDEX
    assert way(0.0001, by_index=True).way is Way.VECTOR_INDEX
    assert choose(None, None, NEED, NOTHING, AS_EXPECTED).way is Way.VECTOR_INDEX
    assert choose(None, None, NEED, NOTHING, AS_EXPECTED, exact=True).way is Way.ALL_ROWS


def test_a_count_of_the_very_filter_outweighs_statistics_and_a_guess_stays_within_them() -> None:
    counted = way(0.0001, seen=Remembered(0.5, counted=True))
    assert (counted.way, counted.basis, counted.matching) == (Way.VECTOR_INDEX, "searches", 62_500)
    assert way(0.0001, seen=Remembered(0.5)).basis == "statistics"
    unknown = choose(table(), Estimate(0.0, 1.0), NEED, NOTHING, AS_EXPECTED)
    assert (unknown.basis, unknown.matching) == ("guess", 625)
    bounded = choose(table(), Estimate(0.0, 0.001), NEED, Remembered(0.5), AS_EXPECTED)
    assert (bounded.basis, bounded.matching) == ("searches", 125)


def test_statistics_that_were_wrong_about_the_filter_are_so_about_its_index() -> None:
    estimate = Estimate(0.001, 0.001, ("docs_lang",), 0.002)
    right = choose(table(), estimate, NEED, NOTHING, AS_EXPECTED, exact=True)
    wrong = choose(table(), estimate, NEED, Remembered(0.1, counted=True), AS_EXPECTED, exact=True)
    assert right.filter_index_ms is not None and wrong.filter_index_ms is not None
    assert 50 * right.filter_index_ms < wrong.filter_index_ms


def test_vectors_beside_their_rows_make_reading_many_of_them_dear() -> None:
    beside = choose(table(toast_pages=20_000), Estimate(1.0, 1.0), NEED, NOTHING, AS_EXPECTED)
    within = choose(table(), Estimate(1.0, 1.0), NEED, NOTHING, AS_EXPECTED)
    assert beside.all_rows_ms is not None and within.all_rows_ms is not None
    assert beside.all_rows_ms > 5 * within.all_rows_ms


def test_rows_are_counted_where_keeping_them_takes_little_memory() -> None:
    few, many = way(0.001), way(0.5, exact=True)
    assert countable(few, table(), inline=False) and countable(few, table(), inline=True)
    assert not countable(many, table(), inline=False)
    # What has just proved wrong says nothing of how many there are: all are taken for possible.
    assert countable(many, table(), inline=False, doubtful=True)
    assert not countable(few, table(500_000), inline=True, doubtful=True)
    assert not countable(few, table(10_000_000), inline=False, doubtful=True)
    guessed = choose(table(), Estimate(0.0, 1.0), NEED, NOTHING, AS_EXPECTED)
    assert countable(guessed, table(), inline=False)
    assert not countable(guessed, table(500_000), inline=True)


def test_rows_are_kept_for_several_searches_where_they_take_little_memory() -> None:
    assert shareable(way(0.001), table()) and not shareable(way(0.5), table())
    guessed = choose(table(), Estimate(0.0, 1.0), NEED, NOTHING, AS_EXPECTED)
    for unknown, doubtful in ((guessed, False), (way(0.001), True)):
        assert shareable(unknown, table(), doubtful=doubtful)
        assert not shareable(unknown, table(500_000), doubtful=doubtful)
    assert not shareable(way(0.001), None)


# --- what searches teach ---


class World:
    """One shard, whose statistics and time a test sets."""

    def __init__(self, known: TableStatistics | None, *, sharing: bool = True) -> None:
        self.known = known
        self.now = 1000.0
        self.ways = Ways(lambda collection, shard: self.known, lambda: self.now, sharing=sharing)

    def choose(self, filter: Filter, **options: Any) -> Choice:
        return self.ways.choose("docs", filter, ["s0"], NEED, **options).choices["s0"]

    def find(self, filter: Filter, outcome: Outcome, **options: Any) -> Choice:
        chosen = self.ways.choose("docs", filter, ["s0"], NEED, **options)
        chosen.learn("s0", outcome, NEED.candidates)
        return chosen.choices["s0"]


def lang(value: str) -> Filter:
    return Compare(LANG, "=", value)


def topic(value: str) -> Filter:
    return Compare(TOPIC, "=", value)


CUT = Outcome(exact=False, visited=None, milliseconds=2.0)


def test_exact_reads_cost_less_while_searches_with_the_same_filter_can_share_them() -> None:
    world = World(table())
    # 6,250 of 125,000 rows match "some", too many to be kept; 1,250 match "few".
    assert world.choose(lang("some")).way is world.choose(lang("few")).way is Way.VECTOR_INDEX
    with ExitStack() as under_way:
        for _ in range(40):
            under_way.enter_context(world.ways.choose("docs", lang("few"), ["s0"], NEED))
            under_way.enter_context(world.ways.choose("docs", lang("some"), ["s0"], NEED))
        shared = world.choose(lang("few"))
        assert (shared.way, shared.sharing) == (Way.ALL_ROWS, 16)
        assert (world.choose(lang("some")).way, world.choose(lang("some")).sharing) == (Way.VECTOR_INDEX, 1)
        assert world.choose(lang("other")).sharing == 1
        assert world.choose(lang("few"), alone=True).sharing == 1
    assert world.choose(lang("few")).way is Way.VECTOR_INDEX


async def test_a_search_with_a_filter_scans_as_wide_as_the_largest_shard_needs() -> None:
    asked: list[Probe] = []

    class Recording:
        async def fetch(self, probes: dict[str, Probe], deadline: float) -> dict[str, ShardRows]:
            asked.extend(probes.values())
            return {name: ShardRows([], ShardReport(name, ShardState.TIMED_OUT)) for name in probes}

    tables = {"s2": table(125_000)}
    shards = shard_map()
    known = Ways(lambda collection, shard: tables.get(shard, table(2_500)))
    scatter = Scatter(shards, cast(Fanout, Recording()), Freshness(shards), known)
    for filter in (None, parse(collection(), {"price": {"$lt": 3}}, Settings())):
        with pytest.raises(DeadlineError):
            await scatter.search(query(filter=filter, by_index=True), asyncio.get_running_loop().time() + 5)
    assert [probe.ef_search for probe in asked] == [40] * 4 + [231] * 4


def test_what_matches_is_counted_again_after_a_while() -> None:
    world = World(table())

    def counts() -> bool:
        return world.ways.choose("docs", lang("few"), ["s0"], NEED).counts("s0")

    assert counts()
    world.find(lang("few"), Outcome(exact=True, matched=None, milliseconds=1.0))
    assert counts()
    world.find(lang("few"), Outcome(exact=True, matched=1250, milliseconds=1.0))
    assert not counts()
    world.now += 10
    assert counts()


def test_the_largest_shard_is_looked_for_once_a_second() -> None:
    world = World(None)
    assert world.ways.most_rows("docs", ["s0", "s1"]) == 0
    world.known = table(125_000)
    assert world.ways.most_rows("docs", ["s0", "s1"]) == 0
    world.now += 1
    assert world.ways.most_rows("docs", ["s0", "s1"]) == 125_000


def test_nothing_is_cheaper_for_company_where_no_statement_is_shared() -> None:
    world = World(table(), sharing=False)
    with ExitStack() as under_way:
        for _ in range(40):
            under_way.enter_context(world.ways.choose("docs", lang("few"), ["s0"], NEED))
        assert (world.choose(lang("few")).way, world.choose(lang("few")).sharing) == (Way.VECTOR_INDEX, 1)


def test_what_one_of_several_searches_took_says_nothing_of_one_alone() -> None:
    world = World(table())
    for _ in range(50):
        world.now += 1
        world.find(lang("rare"), Outcome(True, 125, milliseconds=0.5, shared=True), exact=True)
    assert world.ways.pace("docs", "s0").scale(world.now).all_rows == 1.0


def test_a_filter_whose_scans_come_up_short_is_read_exactly_until_that_fades() -> None:
    world = World(table(index=True))
    assert world.choose(lang("some")).way is Way.VECTOR_INDEX
    for _ in range(12):
        world.find(lang("some"), CUT)
    assert world.choose(lang("some")).way is Way.FILTER_INDEX
    # Others of its shape have become suspect, too, but not all filters have.
    assert world.choose(In(LANG, ("some",))).way is Way.VECTOR_INDEX
    world.now += 1200
    assert world.choose(lang("some")).way is Way.VECTOR_INDEX


def test_scans_that_are_cheap_beside_an_exact_read_are_tried_although_some_come_up_short() -> None:
    world = World(table())
    for _ in range(10):
        world.find(lang("common"), CUT)
        for _ in range(4):
            world.find(lang("common"), Outcome(exact=False, visited=40, milliseconds=0.3))
    assert world.choose(lang("common")).way is Way.VECTOR_INDEX


def test_stale_statistics_are_corrected_by_the_first_exact_read() -> None:
    world = World(table(index=True))
    assert world.choose(lang("rare")).way is Way.FILTER_INDEX
    before = world.find(lang("rare"), Outcome(exact=True, matched=60_000, milliseconds=70.0))
    assert before.matching == pytest.approx(125)
    after = world.choose(lang("rare"))
    assert (after.way, after.basis, after.matching) == (Way.VECTOR_INDEX, "searches", 60_000)
    # In time, they are believed again.
    world.now += 301
    assert world.choose(lang("rare")).basis == "statistics"


def test_of_an_unknown_filter_what_was_counted_tells_about_other_values() -> None:
    world = World(table())
    assert world.choose(topic("a")).basis == "guess"
    for value in "abcdefghijklmnop":
        world.find(topic(value), Outcome(exact=True, matched=37_500, milliseconds=40.0))
    other = world.choose(topic("z"))
    assert (other.way, other.basis) == (Way.VECTOR_INDEX, "searches")
    assert other.matching == pytest.approx(37_500)
    assert world.choose(And((topic("z"), lang("some")))).basis == "guess"


def test_a_scan_tells_what_it_met_unless_that_was_counted() -> None:
    world = World(table())
    world.find(topic("a"), Outcome(exact=False, visited=20, milliseconds=0.3))
    assert world.choose(topic("a")).matching == pytest.approx(62_500)
    world.find(topic("a"), Outcome(exact=True, matched=1250, milliseconds=9.0))
    world.find(topic("a"), Outcome(exact=False, visited=20, milliseconds=0.3))
    assert world.choose(topic("a")).matching == pytest.approx(1250)


def test_a_filter_that_matches_nothing_is_remembered_as_that() -> None:
    world = World(table())
    world.find(topic("none"), Outcome(exact=True, matched=0, milliseconds=9.0))
    found = world.choose(topic("none"))
    assert (found.way, found.matching) == (Way.ALL_ROWS, 0)


def test_new_statistics_are_taken_at_once() -> None:
    world = World(None)
    assert world.choose(lang("rare")).rows is None
    world.known = table()
    assert world.choose(lang("rare")).way is Way.ALL_ROWS
    world.known = table(index=True)
    assert world.choose(lang("rare")).way is Way.FILTER_INDEX


def test_further_pages_take_the_ways_of_the_first_whatever_was_learned_since() -> None:
    world = World(table(index=True))
    one, other = ("vector", 10), ("another", 10)
    first = world.choose(lang("rare"), search=one)
    world.find(lang("rare"), Outcome(exact=True, matched=60_000, milliseconds=70.0))
    world.now += 5
    assert world.choose(lang("rare"), search=one, goes_on=True) == first
    assert world.choose(lang("rare"), search=other, goes_on=True).way is Way.VECTOR_INDEX
    assert world.choose(lang("rare"), search=one).way is Way.VECTOR_INDEX


def test_load_makes_all_ways_slower_and_changes_none() -> None:
    pace, now = Pace(), 0.0
    for _ in range(400):
        now += 0.1
        pace.took(Way.VECTOR_INDEX, 8.0, 1.0, now)
        pace.took(Way.FILTER_INDEX, 8.0, 1.0, now)
    assert all(0.7 < one < 1.4 for one in pace.scale(now))


def test_a_way_that_is_slower_than_the_others_counts_as_dearer_until_it_was_left_for_long() -> None:
    pace, now = Pace(), 0.0
    for _ in range(400):
        now += 0.1
        for way_, slower in ((Way.VECTOR_INDEX, 1.0), (Way.ALL_ROWS, 4.0)):
            scale = pace.scale(now)[list(Way).index(way_)]
            pace.took(way_, slower, scale, now)
    scale = pace.scale(now)
    assert 3 < scale.all_rows / scale.vector_index < 5
    assert all(0.95 < one < 1.05 for one in pace.scale(now + 6000))


def test_an_index_that_does_not_serve_the_filter_after_all_is_soon_counted_out() -> None:
    world = World(table(15_000.0, index=True))
    for _ in range(20):  # other searches, which take what is expected of them
        world.now += 1
        world.find(lang("common"), Outcome(exact=False, visited=20, milliseconds=0.14))
    for milliseconds in (30.0, 0.3, 3.0):  # once is nothing
        assert world.choose(lang("some")).way is Way.FILTER_INDEX
        world.now += 1
        world.find(lang("some"), Outcome(exact=True, matched=750, milliseconds=milliseconds))
    for _ in range(2):
        world.now += 1
        world.find(lang("some"), Outcome(exact=True, matched=750, milliseconds=3.0))
    assert world.choose(lang("some")).way is Way.VECTOR_INDEX
    assert world.choose(lang("rare")).way is Way.FILTER_INDEX
    world.now += 1200
    assert world.choose(lang("some")).way is Way.FILTER_INDEX


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ways._FILTERS == ways._PAGES == 32_768
    monkeypatch.setattr(ways, "_FILTERS", 1000)
    monkeypatch.setattr(ways, "_PAGES", 1000)
    world = World(table())
    for i in range(1200):
        world.find(topic(str(i)), Outcome(exact=True, matched=5, milliseconds=1.0))
    assert len(world.ways._filters) == len(world.ways._pages) == 1000
    assert len(world.ways._shapes) == 1
    for i in range(1200):
        world.ways.choose("docs", lang("rare"), [], NEED, search=(i, 10))  # no shard can match
    assert len(world.ways._pages) == 1000


def test_filters_that_python_takes_for_equal_are_kept_apart() -> None:
    world = World(table())
    field = Field(Column("a", "a", ValueType.INTEGER))
    for value in (-1, -2, 1, True):
        world.find(Compare(field, "=", value), Outcome(exact=True, matched=20, milliseconds=1.0))
    assert len(world.ways._filters) == 4


def test_what_was_counted_before_anything_was_known_of_the_shard_is_no_share() -> None:
    world = World(None)
    world.find(lang("rare"), CUT)
    world.find(lang("rare"), Outcome(exact=True, matched=20, milliseconds=3.0))
    world.known = table(3_000_000)
    assert world.choose(lang("rare")).basis != "searches"


def test_earlier_statistics_are_not_kept() -> None:
    world = World(table())
    old = weakref.ref(world.known)
    world.find(lang("rare"), Outcome(exact=True, matched=20, milliseconds=1.0))
    world.known = None
    gc.collect()
    assert old() is None


def test_a_long_path_in_the_metadata_is_not_kept_with_the_shape() -> None:
    world = World(table())
    tracemalloc.start()
    try:
        for i in range(20):
            world.choose(Compare(Field(None, (f"{i}" + "x" * 1_000_000,)), "=", 1))
        assert tracemalloc.get_traced_memory()[0] < 5_000_000
    finally:
        tracemalloc.stop()
