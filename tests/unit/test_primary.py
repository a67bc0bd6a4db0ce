from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from router.documents.primary import Primaries


class Redis:
    """Takes its time over the first publication, like a Redis that is slow."""

    def __init__(self) -> None:
        self.asked = 0
        self.told = asyncio.Event()

    def owe(self, collection: str) -> None:
        pass

    async def settled(self, collection: str) -> bool:
        self.asked += 1
        if self.asked == 1:
            await asyncio.sleep(60)
        self.told.set()
        return True


async def test_a_write_whose_caller_leaves_after_the_commit_is_published_all_the_same() -> None:
    redis: Any = Redis()
    shared: Any = SimpleNamespace(bump=lambda collection: None)
    prober: Any = None
    primaries = Primaries({}, shared, prober, redis, wait=0, statement_timeout=1)
    write = asyncio.create_task(primaries.run("documents", {}, asyncio.get_running_loop().time() + 5))
    while not redis.asked:
        await asyncio.sleep(0)
    write.cancel()
    await asyncio.gather(write, return_exceptions=True)
    assert write.cancelled()
    await asyncio.wait_for(redis.told.wait(), 5)
    await primaries.close()
