"""What the tiers of a cache cost bare: a lookup in a dict, in an LRU, and a GET from Redis.

As many entries, and keys and values as large, as the router's own: what it takes longer is its work.
"""

from __future__ import annotations

import asyncio
import timeit
from collections.abc import Callable, Sequence
from time import perf_counter

from cachetools import LRUCache
from redis.asyncio import Redis
from redis.exceptions import RedisError

from bench.errors import BenchError
from bench.percentiles import Latencies

__all__ = ["lookup_seconds", "redis_gets"]

_LOOKUPS = 200_000
_REPEATS = 5
_WARM_UP = 200
_MOST_SECONDS = 60.0
_NAME = "pgscatter-bench:bare"

_Key = tuple[str, int, int, bytes]


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
