"""`pgscatter load` against raw COPY: the same rows into the same empty tables, over as many connections.

Raw COPY gets streams that were encoded beforehand and does nothing else: no reading, no checks, no marks
to go on from. The index comes after the rows, either way, and its time is kept apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from time import perf_counter

import asyncpg
import msgspec
import numpy as np

from bench.errors import BenchError
from bench.sql import fetch, on_each
from bench.world import COPIED, World
from router.bulk.batch import Batch
from router.bulk.load import Options
from router.bulk.wire import copy_stream
from shard_config import load as load_map
from shard_config.partition import locate_many, shard_names

__all__ = ["Copying", "Loaded"]

# All streams are held encoded.
_MOST_BYTES = 1 << 30
_VECTOR_INDEXES = """
SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
WHERE i.indrelid = $1::text::regclass AND a.amname = 'hnsw'
"""

Stream = list[bytes]


class Loaded(msgspec.Struct, frozen=True):
    """`copy_seconds` until the last row was in, `index_seconds` from then until the index was there."""

    rows: int
    copy_seconds: float
    index_seconds: float

    @property
    def rate(self) -> float:
        """Rows a second, without the index."""
        return self.rows / self.copy_seconds


class Copying:
    """Either way of loading; each call begins with empty tables, over `jobs` connections per shard."""

    def __init__(self, world: World, jobs: int = Options().jobs, *, least_rows: int = 0) -> None:
        self._world, self._jobs = world, jobs
        self._indexes: list[str] = []
        self._dsns = {node.shard: node.dsn for node in world.primaries}
        self._collection = load_map(world.map_path).collections[COPIED]
        base = world.dataset.base
        # Connecting and finding the primaries take a load a tenth of a second, whatever its size.
        base = np.tile(base, (-(-least_rows // len(base)) or 1, 1))
        self.rows: int = min(len(base), _MOST_BYTES // (4 * base.shape[1] + 64))
        self._base = base[: self.rows]
        self._path = world.folder / "copied.npy"
        np.save(self._path, self._base)
        self._streams = self._encode(jobs)

    def __repr__(self) -> str:
        return f"<Copying {self.rows} rows over {len(self._streams)} connections>"

    @property
    def size_bytes(self) -> int:
        """Of all rows as COPY's binary format has them."""
        return sum(len(block) for _, blocks in self._streams for block in blocks)

    def loaded(self, *, indexed: bool = False) -> Loaded:
        """By `pgscatter load`, which checks, and with `indexed` builds the index and gathers statistics."""
        asyncio.run(self._empty())
        options = {"restart": True, "jobs": self._jobs, "index": indexed}
        summary = self._world.load(COPIED, self._path, quiet=True, **options)
        asyncio.run(self._check())
        return Loaded(summary.rows, summary.copy_seconds, summary.seconds - summary.copy_seconds)

    def copied(self, *, indexed: bool = False) -> Loaded:
        """By raw COPY; with `indexed`, and by CREATE INDEX on all shards at once, as the servers are set."""
        asyncio.run(self._empty())
        seconds = asyncio.run(self._copy())
        asyncio.run(self._check())
        return Loaded(self.rows, seconds, asyncio.run(self._index()) if indexed else 0.0)

    def _encode(self, jobs: int) -> list[tuple[str, Stream]]:
        """For each shard as many streams as `pgscatter load` has connections, in the same hash order."""
        ids = np.arange(self.rows, dtype=np.int64)
        owners = locate_many(self._collection.sharding, ids)
        batch = Batch(ids, ids, self._base, {}, (), owners)
        streams = []
        for i, shard in enumerate(shard_names(self._collection.sharding)):
            for part in np.array_split(np.flatnonzero(owners == i), jobs):
                blocks = [bytes(block) for block in copy_stream(self._collection, batch, part)]
                streams.append((self._dsns[shard], blocks))
        return streams

    async def _empty(self) -> None:
        # The index that the last load built would make COPY fill it row by row, 50 times slower, and a
        # checkpoint's writes belong to neither.
        async def one(connection: asyncpg.Connection, _: int) -> None:
            await connection.execute(f"TRUNCATE {self._collection.table}")
            for index, statement in await connection.fetch(_VECTOR_INDEXES, str(self._collection.table)):
                await connection.execute(f"DROP INDEX {index}")
                self._indexes = [statement]
            await connection.execute("CHECKPOINT")

        await on_each(self._dsns.values(), one)

    async def _index(self) -> float:
        """Seconds until every shard has the index that `pgscatter load` built before."""
        if not self._indexes:
            raise BenchError("no index to build: pgscatter load has not run yet")
        return await self._timed(self._dsns.values(), lambda c, _: c.execute(self._indexes[0]))

    async def _check(self) -> None:
        """A way that stores nothing would be the fastest."""
        counts = await fetch(f"SELECT count(*) FROM {self._collection.table}", *self._dsns.values())
        if (count := sum(row[0] for row in counts)) != self.rows:
            raise BenchError(f"{count:,} rows are in {self._collection.table}, not {self.rows:,}")

    async def _copy(self) -> float:
        """Seconds from the first byte to the last commit."""
        dsns = [dsn for dsn, _ in self._streams]
        return await self._timed(dsns, lambda c, number: self._send(c, self._streams[number][1]))

    async def _timed(
        self, dsns: Collection[str], work: Callable[[asyncpg.Connection, int], Awaitable[object]]
    ) -> float:
        """Seconds that `work` takes on all of them, from when they are connected."""
        connected = asyncio.Barrier(len(dsns))
        began: list[float] = []

        async def one(connection: asyncpg.Connection, number: int) -> None:
            await connected.wait()
            began.append(perf_counter())
            await work(connection, number)

        await on_each(dsns, one)
        return perf_counter() - min(began)

    async def _send(self, connection: asyncpg.Connection, blocks: Stream) -> None:
        async def stream() -> AsyncIterator[bytes]:
            for block in blocks:
                yield block

        table, columns = self._collection.table, [self._collection.id.column, self._collection.vector.column]
        await connection.copy_to_table(
            table.name, schema_name=table.schema, columns=columns, source=stream(), format="binary"
        )
