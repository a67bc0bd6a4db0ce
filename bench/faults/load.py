"""Searches and writes at fixed rates through one router, each with its time and what became of it.

They come from a generator's process, so that what breaks and mends servers does not hold them up. Every
search is for another vector, so that no cache answers for a node that cannot. Latency counts from the
intended start.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any, Literal

import msgspec
import numpy as np

from bench.datasets import Vectors
from bench.errors import BenchError, SearchError
from bench.generators import INTENDED, Open, Target
from bench.http_client import Connections, request_bytes
from bench.targets import ImportedSpec
from bench.workers import Job, generator
from bench.world import COLLECTION, Router, World

__all__ = ["FIRST_ID", "SEARCHES", "WRITES", "Event", "Running", "States", "Traffic", "running"]

# Per second.
SEARCHES, WRITES = 100, 20
_TIMEOUT_MS = 2000
_POLL_SECONDS = 0.1
# More than a write has at the router; what the router has not answered by then has failed.
_ANSWER_SECONDS = 45.0
_BEGIN_SECONDS = 60.0
_UP_SECONDS = 60.0
# A load is stopped when a fault is over, long before this.
_MOST_SECONDS = 3600.0
_MOST_OUTSTANDING = 10_000
# Documents of the load, apart from those of the data set.
FIRST_ID = 1_000_000_000

# Of nodes by name, at a moment.
States = list[tuple[float, dict[str, str]]]
Outcome = Literal["full", "stale", "partial", "failed"]


class Event(msgspec.Struct, frozen=True):
    """One request; times in seconds, `at` from the beginning of the load.

    Attributes:
        outcome: `partial` is an answer that says it lacks a shard, `failed` any that is none.
    """

    at: float
    seconds: float
    what: Literal["search", "write"]
    outcome: Outcome
    reason: str = ""


class Record(msgspec.Struct):
    """What became of a load; `acknowledged` are ids of documents that the router said are stored."""

    events: list[Event] = []
    states: States = []
    acknowledged: list[int] = []


class Traffic(Target):
    """The target of the load: searches, and among them evenly as many writes as there are to be.

    `spec.options` have the router's `url` and the `first_id` of the documents. Its record is a `Record`
    whose times are those of the machine's monotonic clock.
    """

    def __init__(self, spec: ImportedSpec, queries: Vectors) -> None:
        self._url: str = spec.options["url"]
        self._connections = Connections(self._url, answer_seconds=_ANSWER_SECONDS)
        self._queries = np.array(queries)
        self._rng = np.random.default_rng(1)
        self._next_id: int = spec.options["first_id"]
        self._started = 0
        self._watching: asyncio.Task[None] | None = None
        self.found = Record()

    def __repr__(self) -> str:
        return f"<Traffic to {self._url}, {len(self.found.events)} events>"

    async def open(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def search(self, query: int) -> Sequence[int]:
        before, self._started = self._started * WRITES, self._started + 1
        # One in so many of all that start.
        if before // (SEARCHES + WRITES) != self._started * WRITES // (SEARCHES + WRITES):
            await self._write(query)
        else:
            await self._search(query)
        return []

    def record(self) -> bytes:
        return msgspec.json.encode(self.found)

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        self._connections.close()

    async def _search(self, query: int) -> None:
        vector = self._queries[query]
        vector = (vector + self._rng.normal(0, 1e-4, vector.shape)).astype("<f4")
        body = {"vector": vector.tolist(), "k": 10, "timeout_ms": _TIMEOUT_MS}
        await self._send("search", "POST", "search", body)

    async def _write(self, query: int) -> None:
        id_, self._next_id = self._next_id, self._next_id + 1
        body = {"documents": [{"id": id_, "vector": self._queries[query].tolist()}]}
        if await self._send("write", "PUT", "documents", body) == "full":
            self.found.acknowledged.append(id_)

    async def _send(self, what: Literal["search", "write"], method: str, path: str, body: object) -> Outcome:
        intended = INTENDED.get()
        url = f"{self._url}/v1/collections/{COLLECTION}/{path}"
        request = request_bytes(url, msgspec.json.encode(body), method)
        outcome: Outcome = "failed"
        reason = "never answered"
        try:
            outcome, reason = _judged(*await self._connections.send(request))
        except SearchError as exc:
            reason = str(exc)
        finally:
            event = Event(intended, perf_counter() - intended, what, outcome, reason)
            self.found.events.append(event)
        return outcome

    async def _watch(self) -> None:
        """Keep an eye on what the router says of its nodes."""
        while True:
            with contextlib.suppress(SearchError):
                self.found.states.append((perf_counter(), await _nodes(self._connections, self._url)))
            await asyncio.sleep(_POLL_SECONDS)


class Running:
    """A load under way; `found` is there when it has ended, its times from the load's beginning."""

    def __init__(self, url: str, began: float) -> None:
        self.found = Record()
        self._url = url
        self._began = began

    def __repr__(self) -> str:
        return f"<Running load on {self._url} for {self.now:.1f} s>"

    @property
    def now(self) -> float:
        """Seconds since the load began."""
        return perf_counter() - self._began

    def end(self, record: bytes) -> None:
        found = msgspec.json.decode(record, type=Record)
        found.events = [msgspec.structs.replace(one, at=one.at - self._began) for one in found.events]
        found.states = [(at - self._began, known) for at, known in found.states]
        self.found = found

    async def until_up(self, node: str) -> None:
        """Wait until the router says so.

        Raises:
            TimeoutError: it has not for a minute.
        """
        connections = Connections(self._url)
        try:
            async with asyncio.timeout(_UP_SECONDS):
                while (await _nodes(connections, self._url)).get(node) != "up":  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_SECONDS)
        finally:
            connections.close()


@asynccontextmanager
async def running(world: World, router: Router, first_id: int) -> AsyncIterator[Running]:
    """Load while the block runs, documents from `first_id` on; at its end everything has been answered."""
    options: dict[str, Any] = {"url": router.url, "first_id": first_id}
    spec = ImportedSpec(target=f"{__name__}:Traffic", queries=str(world.queries_path), options=options)
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
            under_way = Running(router.url, perf_counter())
            yield under_way
            started.stop()
            measured = await measuring
            if measured.shed:
                raise BenchError(f"{measured.shed} requests could not start: too many were under way")
            under_way.end(measured.record)
        finally:
            # What follows it in a thread ends with its process.
            started.close()
            await asyncio.gather(measuring, return_exceptions=True)


async def _nodes(connections: Connections, url: str) -> dict[str, str]:
    """The state of each node, by the router's account."""
    _, body = await connections.send(request_bytes(f"{url}/v1/nodes", method="GET"))
    return {node["name"]: node["state"] for node in msgspec.json.decode(body)["nodes"]}


def _judged(status: int, body: bytes) -> tuple[Outcome, str]:
    """Of an answer to a search, or to a write of one document."""
    try:
        answer = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        answer = {"detail": body[:200].decode(errors="replace")}
    if status == 200 and "coverage" in answer:
        coverage = answer["coverage"]
        return "partial" if not coverage["full"] else "stale" if coverage.get("stale") else "full", ""
    if status == 200 and answer.get("stored") == 1:
        return "full", ""
    return "failed", f"{status}: {answer.get('detail')}"
