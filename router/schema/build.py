"""Building an index over rows that exist: with the memory and the workers that it needs, watched.

pgvector builds the graph in memory as long as it fits into maintenance_work_mem and many times slower
beyond, so the size is estimated first. Parallel builds take that memory from the server's shared memory
directory at once; where that is too small, as in many containers, the build is done again without.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import asyncpg
import msgspec

from router.postgres.connection import NodeError, node_error
from router.schema.session import Connection, bound_to, connect, node_errors
from shard_config.model import Collection, Node, Quantization, VectorType

__all__ = ["BuildLimits", "build_index", "graph_bytes", "sort_bytes", "words_bytes"]

_BUILD_TIMEOUT = 24 * 3600.0
_POLL = 0.5
# A server that has not told its progress for so long will not tell its end either.
_SILENCE = 60.0
_MIB = 1 << 20
# The server gives a build no worker for which there are not 32 MiB (plan_create_index_workers).
_WORKER_BYTES = 32 * _MIB
# Of one document: what a build gathers in memory before it writes that down, at no great cost.
_WORDS_BYTES = 1000
# A key of a filter's index with what the sort keeps beside it, and room for texts; more spills to disk, at
# no great cost.
_SORTED_BYTES = 100
# An HNSW index counts rows from the beginning, others only once they have read the table.
_PROGRESS = """
SELECT GREATEST(tuples_done, $2::bigint * blocks_done / GREATEST(blocks_total, 1))
FROM pg_stat_progress_create_index WHERE pid = $1
"""


class BuildLimits(msgspec.Struct, frozen=True):
    """`memory_bytes`: at most this for one build. `workers`: beside the session; None: as the server says."""

    memory_bytes: int = 1024 * _MIB
    workers: int | None = None


def graph_bytes(collection: Collection, rows: int) -> int:
    """An upper estimate of an HNSW graph in memory.

    Per row: the element and its vector, 2m neighbours of 16 bytes at the lowest level and m at each
    further one, of which a row has 1/(m-1) on average (HnswElementData and HnswNeighborArray in pgvector's
    src/hnsw.h), and what the allocator rounds up. Measured with m from 4 to 32, 64 to 384 dimensions and
    every quantization, 0.5 to 0.8 of it was enough.
    """
    dimensions = collection.vector.dimensions
    quantization = collection.index.quantization
    width = 4 * dimensions
    if quantization is Quantization.BINARY:
        width = dimensions // 8 + 1
    elif quantization is Quantization.HALFVEC or collection.vector.type is VectorType.HALFVEC:
        width = 2 * dimensions
    neighbours = 16 * 3 * collection.index.m
    return int(rows * (width + neighbours + 256) * 1.1) + 4 * _MIB


_CONCURRENTLY = re.compile(r"CREATE INDEX CONCURRENTLY (?P<name>\w+) ON (?P<schema>\w+)\.")


def sort_bytes(rows: int) -> int:
    """What the sort of an ordinary index takes."""
    return rows * _SORTED_BYTES + 4 * _MIB


def words_bytes(rows: int) -> int:
    """What the build of a full-text index takes."""
    return rows * _WORDS_BYTES + 4 * _MIB


async def build_index(
    node: Node,
    connection: Connection,
    statement: str,
    rows: int,
    memory_bytes: int,
    limits: BuildLimits,
    on_progress: Callable[[int], None],
) -> str | None:
    """Run `statement` on `connection`, over a table of `rows`, and return what was not as wished.

    `on_progress` is told how many rows it has come.

    Raises:
        NodeError
    """
    # A build that is over in seconds is not worth the memory that workers reserve before they begin.
    workers = await _workers(connection, limits) if memory_bytes > _WORKER_BYTES else 0
    memory = min(max(memory_bytes, _WORKER_BYTES * (workers + 1)), limits.memory_bytes)
    await _prepare(connection, memory, workers)
    notices: list[str] = []
    try:
        await _run(node, connection, statement, rows, notices, on_progress)
    except (asyncpg.DiskFullError, asyncpg.OutOfMemoryError) as exc:
        if left := _CONCURRENTLY.match(statement):
            # It is there already, and invalid.
            await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {left['schema']}.{left['name']}")
        await _prepare(connection, min(memory, 64 * _MIB), 0)
        await _run(node, connection, statement, rows, notices, on_progress)
        return f"the parallel build failed ({node_error(exc)}); built with one process instead"
    return notices[0] if notices else None


async def _workers(connection: Connection, limits: BuildLimits) -> int:
    if limits.workers is not None:
        return limits.workers
    return int(await connection.fetchval("SHOW max_parallel_maintenance_workers"))


async def _prepare(connection: Connection, memory: int, workers: int) -> None:
    """Settings of this session: no less memory than the operator gives every build."""
    await connection.execute(
        "SELECT set_config('maintenance_work_mem', GREATEST(setting::bigint, $1)::text || 'kB', false)"
        " FROM pg_settings WHERE name = 'maintenance_work_mem'",
        memory // 1024,
    )
    # The planner counts pages of the table alone; vectors beside it are work for workers all the same.
    await connection.execute(
        "SELECT set_config('max_parallel_maintenance_workers', $1, false),"
        " set_config('min_parallel_table_scan_size', '0', false),"
        " set_config('client_min_messages', 'notice', false),"
        " set_config('statement_timeout', $2, false)",
        str(workers),
        str(int(_BUILD_TIMEOUT * 1000)),
    )


async def _run(
    node: Node,
    connection: Connection,
    statement: str,
    rows: int,
    notices: list[str],
    on_progress: Callable[[int], None],
) -> None:
    def listen(_: object, message: asyncpg.PostgresLogMessage) -> None:
        notices.append(str(message.message))

    connection.add_log_listener(listen)
    # What the driver was told may be a pooler's invention.
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    watch = asyncio.create_task(_watch(node, connection, pid, rows, on_progress))
    try:
        async with asyncio.timeout(_BUILD_TIMEOUT):
            await bound_to(connection, connection.execute(statement))
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        connection.remove_log_listener(listen)


async def _watch(
    node: Node, building: Connection, pid: int, rows: int, on_progress: Callable[[int], None]
) -> None:
    """Tell the progress of `building`, and end it once the server has been silent for too long."""
    loop = asyncio.get_running_loop()
    heard = loop.time()
    while loop.time() - heard < _SILENCE:
        try:
            watching = await connect(node, "pgscatter progress")
        except NodeError:
            await asyncio.sleep(_POLL)
            continue
        try:
            with node_errors():
                while True:
                    async with asyncio.timeout(_SILENCE):
                        done = await watching.fetchval(_PROGRESS, pid, rows)
                    heard = loop.time()
                    on_progress(done or 0)
                    await asyncio.sleep(_POLL)
        except NodeError:
            continue
        finally:
            watching.terminate()
    building.terminate()
