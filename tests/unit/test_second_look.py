"""What the shards have brought, and whether it settles the search."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from router.freshness.freshness import Freshness
from router.policy.ways import Ways
from router.query.answer import joined, shortfall
from router.query.errors import OverloadedError
from router.query.merge import merge
from router.query.plan import plan_search
from router.query.second_look import unsettled
from router.query.types import Probe, Scan, ShardReport, ShardRows, ShardState, Shortfall, Unsettled
from router.stages.fanout import Fanout
from router.stages.scatter import Scatter
from tests.unit.queries import query, shard_map

UNKNOWN = Ways(lambda collection, shard: None)

PLAN = plan_search(query(k=4), shard_map())


def part(*rows: tuple[int, float], state: ShardState = ShardState.OK) -> ShardRows:
    return ShardRows(rows, ShardReport("s0", state))


def look(**parts: ShardRows) -> dict[str, Scan]:
    ranked = merge({name: one.rows for name, one in parts.items()}, PLAN.depth)
    return unsettled(PLAN, parts, ranked)


def test_enough_rows_without_a_tie_at_their_end_settle_a_search() -> None:
    far = part(*((n, 9.0) for n in range(10, 15)))
    assert look(s0=part((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (5, 0.5)), s1=far) == {}
    # The tie ends within what was asked for.
    assert look(s0=part((1, 0.1), (2, 0.2), (3, 0.4), (4, 0.4), (5, 0.5))) == {}
    assert look(s0=part((1, 0.1), (2, 0.2)), s1=part((3, 0.2), (4, 0.2))) == {}


def test_a_shard_whose_rows_end_with_a_tie_at_the_answers_end_reads_on() -> None:
    tied = part((1, 0.1), (2, 0.4), (3, 0.4), (4, 0.4), (5, 0.4))
    assert look(s0=tied, s1=part((6, 0.5))) == {"s0": Scan.TIES}
    assert look(s0=tied, s1=tied) == {"s0": Scan.TIES, "s1": Scan.TIES}
    nearer = part(*((n, 0.05) for n in range(10, 14)), (14, 0.3))
    assert look(s0=tied, s1=nearer) == {}


def test_shards_that_came_up_short_read_everything_when_all_have_too_few() -> None:
    assert look(s0=part((1, 0.1)), s1=part((2, 0.2), (3, 0.2))) == {"s0": Scan.EXACT, "s1": Scan.EXACT}
    gone = part(state=ShardState.TIMED_OUT)
    assert look(s0=part((1, 0.1)), s1=gone) == {"s0": Scan.EXACT}
    assert look(s0=gone, s1=gone) == {}


def test_a_row_on_two_shards_counts_once() -> None:
    both = part((1, 0.1), (2, 0.2))
    assert look(s0=both, s1=both) == {"s0": Scan.EXACT, "s1": Scan.EXACT}


def test_a_scan_with_a_filter_that_was_cut_reads_everything_however_many_rows_there_are() -> None:
    some, tied = part((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)), part(*((n, 0.4) for n in range(5, 10)))
    parts = {"s0": some, "s1": tied, "s2": part()}
    ranked = merge({name: one.rows for name, one in parts.items()}, PLAN.depth)
    assert unsettled(PLAN, parts, ranked, cut={"s0"}) == {"s0": Scan.EXACT, "s1": Scan.TIES}
    assert unsettled(PLAN, parts, ranked, exact={"s1", "s2"}, cut={"s0"}) == {"s0": Scan.EXACT}
    # Of a shard that was read exactly, few rows are all there are.
    assert unsettled(PLAN, {"s2": part()}, [], exact={"s2"}) == {}


def test_nothing_is_asked_again_after_every_row_was_compared() -> None:
    plan = plan_search(query(k=4, exact=True), shard_map())
    assert unsettled(plan, {"s0": part((1, 0.1))}, []) == {}


def test_a_shard_is_missing_where_one_of_several_searches_missed_it() -> None:
    fine = ShardReport("s0", ShardState.OK, attempts=1, queue_ms=1, execute_ms=2, total_ms=3, lsn=7)
    deep = ShardReport("s0", ShardState.OK, attempts=2, execute_ms=5, total_ms=9, lsn=5, returned=40)
    late = ShardReport("s0", ShardState.TIMED_OUT, attempts=1, total_ms=20, error="late")
    both = joined(deep, fine, at_once=True)
    assert (both.state, both.attempts, both.returned, both.lsn) == (ShardState.OK, 3, 40, 5)
    assert (both.queue_ms, both.execute_ms, both.total_ms) == (1, 7, 9)
    assert joined(deep, late, at_once=True).state is ShardState.TIMED_OUT
    assert joined(late, fine, at_once=True).error == "late"


async def test_a_shard_that_one_depth_misses_gives_no_row_to_the_page() -> None:
    class Lame:
        """Shards of 50 rows each; s1 answers for shallow searches only."""

        async def fetch(self, probes: dict[str, Probe], deadline: float) -> dict[str, ShardRows]:
            def answer(name: str, wanted: int) -> ShardRows:
                if name == "s1" and wanted > 20:
                    return ShardRows([], ShardReport(name, ShardState.TIMED_OUT, error="late"))
                number = int(name[1:])
                rows = [(4 * i + number, float(4 * i + number)) for i in range(50)]
                return ShardRows(rows[:wanted], ShardReport(name, ShardState.OK))

            return {name: answer(name, probe.wanted) for name, probe in probes.items()}

    shards = shard_map()
    scatter = Scatter(shards, cast(Fanout, Lame()), Freshness(shards), UNKNOWN)
    answer = await scatter.search(query(k=10, offset=5), asyncio.get_running_loop().time() + 5)
    expected = [n for n in range(200) if n % 4 != 1]
    assert [row[0] for row, _ in answer.rows] == expected[5:15]
    assert [failure.shard for failure in answer.coverage.failures] == ["s1"]


class Tied:
    """Four shards of ten rows that are all equally near; the second round fails on s1, or as a whole."""

    def __init__(self, *, full: bool = False) -> None:
        self.rounds = 0
        self.full = full

    async def fetch(self, probes: dict[str, Probe], deadline: float) -> dict[str, ShardRows]:
        self.rounds += 1
        if self.rounds == 2 and self.full:
            raise OverloadedError("512 searches wait")
        lost = "s1" if self.rounds == 2 else None
        return {
            name: ShardRows([], ShardReport(name, ShardState.TIMED_OUT, error="late"))
            if name == lost
            else ShardRows(
                [(10 * n + int(name[1:]), 0.5) for n in range(min(10, probe.wanted))],
                ShardReport(name, ShardState.OK),
            )
            for name, probe in probes.items()
        }


@pytest.mark.parametrize(("full", "unsettled"), [(False, ["s1"]), (True, ["s0", "s1", "s2", "s3"])])
async def test_an_answer_for_which_no_time_was_left_to_read_on_through_ties_says_so(
    full: bool, unsettled: list[str]
) -> None:
    shards = shard_map()
    scatter = Scatter(shards, cast(Fanout, Tied(full=full)), Freshness(shards), UNKNOWN)
    answer = await scatter.search(query(k=2), asyncio.get_running_loop().time() + 5)
    assert (len(answer.rows), answer.coverage.full, answer.cacheable) == (2, True, False)
    assert answer.unsettled == tuple(Unsettled(name, "ties") for name in unsettled)
    # They are no reason for too few hits.
    assert shortfall(query(k=3), 2, answer) == Shortfall(3, 2, "exhausted")
