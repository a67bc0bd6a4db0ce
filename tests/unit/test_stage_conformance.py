"""What every stage promises: an answer or an error by its deadline, no task left behind, no garbage.

Each stage stands over an inner stage or shards that take a while, fail, or never answer in time.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, TypeVar, cast

import msgspec
import pytest

from bench.simulation.virtual_time import run
from router.freshness.freshness import Freshness
from router.freshness.redis_link import RedisLink
from router.policy.ways import Ways
from router.query.composition import Composition, Leg, Mode, Rerank
from router.query.errors import DeadlineError, OverloadedError, RouterError
from router.query.paging import Paging, decode
from router.query.ranked import RankedAnswer
from router.query.types import Found, Probe, SearchQuery, ShardReport, ShardRows, ShardState
from router.recall.live import LiveRecall, Sampled
from router.recall.sampling import RecallSampler
from router.settings import Settings
from router.stages.answer_memory import AnswerMemory
from router.stages.coalesce import Coalesced
from router.stages.columns import ColumnReader
from router.stages.compose import Composed
from router.stages.encode import Encoded
from router.stages.fanout import Fanout
from router.stages.fulltext import FulltextScatter
from router.stages.local_cache import LocalCache, Store
from router.stages.paged import Paged
from router.stages.rankings import Rankings, RankingStore
from router.stages.replicas import ReplicaSet
from router.stages.scatter import Scatter
from router.stages.shared_cache import SharedCache
from router.stages.stage import Stage
from shard_config.model import Fulltext, RerankingService
from tests.unit.queries import answer, collection, query, ranked, shard_map

R = TypeVar("R")
UNKNOWN = Ways(lambda collection, shard: None)
ROUNDING = 1e-6  # of simulated seconds, in which nothing is late but by its own doing


class Below:
    """How whatever stands below a stage behaves, and what became of it."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.fails = False
        self.waiting = 0

    def fail(self) -> None:
        if self.fails:
            raise OverloadedError("512 searches wait")


class Inner(Generic[R]):
    """Answers after a while; where that is too long it is late by the deadline, as a stage has to be."""

    def __init__(self, below: Below, found: Callable[[], R]) -> None:
        self.below, self.found = below, found

    async def search(self, query: SearchQuery, deadline: float) -> R:
        left = deadline - asyncio.get_running_loop().time()
        self.below.waiting += 1
        try:
            await asyncio.sleep(min(self.below.delay, left))
        finally:
            self.below.waiting -= 1
        self.below.fail()
        if self.below.delay > left:
            raise DeadlineError("late")
        return self.found()


class Shard:
    """A replica set that never errs but in this: its queue may be full."""

    def __init__(self, name: str, below: Below) -> None:
        self.name, self.below = name, below

    def __repr__(self) -> str:
        return f"<Shard {self.name}>"

    def ask(self, probe: Probe, deadline: float, done: Callable[[str, ShardRows | Exception], None]) -> Any:
        """Rows of an id and a number, be it a distance or a column, or a text."""
        handle = asyncio.get_running_loop().call_later(self.below.delay, self._answer, probe, done)
        self.below.waiting += 1
        return Asked(self, handle)

    def _answer(self, probe: Probe, done: Callable[[str, ShardRows | Exception], None]) -> None:
        self.below.waiting -= 1
        text = "left(" in probe.shape.single
        rows = [(id_, str(id_) if text else float(id_)) for id_ in range(probe.wanted)]
        try:
            self.below.fail()
        except OverloadedError as exc:
            done(self.name, exc)
        else:
            done(self.name, ShardRows(rows, ShardReport(self.name, ShardState.OK)))


class Asked:
    def __init__(self, shard: Shard, handle: asyncio.TimerHandle) -> None:
        self.shard, self.handle = shard, handle

    def leave(self) -> ShardReport:
        if self.handle.when() > asyncio.get_running_loop().time():
            self.handle.cancel()
            self.shard.below.waiting -= 1
        return ShardReport(self.shard.name, ShardState.TIMED_OUT)


def found(below: Below) -> Inner[Found]:
    return Inner(below, lambda: Found(answer(), "miss"))


def rows(below: Below) -> Inner[RankedAnswer]:
    return Inner(below, lambda: ranked(0.1, 0.2))


def shards(below: Below) -> Fanout:
    return Fanout({name: cast(ReplicaSet, Shard(name, below)) for name in shard_map().shards})


@asynccontextmanager
async def local_cache(below: Below) -> AsyncIterator[Stage[SearchQuery, Any]]:
    yield LocalCache(found(below), Store(1 << 20), "map", lambda _: 0)


@asynccontextmanager
async def coalesced(below: Below) -> AsyncIterator[Stage[SearchQuery, Any]]:
    yield Coalesced(found(below), lambda _: 0)


@asynccontextmanager
async def shared_cache(below: Below) -> AsyncIterator[Stage[SearchQuery, Any]]:
    """Its Redis is not there."""
    shards = shard_map()
    link = RedisLink("unix:///nowhere/redis.sock", budget=0.05, pause=10.0)
    freshness = Freshness(shards, link=link)
    cache = SharedCache(found(below), link, freshness, shards, "map", {}, lambda _: None, 1 << 20)
    try:
        yield cache
    finally:
        await cache.close()
        await freshness.close()
        await link.close()


@asynccontextmanager
async def encoded(below: Below) -> AsyncIterator[Stage[SearchQuery, Any]]:
    columns = ColumnReader(shards(Below()), Freshness(shard_map()))
    yield Encoded(rows(below), columns, AnswerMemory(1 << 20, 1 << 20))


@asynccontextmanager
async def encoded_with_columns_to_read(below: Below) -> AsyncIterator[Stage[SearchQuery, Any]]:
    """The rows are there at once; it is the columns that take a while."""
    columns = ColumnReader(shards(below), Freshness(shard_map()))
    memory = AnswerMemory(1 << 20, 1 << 20)
    stage = Encoded(rows(Below()), columns, memory)

    class Including:
        def __repr__(self) -> str:
            return repr(stage)

        async def search(self, query: SearchQuery, deadline: float) -> Found:
            including = msgspec.structs.replace(query, include=frozenset(["price"]), allow_partial=False)
            try:
                return await stage.search(including, deadline)
            finally:
                assert memory.used == 0 or not below.fails

    yield Including()
    assert memory.used == 0


def pages(below: Below, reading: Below) -> Paged:
    """Of two rows, over what ranks and over shards that are read from."""
    columns = ColumnReader(shards(reading), Freshness(shard_map()))
    ranking = rows(below)
    store = RankingStore(1 << 20)
    kept = Rankings(store, None, "map", ttl=60.0, max_shared_bytes=0, several=False)
    encoded = Encoded(ranking, columns, AnswerMemory(1 << 20, 1 << 20))
    return Paged(encoded, ranking, columns, kept, Settings())


class Page:
    """A page of one row as a stage."""

    def __init__(self, stage: Paged, paging: Paging) -> None:
        self.stage, self.paging = stage, paging

    def __repr__(self) -> str:
        return repr(self.stage)

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        asked = msgspec.structs.replace(
            query, k=1, include=frozenset(["price"]), allow_partial=False, paging=self.paging
        )
        return await self.stage.search(asked, deadline)


@asynccontextmanager
async def first_page(below: Below) -> AsyncIterator[Stage[SearchQuery, Any]]:
    yield Page(pages(below, Below()), Paging())


@asynccontextmanager
async def next_page(below: Below) -> AsyncIterator[Stage[SearchQuery, Any]]:
    """Its ranking is there at once; it is the reading of rows that takes a while."""
    stage, delay, fails = pages(Below(), below), below.delay, below.fails
    below.delay, below.fails = 0.0, False
    first = await Page(stage, Paging()).search(query(), now() + 5)
    assert first.answer.page is not None and first.answer.page.cursor is not None
    below.delay, below.fails = delay, fails
    yield Page(stage, Paging(cursor=decode(first.answer.page.cursor)))


@asynccontextmanager
async def sampled(below: Below) -> AsyncIterator[Stage[SearchQuery, Any]]:
    recall = LiveRecall(RecallSampler(1.0, 1.0), lambda _: 0)
    yield Sampled(rows(below), recall)
    await recall.close()


@asynccontextmanager
async def scatter(below: Below) -> AsyncIterator[Stage[SearchQuery, Any]]:
    yield Scatter(shard_map(), shards(below), Freshness(shard_map()), UNKNOWN)


@asynccontextmanager
async def scatter_of_several_depths(below: Below) -> AsyncIterator[Stage[SearchQuery, Any]]:
    stage = Scatter(shard_map(), shards(below), Freshness(shard_map()), UNKNOWN)

    class Deep:
        def __repr__(self) -> str:
            return repr(stage)

        async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
            return await stage.search(msgspec.structs.replace(query, offset=30), deadline)

    yield Deep()


@asynccontextmanager
async def fulltext(below: Below) -> AsyncIterator[Stage[SearchQuery, Any]]:
    composed = composed_over(Below(), below)
    searched = collection(fulltext=Fulltext(("content",)))

    class Wordy:
        def __repr__(self) -> str:
            return repr(composed)

        async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
            query = msgspec.structs.replace(query, collection=searched, vector=b"", words="cat")
            return await composed.search(query, deadline)

    yield Wordy()


class Scoring:
    """A re-ranking service that takes a while, too."""

    def __init__(self, below: Below) -> None:
        self.below = below

    async def scores(
        self, service: RerankingService, query: str, texts: Sequence[str], deadline: float
    ) -> list[float]:
        self.below.waiting += 1
        try:
            await asyncio.sleep(self.below.delay)
        finally:
            self.below.waiting -= 1
        return [0.0] * len(texts)


def composed_over(vector: Below, words: Below) -> Composed:
    services = {"ce": RerankingService("ce", "http://127.0.0.1:1/v1", "ce")}
    return Composed(
        msgspec.structs.replace(shard_map(), rerankers=services),
        vector=Scatter(shard_map(), shards(vector), Freshness(shard_map()), UNKNOWN),
        fulltext=FulltextScatter(shard_map(), shards(words), Freshness(shard_map())),
        columns=ColumnReader(shards(vector), Freshness(shard_map())),
        rerank=Scoring(vector),
        settings=Settings(),
    )


@asynccontextmanager
async def several_lists(below: Below) -> AsyncIterator[Stage[SearchQuery, Any]]:
    stage = composed_over(below, below)
    searched = collection(fulltext=Fulltext(("content",)))

    class Several:
        def __repr__(self) -> str:
            return repr(stage)

        async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
            legs = (
                Leg("vector", Mode.VECTOR, query.vector),
                Leg("other", Mode.VECTOR, query.vector),
                Leg("fulltext", Mode.FULLTEXT, words="cat"),
            )
            steps = Composition(legs, 20, rerank=Rerank("ce", "cat"))
            changes = {"collection": searched, "vector": b"", "composition": steps}
            return await stage.search(msgspec.structs.replace(query, **changes), deadline)

    yield Several()


Made = Callable[[Below], AbstractAsyncContextManager[Stage[SearchQuery, Any]]]
EVERY: list[Made] = [
    local_cache,
    coalesced,
    shared_cache,
    encoded,
    encoded_with_columns_to_read,
    first_page,
    next_page,
    sampled,
    scatter,
    scatter_of_several_depths,
    fulltext,
    several_lists,
]
every_stage = pytest.mark.parametrize("made", EVERY, ids=lambda made: made.__name__)


def now() -> float:
    return asyncio.get_running_loop().time()


def no_tasks_left() -> bool:
    return asyncio.all_tasks() == {asyncio.current_task()}


@every_stage
async def test_a_stage_answers_and_leaves_nothing_behind(made: Made) -> None:
    below = Below()
    async with made(below) as stage:
        assert await stage.search(query(), now() + 5) is not None
    assert no_tasks_left() and below.waiting == 0


@every_stage
def test_a_stage_answers_or_raises_by_its_deadline(made: Made) -> None:
    async def world() -> None:
        below = Below()
        below.delay = 5.0
        async with made(below) as stage:
            deadline = now() + 0.1
            with pytest.raises(RouterError):
                await stage.search(query(), deadline)
            assert now() <= deadline + ROUNDING
            await asyncio.sleep(0)
            assert below.waiting == 0
        assert no_tasks_left()

    run(world())


@every_stage
def test_a_cancelled_stage_cancels_what_stands_below(made: Made) -> None:
    async def world() -> None:
        below = Below()
        below.delay = 5.0
        async with made(below) as stage:
            searching = asyncio.create_task(stage.search(query(), now() + 10))
            while not below.waiting:
                await asyncio.sleep(0.001)
            cancelled = now()
            searching.cancel()
            await asyncio.wait([searching])
            assert now() <= cancelled + ROUNDING
            assert searching.cancelled() and below.waiting == 0
            del searching
        assert no_tasks_left()

    run(world())


async def failed(stage: Stage[SearchQuery, Any]) -> weakref.ref[OverloadedError]:
    try:
        await stage.search(query(), now() + 5)
    except OverloadedError as exc:
        return weakref.ref(exc)
    raise AssertionError("it did not fail")


@every_stage
async def test_a_failure_passes_through_and_is_freed_with_its_last_reference(made: Made) -> None:
    """Under overload there are thousands a second, each with the frames that it passed and what they hold."""
    below = Below()
    below.fails = True
    async with made(below) as stage:
        await asyncio.sleep(0)
        gc.collect()
        gc.disable()
        try:
            failure = await failed(stage)
            for _ in range(3):
                await asyncio.sleep(0)  # whose steps hold the tasks that have just ended
            assert failure() is None
        finally:
            gc.enable()
    assert no_tasks_left()


@every_stage
async def test_a_stage_says_what_it_is(made: Made) -> None:
    async with made(Below()) as stage:
        shown = repr(stage)
        assert shown.startswith("<") and " object at " not in shown
