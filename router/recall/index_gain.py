"""What indexes that a filter lacks would save, measured on shards that do not have them.

A search with the filter is timed as it is, approximate and exact, and against it the reading of the matching
rows alone, by the places where they stand. All shards are asked at once, as a search asks them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from statistics import median
from typing import Any

import msgspec

from router.postgres.places import matching_places, nearest_at
from router.query.filter import Filter
from router.query.index_advice import Advice, advised
from router.query.types import SearchQuery
from router.query.wire import to_wire
from router.recall.filters import Selective, filters_of_share
from router.recall.reading import (
    SEARCH_SECONDS,
    Query,
    Searched,
    TuningError,
    rows_of,
    sampled,
    sizes_of,
    vectors_of,
)
from shard_config.model import Collection

__all__ = ["Gain", "index_gains", "pays"]

# A narrow filter, of which a sample still says something.
_SHARE = 0.01
_SHARE_ROWS = 4000
_QUERIES = 5
# On one shard. Beyond this the HNSW index is the better way: of 125,000 rows of 128 dimensions, 6,000 took
# 7 ms to be read and compared, and an index scan with a filter for as many 1.4.
_MOST_PLACES = 5000
_LEAST_FACTOR = 2.0
_LEAST_MS = 1.0


class Gain(msgspec.Struct, frozen=True):
    """A filter, the indexes that it lacks, and milliseconds of a search without and with them.

    `share` is that of the rows that match.
    """

    said: str
    share: float
    advice: tuple[Advice, ...]
    without_ms: float
    with_ms: float

    def __str__(self) -> str:
        wanted = " and ".join(map(str, self.advice))
        return (
            f"{self.said} ({self.share:.2%}) takes {self.without_ms:.1f} ms, and with an index about"
            f" {self.with_ms:.1f} ms: set {wanted}, and run `pgscatter schema apply`"
        )


def pays(gain: Gain) -> bool:
    """Whether an index is worth what it costs writers."""
    saved = gain.without_ms - gain.with_ms
    return saved >= _LEAST_MS and gain.without_ms >= _LEAST_FACTOR * gain.with_ms


async def index_gains(
    router: Searched, collection: Collection, given: Iterable[tuple[str, Filter]], k: int, ef_search: int
) -> list[Gain]:
    """What pays, by the filters `given` and by one of about 1 % for each column without an index.

    Raises:
        TuningError: a shard did not answer.
    """
    sizes = await sizes_of(router, collection)
    queries = await vectors_of(router, collection, sizes, _QUERIES)
    rows = sum(sizes.values())
    gains: dict[tuple[Advice, ...], Gain] = {}
    made = [(one.said, one.filter) for one in await _made(router, collection, sizes)]
    for said, filter in [*given, *made]:
        advice = advised(filter, collection)
        if not advice or not queries:
            continue
        places = await _places(router, collection, filter, sizes)
        if not any(places.values()) or any(len(found) > _MOST_PLACES for found in places.values()):
            continue
        timing = _Timing(router, collection, queries, k)
        without = min([await timing.search(filter, ef_search), await timing.search(filter, None)])
        gain = Gain(
            said, sum(map(len, places.values())) / rows, advice, without, await timing.reading(places)
        )
        # The first filter with this advice is one that was asked about.
        if pays(gain) and advice not in gains:
            gains[advice] = gain
    return list(gains.values())


async def _made(router: Searched, collection: Collection, sizes: dict[str, int]) -> list[Selective]:
    """For each column without an index the filter that comes nearest to 1 %."""
    columns = {name: column for name, column in collection.columns.items() if not column.index}
    if not columns:
        return []
    names = [column.column for column in columns.values()]
    rows = await sampled(router, collection, sizes, _SHARE_ROWS, names)
    found: list[Selective] = []
    for at, (name, column) in enumerate(columns.items()):
        alone = msgspec.structs.replace(collection, columns={name: column})
        found += filters_of_share(alone, [(row[1 + at],) for row in rows], [_SHARE])
    return found


async def _places(
    router: Searched, collection: Collection, filter: Filter, sizes: dict[str, int]
) -> dict[str, list[object]]:
    statement = matching_places(collection, filter, _MOST_PLACES + 1)
    found = await rows_of(router, dict.fromkeys(sizes, statement))
    return {shard: [row[0] for row in rows] for shard, rows in found.items()}


class _Timing:
    """Times searches for `queries`, one after the other; the first of each kind only warms caches up."""

    def __init__(self, router: Searched, collection: Collection, queries: Sequence[Query], k: int) -> None:
        self._router = router
        self._collection = collection
        self._queries = queries
        self._k = k

    async def search(self, filter: Filter, ef_search: int | None) -> float:
        """As the router searches, with this width; exactly if it is None."""

        async def one(query: Query) -> None:
            search = SearchQuery(
                self._collection,
                query.vector,
                self._k,
                filter=filter,
                ef_search=ef_search or 1,
                exact=ef_search is None,
                cache=False,
            )
            found = await self._router.rank(search, _soon())
            if not found.coverage.full:
                failure = found.coverage.failures[0]
                raise TuningError(f"{failure.shard} did not answer: {failure.error}")

        return await self._median(one)

    async def reading(self, places: dict[str, list[object]]) -> float:
        """The matching rows alone, on all shards."""
        collection = self._collection

        async def one(query: Query) -> None:
            vector = to_wire(query.vector, collection.vector.type)
            statements = {
                shard: nearest_at(collection, found, vector, self._k) for shard, found in places.items()
            }
            await rows_of(self._router, statements)

        return await self._median(one)

    async def _median(self, one: Callable[[Query], Awaitable[Any]]) -> float:
        """In milliseconds."""
        loop = asyncio.get_running_loop()
        await one(self._queries[0])
        times = []
        for query in self._queries:
            started = loop.time()
            await one(query)
            times.append((loop.time() - started) * 1000)
        return median(times)


def _soon() -> float:
    return asyncio.get_running_loop().time() + SEARCH_SECONDS
