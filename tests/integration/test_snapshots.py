"""Two snapshots on the same parts, as while one shard map replaces another."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import numpy as np
import pytest

from deploy.local import Cluster
from router.documents.types import Document
from router.policy.selection import Role
from router.query.types import SearchQuery
from router.topology import Snapshot, assemble
from shard_config import model
from shard_config.partition import locate
from tests.integration.worlds import World, execute, hits, patient, until, world

QUICK = patient(probe_interval=0.1, failover_wait=20.0)
ORIGIN = [0.0] * 8
# That a snapshot adds to each node: the replica set, and the comparison of the map with the shard.
SETS = 1


def next_map(shard_map: model.ShardMap) -> model.ShardMap:
    """The same nodes and table under a later map that searches wider."""
    docs = shard_map.collections["docs"]
    wider = msgspec.structs.replace(docs, search=msgspec.structs.replace(docs.search, ef_search=80))
    return msgspec.structs.replace(shard_map, version=shard_map.version + 1, collections={"docs": wider})


async def first(w: World, snapshot: Snapshot) -> tuple[Any, str]:
    """The nearest document's content, and the tier that told it."""
    collection = snapshot.shard_map.collections["docs"]
    vector = np.asarray(ORIGIN, dtype="<f4").tobytes()
    found = await snapshot.search(
        SearchQuery(collection, vector, 1, include=frozenset(["content"])), w.soon()
    )
    assert found.answer.coverage.full
    return hits(found)[0]["content"], found.tier


async def store(w: World, snapshot: Snapshot, content: str) -> None:
    collection = snapshot.shard_map.collections["docs"]
    document = Document(0, 0, np.zeros(8, dtype="<f4").tobytes(), content, None, {})
    assert (await snapshot.upsert(collection, [document], w.soon())).stored == 1


async def test_a_write_through_either_snapshot_is_seen_through_both(cluster: Cluster) -> None:
    async with world(cluster, QUICK, redis=True) as w:
        assert w.router.cache_stats()["l2_enabled"]
        old, new = w.router, assemble(next_map(w.router.shard_map), w.topology.parts)
        try:
            for number in range(6):
                writer, reader = (old, new) if number % 2 else (new, old)
                await store(w, writer, str(number))
                for snapshot in (reader, writer):
                    assert (await first(w, snapshot))[0] == str(number)
                    assert await first(w, snapshot) == (str(number), "l1")
        finally:
            await new.close()


@pytest.mark.parametrize("leaves", ["old", "new"])
async def test_closing_one_snapshot_leaves_the_other_whole(cluster: Cluster, leaves: str) -> None:
    async with world(cluster, QUICK, redis=True) as w:
        parts, old = w.topology.parts, w.router
        new = assemble(next_map(old.shard_map), parts)
        leaving, staying = (old, new) if leaves == "old" else (new, old)
        w.topology.snapshot = staying
        await store(w, leaving, "before")
        # What is under way on one goes on there until it has ended.
        under_way = [asyncio.create_task(first(w, snapshot)) for snapshot in (old, new) for _ in range(20)]
        assert {content for content, _ in await asyncio.gather(*under_way)} == {"before"}
        await leaving.close()
        assert {(len(node.sets), len(node.listeners)) for node in parts.nodes} == {(1, 1)}
        await store(w, staying, "after")
        assert (await first(w, staying))[0] == "after"
        assert await first(w, staying) == ("after", "l1")
        ready, readable = staying.ready()
        assert ready and all(readable.values())
        assert [status.name for status in staying.nodes()] == [node.name for node in cluster.nodes]
        # It still hears of its nodes: a writer that waits for a primary goes on when there is one.
        for node in parts.nodes:
            if node.state.role is Role.PRIMARY:
                node.observe(msgspec.structs.replace(node.state, role=Role.REPLICA))
        loop = asyncio.get_running_loop()
        started = loop.time()
        await store(w, staying, "later")
        assert loop.time() - started < QUICK.failover_wait
        assert (await first(w, staying))[0] == "later"


async def test_a_map_that_the_parts_were_not_made_for_leaves_nothing_behind(cluster: Cluster) -> None:
    async with world(cluster, QUICK) as w:
        assert not w.router.cache_stats()["l2_enabled"]
        parts, shards = w.topology.parts, dict(w.router.shard_map.shards)
        name = list(shards)[-1]
        stranger = model.Node("stranger", "postgresql://127.0.0.1:1/x")
        shards[name] = msgspec.structs.replace(shards[name], nodes=(*shards[name].nodes, stranger))
        with pytest.raises(KeyError):
            assemble(msgspec.structs.replace(w.router.shard_map, shards=shards), parts)
        collections = {"other": w.collection}
        with pytest.raises(KeyError):
            assemble(msgspec.structs.replace(w.router.shard_map, collections=collections), parts)
        assert {(len(node.sets), len(node.listeners)) for node in parts.nodes} == {(1, 1)}


async def test_an_unconfirmed_write_is_followed_past_the_end_of_its_snapshot(cluster: Cluster) -> None:
    settings = msgspec.structs.replace(QUICK, write_timeout=3.0)
    async with world(cluster, settings, redis=True) as w:
        parts, old = w.topology.parts, w.router
        await store(w, old, "before")
        shard = locate(w.collection.sharding, 0)
        node = next(n for n in parts.nodes if n.shard == shard and n.state.role is Role.PRIMARY)
        async with node.writes.session() as connection:
            pass
        connection.terminate()
        # As a write through the old map that lost its connection, while the server still runs it.
        parts.unconfirmed.add("docs", node, connection)
        new = w.topology.snapshot = assemble(next_map(old.shard_map), parts)
        await old.close()
        assert (await first(w, new))[0] == "before"
        assert "of 1 " in repr(parts.unconfirmed)
        await execute(node.config.dsn, f"UPDATE {w.collection.table} SET content = 'late'")
        await until(lambda: "of 0 " in repr(parts.unconfirmed))
        assert (await first(w, new))[0] == "late"
