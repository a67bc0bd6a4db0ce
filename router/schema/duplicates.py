"""Ids that stand on more than one shard, where the id does not say the shard.

Every shard sends its ids in order; the streams are merged, so that memory is bounded by a page of each.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Mapping
from typing import Any

from router.schema.session import Connection
from shard_config.model import Collection
from shard_config.values import ValueType

__all__ = ["ids_in_order", "repeated"]

_PAGE = 10_000
_END = object()


async def ids_in_order(connection: Connection, collection: Collection) -> AsyncIterator[Any]:
    """All ids of one shard, ascending as Python compares them."""
    id_ = collection.id
    # Python compares strings by code point, and UUIDs byte by byte as the server does.
    collate = ' COLLATE "C"' if id_.type is ValueType.TEXT else ""
    statement = f"SELECT {id_.column} FROM {collection.table} ORDER BY {id_.column}{collate}"
    async with connection.transaction(readonly=True):
        async for row in connection.cursor(statement, prefetch=_PAGE):
            yield row[0]


async def repeated(streams: Mapping[str, AsyncIterator[Any]]) -> AsyncIterator[tuple[Any, list[str]]]:
    """Each id that several of the ascending streams hold, with their names."""
    heap: list[tuple[Any, str]] = []

    async def refill(name: str) -> None:
        id_ = await anext(streams[name], _END)
        if id_ is not _END:
            heapq.heappush(heap, (id_, name))

    for name in streams:
        await refill(name)
    while heap:
        id_, name = heapq.heappop(heap)
        holders = [name]
        while heap and heap[0][0] == id_:
            holders.append(heapq.heappop(heap)[1])
        for holder in holders:
            await refill(holder)
        if len(holders) > 1:
            yield id_, sorted(holders)
