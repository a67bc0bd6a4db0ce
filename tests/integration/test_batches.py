"""A batch of slow searches on the real cluster: answered in whole, alone and beside single clients."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import httpx
import numpy as np

from deploy.local import Cluster
from tests.integration.worlds import World, patient, world

ROWS = 750  # of each shard
SEARCHES = 150
CLIENTS = 16


async def fill(w: World) -> None:
    """Texts that take long to look through; on which shard a row lies does not matter to a search."""
    await w.on_primaries(
        f"INSERT INTO {w.collection.table} (id, embedding, content)"
        " SELECT g, array_fill(random(), ARRAY[8])::vector, repeat(md5(g::text), 40)"
        f" FROM generate_series(1, {ROWS}) g; ANALYZE {w.collection.table}"
    )


def search(rng: np.random.Generator) -> dict[str, Any]:
    pattern = f"%{rng.integers(10, 99)}%{rng.integers(10, 99)}%"
    return {
        "vector": rng.random(8).tolist(),
        "k": 5,
        "filter": {"content": {"$ilike": pattern}},
        "exact": True,
        "cache": False,
        "timeout_ms": 60_000,
    }


async def singles(http: httpx.AsyncClient, rng: np.random.Generator) -> float:
    """Seconds of one search, of ten that follow each other."""
    started = time.perf_counter()
    for _ in range(10):
        assert (await http.post("/search", json=search(rng))).status_code == 200
    return (time.perf_counter() - started) / 10


async def batch(http: httpx.AsyncClient, rng: np.random.Generator) -> float:
    """Seconds of a batch of which every search is answered by all shards."""
    started = time.perf_counter()
    response = await http.post("/search/batch", json={"searches": [search(rng) for _ in range(SEARCHES)]})
    seconds = time.perf_counter() - started
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert Counter(result.get("error", {}).get("status") for result in results) == {None: SEARCHES}
    assert all(result["coverage"]["full"] for result in results)
    return seconds


async def test_a_batch_of_slow_searches_is_answered_in_whole_and_starves_nobody(cluster: Cluster) -> None:
    rng = np.random.default_rng(3)
    async with world(cluster, patient(statistics_interval=0)) as w, w.over_http() as http:
        await fill(w)
        single = await singles(http, rng)
        alone = await batch(http, rng)
        # What else the machine does may have begun only with the batch.
        single = max(single, await singles(http, rng))
        assert alone < 3 * SEARCHES * single, "about as long as one search after the other"

        ended = asyncio.Event()
        statuses: Counter[int] = Counter()

        async def ask() -> None:
            while not ended.is_set():
                statuses[(await http.post("/search", json=search(rng))).status_code] += 1

        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(ask())
            await asyncio.sleep(10 * single)
            before = statuses.total()
            await batch(http, rng)
            meanwhile = statuses.total() - before
            ended.set()
        assert set(statuses) == {200}, statuses
        # If they waited for its end, there would be one of each client.
        assert meanwhile > 1.5 * CLIENTS, "single searches go between those of the batch"
