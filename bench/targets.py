"""What a generator searches: pgscatter over HTTP, or PostgreSQL as an application does it by itself.

A target is described by a value that travels to the generator's process, and is made there.
"""

from __future__ import annotations

import asyncio
import base64
import heapq
import importlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

import asyncpg
import msgspec
import numpy as np
from pgvector.asyncpg import register_vector

from bench.datasets import Vectors
from bench.errors import SearchError
from bench.generators import Target
from bench.http_client import Connections, request_bytes
from bench.percentiles import Latencies
from router.postgres.driver import connect, create_pool

__all__ = [
    *("TIERS", "GatherSpec", "GatherTarget", "HttpSpec", "HttpTarget", "ImportedSpec", "TargetSpec"),
    *("make", "opened", "read_queries", "search_body"),
]


class HttpSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Searches by POST to `url`, one for each row of the .npy file `queries`.

    Attributes:
        ef_search: None leaves it to the collection.
        cache: whether a cached answer will do; off, the router's own path is measured.
        tiers: whether latencies are kept by what answered, too.
        explained: every so many searches one is explained, and it is counted how many searches went
            together in the statements that it took.
        extra: further fields of every body.
        pid: of the process that answers, with whose family's processor time searches are charged.
    """

    url: str
    queries: str
    k: int = 10
    ef_search: int | None = None
    cache: bool = False
    tiers: bool = False
    explained: int = 0
    extra: dict[str, Any] = {}
    pid: int | None = None


class GatherSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A table on each of `dsns`; `operator` is pgvector's; `ef_search` None is PostgreSQL's 40.

    Attributes:
        where: a condition in SQL, of a filtered search.
        settings: of the connections, beside the width.
        exact: whether every row that matches is compared, past the vector index.
        pooled: whether each node has a pool, or one connection with a prepared statement, for a caller that
            waits for each answer.
    """

    dsns: list[str]
    queries: str
    table: str
    operator: str
    where: str = ""
    settings: dict[str, str] = {}
    exact: bool = False
    pooled: bool = True
    k: int = 10
    ef_search: int | None = None


class ImportedSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Any other system: `target`, as module:name, is called with this value and the queries (q, d).

    What it returns is a `Target`; `options` are its own.
    """

    target: str
    queries: str
    k: int = 10
    ef_search: int | None = None
    options: dict[str, Any] = {}


_CONNECT_SECONDS = 10.0
_CLOSE_SECONDS = 10.0
# What may have answered a search, by what its answer says of caches.
TIERS = ("l1", "l2", "miss", "bypass")

TargetSpec: TypeAlias = HttpSpec | GatherSpec | ImportedSpec


def make(spec: TargetSpec) -> Target:
    """The target itself, not open yet."""
    queries = read_queries(spec)
    if isinstance(spec, HttpSpec):
        return HttpTarget(spec, queries)
    if isinstance(spec, GatherSpec):
        return GatherTarget(spec, queries)
    module, _, name = spec.target.partition(":")
    imported: Target = getattr(importlib.import_module(module), name)(spec, queries)
    return imported


def read_queries(spec: TargetSpec) -> Vectors:
    """What it is asked, (q, d)."""
    queries: Vectors = np.load(Path(spec.queries), mmap_mode="r")
    return queries


@asynccontextmanager
async def opened(spec: TargetSpec) -> AsyncIterator[Target]:
    """The target during the block, connected."""
    target = make(spec)
    try:
        await target.open()
        yield target
    finally:
        await asyncio.wait_for(target.close(), _CLOSE_SECONDS)


class _Hit(msgspec.Struct):
    id: int


class _Coverage(msgspec.Struct):
    full: bool


class _Short(msgspec.Struct):
    reason: str


class _Answer(msgspec.Struct):
    hits: list[_Hit]
    cache: str
    coverage: _Coverage
    short: _Short | None = None
    explain: dict[str, Any] | None = None


class HttpTarget(Target):
    """Every body is encoded beforehand, so that the generator's own work is small."""

    def __init__(self, spec: HttpSpec, queries: Vectors) -> None:
        self._connections = Connections(spec.url)
        encoder = msgspec.json.Encoder()

        def encoded(**more: Any) -> list[bytes]:
            bodies = (encoder.encode({**search_body(spec, vector), **more}) for vector in queries)
            return [request_bytes(spec.url, body) for body in bodies]

        self._requests = encoded()
        self._explained = encoded(explain=True) if spec.explained else []
        self._every, self._turn = spec.explained, 0
        self._decoder = msgspec.json.Decoder(_Answer)
        self._account: Counter[str] = Counter()
        self._tiers: dict[str, Latencies] = {}
        self._timed = spec.tiers

    def __repr__(self) -> str:
        return f"<HttpTarget {len(self._requests)} queries, {self._connections!r}>"

    async def search(self, query: int) -> Sequence[int]:
        started = perf_counter()
        requests = self._requests
        if self._every:
            self._turn += 1
            requests = requests if self._turn % self._every else self._explained
        status, body = await self._connections.send(requests[query])
        if status != 200:
            raise SearchError(f"status {status}")
        try:
            answer = self._decoder.decode(body)
        except msgspec.DecodeError as exc:
            raise SearchError(f"no answer of a search: {exc}") from exc
        if not answer.coverage.full:
            raise SearchError("incomplete answer")
        self._account[answer.cache] += 1
        if answer.short is not None:
            self._account[f"short: {answer.short.reason}"] += 1
        if answer.explain is not None:
            self._account.update(f"together {shard['together']}" for shard in answer.explain["shards"])
        if self._timed:
            self._tiers.setdefault(answer.cache, Latencies()).record(perf_counter() - started)
        return [hit.id for hit in answer.hits]

    def account(self) -> dict[str, int]:
        """Answers by where they came from, one of `TIERS`.

        Those with fewer than k rows are also counted by the reason, and shards of explained ones by how
        many searches went `together` in a statement.
        """
        return dict(self._account)

    def tiers(self) -> dict[str, Latencies]:
        return self._tiers

    async def close(self) -> None:
        self._connections.close()


def search_body(spec: HttpSpec, vector: Vectors) -> dict[str, Any]:
    """What is sent to search for `vector` (d,)."""
    encoded = base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
    body = {"vector": encoded, "k": spec.k, "cache": spec.cache, **spec.extra}
    return body if spec.ef_search is None else {**body, "ef_search": spec.ef_search}


class GatherTarget(Target):
    """What an application writes: a default pool per shard, `asyncio.gather`, and a merge.

    Statement cache on, `register_vector` on every connection, ef_search by the pools' settings: nothing
    is left out that would make it faster and that the libraries' documentation shows.
    """

    def __init__(self, spec: GatherSpec, queries: Vectors) -> None:
        self._spec = spec
        self._queries = [np.array(vector) for vector in queries]
        self._nodes: list[asyncpg.Pool | asyncpg.Connection] = []
        self._fetches: list[Callable[[Vectors], Awaitable[list[asyncpg.Record]]]] = []
        distance = f"embedding {spec.operator} $1"
        self._sql = (
            f"SELECT id, {distance} AS distance FROM {spec.table}"
            + (f" WHERE {spec.where}" if spec.where else "")
            + f" ORDER BY {f'({distance}) + 0' if spec.exact else distance} LIMIT {spec.k}"
        )

    def __repr__(self) -> str:
        return f"<GatherTarget {len(self._spec.dsns)} shards, {self._sql}>"

    async def open(self) -> None:
        settings = dict(self._spec.settings)
        if self._spec.ef_search is not None:
            settings["hnsw.ef_search"] = str(self._spec.ef_search)
        for dsn in self._spec.dsns:
            if self._spec.pooled:
                pool = await create_pool(dsn, init=register_vector, server_settings=settings)
                self._nodes.append(pool)
                self._fetches.append(partial(pool.fetch, self._sql))
            else:
                connection = await connect(dsn, timeout=_CONNECT_SECONDS, server_settings=settings)
                self._nodes.append(connection)
                await register_vector(connection)
                self._fetches.append((await connection.prepare(self._sql)).fetch)

    async def search(self, query: int) -> Sequence[int]:
        vector = self._queries[query]
        try:
            parts = await asyncio.gather(*(fetch(vector) for fetch in self._fetches))
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as exc:
            raise SearchError(f"{type(exc).__name__}: {exc}") from exc
        merged = heapq.merge(*parts, key=itemgetter(1))
        return [row[0] for row, _ in zip(merged, range(self._spec.k), strict=False)]

    async def close(self) -> None:
        for node in self._nodes:
            node.terminate()
