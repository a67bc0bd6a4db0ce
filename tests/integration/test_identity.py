"""Maps that do not fit their shards, and nodes that are none of theirs, on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec
import pytest
import yaml

from deploy.local import Cluster
from router.app import compare
from router.policy.selection import Health
from router.query.errors import UnavailableError
from router.query.filter import parse
from router.query.types import SearchQuery
from router.serve_config import ServeConfig
from router.settings import Settings
from router.topology import Parts, Topology
from shard_config import ShardMap, load, model
from shard_config.partition import locate
from tests.integration.apps import collection, pgscatter, write_map
from tests.integration.worlds import World, execute, patient, until

# Statistics would use connections that tests count.
QUICK = patient(probe_interval=0.1, failover_wait=0.5, statistics_interval=0)
ROWS = 40
_readers = itertools.count()


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    """Two shards of their own: what they say of themselves is changed here."""
    with Cluster.temporary(shards=2, replicas=1, fsync=False) as running:
        yield running


def hashed(*, swapped: bool = False, buckets: int = 4) -> dict[str, Any]:
    halves = [[f"0-{buckets // 2 - 1}"], [f"{buckets // 2}-{buckets - 1}"]]
    if swapped:
        halves.reverse()
    placement = dict(zip(("s0", "s1"), halves, strict=True))
    return {"strategy": "hash", "key": "id", "buckets": buckets, "placement": placement}


def changed(path: Path, *, version: int = 1, **fields: Any) -> Path:
    """A map beside the one at `path`, so many versions newer, with other fields of its collection."""
    tree = yaml.safe_load(path.read_text())
    tree["version"] += version
    tree["collections"]["docs"] |= fields
    other = path.with_name(f"changed-{next(_readers)}.yaml")
    other.write_text(yaml.safe_dump(tree, sort_keys=False))
    return other


@pytest.fixture
def path(pair: Cluster, tmp_path: Path) -> Path:
    """A map that was applied, with rows on both shards."""
    made = write_map(pair, tmp_path / "map.yaml", {"docs": collection(sharding=hashed())})
    pgscatter("schema", "apply", "--map", made)
    source = tmp_path / "docs.jsonl"
    source.write_text("".join(f'{{"id": {n}, "vector": [1, 2, 3, {n}]}}\n' for n in range(ROWS)))
    pgscatter("load", source, "--map", made, "--collection", "docs", "--no-index")
    return made


def replaced(shard_map: ShardMap, **nodes: tuple[model.Node, ...]) -> ShardMap:
    """The map with other nodes of some shards."""
    shards = {
        name: model.Shard(name, nodes.get(name, shard.nodes)) for name, shard in shard_map.shards.items()
    }
    return msgspec.structs.replace(shard_map, shards=shards)


def named(node: model.Node, name: str) -> model.Node:
    return msgspec.structs.replace(node, name=name)


@contextlib.asynccontextmanager
async def opened(cluster: Cluster, shard_map: ShardMap, settings: Settings = QUICK) -> AsyncIterator[World]:
    topology = Topology(shard_map, Parts(shard_map, settings))
    await topology.open()
    try:
        yield World(cluster, topology)
    finally:
        await topology.close()


def states(world: World) -> dict[str, str]:
    return {node.name: node.state for node in world.router.nodes()}


async def differences(cluster: Cluster, path: Path) -> list[tuple[str, str, str]]:
    async with opened(cluster, load(path)) as w:
        return [(shard, point.kind, point.text) for shard, point in w.router.disagreements()]


async def test_what_a_shard_was_given_is_written_there_and_shown(pair: Cluster, path: Path) -> None:
    version = load(path).version
    async with opened(pair, load(path)) as w:
        assert w.router.disagreements() == []
        assert w.router.unidentified() == []
        shown = {node.name: (node.holds_shard, node.holds_map, node.state) for node in w.router.nodes()}
        assert shown == {f"s{i}-{j}": (f"s{i}", version, "up") for i in (0, 1) for j in "ab"}
        systems = {node.shard: node.system for node in w.router.nodes()}
        assert len(set(systems.values())) == 2
        # Most of it is the same on all nodes, and large where shards are many: one copy is kept.
        said = [node.state.identity for node in w.topology.parts.nodes]
        assert len({id(one.content) for one in said if one is not None}) == 1
        assert said[0] is not None and set(said[0].content) == {"docs"}


async def test_a_map_that_swaps_buckets_is_not_served(pair: Cluster, path: Path, tmp_path: Path) -> None:
    swapped = changed(path, sharding=hashed(swapped=True))
    found = await differences(pair, swapped)
    assert found == [
        (
            "s0",
            "placement",
            "holds buckets 0-1 of 4 by id of docs, and the map places buckets 2-3 of 4 by id there",
        ),
        (
            "s1",
            "placement",
            "holds buckets 2-3 of 4 by id of docs, and the map places buckets 0-1 of 4 by id there",
        ),
    ]
    command = [sys.executable, "-m", "router.cli", "serve", "--map", str(swapped), "--port", "0"]
    for workers in ("1", "2"):
        line = [*command, "--workers", workers]
        done = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
        assert lines[:3] == [
            f"{swapped} is not served, because it disagrees with its shards:",
            *(f"  {shard} {text}" for shard, _, text in found),
        ]
        assert lines[3].startswith("to mend that: take the placement back to what the shards hold")
        # Once, whoever finds it, and nobody else has a word about the start.
        assert len(lines) == 4
        assert "Traceback" not in done.stderr and "uvicorn" not in done.stderr
    # Nor is it applied or loaded by.
    applied = pgscatter("schema", "apply", "--map", swapped, check=False)
    assert applied.returncode == 1
    assert "rows of public.served_" in applied.stderr and "belong to another shard" in applied.stderr
    source = tmp_path / "more.jsonl"
    source.write_text('{"id": 1000, "vector": [1, 2, 3, 4]}\n')
    loaded = pgscatter("load", source, "--map", swapped, "--collection", "docs", check=False)
    assert loaded.returncode == 1
    assert "s0: s0-a holds buckets 0-1 of 4 by id of docs" in loaded.stderr


async def test_a_map_whose_shards_are_crossed_is_neither_served_nor_applied_nor_loaded_by(
    pair: Cluster, path: Path, tmp_path: Path
) -> None:
    tree = yaml.safe_load(path.read_text())
    shards = tree["shards"]
    shards["s0"], shards["s1"] = shards["s1"], shards["s0"]
    tree["version"] += 1
    crossed = tmp_path / "crossed.yaml"
    crossed.write_text(yaml.safe_dump(tree, sort_keys=False))
    assert {(shard, kind) for shard, kind, _ in await differences(pair, crossed)} == {
        ("s0", "shard"),
        ("s1", "shard"),
    }
    applied = pgscatter("schema", "apply", "--map", crossed, check=False)
    assert applied.returncode == 1
    assert "s0: s1-a says that it is the shard s1; list it there" in applied.stderr
    source = tmp_path / "more.jsonl"
    source.write_text('{"id": 1000, "vector": [1, 2, 3, 4]}\n')
    loaded = pgscatter("load", source, "--map", crossed, "--collection", "docs", check=False)
    assert loaded.returncode == 1
    assert "s0: s1-a says that it is the shard s1: rows would be misplaced" in loaded.stderr


async def test_to_apply_one_collection_says_nothing_of_what_a_shard_holds_of_another(
    pair: Cluster, tmp_path: Path
) -> None:
    collections = {name: collection(sharding=hashed()) for name in ("docs", "notes")}
    made = write_map(pair, tmp_path / "map.yaml", collections)
    tables = {name: str(one.table) for name, one in load(made).collections.items()}
    connection = await asyncpg.connect(pair.node("s0-a").dsn)
    newest = "SELECT holds::text FROM pgscatter.map ORDER BY version DESC LIMIT 1"

    async def held() -> set[str]:
        return set(tables.values()) & set(msgspec.json.decode(await connection.fetchval(newest)))

    pgscatter("schema", "apply", "--map", made, "--collection", "docs")
    assert await held() == {tables["docs"]}
    pgscatter("schema", "apply", "--map", made, "--collection", "notes")
    assert await held() == set(tables.values())
    await connection.close()


async def test_a_collection_that_leaves_the_map_and_comes_back_elsewhere_leaves_no_rows_behind(
    pair: Cluster, path: Path
) -> None:
    kept = path.read_text()
    tree = yaml.safe_load(kept)
    table = tree["collections"]["docs"]["table"]
    tree["version"] += 1
    tree["collections"] = {"other": collection(sharding=hashed())}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    pgscatter("schema", "apply", "--map", path)
    path.write_text(kept)
    alone = {"strategy": "hash", "key": "id", "buckets": 1, "placement": {"s1": [0]}}
    back = changed(path, version=2, sharding=alone)
    done = pgscatter("schema", "apply", "--map", back, check=False)
    assert done.returncode == 1
    assert f"rows of {table} are there, and the map places none there" in done.stderr
    assert ("s0", "placement") in {(shard, kind) for shard, kind, _ in await differences(pair, back)}
    # Dropped, they hold nothing any more.
    other = tree["collections"]["other"]["table"]
    await execute(pair.node("s0-a").dsn, f"DROP TABLE {table}, {other}")
    pgscatter("schema", "apply", "--map", back)
    assert await differences(pair, back) == []
    connection = await asyncpg.connect(pair.node("s0-a").dsn)
    held = await connection.fetchval("SELECT holds FROM pgscatter.map ORDER BY version DESC LIMIT 1")
    assert not {table, other} & set(msgspec.json.decode(held))
    await connection.close()


async def test_a_collection_that_was_never_applied_is_served_with_a_word_about_it(
    pair: Cluster, path: Path
) -> None:
    """Its table may have been there before, with rows wherever an application put them."""
    tree = yaml.safe_load(path.read_text())
    tree["version"] += 1
    tree["collections"]["new"] = collection(sharding=hashed(swapped=True))
    table = tree["collections"]["new"]["table"]
    newer = path.with_name("newer.yaml")
    newer.write_text(yaml.safe_dump(tree, sort_keys=False))
    async with opened(pair, load(newer)) as w:
        assert (w.router.disagreements(), w.router.unidentified()) == ([], ["s0", "s1"])
        pgscatter("schema", "apply", "--map", newer)
        await until(lambda: not w.router.unidentified())
    for node in ("s0-a", "s1-a"):
        await execute(pair.node(node).dsn, f"DROP TABLE {table}")


async def test_maps_of_an_older_version_and_of_the_same_with_other_content_are_told(
    pair: Cluster, path: Path
) -> None:
    older = changed(path, version=-1)
    version = load(path).version
    text = f"has version {version} of the map, and this is version {version - 1}"
    assert await differences(pair, older) == [("s0", "older", text), ("s1", "older", text)]
    done = pgscatter("schema", "apply", "--map", older, check=False)
    assert (done.returncode, f"s0: it {text}" in done.stderr) == (1, True)
    edited = changed(path, version=0, search={"timeout": "20s", "ef_search": 77})
    (first, second) = await differences(pair, edited)
    text = f"has another map of the same version {version}: docs.search.ef_search is 40 there and 77 here"
    assert first == ("s0", "content", text)
    assert second[0] == "s1"
    done = pgscatter("schema", "apply", "--map", edited, check=False)
    assert (done.returncode, f"s1: it {text}" in done.stderr) == (1, True)


async def test_a_newer_map_is_served_before_it_is_applied_and_halfway(pair: Cluster, path: Path) -> None:
    newer = changed(path, search={"timeout": "20s", "ef_search": 77})
    assert await differences(pair, newer) == []
    # An apply that ended between the shards.
    shard_map = load(newer)
    await execute(
        pair.node("s1-a").dsn,
        "INSERT INTO pgscatter.map SELECT version + 1, 'x', shard, holds, content FROM pgscatter.map"
        " ORDER BY version DESC LIMIT 1",
    )
    await execute(pair.node("s1-a").dsn, "UPDATE pgscatter.map SET content = '{}' WHERE digest = 'x'")
    halfway = await differences(pair, path)
    assert [(shard, kind) for shard, kind, _ in halfway] == [("s1", "older")]
    await execute(pair.node("s1-a").dsn, "DELETE FROM pgscatter.map WHERE digest = 'x'")
    await execute(
        pair.node("s1-a").dsn,
        "INSERT INTO pgscatter.map SELECT n, digest, shard, holds, content"
        " FROM generate_series(-150, -1) n, LATERAL (SELECT * FROM pgscatter.map LIMIT 1) one",
    )
    pgscatter("schema", "apply", "--map", newer)
    assert await differences(pair, newer) == []
    connection = await asyncpg.connect(pair.node("s1-a").dsn)
    assert await connection.fetchval("SELECT count(*) FROM pgscatter.map") == 100
    await connection.close()
    assert (await differences(pair, path))[0][1] == "older"
    assert shard_map.version == load(path).version + 1


async def test_a_placement_is_taken_over_as_long_as_no_row_lies_otherwise(pair: Cluster, path: Path) -> None:
    # Twice the buckets, split as before.
    finer = {"s0": ["0-1", "4-5"], "s1": ["2-3", "6-7"]}
    finer_map = changed(path, sharding={**hashed(buckets=8), "placement": finer})
    assert await differences(pair, finer_map) == []
    pgscatter("schema", "apply", "--map", finer_map)
    # Another split, once the tables are empty.
    other = changed(finer_map, sharding=hashed(buckets=8))
    assert [kind for _, kind, _ in await differences(pair, other)] == ["placement", "placement"]
    assert pgscatter("schema", "apply", "--map", other, check=False).returncode == 1
    table = load(path).collections["docs"].table
    for shard in ("s0-a", "s1-a"):
        await execute(pair.node(shard).dsn, f"TRUNCATE {table}")
    pgscatter("schema", "apply", "--map", other)
    assert await differences(pair, other) == []
    # A shard that loses all of it is asked for rows too.
    await execute(pair.node("s0-a").dsn, f"INSERT INTO {table} (id, embedding) VALUES (1, '[1,2,3,4]')")
    alone = changed(other, sharding={"strategy": "hash", "key": "id", "buckets": 1, "placement": {"s1": [0]}})
    done = pgscatter("schema", "apply", "--map", alone, check=False)
    assert f"s0: docs: 1 rows of {table} are there, and the map places none there" in done.stderr


async def test_a_node_of_another_shard_is_never_read(pair: Cluster, path: Path) -> None:
    shard_map = load(path)
    (a, _), (c, d) = (shard_map.shards[name].nodes for name in ("s0", "s1"))
    # Each shard has its primary, and the other's replica.
    crossed = replaced(shard_map, s0=(a, named(d, "wrong")), s1=(c,))
    async with opened(pair, crossed) as w:
        assert states(w) == {"s0-a": "up", "wrong": "foreign", "s1-a": "up"}
        for _ in range(20):
            answer = await w.router.count(w.collection, None, w.soon())
            assert (answer.count, answer.coverage.full) == (ROWS, True)
        ((shard, point),) = w.router.disagreements()
        assert (shard, point.kind) == ("s0", "shard")
        assert point.text == "has the node wrong, which says that it is the shard s1"
    # A cluster from before shards said who they are: the system tells.
    for node in (a, c):
        await execute(node.dsn, "TRUNCATE pgscatter.map")
    async with opened(pair, crossed) as w:
        await until(lambda: states(w)["wrong"] == "foreign")
        assert w.router.unidentified() == ["s0", "s1"]
        assert (await w.router.count(w.collection, None, w.soon())).count == ROWS


async def test_one_server_under_two_names_counts_once(pair: Cluster, path: Path) -> None:
    shard_map = load(path)
    (a, _), (c, _) = (shard_map.shards[name].nodes for name in ("s0", "s1"))
    async with opened(pair, replaced(shard_map, s0=(a, named(a, "again")))) as w:
        assert states(w) == {"s0-a": "up", "again": "foreign", "s1-a": "up", "s1-b": "up"}
        assert w.router.disagreements() == []
        assert (await w.router.count(w.collection, None, w.soon())).count == ROWS
    for node in (a, c):
        await execute(node.dsn, "TRUNCATE pgscatter.map")
    # Nobody says which is right: the first is read, and the other shard is missing instead of wrong.
    async with opened(pair, replaced(shard_map, s0=(a,), s1=(named(a, "again"),))) as w:
        assert states(w) == {"s0-a": "up", "again": "foreign"}
        answer = await w.router.count(w.collection, None, w.soon())
        assert answer.count < ROWS
        assert not answer.coverage.full
        (failure,) = answer.coverage.failures
        assert failure.shard == "s1"
        assert "it is the server that is listed as s0-a of s0 already" in failure.error


async def test_a_placement_that_changes_under_a_router_stops_that_collection_alone(
    pair: Cluster, path: Path
) -> None:
    tree = yaml.safe_load(path.read_text())
    tree["version"] += 1
    tree["collections"]["other"] = collection(sharding=hashed())
    both = path.with_name("both.yaml")
    both.write_text(yaml.safe_dump(tree, sort_keys=False))
    pgscatter("schema", "apply", "--map", both)
    shard_map = load(both)
    docs, other = shard_map.collections["docs"], shard_map.collections["other"]
    async with opened(pair, shard_map) as w:
        tree["version"] += 1
        tree["collections"]["other"]["sharding"] = hashed(swapped=True)
        both.write_text(yaml.safe_dump(tree, sort_keys=False))
        pgscatter("schema", "apply", "--map", both)
        said = {(shard, kind) for shard in ("s0", "s1") for kind in ("older", "placement")}
        await until(lambda: {(shard, one.kind) for shard, one in w.router.disagreements()} == said)
        document = w.document(1, [0, 0, 0, 0])
        for refused in (
            w.router.upsert(other, [document], w.soon()),
            w.router.read(other, 1, frozenset(), w.soon()),
            w.router.delete(other, [1], w.soon()),
            w.router.count(other, None, w.soon()),
            w.router.search(SearchQuery(other, bytes(16), 1), w.soon()),
            w.router.delete_matching(other, parse(other, {"id": 1}, QUICK), w.soon()),
        ):
            with pytest.raises(UnavailableError, match="does not say where the rows of other are") as caught:
                await refused
            assert "holds buckets 2-3 of 4 by id of other" in caught.value.problems[0].message
            assert "buckets" not in str(caught.value.told(inside=False))
            assert caught.value.told(inside=False)[1][0].path == "shards.s0"
        assert (await w.router.count(docs, None, w.soon())).count == ROWS
        async with w.over_http() as client:
            answer = await client.get("http://router/v1/collections/other/documents/1")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            health = (await client.get("http://router/health")).json()
            assert health["status"] == "degraded"
            assert {(one["shard"], one["kind"]) for one in health["disagreements"]} == said
            metrics = (await client.get("http://router/metrics")).text
            assert 'pgscatter_shard_disagreements{shard="s0"} 2.0' in metrics
            assert 'pgscatter_node_state{node="s0-a",shard="s0",state="up"} 1.0' in metrics


async def test_a_shard_that_does_not_say_who_it_is_is_served_with_a_word_about_it(
    pair: Cluster, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    role = f"reader_{next(_readers)}"
    shard_map = load(path)
    primaries = [shard.nodes[0] for shard in shard_map.shards.values()]
    table = shard_map.collections["docs"].table
    for node in primaries:
        await execute(node.dsn, f"CREATE ROLE {role} LOGIN; GRANT SELECT ON {table} TO {role}")
    reading = replaced(
        shard_map,
        **{
            name: tuple(
                msgspec.structs.replace(node, dsn=node.dsn.replace("postgres@", f"{role}@"))
                for node in shard.nodes
            )
            for name, shard in shard_map.shards.items()
        },
    )
    # Whoever may read a table may read who the shard is, and what system.
    async with opened(pair, reading) as w:
        assert w.router.unidentified() == []
        assert all(node.system and node.holds_shard for node in w.router.nodes())
        for node in primaries:
            await execute(node.dsn, "REVOKE SELECT ON pgscatter.map FROM PUBLIC")
        await until(lambda: w.router.unidentified() == ["s0", "s1"])
        compare(w.router, ServeConfig(str(path)))
        said = [record for record in caplog.records if record.message == "identity of shards unknown"]
        assert [record.__dict__["shards"] for record in said] == [["s0", "s1"]]
        assert set(states(w).values()) == {"up"}
        assert (await w.router.count(w.collection, None, w.soon())).count == ROWS
        for node in primaries:
            await execute(node.dsn, "DROP TABLE pgscatter.map")
        await asyncio.sleep(0.5)
        assert w.router.unidentified() == ["s0", "s1"]
        assert set(states(w).values()) == {"up"}
        pgscatter("schema", "apply", "--map", path)
        await until(lambda: w.router.unidentified() == [])
    # A role that may not create it says so, and does the rest.
    for node in primaries:
        await execute(node.dsn, f"DROP TABLE pgscatter.map; ALTER TABLE {table} OWNER TO {role}")
    other = path.with_name("role.yaml")
    other.write_text(path.read_text().replace("postgres@", f"{role}@"))
    done = pgscatter("schema", "apply", "--map", other)
    assert "note: which shard this is could not be recorded (permission denied" in done.stdout
    pgscatter("schema", "apply", "--map", path)


async def test_a_shard_whose_word_is_locked_or_cannot_be_understood_is_served(
    pair: Cluster, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(pair, load(path), msgspec.structs.replace(QUICK, probe_timeout=5.0)) as w:
        connection = await asyncpg.connect(pair.node("s0-a").dsn)
        async with connection.transaction():
            # Somebody drops it, and has not decided yet. It is locked on the replica as well.
            await connection.execute("LOCK TABLE pgscatter.map IN ACCESS EXCLUSIVE MODE")
            # A probe that waited for it would have no answer in time.
            locked = asyncio.get_running_loop().time()
            await until(lambda: all(node.probed > locked for node in w.topology.parts.nodes))
            assert set(states(w).values()) == {"up"}
            assert w.router.unidentified() == []
        newest = "WHERE version = (SELECT max(version) FROM pgscatter.map)"
        spoilt = await connection.fetchval(f"SELECT holds::text FROM pgscatter.map {newest}")
        await connection.execute(f"UPDATE pgscatter.map SET holds = '[1]' {newest}")
        await until(lambda: w.router.unidentified() == ["s0"])
        assert set(states(w).values()) == {"up"}
        said = [record for record in caplog.records if record.message == "identity not understood"]
        assert {record.__dict__["node"] for record in said} <= {"s0-a", "s0-b"}
        assert "run `pgscatter schema apply`" in said[0].__dict__["reason"]
        done = pgscatter("map", "check", "--map", path, check=False)
        assert f"s0: s0-a cannot be asked: version {load(path).version} in pgscatter.map" in done.stderr
        # The same version, and the same digest.
        moved = spoilt.replace('"0-1"', '"2-3"')
        await connection.execute(f"UPDATE pgscatter.map SET holds = $1 {newest}", moved)
        await until(lambda: [point.kind for _, point in w.router.disagreements()] == ["placement"])
        await connection.execute(f"UPDATE pgscatter.map SET holds = $1 {newest}", spoilt)
        await connection.close()


async def test_a_node_that_leads_to_another_database_of_its_server_is_never_read(
    pair: Cluster, path: Path
) -> None:
    shard_map = load(path)
    a, b = shard_map.shards["s0"].nodes
    table = shard_map.collections["docs"].table
    await execute(a.dsn, "CREATE DATABASE another")
    columns = "id bigint PRIMARY KEY, embedding vector(4), content text, metadata jsonb"
    await execute(
        another(a).dsn,
        f"CREATE EXTENSION vector; CREATE TABLE {table} ({columns}, category text, price float8)",
    )
    async with opened(pair, replaced(shard_map, s0=(a, another(b)))) as w:
        await until(lambda: states(w)["s0-b"] == "foreign")
        for _ in range(20):
            answer = await w.router.count(w.collection, None, w.soon())
            assert (answer.count, answer.coverage.full) == (ROWS, True)
        reasons = {node.name: node.reason for node in w.router.nodes()}
        assert reasons["s0-b"] == "its database is another, and that of s0 is postgres"
    await execute(a.dsn, "DROP DATABASE another WITH (FORCE)")


async def test_an_address_that_leads_to_servers_of_several_shards_brings_no_rows_of_another(
    pair: Cluster, path: Path
) -> None:
    shard_map = load(path)
    a, c = shard_map.shards["s0"].nodes[0], shard_map.shards["s1"].nodes[0]
    async with forwarding(a) as (address, lead):
        async with opened(pair, replaced(shard_map, s0=(address,), s1=(c,))) as w:
            assert (await w.router.count(w.collection, None, w.soon())).count == ROWS
            # The connection for probes stays where it is.
            lead(c)
            (node,) = (one for one in w.topology.parts.nodes if one.shard == "s0")
            node.reads.discard_idle()
            answer = await w.router.count(w.collection, None, w.soon())
            assert answer.count < ROWS
            (failure,) = answer.coverage.failures
            assert "its address leads to more than one server" in failure.error
            assert states(w)["s0-a"] == "up"
            lead(a)
            assert (await w.router.count(w.collection, None, w.soon())).count == ROWS


async def test_what_a_node_answers_that_was_found_to_be_foreign_meanwhile_does_not_count(
    pair: Cluster, path: Path
) -> None:
    shard_map = load(path)
    # No probe says meanwhile that they are well.
    async with opened(pair, shard_map, msgspec.structs.replace(QUICK, probe_interval=1000.0)) as w:
        table = w.collection.table
        (a, b) = (node for node in w.topology.parts.nodes if node.shard == "s0")
        b.observe(msgspec.structs.replace(b.state, health=Health.DOWN))
        blocker = await asyncpg.connect(pair.node("s0-a").dsn)
        async with blocker.transaction():
            await blocker.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            counting = asyncio.create_task(w.router.count(w.collection, None, w.soon()))
            await until(lambda: a.reads.in_flight)
            a.observe(msgspec.structs.replace(a.state, health=Health.FOREIGN))
            b.observe(msgspec.structs.replace(b.state, health=Health.FOREIGN))
        await blocker.close()
        answer = await counting
        assert not answer.coverage.full
        (failure,) = answer.coverage.failures
        assert "the node is none of this shard" in failure.error
        # Nor is the connection used again.
        await until(lambda: not a.reads.in_flight)
        assert a.reads.connections == 0


@contextlib.asynccontextmanager
async def forwarding(node: model.Node) -> AsyncIterator[tuple[model.Node, Callable[[model.Node], None]]]:
    """The node at an address from which new connections can be led to another one."""
    parts, target = urlsplit(node.dsn), [node]

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to = urlsplit(target[0].dsn)
        far_reader, far_writer = await asyncio.open_connection(to.hostname, to.port)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    moved = parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}").geturl()
    try:
        yield msgspec.structs.replace(node, dsn=moved), lambda to: target.__setitem__(0, to)
    finally:
        server.close()


def another(node: model.Node) -> model.Node:
    return msgspec.structs.replace(node, dsn=node.dsn.removesuffix("postgres") + "another")


async def test_rows_that_were_put_behind_the_routers_back_are_found(pair: Cluster, path: Path) -> None:
    checked = pgscatter("map", "check", "--map", path)
    assert checked.stdout.splitlines()[-1] == f"every row that {path} speaks of is where it says"
    table = load(path).collections["docs"].table
    counts = {}
    for shard in ("s0", "s1"):
        connection = await asyncpg.connect(pair.node(f"{shard}-a").dsn)
        counts[shard] = await connection.fetchval(f"SELECT count(*) FROM {table}")
        ids = [row[0] for row in await connection.fetch(f"SELECT id FROM {table} ORDER BY id LIMIT 2")]
        await connection.close()
    for id_ in ids:
        await execute(
            pair.node("s0-a").dsn, f"INSERT INTO {table} (id, embedding) VALUES ({id_}, '[1,2,3,4]')"
        )
    checked = pgscatter("map", "check", "--map", path, check=False)
    assert checked.returncode == 1
    assert f"s1: docs: {counts['s1']} rows" in checked.stdout.splitlines()
    assert checked.stderr.splitlines() == [
        f"s0: docs: 2 of {counts['s0'] + 2} rows of {table} belong elsewhere by this map: 2 on s1;"
        f" the first are id '{ids[0]}' (s1), '{ids[1]}' (s1)"
    ]


async def test_a_large_table_is_checked_in_stretches_that_miss_no_row(
    pair: Cluster, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.schema.placed._PAGES", 3)
    docs = load(path).collections["docs"]
    ids = range(10_000, 12_000)
    await execute(
        pair.node("s0-a").dsn,
        f"INSERT INTO {docs.table} (id, embedding)"
        f" SELECT id, '[1,2,3,4]' FROM generate_series({ids.start}, {ids.stop - 1}) id;"
        # Pages without rows, and rows in other places than they were.
        f" DELETE FROM {docs.table} WHERE id BETWEEN 10100 AND 10499;"
        f" UPDATE {docs.table} SET content = 'moved' WHERE id BETWEEN 10500 AND 10599",
    )
    wrong = [i for i in ids if not 10_100 <= i < 10_500 and locate(docs.sharding, i) == "s1"]
    right = [i for i in range(ROWS) if locate(docs.sharding, i) == "s0"]
    done = pgscatter("map", "check", "--map", path, check=False)
    rows = f"{len(ids) - 400 + len(right):,} rows of {docs.table}"
    assert f"{len(wrong)} of {rows} belong elsewhere" in done.stderr
    await execute(pair.node("s0-a").dsn, f"DELETE FROM {docs.table} WHERE id >= {ids.start}")
    assert pgscatter("map", "check", "--map", path).returncode == 0


async def test_a_check_names_wrong_nodes_wrong_placement_and_ids_that_stand_twice(
    pair: Cluster, tmp_path: Path
) -> None:
    listed = {"strategy": "list", "key": "category", "placement": {"s0": ["a"]}, "default": "s1"}
    made = write_map(pair, tmp_path / "map.yaml", {"docs": collection(sharding=listed)})
    pgscatter("schema", "apply", "--map", made)
    table = load(made).collections["docs"].table
    for shard, row in (("s0", "(7, 'a')"), ("s1", "(7, 'b'), (8, 'a'), (9, 'c')"), ("s0", "(10, 'd')")):
        values = row.replace("(7, ", "(7, '[1,2,3,4]', ").replace("(8, ", "(8, '[1,2,3,4]', ")
        values = values.replace("(9, ", "(9, '[1,2,3,4]', ").replace("(10, ", "(10, '[1,2,3,4]', ")
        await execute(
            pair.node(f"{shard}-a").dsn, f"INSERT INTO {table} (id, embedding, category) VALUES {values}"
        )
    tree = yaml.safe_load(made.read_text())
    tree["shards"]["s0"]["nodes"][1]["dsn"] = pair.node("s1-b").dsn.replace("127.0.0.1", "localhost")
    made.write_text(yaml.safe_dump(tree, sort_keys=False))
    done = pgscatter("map", "check", "--map", made, check=False)
    assert done.returncode == 1
    wrong = done.stderr.splitlines()
    assert "s0: s0-b is none of this shard: it says that it is the shard s1" in wrong
    assert (
        f"s0: docs: 1 of 2 rows of {table} belong elsewhere by this map: 1 on s1; the first are id '10' (s1)"
        in wrong
    )
    assert (
        f"s1: docs: 1 of 3 rows of {table} belong elsewhere by this map: 1 on s0; the first are id '8' (s0)"
        in wrong
    )
    assert "s0: docs: the id '7' stands on s0 and s1" in wrong


@pytest.mark.parametrize(
    ("key", "placement", "rows", "wrong"),
    [
        (
            "price",
            {"s0": [{"from": 0, "to": 10}, {"from": 20, "to": 30}], "s1": [{"from": 10, "to": 20}]},
            {
                "s0": ["0", "-0.0", "9.999999999999998", "20", "10", "30", "-1e-300", "'NaN'", "NULL"],
                "s1": ["10", "19.999999999999996", "20", "'Infinity'", "9.999999999999998"],
            },
            {
                "s0": "5 of 9 rows of {} belong elsewhere by this map: 4 on no shard, 1 on s1; the first are"
                " id '4' (s1), '5' (no shard), '6' (no shard), '7' (no shard), '8' (no shard)",
                "s1": "3 of 5 rows of {} belong elsewhere by this map: 2 on s0, 1 on no shard; the first are"
                " id '102' (s0), '103' (no shard), '104' (s0)",
            },
        ),
        (
            "category",
            {"s0": [{"to": "m"}], "s1": [{"from": "m"}]},
            {"s0": ["''", "'M'", "'l~'", "'m'", "NULL"], "s1": ["'m'", "'m '", "'Z'", "U&'\\00e9'"]},
            {
                # By code points, as the map has them, whatever the database sorts by.
                "s0": "2 of 5 rows of {} belong elsewhere by this map: 1 on no shard, 1 on s1; the first are"
                " id '3' (s1), '4' (no shard)",
                "s1": "1 of 4 rows of {} belong elsewhere by this map: 1 on s0; the first are id '102' (s0)",
            },
        ),
    ],
)
async def test_a_check_knows_the_ends_of_ranges_and_that_a_null_key_has_no_place(
    pair: Cluster,
    tmp_path: Path,
    key: str,
    placement: dict[str, Any],
    rows: dict[str, list[str]],
    wrong: dict[str, str],
) -> None:
    sharding = {"strategy": "range", "key": key, "placement": placement}
    made = write_map(pair, tmp_path / "map.yaml", {"docs": collection(sharding=sharding)})
    pgscatter("schema", "apply", "--map", made)
    assert pgscatter("map", "check", "--map", made).returncode == 0
    table = load(made).collections["docs"].table
    for at, (shard, values) in enumerate(rows.items()):
        listed = ", ".join(f"({100 * at + n}, '[1,2,3,4]', {value})" for n, value in enumerate(values))
        await execute(
            pair.node(f"{shard}-a").dsn,
            f"ALTER TABLE {table} ALTER {key} DROP NOT NULL;"
            f" INSERT INTO {table} (id, embedding, {key}) VALUES {listed}",
        )
    done = pgscatter("map", "check", "--map", made, check=False)
    assert done.returncode == 1
    expected = [f"{shard}: docs: {line.format(table)}" for shard, line in wrong.items()]
    assert done.stderr.splitlines() == expected
