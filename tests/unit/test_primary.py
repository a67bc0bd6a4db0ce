from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from router.documents.primary import Primaries
from router.documents.unconfirmed import UnconfirmedWrites
from router.documents.unique_ids import store_unique
from router.freshness.freshness import Freshness
from router.freshness.redis_link import RedisLink
from router.nodes.prober import Prober
from router.settings import Settings
from router.stages.replicas import ReplicaSet
from tests.unit.queries import by_tenant, collection, shard_map


class Link:
    """Takes its time over the first command, like a Redis that is slow."""

    def __init__(self) -> None:
        self.asked = 0
        self.told = asyncio.Event()

    async def call(self, command: Callable[[Any], Awaitable[object]], *, kind: str = "write") -> int:
        self.asked += 1
        if self.asked == 1:
            await asyncio.sleep(60)
        self.told.set()
        return 1


@pytest.mark.parametrize("way", ["by id", "by another column"])
async def test_a_write_whose_caller_leaves_while_redis_is_told_is_published_all_the_same(way: str) -> None:
    link = Link()
    freshness = Freshness(shard_map(), cast(RedisLink, link))
    prober = Prober([], Settings())
    unconfirmed = UnconfirmedWrites(freshness, prober, 1.0)
    # No shard has a primary, so that nothing keeps the write.
    sets = {shard: ReplicaSet(shard, []) for shard in ("s0", "s1")}
    primaries = Primaries(sets, freshness, prober, unconfirmed, wait=0)
    deadline = asyncio.get_running_loop().time() + 30
    documents = collection(by_tenant())
    work: Awaitable[object] = (
        primaries.run("documents", {}, deadline)
        if way == "by id"
        else store_unique(primaries, documents, ("s0", "s1"), {}, deadline)
    )
    write = asyncio.ensure_future(work)
    while not link.asked:
        await asyncio.sleep(0)
    write.cancel()
    await asyncio.gather(write, return_exceptions=True)
    assert write.cancelled()
    await asyncio.wait_for(link.told.wait(), 20)
    await freshness.close()
