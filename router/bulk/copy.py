"""One shard's part of a chunk, stored and marked in one transaction.

PostgreSQL refuses a COPY as a whole, for one row. The rows are then copied once more in halves, and halves
of those, each under a savepoint, until what is refused are single rows, which are named and left out.
"""

from __future__ import annotations

import asyncio
import gc
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import cast

import asyncpg
import msgspec
import numpy as np
from numpy.typing import NDArray

from router.bulk.batch import Batch, Refused
from router.bulk.errors import ShardError
from router.bulk.resume import Mark, mark, set_mark
from router.bulk.skipped import Skipped
from router.bulk.target import Target
from router.bulk.wire import copy_columns, copy_stream
from router.postgres.connection import POSTGRES_ERRORS, ErrorKind, NodeError, node_error
from router.schema.session import Connection, bound_to, connect
from shard_config.model import Collection, Table

__all__ = ["Part", "Writer", "copy_blocks"]

# Between two blocks of a stream, and for its end: rows that go into an HNSW index take milliseconds each.
_STALL = 300.0
_REASON_LENGTH = 300
_DROPPED = "not stored, and no error: a trigger of the table dropped the row"


class Part(msgspec.Struct, frozen=True):
    """The rows of `batch` at `positions`, which are of one shard."""

    chunk: int
    batch: Batch
    positions: NDArray[np.int64]


class Writer:
    """Stores parts on one shard, over one connection that it opens when it needs it."""

    def __init__(self, collection: Collection, target: Target, skipped: Skipped) -> None:
        self._collection = collection
        self._target = target
        self._skipped = skipped
        self._connection: Connection | None = None

    def __repr__(self) -> str:
        return f"<Writer to {self._target.primary.node.name}, {self._target.copied} rows copied>"

    async def store(self, part: Part) -> None:
        """Store the part, unless it is stored already.

        Raises:
            ShardError: the shard failed.
            RowsError: PostgreSQL refused rows, and more than may be skipped.
        """
        target = self._target
        node = target.primary.node
        try:
            if self._connection is None:
                # A commit that a crash loses takes the chunk's mark with it, so nothing waits for the disk.
                self._connection = await connect(node, "pgscatter load", synchronous_commit="off")
            stored = await self._store(self._connection, part)
        except (*POSTGRES_ERRORS, NodeError) as exc:
            raise self._shard_error(exc) from exc
        target.chunks.add(part.chunk)
        target.copied += stored

    def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()

    async def _store(self, connection: Connection, part: Part) -> int:
        async with asyncio.timeout(_STALL) as limit:
            return await bound_to(connection, self._transaction(connection, part, limit))

    async def _transaction(self, connection: Connection, part: Part, limit: asyncio.Timeout) -> int:
        """How many rows it stored: none if they are stored already."""
        count = len(part.positions)
        await connection.execute("BEGIN")
        if not await mark(connection, self._target.load.id, part.chunk, Mark(count, len(part.batch.refused))):
            await connection.execute("ROLLBACK")
            return 0
        try:
            if await self._copy(connection, part.batch, part.positions, limit) == count:
                await self._commit(connection)
                return count
        except asyncpg.PostgresError as exc:
            if not _of_rows(exc) or connection.is_closed():
                raise
        await connection.execute("ROLLBACK")
        return await self._singled_out(connection, part, limit)

    async def _singled_out(self, connection: Connection, part: Part, limit: asyncio.Timeout) -> int:
        """Store the part but for the rows that PostgreSQL refuses.

        Raises:
            RowsError: there are more of them than may be skipped.
        """
        load, batch = self._target.load.id, part.batch
        # Constraints that wait for the commit would not say which row they are about.
        await connection.execute("BEGIN; SET CONSTRAINTS ALL IMMEDIATE")
        if not await mark(connection, load, part.chunk, Mark(0, len(batch.refused))):
            await connection.execute("ROLLBACK")
            return 0
        stored = 0
        refused: list[Refused] = []
        # In the file's order, so that of two rows with one id the later is refused.
        waiting = [part.positions]
        while waiting and len(refused) < self._skipped.room:
            some = waiting.pop()
            reason = await self._refusal(connection, batch, some, limit)
            if reason is None:
                stored += len(some)
            elif len(some) == 1:
                refused.append(Refused(int(batch.rows[some[0]]), reason))
            else:
                middle = len(some) // 2
                waiting += [some[middle:], some[:middle]]
        self._skipped.take(refused)
        await set_mark(connection, load, part.chunk, Mark(stored, len(batch.refused), len(refused)))
        await self._commit(connection)
        return stored

    async def _commit(self, connection: Connection) -> None:
        # A server that was replaced takes writes as ever, and loses them when it rejoins its successor.
        await self._target.confirm()
        await connection.execute("COMMIT")

    async def _refusal(
        self, connection: Connection, batch: Batch, positions: NDArray[np.int64], limit: asyncio.Timeout
    ) -> str | None:
        """Copy the rows; why that cannot be, or None if all of them are stored."""
        await connection.execute("SAVEPOINT half")
        try:
            whole = await self._copy(connection, batch, positions, limit) == len(positions)
            reason = None if whole else _DROPPED
        except asyncpg.PostgresError as exc:
            if not _of_rows(exc) or connection.is_closed():
                raise
            reason = _reason(exc)
        if reason is not None:
            await connection.execute("ROLLBACK TO SAVEPOINT half")
        await connection.execute("RELEASE SAVEPOINT half")
        return reason

    async def _copy(
        self, connection: Connection, batch: Batch, positions: NDArray[np.int64], limit: asyncio.Timeout
    ) -> int:
        """How many rows the server says it has stored."""
        stored = 0
        for alike, some in _by_columns(batch, positions, self._target.defaulted):
            blocks = _paced(copy_stream(self._collection, alike, some), limit)
            columns = copy_columns(self._collection, alike)
            stored += await copy_blocks(connection, self._collection.table, columns, blocks)
        return stored

    def _shard_error(self, exc: BaseException) -> ShardError:
        error = node_error(exc)
        node = self._target.primary.node.name
        # What connecting raises names the node already.
        said = str(error) if str(error).startswith(f"{node}: ") else f"{node}: {error}"
        return ShardError(f"{self._target.shard}: {said}")


def _by_columns(
    batch: Batch, positions: NDArray[np.int64], defaulted: frozenset[str]
) -> list[tuple[Batch, NDArray[np.int64]]]:
    """The rows by which of the columns `defaulted` they leave out: a COPY leaves out the same of all."""
    if not len(positions):
        return []
    columns = {name: values for name, values in batch.columns.items() if name in defaulted}
    if not columns:
        return [(batch, positions)]
    groups: dict[frozenset[str], list[int]] = defaultdict(list)
    for at in positions.tolist():
        groups[frozenset(name for name, values in columns.items() if values[at] is None)].append(at)
    return [(_without(batch, left_out), np.array(some)) for left_out, some in groups.items()]


def _without(batch: Batch, left_out: frozenset[str]) -> Batch:
    given = {name: values for name, values in batch.columns.items() if name not in left_out}
    return msgspec.structs.replace(batch, columns=given)


def _of_rows(exc: asyncpg.PostgresError) -> bool:
    """Whether it is about what rows hold, and not about the table or the server."""
    return node_error(exc).kind is ErrorKind.DATA


def _reason(exc: asyncpg.PostgresError) -> str:
    reason = str(node_error(exc))
    if isinstance(exc, asyncpg.UniqueViolationError):
        reason += f": {(exc.detail or '').rstrip('.')}; a load adds rows, it replaces none"
    return reason if len(reason) <= _REASON_LENGTH else f"{reason[: _REASON_LENGTH - 3]}..."


async def copy_blocks(
    connection: Connection, table: Table, columns: Sequence[str], blocks: AsyncIterator[bytes]
) -> int:
    """COPY a stream in PostgreSQL's binary format into `table`; returns how many rows were stored."""
    try:
        status = await connection.copy_to_table(
            table.name, schema_name=table.schema, source=blocks, columns=columns, format="binary"
        )
        return int(status.rsplit(" ", 1)[-1])
    except asyncpg.InternalClientError:
        # The server had said that it ends, and had not hung up yet. asyncpg 0.32 finds that out after it
        # has created the COPY's future, which it then fails when nobody can read it any more; asyncio
        # would complain about that on standard error.
        for held in gc.get_referents(connection._protocol):  # type: ignore[attr-defined]
            if isinstance(held, asyncio.Future):
                held.add_done_callback(lambda future: future.cancelled() or future.exception())
        raise


async def _paced(blocks: Iterable[bytes | memoryview], limit: asyncio.Timeout) -> AsyncIterator[bytes]:
    """The blocks, each of which gives the server more time: a stream may be long, but it must move."""
    loop = asyncio.get_running_loop()
    for block in blocks:
        limit.reschedule(loop.time() + _STALL)
        # asyncpg sends any buffer; its type says bytes.
        yield cast(bytes, block)
