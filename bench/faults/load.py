"""Searches and writes at fixed rates through one router, each with its time and what became of it.

They come from a generator's process, so that what breaks and mends servers does not hold them up. Every
search is for another vector, so that no cache answers for a node that cannot. Latency counts from the
intended start.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

import msgspec
import numpy as np

from bench.datasets import Vectors
from bench.errors import BenchError
from bench.faults.broken import Broken
from bench.faults.caller import Caller
from bench.faults.outcomes import Event
from bench.generators import INTENDED, Open, Target
from bench.targets import ImportedSpec
from bench.workers import Job, generator

__all__ = ["SEARCHES", "WRITES", "Record", "Traffic", "running"]

# Per second.
SEARCHES, WRITES = 100, 20
_TIMEOUT_MS = 2000
# More than a write has at the router; what the router has not answered by then has failed.
_ANSWER_SECONDS = 45.0
_BEGIN_SECONDS = 60.0
# A load is stopped when a fault is over, long before this.
_MOST_SECONDS = 3600.0
_MOST_OUTSTANDING = 10_000


class Record(msgspec.Struct):
    """What became of a load that has ended; times of the machine's monotonic clock.

    `acknowledged` are ids of documents that the router said are stored.
    """

    events: list[Event] = []
    acknowledged: list[int] = []
    began: float = 0.0


class Traffic(Target):
    """The target of the load: searches, and among them evenly as many writes as there are to be.

    `spec.options` have the router's `url` and the `first_id` of the documents. Its record is a `Record`.
    """

    def __init__(self, spec: ImportedSpec, queries: Vectors) -> None:
        self._caller = Caller(spec.options["url"], _ANSWER_SECONDS)
        self._queries = np.array(queries)
        self._rng = np.random.default_rng(1)
        self._next_id: int = spec.options["first_id"]
        self._started = 0
        self._acknowledged: list[int] = []

    def __repr__(self) -> str:
        return f"<Traffic of {self._caller!r}>"

    async def search(self, query: int) -> Sequence[int]:
        before, self._started = self._started * WRITES, self._started + 1
        # One in so many of all that start.
        if before // (SEARCHES + WRITES) != self._started * WRITES // (SEARCHES + WRITES):
            await self._write(query)
        else:
            await self._search(query)
        return []

    def record(self) -> bytes:
        return msgspec.json.encode(Record(self._caller.events, self._acknowledged))

    async def close(self) -> None:
        self._caller.close()

    async def _search(self, query: int) -> None:
        vector = self._queries[query]
        vector = (vector + self._rng.normal(0, 1e-4, vector.shape)).astype("<f4")
        body = {"vector": vector.tolist(), "k": 10, "timeout_ms": _TIMEOUT_MS}
        await self._caller.ask("search", "POST", "search", body, intended=INTENDED.get())

    async def _write(self, query: int) -> None:
        id_, self._next_id = self._next_id, self._next_id + 1
        body = {"documents": [{"id": id_, "vector": self._queries[query].tolist()}]}
        answer = await self._caller.ask("write", "PUT", "documents", body, intended=INTENDED.get())
        if answer.said.what == "full":
            self._acknowledged.append(id_)


@asynccontextmanager
async def running(broken: Broken, first_id: int) -> AsyncIterator[Record]:
    """Load while the block runs, documents from `first_id` on; at its end everything has been answered.

    What is yielded is filled then.
    """
    queries = str(broken.world.queries_path)
    options = {"url": broken.router.url, "first_id": first_id}
    spec = ImportedSpec(target=f"{__name__}:Traffic", queries=queries, options=options)
    load = Open(SEARCHES + WRITES, _MOST_SECONDS, warmup=0.0, poisson=False, outstanding=_MOST_OUTSTANDING)
    loop = asyncio.get_running_loop()
    began: asyncio.Future[None] = loop.create_future()

    def hear(event: object) -> None:
        if event == "began":
            loop.call_soon_threadsafe(began.set_result, None)

    with generator(Job(spec, load)) as started:
        measuring = asyncio.create_task(asyncio.to_thread(started.follow, hear))
        try:
            await asyncio.wait((measuring, began), timeout=_BEGIN_SECONDS, return_when="FIRST_COMPLETED")
            if measuring.done():
                await measuring
            if not began.done():
                raise BenchError("the load did not begin")
            record = Record(began=perf_counter())
            yield record
            started.stop()
            measured = await measuring
            if measured.shed:
                raise BenchError(f"{measured.shed} requests could not start: too many were under way")
            found = msgspec.json.decode(measured.record, type=Record)
            record.events, record.acknowledged = found.events, found.acknowledged
        finally:
            # What follows it in a thread ends with its process.
            started.close()
            await asyncio.gather(measuring, return_exceptions=True)
