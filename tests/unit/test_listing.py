"""What lists of documents make of shards that fail, or that were read as they had been before."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast

import msgspec
import pytest

from router.documents.listing import Listing
from router.documents.types import DocumentList, DocumentPage
from router.freshness.freshness import Freshness
from router.query.errors import DeadlineError, UnavailableError
from router.query.types import Probe, Row, ShardReport, ShardRows, ShardState
from router.stages.answer_memory import AnswerMemory
from router.stages.fanout import Fanout
from tests.unit.queries import by_tenant, collection, shard_map

INCLUDE = frozenset({"content"})


def part(shard: str, *rows: Row, stale: bool = False) -> ShardRows:
    return ShardRows(rows, ShardReport(shard, ShardState.OK, f"{shard}-b", stale=stale, lsn=7))


def failed(shard: str, state: ShardState = ShardState.FAILED) -> ShardRows:
    return ShardRows((), ShardReport(shard, state, error="no node is up", cause="no_node"))


class Listed:
    """A listing over shards that answer what a test says; `rounds` are the probes of each question."""

    def __init__(self, *rounds: Mapping[str, ShardRows]) -> None:
        self.rounds: list[Mapping[str, Probe]] = []
        self.memory = AnswerMemory(1 << 22, 1 << 23)
        self._answers = list(rounds)
        self._collection = collection(by_tenant())
        shards = shard_map(self._collection)
        self._listing = Listing(shards, cast(Fanout, self), Freshness(shards), self.memory)

    async def fetch(self, probes: Mapping[str, Probe], deadline: float) -> dict[str, ShardRows]:
        self.rounds.append(probes)
        answers = self._answers.pop(0)
        return {shard: answers[shard] for shard in probes}

    async def get(self, *ids: object) -> DocumentList:
        deadline = asyncio.get_running_loop().time() + 30
        return await self._listing.get(self._collection, ids, INCLUDE, deadline)

    async def page(self, limit: int) -> DocumentPage:
        deadline = asyncio.get_running_loop().time() + 30
        return await self._listing.page(self._collection, None, None, limit, INCLUDE, deadline)


def shown(answer: DocumentList | DocumentPage) -> list[tuple[object, object, object]]:
    documents = msgspec.json.decode(b"".join(answer.pieces))
    return [(one["id"], one["shard"], one["content"]) for one in documents]


async def test_the_fresh_document_counts_and_what_only_a_node_that_is_behind_lacks_is_unread() -> None:
    fresh, old = (7, "new", 3), (7, "old", 3)
    listed = Listed({"s0": part("s0", old, stale=True), "s1": part("s1", fresh), "s2": part("s2")})
    answer = await listed.get(9, 7)
    assert shown(answer) == [(7, "s1", "new")]
    assert (answer.missing, answer.unread, answer.coverage.stale) == ((), (9,), ("s0",))
    listed = Listed({"s0": part("s0"), "s1": part("s1", fresh), "s2": part("s2")})
    assert (await listed.get(9, 7)).missing == (9,)


async def test_ids_that_may_lie_on_a_shard_that_failed_are_unread() -> None:
    listed = Listed({"s0": failed("s0"), "s1": part("s1", (7, "text", 4)), "s2": part("s2")})
    answer = await listed.get(7, 8)
    assert (shown(answer), answer.missing, answer.unread) == ([(7, "s1", "text")], (), (8,))
    assert not answer.coverage.full
    with pytest.raises(UnavailableError):
        await Listed({f"s{i}": failed(f"s{i}") for i in range(3)}).get(7)


async def test_what_is_too_wide_is_read_from_nodes_as_new_and_lost_with_its_shard() -> None:
    wide = 1 << 20
    first = {"s0": part("s0", (1, None, wide)), "s1": part("s1", (2, None, wide)), "s2": part("s2")}
    listed = Listed(first, {"s0": part("s0", (1, "a"))}, {"s1": failed("s1")})
    answer = await listed.get(1, 2)
    assert (shown(answer), answer.missing, answer.unread) == ([(1, "s0", "a")], (), (2,))
    assert [list(probes) for probes in listed.rounds] == [["s0", "s1", "s2"], ["s0"], ["s1"]]
    assert all(probe.min_lsn == 7 for probes in listed.rounds[1:] for probe in probes.values())
    assert listed.memory.used > 0
    del answer
    assert listed.memory.used == 0


async def test_a_page_without_one_of_its_shards_is_an_error() -> None:
    row = (1, "a", 1)
    with pytest.raises(UnavailableError) as caught:
        await Listed({"s0": part("s0", row), "s1": failed("s1"), "s2": part("s2")}).page(10)
    assert [problem.path for problem in caught.value.problems] == ["shards.s1"]
    with pytest.raises(DeadlineError):
        late = failed("s1", ShardState.TIMED_OUT)
        await Listed({"s0": part("s0", row), "s1": late, "s2": part("s2")}).page(10)
    with pytest.raises(UnavailableError) as caught:
        await Listed({"s0": part("s0", row), "s1": part("s1", stale=True), "s2": part("s2")}).page(10)
    assert caught.value.detail == (
        "1 of 3 shards could be read only as they were; documents that exist might be left out"
    )


async def test_a_page_whose_shard_fails_before_its_columns_are_read_is_an_error_and_holds_no_memory() -> None:
    first = {f"s{i}": part(f"s{i}", (i, None, 1 << 20)) for i in range(3)}
    listed = Listed(first, {"s0": part("s0", (0, "a"))}, {"s1": failed("s1")}, {"s2": part("s2", (2, "c"))})
    with pytest.raises(UnavailableError):
        await listed.page(10)
    assert listed.memory.used == 0


async def test_a_page_ends_where_there_is_no_room_for_the_next_document() -> None:
    text = "x" * (1 << 21)
    first = {f"s{i}": part(f"s{i}", (i, None, len(text))) for i in range(3)}
    rest = [{f"s{i}": part(f"s{i}", (i, text))} for i in range(3)]
    listed = Listed(first, *rest)
    page = await listed.page(10)
    assert [id_ for id_, *_ in shown(page)] == [0] and page.last == 0
    # One that needs six times its bytes as JSON is more than expected.
    text = "\x01" * (1 << 19)
    first = {f"s{i}": part(f"s{i}", (i, None, len(text))) for i in range(3)}
    listed = Listed(first, *({f"s{i}": part(f"s{i}", (i, text))} for i in range(3)))
    page = await listed.page(10)
    assert [id_ for id_, *_ in shown(page)] == [0] and page.last == 0


async def test_the_last_page_is_known_without_another_one() -> None:
    rows = {f"s{i}": part(f"s{i}", *((j, "a", 1) for j in range(i, 9, 3))) for i in range(3)}
    page = await Listed(rows).page(9)
    assert len(shown(page)) == 9 and page.last is None
    page = await Listed(rows).page(8)
    assert len(shown(page)) == 8 and page.last == 7
    empty = await Listed({f"s{i}": part(f"s{i}") for i in range(3)}).page(8)
    assert (shown(empty), empty.last) == ([], None)
