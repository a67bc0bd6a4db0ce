"""Pages while rows vanish between two looks at them, and while shards keep silent. On simulated shards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, cast

import msgspec
import pytest

from bench.simulation.virtual_time import run
from router.freshness.freshness import Freshness
from router.query.answer import coverage_of
from router.query.composition import Account, LegAccount, Mode
from router.query.errors import UnavailableError
from router.query.paging import Paging, decode
from router.query.ranked import RankedAnswer
from router.query.types import Answer, Page, Probe, Row, SearchQuery, ShardReport, ShardRows, ShardState
from router.settings import Settings
from router.stages.answer_memory import AnswerMemory
from router.stages.columns import ColumnReader
from router.stages.encode import Encoded
from router.stages.fanout import Fanout
from router.stages.paged import Paged
from router.stages.rankings import Rankings, RankingStore
from tests.unit.queries import query, ranked, shard_map

CONTENT = frozenset(["content"])


class Shards:
    """Documents by id: the even ones on s0, the odd ones on s1."""

    def __init__(self, count: int) -> None:
        self.ids = set(range(count))
        self.searches: list[SearchQuery] = []
        self.deadlines: list[float] = []
        self.asked: list[list[int]] = []
        self.silent: set[str] = set()
        self.failed: set[str] = set()  # in one of the search's lists
        self.vanish: dict[int, list[int]] = {}  # before the reading of this number

    async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
        self.searches.append(query)
        self.deadlines.append(deadline)
        rows = [((id_, float(id_)), f"s{id_ % 2}") for id_ in sorted(self.ids)][: query.k]
        reports = {
            name: ShardReport(name, ShardState.FAILED, attempts=1, error="gone", cause="no_node")
            if name in self.failed
            else ShardReport(name, ShardState.OK, attempts=1)
            for name in ("s0", "s1")
        }
        coverage = coverage_of(list(reports.values()), 2)
        return msgspec.structs.replace(ranked(), rows=rows, reports=reports, coverage=coverage)

    async def fetch(self, probes: Mapping[str, Probe], deadline: float) -> dict[str, ShardRows]:
        self.ids -= set(self.vanish.pop(len(self.asked), []))
        self.asked.append(sorted(id_ for probe in probes.values() for id_ in cast(list[int], probe.args[0])))
        if self.silent & probes.keys():
            await asyncio.sleep(deadline - asyncio.get_running_loop().time())
        return {name: self._part(name, probe) for name, probe in probes.items()}

    def _part(self, name: str, probe: Probe) -> ShardRows:
        if name in self.silent:
            return ShardRows([], ShardReport(name, ShardState.TIMED_OUT, error="late", attempts=1))
        value: Any = 4 if "octet_length" in probe.shape.single else "text"
        rows: list[Row] = [(id_, value) for id_ in cast(list[int], probe.args[0]) if id_ in self.ids]
        return ShardRows(rows, ShardReport(name, ShardState.OK, f"{name}-a", attempts=1))


class World:
    def __init__(self, count: int) -> None:
        self.shards = Shards(count)
        columns = ColumnReader(cast(Fanout, self.shards), Freshness(shard_map()))
        self.memory = AnswerMemory(1 << 20, 1 << 20)
        store = RankingStore(1 << 20)
        kept = Rankings(store, None, "map", ttl=60.0, max_shared_bytes=0, several=False)
        encoded = Encoded(self.shards, columns, self.memory)
        self.stage = Paged(encoded, self.shards, columns, kept, Settings(ranking_depth=50))

    async def page(
        self, cursor: str | None, k: int = 5, within: float = 2.0, **changes: Any
    ) -> tuple[list[int], Answer]:
        paging = Paging(cursor=None if cursor is None else decode(cursor))
        asked = query(k=k, include=CONTENT, paging=paging, **changes)
        found = await self.stage.search(asked, asyncio.get_running_loop().time() + within)
        return [hit["id"] for hit in json.loads(bytes(found.answer.whole))], found.answer


def told(answer: Answer) -> Page:
    assert answer.page is not None
    return answer.page


async def test_the_ranking_is_one_search_of_the_whole_depth_without_columns() -> None:
    world = World(100)
    ids, answer = await world.page(None)
    (deep,) = world.shards.searches
    assert (deep.k, deep.offset, deep.include) == (50, 0, frozenset())
    assert ids == [0, 1, 2, 3, 4] and told(answer).ranked == 50 and not answer.cacheable
    for start in range(5, 50, 5):
        ids, answer = await world.page(told(answer).cursor)
        assert ids == list(range(start, start + 5))
    assert told(answer).cursor is None and told(answer).ended == "depth" and answer.short is None
    assert len(world.shards.searches) == 1
    # More than the depth may be wanted at once.
    ids, answer = await world.page(None, k=70)
    assert len(ids) == 70 and told(answer).kept is None


async def test_rows_that_vanish_between_two_looks_are_passed_over_like_others() -> None:
    world = World(100)
    _, first = await world.page(None)
    readings = len(world.shards.asked)
    world.shards.vanish = {readings + 1: [6, 8], readings + 3: [9]}
    ids, answer = await world.page(told(first).cursor)
    assert ids == [5, 7, 10, 11, 12]
    assert (told(answer).gone, told(answer).position) == (3, 5)
    ids, _ = await world.page(told(answer).cursor)
    assert ids == [13, 14, 15, 16, 17]


async def test_rows_that_vanish_again_and_again_are_an_error_and_not_a_gap() -> None:
    world = World(100)
    cursor = told((await world.page(None))[1]).cursor
    readings = len(world.shards.asked)
    world.shards.vanish = {readings + n: [5 + n] for n in range(1, 20)}
    with pytest.raises(UnavailableError):
        await world.page(cursor)
    assert world.memory.used == 0
    world.shards.vanish = {}
    ids, answer = await world.page(cursor)
    assert told(answer).gone + len(ids) == ids[-1] - 4 and ids == [n for n in ids if n in world.shards.ids]


async def test_long_runs_of_rows_that_are_gone_take_few_questions() -> None:
    world = World(100)
    _, first = await world.page(None, k=1)
    world.shards.ids -= set(range(1, 48))
    readings = len(world.shards.asked)
    ids, answer = await world.page(told(first).cursor, k=1)
    assert (ids, told(answer).gone) == ([48], 47)
    # Of 1, 2, 4, 8, 16 and 32 rows, and the reading.
    assert len(world.shards.asked) - readings == 7


def test_a_silent_shard_leaves_time_to_read_the_rows_of_the_others() -> None:
    async def simulated() -> None:
        world = World(100)
        now = asyncio.get_running_loop().time()
        _, first = await world.page(None, within=1.0)
        # What ranks may not take all the time.
        assert world.shards.deadlines[0] == pytest.approx(now + 0.7)
        world.shards.silent.add("s1")
        ids, answer = await world.page(told(first).cursor, k=6, within=1.0)
        assert asyncio.get_running_loop().time() <= now + 1.0
        # Those of s1 keep their places: the page that is asked for again has them.
        assert ids == [6, 8, 10] and told(answer).gone == 0
        assert answer.short is not None and answer.short.reason == "coverage"
        assert [one.shard for one in answer.coverage.failures] == ["s1"]
        world.shards.silent.clear()
        again, whole = await world.page(told(first).cursor, k=6)
        assert again == [5, 6, 7, 8, 9, 10] and whole.coverage.full
        assert told(whole).cursor == told(answer).cursor

    run(simulated())


async def test_rows_of_a_shard_that_failed_in_another_list_are_read_and_the_failure_is_told() -> None:
    world = World(100)
    world.shards.failed.add("s1")
    ids, answer = await world.page(None)
    for start in (0, 5, 10):
        assert ids == list(range(start, start + 5)) and told(answer).gone == 0
        assert [one.shard for one in answer.coverage.failures] == ["s1"]
        assert not answer.coverage.full and answer.short is None
        ids, answer = await world.page(told(answer).cursor)


async def test_a_list_that_is_missing_is_missing_on_every_page() -> None:
    world = World(17)
    rank = world.shards.search
    account = Account(
        (
            LegAccount("vector", Mode.VECTOR, 1.0, 50, 0, error="the model is away"),
            LegAccount("fulltext", Mode.FULLTEXT, 1.0, 50, 17),
        )
    )

    async def lacking(query: SearchQuery, deadline: float) -> RankedAnswer:
        return msgspec.structs.replace(await rank(query, deadline), limited="legs", account=account)

    world.shards.search = lacking  # type: ignore[method-assign]
    _, answer = await world.page(None)
    for _ in range(3):
        assert not answer.coverage.full and not answer.coverage.failures and answer.short is None
        cursor = told(answer).cursor
        with pytest.raises(UnavailableError, match=r"lacks lists \(vector: the model is away\)"):
            await world.page(cursor, allow_partial=False)
        ids, answer = await world.page(cursor)
    assert ids == [15, 16] and answer.short is not None
    assert answer.short.reason == told(answer).ended == "legs"


async def test_pages_are_past_all_caches() -> None:
    assert query().cached and not query(paging=Paging()).cached
