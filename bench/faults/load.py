"""Searches and writes at fixed rates through one router, each with its time and what became of it.

Every search is for another vector, so that no cache answers for a node that cannot. Latency counts from
the intended start.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Literal
from urllib.parse import urlsplit

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.errors import SearchError
from bench.http_client import Connections, request_bytes

__all__ = ["FIRST_ID", "Event", "Rates", "States", "Traffic", "nodes_of", "traffic"]

_TIMEOUT_MS = 2000
_POLL_SECONDS = 0.1
# More than a write has at the router; what the router has not answered by then has failed.
_ANSWER_SECONDS = 45.0
# Documents of the load, apart from those of the data set.
FIRST_ID = 1_000_000_000

# Of nodes by name, at a moment.
States = list[tuple[float, dict[str, str]]]


class Rates(msgspec.Struct, frozen=True):
    """Per second."""

    searches: float = 100.0
    writes: float = 20.0


class Event(msgspec.Struct, frozen=True):
    """One request; times in seconds from the beginning.

    Attributes:
        outcome: `partial` is an answer that says it lacks a shard, `failed` any that is none.
    """

    at: float
    seconds: float
    what: Literal["search", "write"]
    outcome: Literal["full", "stale", "partial", "failed"]
    reason: str = ""


class _Coverage(msgspec.Struct):
    full: bool
    stale: list[str] = []


class _Found(msgspec.Struct):
    coverage: _Coverage


class _Stored(msgspec.Struct):
    stored: int = 0
    detail: str = ""


class _Node(msgspec.Struct):
    name: str
    state: str
    role: str | None


class _Nodes(msgspec.Struct):
    nodes: list[_Node]


class Traffic:
    """What runs between `traffic`'s beginning and end.

    Attributes:
        began: by the machine's monotonic clock.
        acknowledged: ids of documents that the router said are stored.
    """

    def __init__(self, url: str, collection: str, queries: NDArray[np.float32], first_id: int) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._host = f"{parts.hostname}:{parts.port}"
        self._path = f"/v1/collections/{collection}"
        self._connections = Connections(parts.hostname, parts.port, answer_seconds=_ANSWER_SECONDS)
        self._queries = queries
        self._rng = np.random.default_rng(1)
        self.began = perf_counter()  # the loop's clock counts whole milliseconds
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_id = first_id
        self.events: list[Event] = []
        self.states: States = []
        self.acknowledged: list[int] = []

    def __repr__(self) -> str:
        return f"<Traffic to {self._host}, {len(self.events)} events>"

    @property
    def now(self) -> float:
        """Seconds since the beginning."""
        return perf_counter() - self.began

    async def search(self, at: float) -> None:
        query = self._queries[self._rng.integers(len(self._queries))]
        vector = (query + self._rng.normal(0, 1e-4, query.shape)).astype("<f4")
        body = {"vector": vector.tolist(), "k": 10, "timeout_ms": _TIMEOUT_MS}
        await self._timed(at, "search", "POST", "/search", body, _searched)

    async def write(self, at: float) -> None:
        id_, self._next_id = self._next_id, self._next_id + 1
        vector = self._queries[id_ % len(self._queries)].tolist()
        body = {"documents": [{"id": id_, "vector": vector}]}
        if await self._timed(at, "write", "PUT", "/documents", body, _stored) == "full":
            self.acknowledged.append(id_)

    async def poll(self) -> None:
        """Keep an eye on what the router says of its nodes."""
        while True:
            with contextlib.suppress(SearchError):
                self.states.append((self.now, await nodes_of(self._connections, self._host)))
            await asyncio.sleep(_POLL_SECONDS)

    async def arrive(self, rate: float, start: Callable[[float], Awaitable[None]]) -> None:
        """Start one after the other at their times, whatever becomes of them."""
        step, due = 1 / rate, self.now
        while True:
            due += step
            await asyncio.sleep(max(due - self.now, 0))
            task = asyncio.ensure_future(start(due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Wait for what is under way; none takes longer than it may to connect and be answered."""
        await asyncio.gather(*self._tasks)
        self._connections.close()

    async def _timed(
        self,
        at: float,
        what: Literal["search", "write"],
        method: str,
        path: str,
        body: object,
        judge: Callable[[int, bytes], tuple[Literal["full", "stale", "partial", "failed"], str]],
    ) -> str:
        request = request_bytes(self._host, self._path + path, msgspec.json.encode(body), method)
        try:
            outcome, reason = judge(*await self._connections.send(request))
        except SearchError as exc:
            outcome, reason = "failed", str(exc)
        self.events.append(Event(at, self.now - at, what, outcome, reason))
        return outcome


async def nodes_of(connections: Connections, host: str) -> dict[str, str]:
    """The state of each node, by the router's account.

    Raises:
        SearchError: no answer.
    """
    _, body = await connections.send(request_bytes(host, "/v1/nodes", b"", "GET"))
    return {one.name: one.state for one in msgspec.json.decode(body, type=_Nodes).nodes}


@asynccontextmanager
async def traffic(
    url: str, collection: str, queries: NDArray[np.float32], rates: Rates, first_id: int
) -> AsyncIterator[Traffic]:
    """Load while the block runs, documents from `first_id` on; at its end everything has been answered."""
    made = Traffic(url, collection, queries, first_id)
    loops = [
        asyncio.create_task(made.arrive(rates.searches, made.search)),
        asyncio.create_task(made.arrive(rates.writes, made.write)),
        asyncio.create_task(made.poll()),
    ]
    try:
        yield made
    finally:
        for task in loops:
            task.cancel()
        ended = await asyncio.gather(*loops, return_exceptions=True)
        await made.drain()
    for one in ended:
        if isinstance(one, Exception):
            raise one


def _searched(status: int, body: bytes) -> tuple[Literal["full", "stale", "partial", "failed"], str]:
    if status != 200:
        return "failed", f"{status}: {body[:200].decode(errors='replace')}"
    coverage = msgspec.json.decode(body, type=_Found).coverage
    return "partial" if not coverage.full else "stale" if coverage.stale else "full", ""


def _stored(status: int, body: bytes) -> tuple[Literal["full", "stale", "partial", "failed"], str]:
    answer = msgspec.json.decode(body, type=_Stored)
    if status == 200 and answer.stored == 1:
        return "full", ""
    return "failed", f"{status}: {answer.detail}"
