"""Caches and replicas on the real cluster: fast where they can be, never behind our own writes."""

from __future__ import annotations

import asyncio
import pickle
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import redis.asyncio as redis

from deploy.local import Cluster
from router.freshness.worker_counters import create
from router.policy.selection import Role
from router.settings import Settings
from router.topology import Parts, Topology, assemble
from shard_config import model
from shard_config.values import ValueType
from tests.integration.worlds import World, column, execute, hits, patient, until, world

QUICK = patient(probe_interval=0.1, l2_pause=0.5)
ZERO = [0.0] * 8


@asynccontextmanager
async def two_routers(cluster: Cluster, settings: Settings = QUICK) -> AsyncIterator[tuple[World, World]]:
    """Two with an L1 each and one Redis, over the same collection; neither knows of the other."""
    async with world(cluster, settings, redis=True) as ours, another(ours, settings) as theirs:
        yield ours, theirs


@asynccontextmanager
async def another(ours: World, settings: Settings) -> AsyncIterator[World]:
    """A router that knows of nothing that was written before."""
    quiet = msgspec.structs.replace(settings, recall_sample_rate=0.0)
    shard_map = ours.topology.snapshot.shard_map
    topology = Topology(shard_map, Parts(shard_map, quiet, redis_url=ours.cluster.redis_url))
    await topology.open()
    try:
        yield World(ours.cluster, topology)
    finally:
        await topology.close()


@asynccontextmanager
async def no_replay(cluster: Cluster) -> AsyncIterator[None]:
    """Replicas stay where they are within the block."""
    replicas = [node.dsn for node in cluster.nodes if node.role == "replica"]
    for dsn in replicas:
        await execute(dsn, "SELECT pg_wal_replay_pause()")
    try:
        # Asked for is not done: replay pauses between records.
        for dsn in replicas:
            connection = await asyncpg.connect(dsn)
            while await connection.fetchval("SELECT pg_get_wal_replay_pause_state()") != "paused":
                await asyncio.sleep(0.01)
            await connection.close()
        yield
    finally:
        for dsn in replicas:
            await execute(dsn, "SELECT pg_wal_replay_resume()")


async def first(w: World, **options: Any) -> tuple[Any, str]:
    """The nearest document's content, and the tier that told it."""
    found = await w.search(ZERO, 1, include=frozenset(["content"]), **options)
    assert found.answer.coverage.full
    assert not found.answer.coverage.stale
    (hit,) = hits(found)
    return hit["content"], found.tier


async def store(w: World, content: str) -> None:
    await w.put(w.document(0, ZERO, content=content))


async def stored(w: World) -> None:
    """Stores run behind answers."""
    shared_cache = w.router._shared_cache
    assert shared_cache is not None
    await until(lambda: not shared_cache._stores)


async def test_each_tier_answers_in_turn_and_a_write_empties_both(cluster: Cluster) -> None:
    async with two_routers(cluster) as (ours, theirs):
        await store(ours, "one")
        await caught_up(ours)
        assert await first(ours) == ("one", "miss")
        await stored(ours)
        assert await first(ours) == ("one", "l1")
        assert await first(theirs) == ("one", "l2")
        assert await first(theirs) == ("one", "l1")
        await store(ours, "two")
        assert (await first(ours))[0] == "two"
        # Their L1 knows nothing of it, for as long as its entries live; what Redis holds is worthless.
        theirs.topology.parts.store._entries.clear()
        await caught_up(ours)
        assert (await first(theirs))[0] == "two"
        for number in range(20):
            writer, reader = (ours, theirs) if number % 2 else (theirs, ours)
            await store(writer, f"n{number}")
            assert (await first(writer))[0] == f"n{number}"
            reader.topology.parts.store._entries.clear()
            await caught_up(writer)
            assert (await first(reader))[0] == f"n{number}"


async def caught_up(w: World) -> None:
    """Every replica has replayed, and the router knows it."""
    freshness = w.topology.parts.freshness

    def followed() -> bool:
        needed = {shard: freshness.position(shard) for shard in w.router.shard_map.shards}
        return not any(status.replay_lag_bytes for status in w.router.nodes()) and all(
            node.state.lsn >= needed[node.shard] for node in w.topology.parts.nodes
        )

    await until(followed)


async def test_what_another_router_stored_never_hides_our_own_write(cluster: Cluster) -> None:
    async with two_routers(cluster) as (ours, theirs):
        await store(ours, "old")
        await caught_up(ours)
        async with no_replay(cluster):
            await store(ours, "new")
            # They read from replicas too, which are behind, and put what they read into Redis.
            for number in range(10):
                await theirs.search(ZERO, 1, include=frozenset(["content"]))
                theirs.topology.parts.store._entries.clear()
                await stored(theirs)
                ours.topology.parts.store._entries.clear()
                assert (await first(ours))[0] == "new", number
        await caught_up(ours)
        await caught_up(theirs)
        # In step again, both share what either stores.
        await store(ours, "newer")
        await caught_up(ours)
        await tier_after_clearing(theirs, ours)
        assert (await first(theirs))[0] == (await first(ours))[0] == "newer"


@pytest.mark.parametrize("loss", ["none", "evicted", "emptied"])
async def test_a_router_that_starts_again_gets_nothing_from_before_its_last_write(
    cluster: Cluster, loss: str
) -> None:
    """What another router read from a replica that is behind is not there to be found."""
    only_replicas = msgspec.structs.replace(QUICK, primary_reads="last_resort")
    async with world(cluster, QUICK, redis=True) as ours, another(ours, only_replicas) as theirs:
        await store(ours, "old")
        await caught_up(ours)
        async with no_replay(cluster):
            await store(ours, "new")
            client = redis.Redis.from_url(cluster.redis_url)
            if loss == "evicted":
                await client.delete("pgscatter:token:docs")
            elif loss == "emptied":
                await client.flushdb()
            await client.aclose()
            for _ in range(20):
                assert await first(theirs) == ("old", "miss")
                theirs.topology.parts.store._entries.clear()
                await asyncio.sleep(0.02)
            async with another(ours, only_replicas) as restarted:
                assert (await first(restarted))[1] == "miss"
            async with another(ours, QUICK) as restarted:
                assert (await first(restarted))[1] == "miss"
        # In step again, what either stores is shared.
        await caught_up(theirs)
        await tier_after_clearing(theirs, ours)
        assert (await first(ours))[0] == "new"


async def test_maps_of_one_version_share_no_entries(cluster: Cluster) -> None:
    async with (
        world(cluster, QUICK, redis=True, version=1) as ours,
        world(cluster, QUICK, redis=True, version=1) as theirs,
    ):
        assert ours.router.shard_map.version == theirs.router.shard_map.version
        await store(ours, "ours")
        await store(theirs, "theirs")
        await caught_up(ours)
        await first(ours)
        assert await first(ours) == ("ours", "l1")
        # As after a reload: what is cached in the process outlives a map.
        ours.router, ours.collection = (
            assemble(theirs.router.shard_map, ours.topology.parts),
            theirs.collection,
        )
        try:
            assert (await first(ours))[0] == "theirs"
            assert await first(ours) == ("theirs", "l1")
        finally:
            await ours.router.close()


async def test_our_own_writes_are_read_while_replicas_stand_still(cluster: Cluster) -> None:
    async with world(cluster, QUICK, redis=True) as w:
        await store(w, "old")
        await caught_up(w)
        async with no_replay(cluster):
            for number in range(30):
                await store(w, str(number))
                for cache in (True, False):
                    assert (await first(w, cache=cache))[0] == str(number)
                answer = await w.router.read(w.collection, 0, frozenset(["content"]), w.soon())
                assert answer is not None
                assert (answer.document["content"], answer.stale) == (str(number), None)
            await w.router.delete(w.collection, [0], w.soon())
            assert (await w.search(ZERO, 1)).answer.count == 0
            assert (await w.router.count(w.collection, None, w.soon())).count == 0
            await store(w, "last")
            strict = await w.search(ZERO, 1, explain=True)
            written = next(r for r in strict.answer.reports if r.kept)
            assert written.role == "primary"
        await caught_up(w)
        roles: set[str] = set()
        async with asyncio.timeout(20):
            while roles != {"primary", "replica"}:
                found = await w.search(ZERO, 1, explain=True)
                roles |= {report.role for report in found.answer.reports if report.kept}
        assert (await first(w))[0] == "last"


async def test_redis_that_hangs_costs_one_budget_and_brings_nothing_stale(cluster: Cluster) -> None:
    settings = patient(probe_interval=0.1, l2_timeout=0.05, l2_pause=1.0)
    loop = asyncio.get_running_loop()

    async def timed(w: World) -> float:
        w.topology.parts.store._entries.clear()
        started = loop.time()
        await first(w)
        return loop.time() - started

    async with two_routers(cluster, settings) as (ours, theirs):
        await store(ours, "old")
        await caught_up(ours)
        await tier_after_clearing(theirs, ours)
        cluster.pause("redis")
        try:
            # Without the budget it would be the search's own time, which is 10 s.
            assert await timed(ours) < 5
            assert not ours.router.cache_stats()["l2_on"]
            asked, unanswered = ours.router.cache_stats()["l2_errors_timeout"], _unanswered(ours)
            for _ in range(10):
                await timed(ours)
            # Only those that find out whether it is back ask it, in the background.
            assert _unanswered(ours) == unanswered + 10
            assert ours.router.cache_stats()["l2_errors_timeout"] == asked
            await store(ours, "new")
            assert (await first(ours))[0] == "new"
        finally:
            cluster.resume("redis")
        # The old answer is still there, under a token that is still good: the debt is paid first.
        end = loop.time() + 1.6
        while loop.time() < end:
            ours.topology.parts.store._entries.clear()
            assert (await first(ours))[0] == "new"
            await asyncio.sleep(0.01)
        theirs.topology.parts.store._entries.clear()
        await caught_up(ours)
        assert (await first(theirs))[0] == "new"
        await tier_after_clearing(theirs, ours)
        assert (await first(ours))[0] == "new"


def _unanswered(w: World) -> int:
    """Searches that went on without Redis."""
    shared_cache = w.router._shared_cache
    assert shared_cache is not None
    return shared_cache.unanswered


async def test_answers_never_get_mixed_up_while_redis_stutters(cluster: Cluster) -> None:
    settings = patient(l2_timeout=0.004, l2_pause=0.01)
    async with world(cluster, settings, redis=True) as w:
        await w.put(*(w.document(i, [float(i)] * 8) for i in range(100)))
        rng = random.Random(2)
        stop = asyncio.Event()

        async def stutter() -> None:
            while not stop.is_set():
                await asyncio.to_thread(cluster.pause, "redis")
                await asyncio.sleep(rng.uniform(0, 0.02))
                await asyncio.to_thread(cluster.resume, "redis")
                await asyncio.sleep(rng.uniform(0, 0.05))

        async def search(number: int) -> None:
            w.topology.parts.store._entries.clear()
            task = asyncio.create_task(w.ids([float(number)] * 8, 1, exact=True))
            if rng.random() < 0.3:
                asyncio.get_running_loop().call_later(rng.uniform(0, 0.01), task.cancel)
            try:
                assert await task == [number]
            except asyncio.CancelledError:
                return

        stuttering = asyncio.create_task(stutter())
        try:
            for _ in range(60):
                await asyncio.gather(*(search(rng.randrange(20)) for _ in range(10)))
            # What a busy machine hardly lets Redis answer in time, it answers now.
            link = w.topology.parts.link
            assert link is not None
            link.budget = 10.0
            async with asyncio.timeout(60):
                while not w.router.cache_stats()["l2_hits"]:
                    await asyncio.gather(*(search(rng.randrange(20)) for _ in range(10)))
        finally:
            stop.set()
            await stuttering


async def test_redis_may_die_and_return(cluster: Cluster) -> None:
    async with two_routers(cluster) as (ours, theirs):
        await store(ours, "one")
        await caught_up(ours)
        await first(ours)
        await stored(ours)
        await asyncio.to_thread(cluster.kill, "redis")
        try:
            for number in range(5):
                await store(ours, f"dead {number}")
                assert (await first(ours))[0] == f"dead {number}"
            assert ours.router.cache_stats()["l2_failures"]
        finally:
            await asyncio.to_thread(cluster.start, "redis")
        await caught_up(ours)
        await asyncio.sleep(QUICK.l2_pause)
        ours.topology.parts.store._entries.clear()
        assert (await first(ours))[0] == "dead 4"
        await asyncio.sleep(QUICK.l2_pause)
        await tier_after_clearing(ours, theirs)
        assert (await first(theirs))[0] == "dead 4"


async def tier_after_clearing(ours: World, theirs: World) -> None:
    """What one stores in Redis, the other finds there before long."""
    async with asyncio.timeout(30):
        while True:
            for w in (ours, theirs):
                w.topology.parts.store._entries.clear()
            await first(ours)
            await stored(ours)
            if (await first(theirs))[1] == "l2":
                return
            await asyncio.sleep(0.01)


async def test_a_full_redis_fails_nothing_and_still_forgets(cluster: Cluster) -> None:
    client = redis.Redis.from_url(cluster.redis_url)
    before = await client.config_get("maxmemory*")
    try:
        async with two_routers(cluster) as (ours, theirs):
            await store(ours, "old")
            await caught_up(ours)
            await tier_after_clearing(ours, theirs)
            await client.config_set("maxmemory-policy", "noeviction")
            await client.config_set("maxmemory", "1")
            for w in (ours, theirs):
                w.topology.parts.store._entries.clear()
            # Full as it is, it still tells what it holds, ...
            assert await first(theirs) == ("old", "l2")
            await store(ours, "new")
            await caught_up(ours)
            # ... and forgets what it is told to forget.
            theirs.topology.parts.store._entries.clear()
            assert await first(theirs) == ("new", "miss")
            for number in range(5):
                ours.topology.parts.store._entries.clear()
                assert await first(ours) == ("new", "miss"), number
                await stored(ours)
    finally:
        await client.config_set("maxmemory", before["maxmemory"])
        await client.config_set("maxmemory-policy", before["maxmemory-policy"])
        await client.aclose()


async def test_a_stale_answer_says_so_and_is_not_kept() -> None:
    with Cluster.temporary(shards=1, replicas=1, fsync=False) as private:
        by_id = model.HashSharding(column("id", ValueType.BIGINT), ("s0",))
        async with world(private, QUICK, redis=True, sharding=by_id) as w:
            await store(w, "old")
            await caught_up(w)
            async with no_replay(private):
                await store(w, "new")
                await asyncio.to_thread(private.kill, "s0-a")
                await until(lambda: w.router.nodes()[0].state == "down")
                for _ in range(3):
                    found = await w.search(ZERO, 1, include=frozenset(["content"]))
                    assert hits(found)[0]["content"] == "old"
                    assert found.answer.coverage.stale == ("s0",)
                    assert (found.tier, found.answer.cacheable) == ("miss", False)
            await asyncio.to_thread(private.start, "s0-a")
            await caught_up(w)
            assert (await first(w))[0] == "new"


async def test_routers_that_share_memory_forget_together(cluster: Cluster, tmp_path: Path) -> None:
    async with world(cluster, QUICK, redis=True) as owner:
        shard_map = owner.topology.snapshot.shard_map
        create(tmp_path / "shared", shard_map)
        slowly = msgspec.structs.replace(QUICK, probe_interval=1000.0)
        parts = Parts(shard_map, slowly, redis_url=cluster.redis_url, shared_path=tmp_path / "shared")
        one = Topology(shard_map, parts)
        await one.open()
        try:
            w = World(cluster, one)
            await store(w, "a")
            assert (await first(w))[0] == "a"
            process = await asyncio.create_subprocess_exec(
                *worker(cluster, tmp_path, owner), stdout=asyncio.subprocess.PIPE
            )
            out, _ = await process.communicate()
            assert out == b"b\n"
            # The write of another worker: our L1 is past it, and replicas are held to its position.
            for _ in range(20):
                assert (await first(w))[0] == "b"
            # The search that found them behind has had them asked again, long before their next probe.
            replicas = [node for node in parts.nodes if node.state.role is Role.REPLICA]
            assert replicas
            await until(
                lambda: all(node.state.lsn >= parts.freshness.position(node.shard) for node in replicas)
            )
        finally:
            await one.close()


def worker(cluster: Cluster, tmp_path: Path, owner: World) -> list[str]:
    (tmp_path / "map").write_bytes(pickle.dumps(owner.topology.snapshot.shard_map))
    code = f"""
import asyncio, pickle
from pathlib import Path
from router.settings import Settings
from router.topology import Parts, Topology
from router.documents.types import Document

async def main():
    shard_map = pickle.loads(Path({str(tmp_path / "map")!r}).read_bytes())
    parts = Parts(shard_map, Settings(), redis_url={cluster.redis_url!r},
                  shared_path=Path({str(tmp_path / "shared")!r}))
    topology = Topology(shard_map, parts)
    await topology.open()
    document = Document(0, 0, bytes(32), "b", None, {{}})
    deadline = asyncio.get_running_loop().time() + 10
    outcome = await topology.snapshot.upsert(shard_map.collections["docs"], [document], deadline)
    assert outcome.stored == 1
    await topology.close()
    print("b")

asyncio.run(main())
"""
    return [sys.executable, "-c", code]
