"""Ten thousand writes while a primary dies and its replica is promoted: each acknowledged one is kept."""

from __future__ import annotations

import asyncio
from time import perf_counter

from bench.datasets import Vectors
from bench.errors import BenchError
from bench.faults.broken import Broken
from bench.faults.caller import FIRST_ID, Caller
from bench.faults.steps import TABLE, synchronous
from bench.results import Metric
from bench.sql import execute, fetch
from router.terminal import Meter

__all__ = ["write_across_promotion"]

_WRITERS = 16
_BATCH = 5
_IDS = FIRST_ID * 2
_SHARD = "s0"
_PATIENCE = 60.0
_PAUSE = 0.5


async def write_across_promotion(broken: Broken, count: int, meter: Meter) -> list[Metric]:
    """`count` documents by callers who repeat what was not acknowledged; in the middle s0's primary dies.

    Its replica confirms each commit (synchronous replication), so that nothing acknowledged can be lost.

    Raises:
        BenchError: writes are not accepted, or not again.
    """
    broken.look(_SHARD)
    await synchronous(broken)
    caller = Caller(broken.router.url, _PATIENCE)
    left = list(range(_IDS, _IDS + count, _BATCH))
    acknowledged: list[int] = []

    async def write() -> None:
        while left:
            first = left.pop()
            ids = range(first, first + _BATCH)
            await _store(caller, ids, broken.world.dataset.queries)
            acknowledged.extend(ids)
            meter.reach(len(acknowledged))

    writers = asyncio.gather(*(write() for _ in range(_WRITERS)))
    try:
        while len(acknowledged) < count // 3 and not writers.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.to_thread(broken.cluster.kill, broken.names["primary"])
        await asyncio.sleep(_PAUSE)
        replica = broken.dsn("replica")
        known = await _count(replica)
        await execute("SELECT pg_promote()", replica)
        promoted = perf_counter()
        first_after = None
        ended = False
        while first_after is None and not ended:
            ended = writers.done()
            if await _count(replica) > known:
                first_after = perf_counter() - promoted
            await asyncio.sleep(0.01)
        await writers
    finally:
        writers.cancel()
        await asyncio.gather(writers, return_exceptions=True)
        caller.close()
    await asyncio.to_thread(broken.cluster.rejoin, broken.names["primary"])
    held = await asyncio.to_thread(broken.world.holding, _IDS)
    lost = sum(held[id_] == 0 for id_ in acknowledged)
    doubled = sum(times > 1 for times in held.values())
    named = f"{len(acknowledged):,} writes across a promotion: lost"
    first = "from the promotion to the first write after it"
    return [
        Metric.of(named, float(lost), "", "lower", 0.0),
        Metric.of("writes across a promotion: doubled", float(doubled), "", "lower", 0.0),
        # From the end of the promotion's command to the shard's next commit.
        Metric.of(first, first_after, "s", "lower", 1.0),
    ]


async def _store(caller: Caller, ids: range, vectors: Vectors) -> None:
    """Repeat it until it is acknowledged."""
    documents = [{"id": id_, "vector": vectors[id_ % len(vectors)].tolist()} for id_ in ids]
    end = perf_counter() + _PATIENCE
    while (await caller.ask("write", "PUT", "documents", {"documents": documents})).said.what != "full":
        if perf_counter() > end:
            raise BenchError(f"no write was accepted for {_PATIENCE:g} s")
        await asyncio.sleep(0.05)


async def _count(dsn: str) -> int:
    rows = await fetch(f"SELECT count(*) FROM {TABLE} WHERE id >= {_IDS}", dsn)
    return int(rows[0][0])
