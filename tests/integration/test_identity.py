"""Maps that do not fit their shards, and nodes that are none of theirs, on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import yaml

from deploy.local import Cluster
from router.query.errors import UnavailableError
from router.settings import Settings
from router.topology import Parts, Topology
from shard_config import ShardMap, load, model
from tests.integration.apps import collection, pgscatter, write_map
from tests.integration.worlds import World, execute

QUICK = Settings(probe_interval=0.1, failover_wait=0.5, recall_sample_rate=0.0)
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
async def opened(cluster: Cluster, shard_map: ShardMap) -> AsyncIterator[World]:
    topology = Topology(shard_map, Parts(shard_map, QUICK))
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
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert lines[:3] == [
        f"{swapped} is not served, because it disagrees with its shards:",
        *(f"  {shard} {text}" for shard, _, text in found),
    ]
    assert lines[3].startswith("to mend that: take the placement back to what the shards hold")
    assert "Traceback" not in done.stderr
    # Nor is it applied or loaded by.
    applied = pgscatter("schema", "apply", "--map", swapped, check=False)
    assert applied.returncode == 1
    assert "rows of public.served_" in applied.stderr and "belong to another shard" in applied.stderr
    source = tmp_path / "more.jsonl"
    source.write_text('{"id": 1000, "vector": [1, 2, 3, 4]}\n')
    loaded = pgscatter("load", source, "--map", swapped, "--collection", "docs", check=False)
    assert loaded.returncode == 1
    assert "s0: s0-a holds buckets 0-1 of 4 by id of docs" in loaded.stderr


async def test_maps_of_an_older_version_and_of_the_same_with_other_content_are_told(
    pair: Cluster, path: Path
) -> None:
    older = changed(path, version=-1)
    version = load(path).version
    text = f"has version {version} of the map, and this is version {version - 1}"
    assert await differences(pair, older) == [("s0", "older", text), ("s1", "older", text)]
    done = pgscatter("schema", "apply", "--map", older, check=False)
    assert (done.returncode, f"s0: it {text}" in done.stderr) == (1, True)
    edited = changed(path, version=0, search={"ef_search": 77})
    (first, second) = await differences(pair, edited)
    text = f"has another map of the same version {version}: docs.search.ef_search is 40 there and 77 here"
    assert first == ("s0", "content", text)
    assert second[0] == "s1"
    done = pgscatter("schema", "apply", "--map", edited, check=False)
    assert (done.returncode, f"s1: it {text}" in done.stderr) == (1, True)


async def test_a_newer_map_is_served_before_it_is_applied_and_halfway(pair: Cluster, path: Path) -> None:
    newer = changed(path, search={"ef_search": 77})
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
    pgscatter("schema", "apply", "--map", newer)
    assert await differences(pair, newer) == []
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
        await until(w, "wrong", "foreign")
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
        await asyncio.sleep(0.3)
        document = w.document(1, [0, 0, 0, 0])
        for refused in (
            w.router.upsert(other, [document], w.soon()),
            w.router.read(other, 1, frozenset(), w.soon()),
            w.router.delete(other, [1], w.soon()),
            w.router.count(other, None, w.soon()),
        ):
            with pytest.raises(UnavailableError, match="does not say where the rows of other are") as caught:
                await refused
            assert "holds buckets 2-3 of 4 by id of other" in caught.value.problems[0].message
        assert (await w.router.count(docs, None, w.soon())).count == ROWS
        async with w.over_http() as client:
            answer = await client.get("http://router/v1/collections/other/documents/1")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            health = (await client.get("http://router/health")).json()
            assert health["status"] == "degraded"
            assert {(one["shard"], one["kind"]) for one in health["disagreements"]} == {
                (shard, kind) for shard in ("s0", "s1") for kind in ("older", "placement")
            }
            metrics = (await client.get("http://router/metrics")).text
            assert 'pgscatter_shard_disagreements{shard="s0"} 2.0' in metrics
            assert 'pgscatter_node_state{node="s0-a",shard="s0",state="up"} 1.0' in metrics


async def test_a_shard_that_does_not_say_who_it_is_is_served_with_a_word_about_it(
    pair: Cluster, path: Path
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
        await asyncio.sleep(0.5)
        assert w.router.unidentified() == ["s0", "s1"]
        assert set(states(w).values()) == {"up"}
        assert (await w.router.count(w.collection, None, w.soon())).count == ROWS
        for node in primaries:
            await execute(node.dsn, "DROP TABLE pgscatter.map")
        await asyncio.sleep(0.5)
        assert w.router.unidentified() == ["s0", "s1"]
        assert set(states(w).values()) == {"up"}
        pgscatter("schema", "apply", "--map", path)
        await asyncio.sleep(0.5)
        assert w.router.unidentified() == []
    # A role that may not create it says so, and does the rest.
    for node in primaries:
        await execute(node.dsn, f"DROP TABLE pgscatter.map; ALTER TABLE {table} OWNER TO {role}")
    other = path.with_name("role.yaml")
    other.write_text(path.read_text().replace("postgres@", f"{role}@"))
    done = pgscatter("schema", "apply", "--map", other)
    assert "note: which shard this is could not be recorded (permission denied" in done.stdout
    pgscatter("schema", "apply", "--map", path)


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


async def until(world: World, name: str, state: str, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while states(world)[name] != state:
            await asyncio.sleep(0.02)
