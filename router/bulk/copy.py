"""One shard's part of a chunk, stored and marked in one transaction."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import cast

import asyncpg
import msgspec
import numpy as np
from numpy.typing import NDArray

from router.bulk.batch import Batch, Source
from router.bulk.errors import LoadError, RowsError, ShardError
from router.bulk.resume import mark
from router.bulk.target import Target
from router.bulk.wire import copy_columns, copy_stream
from router.postgres.connection import POSTGRES_ERRORS, ErrorKind, NodeError, node_error
from router.schema.session import Connection, bound_to, connect
from shard_config.model import Collection, Table

__all__ = ["Part", "Writer", "copy_blocks"]

# Between two blocks of a stream, and for its end: rows that go into an HNSW index take milliseconds each.
_STALL = 300.0


class Part(msgspec.Struct, frozen=True):
    """The rows of `batch` at `positions`, which are of one shard."""

    chunk: int
    batch: Batch
    positions: NDArray[np.int64]


class Writer:
    """Stores parts on one shard, over one connection that it opens when it needs it."""

    def __init__(self, collection: Collection, source: Source, target: Target) -> None:
        self._collection = collection
        self._source = source
        self._target = target
        self._connection: Connection | None = None

    def __repr__(self) -> str:
        return f"<Writer to {self._target.primary.node.name}, {self._target.copied} rows copied>"

    async def store(self, part: Part) -> None:
        """Store the part, unless it is stored already.

        Raises:
            ShardError: the shard failed, or has rows with these ids.
            RowsError: an id stands twice among them.
        """
        target = self._target
        node = target.primary.node
        try:
            if self._connection is None:
                # A commit that a crash loses takes the chunk's mark with it, so nothing waits for the disk.
                self._connection = await connect(node, "pgscatter load", synchronous_commit="off")
            stored = await self._store(self._connection, part)
        except (*POSTGRES_ERRORS, NodeError) as exc:
            raise await self._explained(exc, part) from exc
        target.chunks.add(part.chunk)
        if stored:
            target.copied += len(part.positions)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()

    async def _store(self, connection: Connection, part: Part) -> bool:
        async with asyncio.timeout(_STALL) as limit:
            return await bound_to(connection, self._transaction(connection, part, limit))

    async def _transaction(self, connection: Connection, part: Part, limit: asyncio.Timeout) -> bool:
        batch, positions = part.batch, part.positions
        load = self._target.load.id
        await connection.execute("BEGIN")
        if not await mark(connection, load, part.chunk, len(positions), len(batch.refused)):
            await connection.execute("ROLLBACK")
            return False
        if len(positions):
            blocks = _paced(copy_stream(self._collection, batch, positions), limit)
            columns = copy_columns(self._collection, batch)
            stored = await copy_blocks(connection, self._collection.table, columns, blocks)
            if stored != len(positions):
                raise NodeError(
                    ErrorKind.DATA,
                    f"the server stored {stored} of {len(positions)} rows: a trigger of the table returned"
                    " NULL for the others",
                )
        await connection.execute("COMMIT")
        return True

    async def _explained(self, exc: BaseException, part: Part) -> LoadError:
        target = self._target
        error = node_error(exc)
        if isinstance(exc, asyncpg.UniqueViolationError) and self._connection is not None:
            found = await self._existing(self._connection, part)
            if found is not None:
                return found
        node = target.primary.node.name
        # What connecting raises names the node already.
        said = str(error) if str(error).startswith(f"{node}: ") else f"{node}: {error}"
        if error.kind is ErrorKind.DATA and len(part.batch.rows):
            first, last = (self._source.place(int(part.batch.rows[at])) for at in (0, -1))
            said += f" (between {first} and {last} of {self._source.path})"
        return ShardError(f"{target.shard}: {said}")

    async def _existing(self, connection: Connection, part: Part) -> LoadError | None:
        """Which id was refused for being there already: twice among the rows, or in the table."""
        taken = part.batch.ids
        ids = taken.tolist() if isinstance(taken, np.ndarray) else taken
        seen: dict[object, str] = {}
        for at in part.positions.tolist():
            place = self._source.place(int(part.batch.rows[at]))
            if ids[at] in seen:
                twice = f"the id {str(ids[at])!r} stands twice, on {seen[ids[at]]} and {place}"
                return RowsError(f"{self._source.path}: {twice}")
            seen[ids[at]] = place
        id_ = self._collection.id
        statement = (
            f"SELECT {id_.column} FROM {self._collection.table}"
            f" WHERE {id_.column} = ANY($1::{id_.type}[]) LIMIT 1"
        )
        try:
            async with asyncio.timeout(_STALL):
                await connection.execute("ROLLBACK")
                there = await connection.fetchval(statement, list(seen))
        except POSTGRES_ERRORS:
            return None
        if there is None:
            return None
        where = f"{self._target.shard}: the {id_.column} {str(there)!r} exists already"
        return ShardError(
            f"{where} in {self._collection.table} ({seen.get(there)} of {self._source.path});"
            " a load adds rows, it replaces none"
        )


async def copy_blocks(
    connection: Connection, table: Table, columns: Sequence[str], blocks: AsyncIterator[bytes]
) -> int:
    """COPY a stream in PostgreSQL's binary format into `table`; returns how many rows it has stored."""
    try:
        status = await connection.copy_to_table(
            table.name, schema_name=table.schema, source=blocks, columns=columns, format="binary"
        )
    except asyncpg.InternalClientError:
        # The server had said that it ends, and had not hung up yet. asyncpg 0.32 finds that out after it
        # has created the COPY's future, which it then fails when nobody can read it any more; asyncio
        # would complain about that on standard error.
        for held in gc.get_referents(connection._protocol):  # type: ignore[attr-defined]
            if isinstance(held, asyncio.Future):
                held.add_done_callback(lambda future: future.cancelled() or future.exception())
        raise
    return int(status.rsplit(" ", 1)[-1])


async def _paced(blocks: Iterable[bytes | memoryview], limit: asyncio.Timeout) -> AsyncIterator[bytes]:
    """The blocks, each of which gives the server more time: a stream may be long, but it must move."""
    loop = asyncio.get_running_loop()
    for block in blocks:
        limit.reschedule(loop.time() + _STALL)
        # asyncpg sends any buffer; its type says bytes.
        yield cast(bytes, block)
