"""Chunks from the file to the shards, in parallel and within bounded memory.

One thread reads and checks the next chunk while the shards' writers send what is read; rows that came as text
get their vectors in between. Invariant: at
most `jobs + 3` chunks are held, whatever the shards' speeds; and whatever ends the pump, no task and no
connection outlives it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from router.bulk.batch import Batch, Chunk, Source, Unembedded
from router.bulk.copy import Part, Writer
from router.bulk.embed import Embedding
from router.bulk.errors import LoadError
from router.bulk.skipped import Skipped
from router.bulk.target import Target
from router.terminal import Meter
from shard_config.model import Collection

__all__ = ["pump"]

# Shards finish their parts of a chunk at different times; the faster go on with the next ones.
_AHEAD = 3


async def pump(
    collection: Collection,
    source: Source,
    chunk_rows: int,
    targets: Sequence[Target],
    jobs: int,
    skipped: Skipped,
    meter: Meter,
    embedding: Embedding | None = None,
) -> None:
    """Bring every chunk to every shard that lacks it; `embedding` completes rows that came as text.

    Raises:
        LoadError: with a line for everything that failed.
    """
    flow = _Flow(collection, source, targets, jobs, skipped, meter, embedding)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(flow.produce(chunk_rows))
            for target in targets:
                for _ in range(jobs):
                    group.create_task(flow.write(target))
    except* LoadError as failed:
        raise LoadError.of(_leaves(failed)) from None


class _Flow:
    """The queues between the reader and the writers; a queue per shard, bounded by the chunks held."""

    def __init__(
        self,
        collection: Collection,
        source: Source,
        targets: Sequence[Target],
        jobs: int,
        skipped: Skipped,
        meter: Meter,
        embedding: Embedding | None,
    ) -> None:
        self._embedding = embedding
        self._collection = collection
        self._source = source
        self._targets = targets
        self._jobs = jobs
        self._skipped = skipped
        self._meter = meter
        self._room = asyncio.Semaphore(jobs + _AHEAD)
        self._queues: dict[str, asyncio.Queue[tuple[Part, Callable[[], None]] | None]] = {
            target.shard: asyncio.Queue() for target in targets
        }

    async def produce(self, chunk_rows: int) -> None:
        chunks = self._source.chunks(chunk_rows, self._wanted)
        while True:
            await self._room.acquire()
            chunk = await asyncio.to_thread(_next, chunks)
            if chunk is None:
                break
            batch = chunk.batch
            if isinstance(batch, Unembedded):
                assert self._embedding is not None, (
                    "only a collection with an embedder has rows without vectors"
                )
                batch = await self._embedding.batch(batch)
            self._hand_out(chunk, batch)
        for queue in self._queues.values():
            for _ in range(self._jobs):
                queue.put_nowait(None)

    async def write(self, target: Target) -> None:
        writer = Writer(self._collection, target, self._skipped)
        queue = self._queues[target.shard]
        try:
            while (entry := await queue.get()) is not None:
                part, done = entry
                await writer.store(part)
                done()
        finally:
            writer.close()

    def _wanted(self, chunk: int) -> bool:
        return any(chunk not in target.chunks for target in self._targets)

    def _hand_out(self, chunk: Chunk, batch: Batch | None) -> None:
        if batch is None:
            self._meter.skip(chunk.extent)
            self._room.release()
            return
        self._skipped.take(batch.refused)
        lacking = [target for target in self._targets if chunk.number not in target.chunks]
        done = self._countdown(len(lacking), chunk.extent)
        for target in lacking:
            positions = np.flatnonzero(batch.shards == target.index)
            counted = _counted(done, len(positions), self._meter)
            self._queues[target.shard].put_nowait((Part(chunk.number, batch, positions), counted))

    def _countdown(self, parts: int, extent: int) -> Callable[[], None]:
        left = parts

        def done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._meter.add(0, extent)
                self._room.release()

        return done


def _counted(done: Callable[[], None], rows: int, meter: Meter) -> Callable[[], None]:
    def count() -> None:
        meter.add(rows, 0)
        done()

    return count


def _next(chunks: Iterator[Chunk]) -> Chunk | None:
    return next(chunks, None)


def _leaves(group: BaseExceptionGroup[LoadError]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
