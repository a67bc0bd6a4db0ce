from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import cast

import pytest

from router.documents.reader import Reader
from router.documents.types import ReadAnswer
from router.freshness.freshness import Freshness
from router.query.errors import UnavailableError
from router.query.types import Probe, ShardReport, ShardRows, ShardState
from router.stages.answer_memory import AnswerMemory
from router.stages.fanout import Fanout
from tests.unit.queries import by_tenant, collection, shard_map

OLD = (7, "old", 3)
NEW = (7, "new", 3)


def part(shard: str, *rows: tuple[object, ...], stale: bool = False) -> ShardRows:
    return ShardRows(rows, ShardReport(shard, ShardState.OK, f"{shard}-b", stale=stale))


async def read(*parts: ShardRows) -> ReadAnswer | None:
    """Document 7 of a collection that is sharded by another column."""

    class Answering:
        async def fetch(self, probes: Mapping[str, Probe], deadline: float) -> dict[str, ShardRows]:
            return {shard: by_shard[shard] for shard in probes}

    documents = collection(by_tenant())
    shards = shard_map(documents)
    by_shard = {one.report.shard: one for one in parts}
    reader = Reader(shards, cast(Fanout, Answering()), Freshness(shards), AnswerMemory(1 << 20, 1 << 20))
    deadline = asyncio.get_running_loop().time() + 30
    return await reader.read(documents, 7, frozenset({"content"}), deadline)


async def test_a_fresh_document_counts_and_not_what_a_node_that_is_behind_still_has() -> None:
    answer = await read(part("s0", OLD, stale=True), part("s1"), part("s2", NEW))
    assert answer == ReadAnswer({"id": 7, "shard": "s2", "content": "new"})


async def test_what_only_a_node_that_is_behind_has_is_marked() -> None:
    answer = await read(part("s0"), part("s1", OLD, stale=True), part("s2", stale=True))
    assert answer == ReadAnswer({"id": 7, "shard": "s1", "content": "old"}, stale="s1")


async def test_a_node_that_is_behind_does_not_prove_that_there_is_none() -> None:
    assert await read(part("s0"), part("s1"), part("s2")) is None
    with pytest.raises(UnavailableError) as caught:
        await read(part("s0"), part("s1", stale=True), part("s2"))
    assert caught.value.detail.startswith("1 of 3 shards")
    assert [problem.path for problem in caught.value.problems] == ["shards.s1"]
