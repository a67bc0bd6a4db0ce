"""What measurements read of a collection's shards: sizes, and random rows that become queries and filters."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from router.postgres.sql import Statement, count, sample
from router.query.ranked import RankedAnswer
from router.query.types import Probe, Row, SearchQuery, Shape, ShardRows
from router.query.wire import from_wire_bytes
from shard_config.model import Collection, ShardMap

__all__ = [
    "SEARCH_SECONDS",
    "Query",
    "Searched",
    "TuningError",
    "rows_of",
    "sampled",
    "sizes_of",
    "vectors_of",
]

SEARCH_SECONDS = 60.0


class TuningError(Exception):
    """A measurement is not possible, and the message says why."""


class Searched(Protocol):
    """The router whose searches are measured."""

    @property
    def shard_map(self) -> ShardMap: ...

    async def rank(self, query: SearchQuery, deadline: float) -> RankedAnswer:
        """Searched past all caches."""
        ...

    async def fetch(self, probes: Mapping[str, Probe], deadline: float) -> dict[str, ShardRows]:
        """Rows of one statement per shard."""
        ...

    async def read_statistics(self) -> None:
        """Those of all tables, now, instead of when their turn comes."""
        ...

    def discard_plans(self) -> None:
        """Have the next searches planned anew."""
        ...


class Query(msgspec.Struct, frozen=True):
    id: object
    vector: bytes


async def sizes_of(router: Searched, collection: Collection) -> dict[str, int]:
    """How many rows each shard holds."""
    statement = count(collection, None)
    shards = router.shard_map.shards_of(collection)
    rows = await rows_of(router, {shard: statement for shard in shards})
    return {shard: part[0][0] for shard, part in rows.items()}


async def vectors_of(
    router: Searched, collection: Collection, sizes: dict[str, int], wanted: int
) -> list[Query]:
    """About `wanted` random rows, or all."""
    rows = await sampled(router, collection, sizes, wanted, [collection.vector.column])
    kind = collection.vector.type
    return [Query(row[0], from_wire_bytes(row[1], kind)) for row in rows]


async def sampled(
    router: Searched, collection: Collection, sizes: dict[str, int], wanted: int, columns: Sequence[str]
) -> list[Row]:
    """Random rows as (id, *columns), of each shard as many as its part of all rows."""
    total = sum(sizes.values())
    statements = {
        shard: sample(collection, math.ceil(wanted * size / total), columns)
        for shard, size in sizes.items()
        if size
    }
    return [row for part in (await rows_of(router, statements)).values() for row in part]


async def rows_of(router: Searched, statements: dict[str, Statement]) -> dict[str, Sequence[Row]]:
    probes = {
        shard: Probe(Shape(statement.sql), statement.args, 0, 0) for shard, statement in statements.items()
    }
    deadline = asyncio.get_running_loop().time() + SEARCH_SECONDS
    parts = await router.fetch(probes, deadline)
    missing = [part.report for part in parts.values() if part.report.error is not None]
    if missing:
        raise TuningError(f"{missing[0].shard}: {missing[0].error}")
    return {shard: part.rows for shard, part in parts.items()}
