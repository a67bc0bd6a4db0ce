"""Vectors of documents that a search names, as shards and their reports have them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest

from router.documents.vectors import StoredVectors
from router.freshness.freshness import Freshness
from router.query.errors import UnavailableError
from router.query.types import Consistency, Probe, ShardReport, ShardRows, ShardState
from router.query.wire import to_wire
from router.stages.fanout import Fanout
from tests.http.fake import shard_map

MAP = shard_map()
DOCUMENTS = MAP.collections["documents"]
IDS = list(range(8))
VECTOR = np.array([1, 2, 3], "<f4").tobytes()


class Shards:
    """Every shard has the documents asked of it but those that are `gone`; `stale` are behind."""

    def __init__(self, gone: set[int], stale: bool) -> None:
        self._gone, self._stale = gone, stale
        self.asked: list[int] = []

    def position(self, shard: str) -> int:
        return 0

    async def fetch(self, probes: Mapping[str, Probe], deadline: float) -> dict[str, ShardRows]:
        parts = {}
        for shard, probe in probes.items():
            ids = cast(list[int], probe.args[0])
            self.asked += ids
            rows = [(id_, to_wire(VECTOR, DOCUMENTS.vector.type)) for id_ in ids if id_ not in self._gone]
            report = ShardReport(shard, ShardState.OK, node=f"{shard}-a", stale=self._stale)
            parts[shard] = ShardRows(cast(Any, rows), report)
        return parts


def read(shards: Shards) -> dict[object, bytes | None]:
    async def run() -> dict[object, bytes | None]:
        vectors = StoredVectors(MAP, cast(Fanout, shards), cast(Freshness, shards))
        deadline = asyncio.get_running_loop().time() + 5
        return await vectors.read(DOCUMENTS, IDS, Consistency.EVENTUAL, deadline)

    return asyncio.run(run())


def test_each_shard_is_asked_for_its_own_documents() -> None:
    shards = Shards(gone={3}, stale=False)
    assert read(shards) == {id_: VECTOR for id_ in IDS if id_ != 3}
    assert sorted(shards.asked) == IDS


def test_a_document_that_a_shard_behind_does_not_have_is_not_called_missing() -> None:
    assert read(Shards(gone=set(), stale=True)).keys() == set(IDS)
    with pytest.raises(UnavailableError) as caught:
        read(Shards(gone={3}, stale=True))
    assert "may have one by now" in caught.value.detail
    assert "s0-a" not in str(caught.value.told(inside=False))
