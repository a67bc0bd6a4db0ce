"""Ranked rows become JSON: whole, in pieces, with columns that are read meanwhile, or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, cast

import msgspec
import pytest

from router.freshness.freshness import Freshness
from router.query.errors import AnswerTooLargeError, DeadlineError, UnavailableError
from router.query.ranked import RankedAnswer
from router.query.sizes import Layout
from router.query.types import Probe, Row, SearchQuery, ShardReport, ShardRows, ShardState
from router.stages.answer_memory import AnswerMemory
from router.stages.columns import ColumnReader
from router.stages.encode import Encoded
from router.stages.fanout import Fanout
from tests.unit.queries import query, ranked, shard_map

CONTENT = frozenset(["content"])


class Ranking:
    """Ranks the ids of `ids` anew each time."""

    def __init__(self, *ids: int) -> None:
        self.ids = set(ids)
        self.searches = 0

    async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
        self.searches += 1
        rows = [((id_, float(id_)), "s0") for id_ in sorted(self.ids)]
        return msgspec.structs.replace(ranked(), rows=rows)


class Stored:
    """A shard's documents by id; `deletes` go one with each reading of columns."""

    def __init__(self, ranking: Ranking, text: str = "text") -> None:
        self.ranking, self.text = ranking, text
        self.deletes: list[int] = []
        self.fails_at: int | None = None
        self.readings = 0

    async def fetch(self, probes: Mapping[str, Probe], deadline: float) -> dict[str, ShardRows]:
        self.readings += 1
        if self.deletes:
            self.ranking.ids.discard(self.deletes.pop(0))
        if self.readings == self.fails_at:
            report = ShardReport("s0", ShardState.TIMED_OUT, error="late")
            return {name: ShardRows([], report) for name in probes}
        return {
            name: ShardRows(self._rows(probe), ShardReport(name, ShardState.OK))
            for name, probe in probes.items()
        }

    def _rows(self, probe: Probe) -> list[Row]:
        sizes = "octet_length" in probe.shape.single
        value: Any = len(self.text) if sizes else self.text
        ids = cast(list[int], probe.args[0])
        return [(id_, value) for id_ in ids if id_ in self.ranking.ids]


class World:
    def __init__(self, *ids: int, text: str = "text", most: int = 1 << 20) -> None:
        self.ranking = Ranking(*ids)
        self.stored = Stored(self.ranking, text)
        self.memory = AnswerMemory(most, most)
        columns = ColumnReader(cast(Fanout, self.stored), Freshness(shard_map()))
        self.stage = Encoded(self.ranking, columns, self.memory)

    async def hits(self, **changes: Any) -> list[dict[str, Any]]:
        found = await self.stage.search(
            query(**{"k": 1000, "include": CONTENT, **changes}), asyncio.get_running_loop().time() + 5
        )
        shown: list[dict[str, Any]] = json.loads(bytes(found.answer.whole))
        assert found.answer.count == len(shown)
        assert sum(report.kept for report in found.answer.reports) == len(shown)
        return shown


async def test_rows_that_are_complete_are_written_as_they_are() -> None:
    world = World(1, 2)
    assert await world.hits(include=frozenset()) == [
        {"id": 1, "distance": 1.0, "shard": "s0"},
        {"id": 2, "distance": 2.0, "shard": "s0"},
    ]
    assert (world.stored.readings, world.memory.used) == (0, 0)


async def test_columns_that_are_missing_are_read_and_reserved_until_nobody_holds_the_answer() -> None:
    world = World(*range(300), text='a "text"\n' * 100)
    found = await world.stage.search(query(k=300, include=CONTENT), asyncio.get_running_loop().time() + 5)
    shown = json.loads(bytes(found.answer.whole))
    assert [hit["id"] for hit in shown] == list(range(300))
    assert {hit["content"] for hit in shown} == {'a "text"\n' * 100}
    assert len(found.answer.more) > 3 and world.memory.used == found.answer.size_bytes
    del found
    assert world.memory.used == 0


async def test_an_answer_that_is_too_large_is_refused_before_it_is_read() -> None:
    world = World(*range(300), text="x" * 1000, most=100_000)
    with pytest.raises(AnswerTooLargeError, match="100000 bytes that an answer may have"):
        await world.hits()
    # Only how long the texts are.
    assert (world.stored.readings, world.memory.used) == (1, 0)


async def test_rows_that_change_before_they_are_read_are_ranked_anew_but_once() -> None:
    world = World(1, 2, 3)
    world.stored.deletes = [2]
    assert [hit["id"] for hit in await world.hits()] == [1, 3]
    assert world.ranking.searches == 2
    world = World(1, 2, 3)
    world.stored.deletes = [2, 9, 3]
    with pytest.raises(UnavailableError, match="deleted or changed while they were read"):
        await world.hits()
    assert (world.ranking.searches, world.memory.used) == (2, 0)


async def test_a_shard_that_fails_before_its_columns_are_read_is_missing_from_the_answer() -> None:
    world = World(1, 2)
    world.stored.fails_at = 2
    with pytest.raises(DeadlineError):
        await world.hits()
    assert world.memory.used == 0


async def test_a_row_that_came_with_its_columns_is_not_read_again() -> None:
    class Mixed(Ranking):
        async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
            rows = [((1, 0.1, "here", True), "s0"), ((2, 0.2, None, False, 7), "s0")]
            layout = Layout(CONTENT, row_bytes=100, guarded=True, fixed_bytes=40)
            return msgspec.structs.replace(ranked(), rows=rows, layout=layout)

    world = World(2)
    world.stage._inner = Mixed()
    assert [hit["content"] for hit in await world.hits()] == ["here", "text"]
    assert world.stored.readings == 2
