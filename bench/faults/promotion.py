"""Ten thousand writes while a primary dies and its replica is promoted: each acknowledged one is kept."""

from __future__ import annotations

import asyncio
from time import perf_counter

import msgspec

from bench.context import Context
from bench.errors import BenchError, SearchError
from bench.faults.load import FIRST_ID
from bench.http_client import Connections, request_bytes
from bench.sql import execute, fetch
from bench.world import COLLECTION, World

__all__ = ["Writes", "write_across_promotion"]

_WRITERS = 16
_BATCH = 5
_IDS = FIRST_ID * 2
_SHARD = "s0"
_PATIENCE = 60.0


class Writes(msgspec.Struct, frozen=True):
    """`first_after` is in seconds, from the end of the promotion's command to the shard's next commit."""

    acknowledged: int
    lost: int
    doubled: int
    first_after: float | None


async def write_across_promotion(context: Context, world: World, count: int) -> Writes:
    """`count` documents by callers who repeat what was not acknowledged; in the middle s0's primary dies.

    Its replica confirms each commit (synchronous replication), so that nothing acknowledged can be lost.

    Raises:
        BenchError: writes are not accepted again.
    """
    primary, replica = (
        next(n for n in world.cluster.nodes if n.shard == _SHARD and n.role == role)
        for role in ("primary", "replica")
    )
    await execute(f"ALTER SYSTEM SET synchronous_standby_names = '\"{replica.name}\"'", primary.dsn)
    await execute("SELECT pg_reload_conf()", primary.dsn)
    with world.serve() as router:
        run = _Run(context, router.url, count)
        writers = asyncio.gather(*(run.write() for _ in range(_WRITERS)))
        try:
            await run.reached(count // 3, writers)
            await asyncio.to_thread(world.cluster.kill, primary.name)
            await asyncio.sleep(0.5)
            known = await _count(replica.dsn)
            await execute("SELECT pg_promote()", replica.dsn)
            promoted = perf_counter()
            first = None
            ended = False
            while first is None and not ended:
                ended = writers.done()
                if await _count(replica.dsn) > known:
                    first = perf_counter() - promoted
                await asyncio.sleep(0.01)
            await writers
        finally:
            writers.cancel()
            await asyncio.gather(writers, return_exceptions=True)
            run.close()
    await asyncio.to_thread(world.cluster.rejoin, primary.name)
    held = await asyncio.to_thread(world.holding, _IDS)
    return Writes(
        acknowledged=len(run.acknowledged),
        lost=sum(held.get(id_, 0) == 0 for id_ in run.acknowledged),
        doubled=sum(times > 1 for times in held.values()),
        first_after=first,
    )


class _Run:
    def __init__(self, context: Context, url: str, count: int) -> None:
        self._connections = Connections(url, answer_seconds=_PATIENCE)
        self._url = f"{url}/v1/collections/{COLLECTION}/documents"
        self._queries = context.dataset.queries
        self._meter = context.display.meter("writes across a promotion", count, "documents")
        self._left = list(range(_IDS, _IDS + count, _BATCH))
        self.acknowledged: list[int] = []

    def close(self) -> None:
        self._connections.close()
        self._meter.end()

    async def reached(self, count: int, writers: asyncio.Future[list[None]]) -> None:
        """Wait until so many are acknowledged.

        Raises:
            BenchError: a writer has given up, or it takes too long.
        """
        end = perf_counter() + _PATIENCE
        while len(self.acknowledged) < count:
            if writers.done():
                writers.result()
            if perf_counter() > end:
                raise BenchError(f"{len(self.acknowledged)} of {count} writes in {_PATIENCE:g} s")
            await asyncio.sleep(0.01)

    async def write(self) -> None:
        while self._left:
            first = self._left.pop()
            ids = list(range(first, first + _BATCH))
            vectors = [self._queries[id_ % len(self._queries)].tolist() for id_ in ids]
            documents = [{"id": id_, "vector": vector} for id_, vector in zip(ids, vectors, strict=True)]
            request = request_bytes(self._url, msgspec.json.encode({"documents": documents}), "PUT")
            end = perf_counter() + _PATIENCE
            while not await self._stored(request):
                if perf_counter() > end:
                    raise BenchError(f"no write was accepted for {_PATIENCE:g} s")
                await asyncio.sleep(0.05)
            self.acknowledged += ids
            self._meter.reach(len(self.acknowledged))

    async def _stored(self, request: bytes) -> bool:
        try:
            status, body = await self._connections.send(request)
        except SearchError:
            return False
        return status == 200 and bool(msgspec.json.decode(body).get("stored") == _BATCH)


async def _count(dsn: str) -> int:
    rows = await fetch(f"SELECT count(*) FROM public.{COLLECTION} WHERE id >= {_IDS}", dsn)
    return int(rows[0][0])
