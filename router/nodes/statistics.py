"""What PostgreSQL knows of every shard's values, read in the background for the estimates of filters.

Invariant: no search waits for a reading, but a router begins with one. One that fails leaves what was read
before; it is logged when it begins to fail, and not again until it has succeeded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

import asyncpg
import msgspec

from router.nodes.node import Node
from router.policy.selection import Health
from router.postgres.connection import Connection, NodeError
from router.postgres.statistics import read_statistics
from router.query.errors import OverloadedError
from router.query.statistics import TableStatistics
from router.settings import Settings
from shard_config.model import Collection

__all__ = ["Statistics"]

_logger = logging.getLogger(__name__)

# Of one shard, all its collections: a reading of one takes some milliseconds.
_READ_SECONDS = 5.0
# Shards at once: enough for some that hang to keep none of the others waiting.
_AT_ONCE = 16
# Of a router that starts: without statistics it cannot tell a filter for one row from one for half of them,
# and still answers.
_FIRST_SECONDS = 3.0
# Of the interval, where a table had no statistics yet: it has perhaps just been filled.
_SOON = 0.1
# And at least so many seconds for each shard with such a table: to read one takes some milliseconds of this
# process, which should be a twentieth of it at most.
_SOON_EACH = 0.05
# Of values, in the server's text; Python's objects take about five times as much.
_MOST_BYTES = 32 << 20
_MOST_TABLE_BYTES = 1 << 20


class Statistics:
    """By shard and collection; changed only by its own task, and by `read`."""

    def __init__(self, nodes: Iterable[Node], collections: Iterable[Collection], settings: Settings) -> None:
        self._collections = [*collections]
        self._interval = settings.statistics_interval
        self._shards: dict[str, list[Node]] = {}
        for node in nodes:
            self._shards.setdefault(node.shard, []).append(node)
        tables = len(self._shards) * len(self._collections) or 1
        self._most_bytes = min(_MOST_BYTES // tables, _MOST_TABLE_BYTES)
        self._tables: dict[tuple[str, str], TableStatistics] = {}
        self._failing: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Statistics of {len(self._tables)} tables on {len(self._shards)} shards>"

    def of(self, collection: str, shard: str) -> TableStatistics | None:
        """What was read last; None before the first reading. The same object until something has changed."""
        return self._tables.get((collection, shard))

    async def start(self) -> None:
        """Read from now on; returns when all shards that are up have been read, or after a few seconds."""
        if self._interval > 0 and self._task is None:
            first = asyncio.Event()
            self._task = asyncio.create_task(self._run(first), name="read statistics")
            with suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_SECONDS):
                    await first.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def read(self) -> None:
        """Read all shards once, a few at a time."""
        places = asyncio.Semaphore(_AT_ONCE)

        async def read_in_turn(shard: str) -> None:
            async with places:
                await self._read_shard(shard)

        await asyncio.gather(*map(read_in_turn, self._shards))

    async def _run(self, first: asyncio.Event) -> None:
        soon = self._interval * _SOON
        while True:
            await self.read()
            first.set()
            lacking = sum(not self._is_complete(shard) for shard in self._shards)
            at_least = max(soon, lacking * _SOON_EACH)
            await asyncio.sleep(min(at_least, self._interval) if lacking else self._interval)
            # A table that is never analyzed, or whose statistics the role may not see, stays without.
            soon = min(2 * soon, self._interval) if lacking else self._interval * _SOON

    def _is_complete(self, shard: str) -> bool:
        tables = (self.of(collection.name, shard) for collection in self._collections)
        return all(table is not None and table.columns for table in tables)

    async def _read_shard(self, shard: str) -> None:
        """From the first of its nodes that answers; a replica has its primary's statistics."""
        reason = None  # while no node is up, which is no fault of the reading
        for node in self._shards[shard]:
            if node.state.health is not Health.UP:
                continue
            try:
                # Over a connection that is there for searches: to open one costs more than the reading.
                async with asyncio.timeout(_READ_SECONDS):
                    await node.reads.run(partial(self._read_tables, shard))
            except TimeoutError:
                reason = "timed out"
            except (NodeError, OverloadedError) as exc:
                reason = str(exc)
            except Exception as exc:
                # The task outlives a fault of ours, which must not end the readings in silence.
                reason = repr(exc)
            else:
                self._failing.discard(shard)
                return
        if reason is not None and shard not in self._failing:
            self._failing.add(shard)
            _logger.warning("statistics not read", extra={"shard": shard, "reason": reason})

    async def _read_tables(self, shard: str, connection: Connection) -> None:
        failed: asyncpg.PostgresError | None = None
        for collection in self._collections:
            try:
                table = await read_statistics(connection, collection, self._most_bytes)
            except asyncpg.PostgresError as exc:
                # A table that is unlike the map leaves the others their statistics.
                failed = failed or exc
            else:
                self._keep(collection, shard, table)
        if failed is not None:
            raise failed

    def _keep(self, collection: Collection, shard: str, table: TableStatistics | None) -> None:
        key = collection.name, shard
        if table is None:
            self._tables.pop(key, None)
        elif table != self._tables.get(key):
            # One object where they are equal: an estimate then decides for all shards at once which serve.
            for (name, _), other in self._tables.items():
                if name == collection.name and other.indexes == table.indexes:
                    table = msgspec.structs.replace(table, indexes=other.indexes)
                    break
            self._tables[key] = table
