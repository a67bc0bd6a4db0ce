"""What hits of a cache are measured against: the least that each part of them can cost.

    python -m bench.bare FILE

is the least that Starlette on uvicorn can do for a search, with the loop and the parser that the router has:
read the body, return the bytes of FILE. Beside it a lookup in a dict, in an LRU, and a GET from Redis, with
as many entries, and keys and values as large, as the router's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import timeit
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import uvicorn
from cachetools import LRUCache
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench import tuning
from bench.errors import BenchError
from bench.percentiles import Latencies
from bench.targets import TargetSpec
from bench.world import COLLECTION, World, search_path
from deploy.local.router import Router, listening

__all__ = ["BARE", "L1_HITS", "L2_HITS", "app", "hits_and_bare", "lookup_seconds", "main", "redis_gets"]

L1_HITS, L2_HITS, BARE = "L1 hits", "L2 hits", "bare endpoint"
_LOOKUPS = 200_000
_REPEATS = 5
_WARM_UP = 200
_MOST_SECONDS = 60.0
_NAME = "pgscatter-bench:bare"

_Key = tuple[str, int, int, bytes]


def app(answer: bytes) -> Starlette:
    async def search(request: Request) -> Response:
        await request.body()
        return Response(answer, media_type="application/json")

    return Starlette(routes=[Route(search_path(COLLECTION), search, methods=["POST"])])


@contextlib.contextmanager
def hits_and_bare(
    world: World, l1: Router, l2: Router, ef_search: int
) -> Iterator[tuple[dict[str, TargetSpec], int]]:
    """Searches that L1 answers, that L2 answers, and this endpoint in a process of its own during the block.

    Beside them, the size of an answer in bytes.
    """
    cached: dict[str, Any] = {"cache": True, "ef_search": ef_search}
    specs: dict[str, TargetSpec] = {
        name: world.http(router, **cached) for name, router in ((L1_HITS, l1), (L2_HITS, l2))
    }
    for spec in specs.values():
        tuning.ask(spec, len(world.dataset.queries))
    answer, _ = world.ask(l1, 0, **cached)
    path = world.folder / "bare.json"
    path.write_bytes(answer)
    with listening([sys.executable, "-m", __name__, str(path)], world.folder / "bare.log") as endpoint:
        yield {**specs, BARE: world.http(endpoint)}, len(answer)


def lookup_seconds(entries: int) -> dict[str, float]:
    """Seconds of a lookup that finds its entry, by the kind of cache: the best of some repetitions."""
    keys = [("items", 1, 1, i.to_bytes(32, "big")) for i in range(entries)]
    plain = dict.fromkeys(keys, b"")
    lru: LRUCache[_Key, bytes] = LRUCache(entries)
    lru.update(plain)
    asked = (keys * (_LOOKUPS // entries + 1))[:_LOOKUPS]
    return {"dict": _best(plain.get, asked), "cachetools' LRU": _best(lru.get, asked)}


async def redis_gets(url: str, size: int, seconds: float) -> Latencies:
    """Of one GET after the other of a value of `size` bytes, on one connection of redis-py."""
    found = Latencies()
    client = Redis.from_url(url)
    try:
        async with asyncio.timeout(seconds + _MOST_SECONDS):
            await client.set(_NAME, bytes(size))
            for _ in range(_WARM_UP):
                await client.get(_NAME)
            end = perf_counter() + seconds
            while (started := perf_counter()) < end:
                await client.get(_NAME)
                found.record(perf_counter() - started)
            await client.delete(_NAME)
    except (RedisError, OSError) as exc:  # TimeoutError is one
        raise BenchError(f"GETs from Redis failed: {exc or 'it took too long'}") from exc
    finally:
        await client.aclose()
    return found


def _best(get: Callable[[_Key], object], asked: Sequence[_Key]) -> float:
    def lookups() -> None:
        for key in asked:
            get(key)

    return min(timeit.repeat(lookups, number=1, repeat=_REPEATS)) / len(asked)


def main() -> None:
    answer = Path(sys.argv[1]).read_bytes()
    # It says itself where it listens.
    uvicorn.run(app(answer), port=0, loop="uvloop", http="httptools", lifespan="off", access_log=False)


if __name__ == "__main__":
    main()
