"""A router that looks at its shards' tables while it runs."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
import msgspec
import pytest

from deploy.local import Cluster
from router.freshness.worker_counters import create
from router.nodes.node import Node
from router.policy.limit import Limit
from router.query.types import Found
from router.schema.findings import Severity
from router.schema.watch import _ask
from router.settings import Settings
from router.topology import Parts, Topology
from shard_config import load, model
from tests.conftest import Serve
from tests.integration.apps import applied_map, collection, pgscatter, write_map
from tests.integration.worlds import World, execute, hits, patient, replayed, shard_map, until, world

SHARDS = ("s0", "s1", "s2", "s3")


async def on_s1(w: World, statement: str) -> None:
    """On the primary, and awaited on the replica, which would answer as before for a moment."""
    await execute(w.cluster.node("s1-a").dsn, statement.format(table=w.collection.table))
    await replayed(w.cluster)


def failed(found: Found) -> list[str]:
    return [failure.shard for failure in found.answer.coverage.failures]


ALTERED = {
    "renamed": ("RENAME COLUMN embedding TO vector", "RENAME COLUMN vector TO embedding"),
    "narrowed": (
        "ALTER COLUMN embedding TYPE vector(3) USING subvector(embedding, 1, 3)",
        "ALTER COLUMN embedding TYPE vector(8) USING embedding || '[0,0,0,0,0]'",
    ),
}


@pytest.mark.parametrize("change", ["renamed", "narrowed"])
async def test_a_shard_whose_searches_fail_is_not_ready_until_it_is_mended(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    """The interval is too long to matter: it is the failing search that has the shard looked at."""
    async with world(cluster, patient(schema_check_interval=1000.0)) as w:
        await w.put(*(w.document(i, [float(i)] * 8) for i in range(30)))
        assert w.router.ready() == (True, dict.fromkeys(SHARDS, True))
        done, undone = ALTERED[change]
        await on_s1(w, f"ALTER TABLE {{table}} {done}")
        assert failed(await w.search([1.0] * 8)) == ["s1"]
        await until(lambda: not w.router.ready()[1]["s1"])
        assert w.router.ready() == (True, dict.fromkeys(SHARDS, True) | {"s1": False})
        state = w.router.schema()
        assert {name: set(shards) for name, shards in state.unsearchable.items()} == {"docs": {"s1"}}
        assert {one.shard for one in state.findings if one.severity is Severity.ERROR} == {"s1"}
        said = [one for one in caplog.records if one.msg == "schema not as the map says"]
        # The table of this test lacks its index everywhere, which is told at the start.
        assert len([one for one in said if "error: docs: column" in str(vars(one)["findings"])]) == 1
        await on_s1(w, f"ALTER TABLE {{table}} {undone}")
        await until(lambda: w.router.ready()[1]["s1"])
        assert not w.router.schema().wrong
        assert failed(await w.search([1.0] * 8, k=9)) == []


@pytest.mark.parametrize("type_", ["halfvec(8)", "sparsevec(8)"])
async def test_vectors_of_another_type_on_one_shard_are_shown_as_they_are(
    cluster: Cluster, type_: str
) -> None:
    """Their bytes mean something else: they would be read as other vectors, or not at all."""
    async with world(cluster, patient(schema_check_interval=0.0)) as w:
        await w.put(*(w.document(i, [float(i), *[1.0] * 7]) for i in range(30)))
        await on_s1(w, f"ALTER TABLE {{table}} ALTER COLUMN embedding TYPE {type_} USING embedding::{type_}")
        for exact in (False, True):
            found = await w.search([0.0] * 8, k=30, exact=exact, include=frozenset({"vector"}))
            shown = {hit["id"]: hit["vector"] for hit in hits(found)}
            assert shown == {i: [float(i), *[1.0] * 7] for i in range(30)}
        moved = next(hit["id"] for hit in hits(found) if hit["shard"] == "s1")
        read = await w.router.read(w.collection, moved, frozenset({"vector"}), w.soon())
        assert read is not None
        assert msgspec.json.decode(msgspec.json.encode(read.document))["vector"] == shown[moved]


async def test_a_write_that_the_table_refuses_for_good_has_the_shard_looked_at(cluster: Cluster) -> None:
    async with world(cluster, patient(schema_check_interval=1000.0)) as w:
        await on_s1(w, "ALTER TABLE {table} DROP COLUMN price")
        assert not w.router.schema().wrong
        documents = [w.document(i, [float(i)] * 8, price=1.0) for i in range(30)]
        await w.router.upsert(w.collection, documents, w.soon())
        await until(lambda: w.router.schema().wrong)
        (finding,) = [one for one in w.router.schema().findings if one.severity is Severity.ERROR]
        assert (finding.shard, finding.message.split(";")[0]) == ("s1", "column price is missing")
        # Searches do without it.
        assert w.router.ready()[1]["s1"]


OTHER_WORKER = """
import sys
from pathlib import Path
from router.freshness.worker_counters import WorkerCounters
from shard_config import load
WorkerCounters(load(sys.argv[1]), Path(sys.argv[2])).note_schema("s1")
"""


async def test_a_worker_looks_where_another_has_found_a_change(cluster: Cluster, tmp_path: Path) -> None:
    path = applied_map(cluster, tmp_path, docs=collection())
    shard_map, shared = load(path), tmp_path / "shared"
    create(shared, shard_map)
    topology = Topology(
        shard_map, Parts(shard_map, patient(schema_check_interval=1000.0), shared_path=shared)
    )
    await topology.open()
    try:
        table = shard_map.collections["docs"].table
        await execute(cluster.node("s1-a").dsn, f"DROP TABLE {table}")
        await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", OTHER_WORKER, str(path), str(shared)], check=True
        )
        # Nobody has searched here.
        await until(lambda: topology.snapshot.schema().wrong)
        assert not topology.snapshot.ready()[1]["s1"]
    finally:
        await topology.close()


async def test_a_node_without_the_extension_is_looked_at_over_a_connection_of_its_own(
    cluster: Cluster,
) -> None:
    dsn = cluster.node("s1-a").dsn
    await execute(dsn, "CREATE DATABASE without_extension")
    shards = shard_map(cluster)
    other = urlunsplit(urlsplit(dsn)._replace(path="/without_extension"))
    node = Node(model.Node("s1-a", other), "s1", Settings(), Limit(1, 1))
    try:
        facts = await _ask(node, [shards.collections["docs"]])
    finally:
        await node.close()
        await execute(dsn, "DROP DATABASE without_extension WITH (FORCE)")
    assert (facts.versions.pgvector, facts.tables["docs"].vector) == (None, None)


async def test_an_interval_of_zero_looks_at_nothing(cluster: Cluster) -> None:
    async with world(cluster, patient(schema_check_interval=0.0)) as w:
        await on_s1(w, "ALTER TABLE {table} RENAME COLUMN embedding TO vector")
        assert failed(await w.search([1.0] * 8)) == ["s1"]
        await asyncio.sleep(0.1)
        assert w.router.schema().findings == ()


def test_serve_starts_without_tables_and_says_so_until_they_are_there(
    cluster: Cluster, serve: Serve, tmp_path: Path
) -> None:
    entries = {"docs": collection(), "other": collection()}
    path = write_map(cluster, tmp_path / "map.yaml", entries)

    def get(path: str) -> httpx.Response:
        return httpx.get(f"{url}{path}", timeout=30)

    def metrics() -> dict[str, float]:
        text = get("/metrics").text
        found = re.findall(r'pgscatter_schema_findings\{severity="error",shard="(s\d)"\} (\S+)', text)
        return {shard: float(value) for shard, value in found}

    def wait(status: int, shards: dict[str, bool]) -> None:
        ends = time.monotonic() + 20
        while (answer := get("/readyz")).json()["shards"] != shards:
            assert time.monotonic() < ends, answer.text
            time.sleep(0.05)
        assert answer.status_code == status

    with serve(path, schema_check_interval=1) as url:
        wait(503, dict.fromkeys(SHARDS, False))
        assert get("/readyz").json()["ready"] is False
        assert get("/health").json()["status"] == "unavailable"
        # One collection is enough to be ready for something; no shard is, for all that it holds.
        pgscatter("schema", "apply", "--map", path, "--collection", "docs")
        ends = time.monotonic() + 20
        # Ready as soon as one shard is seen to hold `docs`; the others are looked at a moment later.
        while (health := get("/health").json())["schema"]["error"] != len(SHARDS):
            assert time.monotonic() < ends, health
            time.sleep(0.05)
        assert get("/readyz").status_code == 200
        assert health["status"] == "degraded"
        assert {
            "shard": "s3",
            "severity": "error",
            "message": f"lacks table {entries['other']['table']}",
            "collection": "other",
            "nodes": [],
            "searchable": False,
        } in health["schema"]["findings"]
        assert metrics()["s3"] >= 1
        search = {"vector": [1, 2, 3, 4], "k": 1, "timeout_ms": 30_000}
        answer = httpx.post(f"{url}/v1/collections/docs/search", json=search, timeout=60)
        assert answer.json()["coverage"]["full"] is True
        pgscatter("schema", "apply", "--map", path)
        wait(200, dict.fromkeys(SHARDS, True))
        health = get("/health").json()
        assert (health["status"], "schema" in health) == ("ok", False)
        assert metrics() == dict.fromkeys(SHARDS, 0.0)
