"""Reads from a real Redis: together when there are many, bounded in time when it hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis
import uvloop

from deploy.local import Cluster
from router.freshness.lookups import UNKNOWN, Lookups
from router.freshness.redis_link import RedisLink
from tests.integration.worlds import until


@asynccontextmanager
async def lookups(cluster: Cluster, budget: float = 10.0) -> AsyncIterator[tuple[Lookups, RedisLink]]:
    link = RedisLink(cluster.redis_url, budget=budget, pause=0.2)
    reads = Lookups(link)
    try:
        await link.client.mset({f"lookups:{i}": str(i) for i in range(200)})
        yield reads, link
    finally:
        await reads.close()
        await link.close()


async def commands(link: RedisLink) -> int:
    stats = await link.client.info("commandstats")
    return int(stats.get("cmdstat_mget", {"calls": 0})["calls"])


async def test_what_is_asked_at_the_same_time_leaves_in_few_commands(cluster: Cluster) -> None:
    async with lookups(cluster) as (reads, link):
        before = await commands(link)
        keys = [("lookups:0", f"lookups:{i}") for i in range(200)]
        found = await asyncio.gather(*(reads.get(*pair) for pair in keys), reads.get("lookups:none"))
        none = ([None], -2)  # as Redis says of a key that is not there
        assert found == [*(([b"0", b"%d" % i], UNKNOWN) for i in range(200)), none]
        assert await commands(link) - before == 4  # of 64 at most
        assert repr(reads) == "<Lookups 0 waiting, none under way>"


async def test_one_that_leaves_costs_the_others_nothing(cluster: Cluster) -> None:
    async with lookups(cluster) as (reads, _):
        tasks = [asyncio.create_task(reads.get(f"lookups:{i}")) for i in range(100)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert found[1::2] == [([b"%d" % i], UNKNOWN) for i in range(1, 100, 2)]
        assert all(isinstance(one, asyncio.CancelledError) for one in found[::2])


async def test_a_hanging_redis_costs_each_read_one_budget_even_behind_another(cluster: Cluster) -> None:
    budget, took = 0.2, []
    async with lookups(cluster, budget) as (reads, link):
        # What else the machine does only makes it longer: hence the best of several.
        while not took or (min(took) > 1.8 * budget and len(took) < 10):
            await until(lambda: link.on)
            cluster.pause("redis")
            try:
                started = time.perf_counter()
                first = asyncio.create_task(reads.get("lookups:1"))
                await asyncio.sleep(0.1)
                behind = [reads.get(f"lookups:{i}") for i in range(100)]
                assert await asyncio.gather(first, *behind) == [None] * 101
                took.append(time.perf_counter() - started)
                assert not link.on
                # It is not even asked: another budget would be spent, and a failure counted.
                failures = link.failures
                assert await reads.get("lookups:1") is None
                assert link.failures == failures
            finally:
                cluster.resume("redis")
        # Each a budget of its own, the second of which began in the middle of the first.
        assert 0.75 * budget < min(took) < 1.8 * budget
        link.budget = 10.0
        await until(lambda: link.on)
        assert await reads.get("lookups:1") == ([b"1"], UNKNOWN)


def test_an_answer_that_is_here_counts_when_it_was_us_who_were_late(cluster: Cluster) -> None:
    async def late() -> None:
        async with lookups(cluster, budget=1.0) as (reads, link):
            assert await reads.get("lookups:1") == ([b"1"], UNKNOWN)
            cluster.pause("redis")
            asked = asyncio.create_task(reads.get("lookups:2"))
            await asyncio.sleep(0.02)
            cluster.resume("redis")
            # Redis answers one after the other: when it has answered this one, ours is here as well.
            with redis.Redis.from_url(cluster.redis_url) as client:
                client.ping()
            time.sleep(1.2)
            assert await asked == ([b"2"], UNKNOWN)
            assert link.failures == 0

    uvloop.run(late())
