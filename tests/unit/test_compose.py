"""Composed searches over lists, shards and services that fail: what is missing is said."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from bench.simulation.virtual_time import run
from router.freshness.freshness import Freshness
from router.query.composition import Composition, Diversity, GroupBy, Leg, Mode, Rerank
from router.query.errors import (
    DeadlineError,
    InvalidError,
    MisconfiguredError,
    OverloadedError,
    RouterError,
    UnavailableError,
)
from router.query.filter import Field
from router.query.ranked import RankedAnswer
from router.query.redaction import ShardFault
from router.query.sizes import Layout
from router.query.types import (
    Coverage,
    Probe,
    SearchQuery,
    ShardCounts,
    ShardReport,
    ShardRows,
    ShardState,
)
from router.query.wire import to_wire
from router.settings import Settings
from router.stages import steps
from router.stages.answer_memory import AnswerMemory
from router.stages.columns import ColumnReader
from router.stages.compose import Composed
from router.stages.encode import Encoded
from router.stages.fanout import Fanout
from router.stages.stage import Figures
from shard_config.model import RerankingService, VectorType
from tests.unit.queries import collection, query, shard_map

SHARDS = ("s0", "s1")
TENANT = Field(collection().columns["tenant"])


class List:
    """Ranks ids by distances; id i lies on shard i % 2. Fails as it is told."""

    def __init__(self, *ids: int) -> None:
        self.ids = ids
        self.error: RouterError | None = None
        self.down: set[str] = set()
        self.delay = 0.0
        self.queries: list[SearchQuery] = []
        self.deadlines: list[float] = []

    async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
        self.queries.append(query)
        self.deadlines.append(deadline)
        await asyncio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        states = {name: ShardState.FAILED if name in self.down else ShardState.OK for name in SHARDS}
        rows = [((i, float(place)), SHARDS[i % 2]) for place, i in enumerate(self.ids)]
        return RankedAnswer(
            rows=[row for row in rows if row[1] not in self.down][: query.k],
            layout=Layout(frozenset()),
            coverage=Coverage(not self.down, ShardCounts(2, 2, 2 - len(self.down), 0, 0, len(self.down))),
            reports={
                name: ShardReport(name, state, error="down" if name in self.down else None, attempts=1)
                for name, state in states.items()
            },
        )

    def describe(self) -> Figures:
        return {}


class Documents:
    """Answers what is asked of rows by their ids, unless a shard is down by then."""

    def __init__(self) -> None:
        self.down: set[str] = set()
        self.texts: dict[int, str | None] = {}
        self.tenants: dict[int, str | None] = {}
        self.gone: set[int] = set()

    async def fetch(self, probes: Mapping[str, Probe], deadline: float) -> dict[str, ShardRows]:
        return {
            name: ShardRows([], ShardReport(name, ShardState.TIMED_OUT, error="late", attempts=1))
            if name in self.down
            else ShardRows(self._rows(probe), ShardReport(name, ShardState.OK, attempts=1))
            for name, probe in probes.items()
        }

    def _rows(self, probe: Probe) -> list[Any]:
        sql = probe.shape.single
        ids = [i for i in cast(list[int], probe.args[0]) if i not in self.gone]
        if "left(" in sql:
            return [(i, self.texts.get(i, f"text {i}")) for i in ids]
        if "CASE" in sql:
            values = {i: self.tenants.get(i, f"t{i}") for i in ids}
            return [(i, value, None if value is None else len(value)) for i, value in values.items()]
        if "embedding" in sql:
            return [(i, _vector(i)) for i in ids]
        if "octet_length" in sql:
            return [(i, 4) for i in ids]
        return [(i, f"text {i}") for i in ids]


def _vector(i: int) -> bytes:
    components = np.array([1.0, i % 3, 0.0, 0.0], dtype="<f4")
    return to_wire(components.tobytes(), VectorType.VECTOR)


class Scores:
    """A re-ranking service: the higher the id in a text, the better."""

    def __init__(self) -> None:
        self.answer: list[float] | Exception | None = None
        self.delay = 0.0
        self.asked: list[Sequence[str]] = []

    async def scores(
        self, service: RerankingService, query: str, texts: Sequence[str], deadline: float
    ) -> list[float]:
        self.asked.append(texts)
        await asyncio.sleep(self.delay)
        if isinstance(self.answer, Exception):
            raise self.answer
        return [float(text.split()[-1]) for text in texts] if self.answer is None else self.answer


class World:
    def __init__(self, *, vector: List | None = None, words: List | None = None, **limits: Any) -> None:
        self.vector = List(1, 2, 3, 4) if vector is None else vector
        self.words = List(4, 5, 2) if words is None else words
        self.documents = Documents()
        self.scores = Scores()
        shards = msgspec.structs.replace(
            shard_map(), rerankers={"ce": RerankingService("ce", "http://127.0.0.1:1/v1", "ce")}
        )
        self.columns = ColumnReader(cast(Fanout, self.documents), Freshness(shards))
        self.stage = Composed(
            shards,
            vector=self.vector,
            fulltext=self.words,
            columns=self.columns,
            rerank=self.scores,
            settings=Settings(**limits),
        )

    async def rank(self, within: float = 5.0, **changes: Any) -> RankedAnswer:
        steps = {name: changes.pop(name) for name in ("rerank", "diversity", "group_by") if name in changes}
        legs = changes.pop(
            "legs", (Leg("vector", Mode.VECTOR, b"x"), Leg("fulltext", Mode.FULLTEXT, words="y"))
        )
        composition = Composition(legs, changes.pop("candidates", 50), **steps)
        return await self.stage.search(
            query(vector=b"", composition=composition, **changes), asyncio.get_running_loop().time() + within
        )

    async def answer(self, **changes: Any) -> tuple[list[dict[str, Any]], Any]:
        """As JSON, with the contents, and the answer itself."""

        class Ranking:
            describe = self.stage.describe

            async def search(inner, query: SearchQuery, deadline: float) -> RankedAnswer:
                return await self.stage.search(query, deadline)

        encoded = Encoded(Ranking(), self.columns, AnswerMemory(1 << 20, 1 << 20))
        steps = {name: changes.pop(name) for name in ("rerank", "diversity", "group_by") if name in changes}
        legs = (Leg("vector", Mode.VECTOR, b"x"), Leg("fulltext", Mode.FULLTEXT, words="y"))
        asked = query(
            vector=b"",
            composition=Composition(legs, **steps),
            **{"include": frozenset(["content"]), **changes},
        )
        found = await encoded.search(asked, asyncio.get_running_loop().time() + 5)
        return json.loads(bytes(found.answer.whole)), found.answer


def ids(answer: RankedAnswer) -> list[int]:
    return [row[0] for row, _ in answer.rows]


async def test_a_plain_search_goes_to_the_stage_that_it_is_for_as_it_is() -> None:
    world = World()
    plain, words = query(), query(vector=b"", words="cat")
    deadline = asyncio.get_running_loop().time() + 1
    await world.stage.search(plain, deadline)
    await world.stage.search(words, deadline)
    assert world.vector.queries[0] is plain and world.words.queries[0] is words
    assert world.vector.deadlines == [deadline]


async def test_each_list_is_a_search_of_its_own() -> None:
    world = World()
    leg = Leg("vector", Mode.VECTOR, b"v", without=(3, 2), filter=None)
    await world.rank(
        legs=(leg, Leg("fulltext", Mode.FULLTEXT, words="y")),
        k=5,
        offset=2,
        max_distance=0.5,
        exact=True,
        include=frozenset(["content"]),
    )
    near, words = world.vector.queries[0], world.words.queries[0]
    assert (near.vector, near.words, near.k, near.offset) == (b"v", None, 52, 0)
    assert (words.vector, words.words, words.k, words.offset) == (b"", "y", 50, 0)
    assert (near.max_distance, near.exact) == (0.5, True)
    assert (words.max_distance, words.exact) == (None, False)
    assert near.include == words.include == frozenset() and near.composition is None
    assert near.caller is words.caller is not None


async def test_rows_that_are_left_out_take_no_place() -> None:
    world = World(vector=List(1, 2, 3, 4, 5))
    answer = await world.rank(legs=(Leg("vector", Mode.VECTOR, b"v", without=(1, 3)),), candidates=2, k=2)
    assert ids(answer) == [2, 4] and answer.account is not None
    assert answer.account.legs[0].returned == 2 and answer.notes is None


@pytest.mark.parametrize(
    "error", [DeadlineError("late"), UnavailableError("away"), MisconfiguredError("none")]
)
async def test_a_list_that_is_missing_is_named_and_keeps_the_answer_out_of_caches(error: RouterError) -> None:
    world = World()
    world.words.error = error.hidden(faults=[ShardFault.of("s1", "failed", "unavailable", "away")])
    answer = await world.rank(k=2)
    assert ids(answer) == [1, 2] and answer.account is not None
    assert [leg.error for leg in answer.account.legs] == [None, error.detail]
    assert not answer.coverage.full and not answer.cacheable
    assert [one.shard for one in answer.coverage.failures] == ["s1"]
    with pytest.raises(type(error)):
        await world.rank(allow_partial=False)


async def test_a_full_queue_or_a_wrong_value_is_no_missing_list() -> None:
    for error in (OverloadedError("full"), InvalidError.at("filter", "no number")):
        world = World()
        world.words.error = error
        with pytest.raises(type(error)):
            await world.rank()


async def test_without_any_list_the_first_ones_error_is_raised() -> None:
    world = World()
    world.vector.error, world.words.error = UnavailableError("one"), DeadlineError("two")
    with pytest.raises(UnavailableError, match="one"):
        await world.rank()


async def test_a_shard_that_fails_in_one_list_is_missing_but_its_other_rows_are_there() -> None:
    world = World()
    world.words.down = {"s1"}
    hits, answer = await world.answer(k=10)
    # Of the list by words, 5 is lost; by vector, 1 and 3 are not, and neither are their columns.
    assert sorted(hit["id"] for hit in hits) == [1, 2, 3, 4]
    assert all(hit["content"] == f"text {hit['id']}" for hit in hits)
    assert [one.shard for one in answer.coverage.failures] == ["s1"]
    assert not answer.coverage.full and not answer.cacheable
    assert answer.short is not None and answer.short.reason == "coverage"
    kept = {report.shard: report.kept for report in answer.reports}
    assert kept == {"s0": 2, "s1": 2}


async def test_notes_stay_with_their_rows_when_a_shard_fails_before_their_columns_are_read() -> None:
    world = World()
    ranked = await world.rank()
    notes = {
        row[0]: json.loads(b"{%b}" % note)
        for (row, _), note in zip(ranked.rows, ranked.notes or (), strict=True)
    }
    world.documents.down = {"s0"}
    hits, answer = await world.answer(k=10)
    assert [hit["id"] for hit in hits] == [i for i in ids(ranked) if i % 2]
    for hit in hits:
        assert {name: hit[name] for name in notes[hit["id"]]} == notes[hit["id"]]
    assert [one.shard for one in answer.coverage.failures] == ["s0"]
    world.documents.down = {"s0", "s1"}
    with pytest.raises(DeadlineError):
        await world.answer(k=10)


async def test_groups_count_only_the_hits_that_are_left() -> None:
    world = World(vector=List(1, 2, 3, 4), words=List())
    world.documents.tenants = {1: "a", 2: "a", 3: "a", 4: "b"}
    group_by = GroupBy(TENANT, 3)
    hits, answer = await world.answer(k=2, group_by=group_by)
    assert [(one.hits, one.full) for one in answer.account.groups] == [(3, True), (1, True)]

    def fails_late(probes: Mapping[str, Probe]) -> bool:
        return any(
            "octet_length" in probe.shape.single and "CASE" not in probe.shape.single
            for probe in probes.values()
        )

    fetch = world.documents.fetch

    async def fetch_until_columns(probes: Mapping[str, Probe], deadline: float) -> dict[str, ShardRows]:
        if fails_late(probes):
            world.documents.down = {"s0"}
        return await fetch(probes, deadline)

    world.documents.fetch = fetch_until_columns  # type: ignore[method-assign]
    hits, answer = await world.answer(k=2, group_by=group_by)
    assert [hit["group"] for hit in hits] == ["a", "a"]
    assert [(one.hits, one.full) for one in answer.account.groups] == [(2, False), (0, False)]
    assert answer.short is not None and (answer.short.returned, answer.short.reason) == (1, "coverage")


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (UnavailableError("the re-ranker ce is down"), "ce is down"),
        (TimeoutError(), "the reranking service ce did not answer in time"),
        ([1.0], "the reranking service ce gave 1 scores for 3 texts"),
        ([1.0, 2.0, 3.0, 4.0], "the reranking service ce gave 4 scores for 3 texts"),
        ([1.0, math.nan, 2.0], "the reranking service ce gave a score that is not a finite number"),
        ([1.0, math.inf, 2.0], "the reranking service ce gave a score that is not a finite number"),
    ],
)
async def test_what_a_model_does_wrong_leaves_the_order_as_it_was(scores: Any, reason: str) -> None:
    world = World()
    before = ids(await world.rank())
    world.scores.answer = scores
    answer = await world.rank(rerank=Rerank("ce", "y", 3))
    assert ids(answer) == before and not answer.cacheable
    assert answer.account is not None and answer.account.rerank is not None
    assert not answer.account.rerank.done and reason in str(answer.account.rerank.reason)
    assert all(b"rerank_score" not in note for note in answer.notes or ())


@pytest.mark.parametrize("nothing", [None, "", " \n\t"])
async def test_a_model_orders_the_best_and_those_without_text_stand_behind_them(nothing: str | None) -> None:
    world = World(vector=List(1, 2, 3, 4, 5), words=List())
    world.documents.texts[2] = nothing
    world.documents.gone = {3}
    answer = await world.rank(rerank=Rerank("ce", "y", 4))
    assert ids(answer) == [4, 1, 2, 3, 5] and answer.cacheable
    assert [len(texts) for texts in world.scores.asked] == [2]
    shown = [json.loads(b"{%b}" % note)["rerank_score"] for note in answer.notes or ()]
    assert shown == [4.0, 1.0, None, None, None]


async def test_a_step_whose_documents_cannot_be_read_is_not_done() -> None:
    world = World()
    before = ids(await world.rank())
    world.documents.down = {"s1"}
    answer = await world.rank(rerank=Rerank("ce", "y"), diversity=Diversity())
    assert ids(answer) == before and not answer.cacheable and answer.coverage.full
    assert answer.account is not None and answer.account.rerank is not None
    assert answer.account.rerank.reason == "the texts could not be read from s1"
    assert answer.account.diversity is not None
    assert answer.account.diversity.reason == "the vectors could not be read from s1"


async def test_diversity_prefers_what_is_not_there_yet() -> None:
    world = World(vector=List(3, 6, 9, 1, 2), words=List())
    answer = await world.rank(diversity=Diversity(0.3, 5), k=3)
    # 3, 6 and 9 have one vector, and 1 and 2 have others, of which 2 differs more.
    assert ids(answer) == [3, 2, 6] and answer.cacheable


async def test_many_candidates_are_compared_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(vector=List(3, 6, 9, 1, 2), words=List())
    monkeypatch.setattr(steps, "_IN_LOOP", 0)
    answer = await world.rank(diversity=Diversity(0.3, 5), k=3)
    assert ids(answer) == [3, 2, 6] and answer.cacheable

    def slow(*args: object) -> list[int]:
        time.sleep(0.3)
        return []

    monkeypatch.setattr(steps, "_choose", slow)
    answer = await world.rank(within=0.1, diversity=Diversity(0.3, 5), k=3)
    assert ids(answer) == [3, 6, 9] and not answer.cacheable
    assert answer.account is not None and answer.account.diversity is not None
    assert answer.account.diversity.reason == "the time was over before hits were chosen"


async def test_rows_are_grouped_and_lacking_groups_are_filled_by_searches_of_their_own() -> None:
    world = World(vector=List(*range(200)), words=List())
    world.documents.tenants = {i: "a" if i < 150 else f"t{i % 3}" for i in range(200)}
    leg = Leg("vector", Mode.VECTOR, b"v")
    answer = await world.rank(legs=(leg,), group_by=GroupBy(TENANT, 2), k=3, candidates=10)
    # Ten rows hold one value; forty as well; 160 hold all that are needed.
    assert [one.k for one in world.vector.queries] == [10, 40, 160]
    assert [(row[0]) for row, _ in answer.rows] == [0, 1, 150, 153, 151, 154]
    assert answer.account is not None and answer.account.groups is not None
    assert all(group.full for group in answer.account.groups)


async def test_a_group_that_cannot_be_filled_says_so() -> None:
    world = World(vector=List(*range(60)), words=List())
    world.documents.tenants = {i: "a" if i < 49 else "b" for i in range(60)}
    leg = Leg("vector", Mode.VECTOR, b"v")

    class FailsWithFilters(List):
        async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
            if query.filter is not None:
                raise OverloadedError("full")
            return await super().search(query, deadline)

    failing = World(vector=FailsWithFilters(*range(60)), words=List())
    failing.documents.tenants = world.documents.tenants
    answer = await failing.rank(legs=(leg,), group_by=GroupBy(TENANT, 5), k=2, candidates=50)
    assert answer.account is not None and answer.account.groups is not None
    assert [(one.hits, one.full) for one in answer.account.groups] == [(5, True), (1, False)]
    assert not answer.cacheable
    none = World(vector=List(*range(60)), words=List(), max_group_searches=0)
    none.documents.tenants = world.documents.tenants
    answer = await none.rank(legs=(leg,), group_by=GroupBy(TENANT, 5), k=2, candidates=50)
    assert answer.account is not None and answer.account.groups is not None
    assert [one.full for one in answer.account.groups] == [True, False] and answer.cacheable


async def test_no_group_is_full_where_a_shard_or_a_list_is_missing() -> None:
    for fault in ("shard", "list"):
        world = World()
        if fault == "shard":
            world.words.down = {"s1"}
        else:
            world.words.error = DeadlineError("late")
        answer = await world.rank(group_by=GroupBy(TENANT, 1), k=2)
        assert answer.account is not None and answer.account.groups is not None
        assert [group.full for group in answer.account.groups] == [False, False]


async def test_rows_whose_value_cannot_be_read_are_lost_with_their_shard() -> None:
    world = World()
    world.documents.down = {"s1"}
    answer = await world.rank(group_by=GroupBy(TENANT, 1), k=10)
    assert sorted(ids(answer)) == [2, 4]
    assert [one.shard for one in answer.coverage.failures] == ["s1"]
    with pytest.raises(RouterError):
        await world.rank(group_by=GroupBy(TENANT, 1), allow_partial=False)
    world.documents.down = {"s0", "s1"}
    with pytest.raises(DeadlineError):
        await world.rank(group_by=GroupBy(TENANT, 1))


async def test_a_value_too_large_to_group_by_is_refused_by_name() -> None:
    world = World()
    world.documents.tenants = {2: "x" * 1025}
    with pytest.raises(InvalidError, match="the document 2 has a value of 1025 bytes, which exceeds 1024"):
        await world.rank(group_by=GroupBy(TENANT, 1))


def test_each_step_has_its_share_of_the_time() -> None:
    async def world() -> None:
        made = World()
        made.scores.delay = 60.0
        started = asyncio.get_running_loop().time()
        answer = await made.rank(
            within=1.0, rerank=Rerank("ce", "y"), diversity=Diversity(), include=frozenset(["content"])
        )
        took = asyncio.get_running_loop().time() - started
        # Lists 6, model 4, vectors 1, columns 1: the model is given up when 10/12 of the time are over.
        assert 0.8 < took < 0.84
        assert made.vector.deadlines[0] == made.words.deadlines[0] == pytest.approx(started + 0.495)
        assert answer.account is not None and answer.account.rerank is not None
        assert answer.account.rerank.reason == "the reranking service ce did not answer in time"
        assert answer.account.diversity is not None and answer.account.diversity.done

    run(world())
