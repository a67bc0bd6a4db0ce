"""Acknowledged writes that a shard has lost: the answers say so, and nothing else is taken for a loss."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.local import Cluster
from router.topology import Parts, Topology
from tests.faults.test_failover import FAST, ROWS, filled, has_rows, node, until
from tests.integration.worlds import World, execute, world

ORIGIN = [0.0] * 8


async def lost(w: World, name: str) -> int:
    async with asyncio.timeout(20):
        while not (status := node(w, name)).lost_bytes or status.state != "up":
            await asyncio.sleep(0.02)
    return status.lost_bytes


def copy(cluster: Cluster, name: str, to: Path) -> None:
    """A cold backup of a server that is not running, with its owner and rights."""
    subprocess.run(["cp", "-a", cluster.directory / "nodes" / name / "data", to], check=True)


def restore(cluster: Cluster, name: str, source: Path) -> None:
    data = cluster.directory / "nodes" / name / "data"
    shutil.rmtree(data)
    subprocess.run(["cp", "-a", source, data], check=True)


async def test_a_shard_that_was_restored_from_an_older_backup_says_what_it_has_lost(
    pair: Cluster, tmp_path: Path
) -> None:
    async with filled(pair) as w:
        # Its replica stays as old as the backup.
        for name in ("s0-b", "s0-a"):
            await asyncio.to_thread(pair.stop, name)
        await asyncio.to_thread(copy, pair, "s0-a", tmp_path / "backup")
        await asyncio.to_thread(pair.start, "s0-a")
        await until(w, "s0-a", state="up")
        await w.put(*(w.document(i, [float(i)] * 8) for i in range(ROWS, ROWS + 88)))
        before = await w.search(ORIGIN, k=200)
        assert (before.answer.count, before.answer.coverage.lost) == (ROWS + 88, ())
        await asyncio.to_thread(pair.stop, "s0-a")
        await until(w, "s0-a", state="down")
        await asyncio.to_thread(restore, pair, "s0-a", tmp_path / "backup")
        await asyncio.to_thread(pair.start, "s0-a")
        bytes_ = await lost(w, "s0-a")
        assert bytes_ > 88 * 32
        # What was cached before is not told any more.
        after = await w.search(ORIGIN, k=200)
        assert (after.answer.count, after.answer.coverage.lost) == (ROWS, ("s0",))
        assert (await w.router.count(w.collection, None, w.soon())).coverage.lost == ("s0",)
        async with w.over_http() as client:
            health = (await client.get("http://router/health")).json()
            assert (health["status"], health["lost_bytes"]) == ("degraded", {"s0": bytes_})
            metrics = (await client.get("http://router/metrics")).text
            assert f'pgscatter_shard_lost_bytes{{shard="s0"}} {float(bytes_)}' in metrics
            body = {"vector": ORIGIN, "k": 1}
            answer = (await client.post("http://router/v1/collections/docs/search", json=body)).json()
            assert answer["coverage"]["lost"] == ["s0"]
            missing = await client.get(f"http://router/v1/collections/docs/documents/{ROWS}")
            assert missing.status_code == 404
            assert "s0 has lost writes that were acknowledged" in missing.json()["detail"]
        # What is written from now on is there, and no new loss.
        await w.put(w.document(1000, ORIGIN))
        await asyncio.sleep(3 * FAST.probe_interval)
        assert node(w, "s0-a").lost_bytes == bytes_


async def test_a_router_that_is_started_after_the_restore_learns_of_the_loss_from_redis(
    pair: Cluster, tmp_path: Path
) -> None:
    async with world(pair, FAST, redis=True) as w:
        await w.put(*(w.document(i, ORIGIN) for i in range(ROWS)))
        await has_rows(pair, "s0-b", w)
        await asyncio.to_thread(pair.stop, "s0-b")
        await asyncio.to_thread(pair.stop, "s0-a")
        await asyncio.to_thread(copy, pair, "s0-a", tmp_path / "backup")
        await asyncio.to_thread(pair.start, "s0-a")
        await until(w, "s0-a", state="up")
        await w.put(*(w.document(i, ORIGIN) for i in range(ROWS, 2 * ROWS)))
        await asyncio.to_thread(pair.stop, "s0-a")
        await asyncio.to_thread(restore, pair, "s0-a", tmp_path / "backup")
        await asyncio.to_thread(pair.start, "s0-a")
        try:
            async with beside(pair, w) as first, asyncio.timeout(30):
                assert node(first, "s0-a").lost_bytes > 0
                # It tells Redis where the log ends now.
                told = False
                while not told:
                    async with beside(pair, w) as later:
                        told = node(later, "s0-a").lost_bytes == 0
        finally:
            await asyncio.to_thread(pair.start, "s0-b")
            await until(w, "s0-a", state="up")


async def test_a_failover_to_a_replica_that_lacked_the_last_write_is_a_loss_to_every_router(
    pair: Cluster,
) -> None:
    async with filled(pair, redis=True) as w, beside(pair, w) as other:
        await asyncio.to_thread(pair.kill, "s0-b")
        await until(w, "s0-b", state="down")
        await w.put(w.document(ROWS, ORIGIN))
        # It learns of the write by a search that may be answered from Redis.
        await other.search(ORIGIN)
        await asyncio.to_thread(pair.kill, "s0-a")
        await promoted(pair, w)
        for one in (w, other):
            bytes_ = await lost(one, "s0-b")
            # The end of recovery alone has written more than that since.
            assert 0 < bytes_ < 8192
            assert (await one.router.count(w.collection, None, w.soon())).coverage.lost == ("s0",)


@asynccontextmanager
async def beside(cluster: Cluster, w: World) -> AsyncIterator[World]:
    """A second router of the same map and Redis."""
    shard_map = w.router.shard_map
    topology = Topology(shard_map, Parts(shard_map, FAST, redis_url=cluster.redis_url))
    await topology.open()
    try:
        yield World(cluster, topology)
    finally:
        await topology.close()


async def test_a_failover_and_a_crash_that_lose_nothing_are_no_loss(pair: Cluster) -> None:
    async with filled(pair) as w:
        for i in range(3):
            await asyncio.to_thread(pair.kill, "s0-a")
            await asyncio.to_thread(pair.start, "s0-a")
            await until(w, "s0-a", state="up")
            await w.put(w.document(ROWS + i, ORIGIN))
        # By its own word: the router may not know yet how far the primary has come.
        await has_rows(pair, "s0-b", w, ROWS + 3)
        await asyncio.to_thread(pair.kill, "s0-a")
        await until(w, "s0-a", state="down")
        await promoted(pair, w)
        await w.put(w.document(ROWS + 9, ORIGIN))
        await asyncio.sleep(3 * FAST.probe_interval)
        assert {status.lost_bytes for status in w.router.nodes()} == {0}


@pytest.mark.full
async def test_commits_that_do_not_wait_for_the_disk_are_no_loss_while_the_server_lives(
    pair: Cluster,
) -> None:
    primary = pair.node("s0-a").dsn
    for name, value in (("synchronous_commit", "off"), ("wal_writer_delay", "'10s'")):
        await execute(primary, f"ALTER SYSTEM SET {name} = {value}")
    await execute(primary, "SELECT pg_reload_conf()")
    try:
        async with filled(pair) as w:
            for i in range(3):
                await w.put(w.document(ROWS + i, ORIGIN))
                await asyncio.sleep(2 * FAST.probe_interval)
                assert {status.lost_bytes for status in w.router.nodes()} == {0}
    finally:
        for name in ("synchronous_commit", "wal_writer_delay"):
            await execute(primary, f"ALTER SYSTEM RESET {name}")
        await execute(primary, "SELECT pg_reload_conf()")


async def promoted(cluster: Cluster, w: World) -> None:
    """Make s0-b the primary, and wait until the router knows."""
    if node(w, "s0-b").state == "down":
        await asyncio.to_thread(cluster.start, "s0-b")
    await execute(cluster.node("s0-b").dsn, "SELECT pg_promote()")
    await until(w, "s0-b", role="primary", state="up")
