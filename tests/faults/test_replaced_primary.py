"""Commands that write, while a primary is replaced or after it was: what they say is done stays done."""

from __future__ import annotations

import asyncio
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import asyncpg
import pytest

import router.schema.apply as schema_apply
from deploy.local import Cluster
from router.bulk import finish, resume
from router.bulk.errors import LoadError
from router.bulk.load import Options, load
from router.schema.primary import Primary, primary_of
from router.terminal import Display
from shard_config import ShardMap, model
from shard_config.file import codec
from tests.integration.apps import collection, pgscatter, write_map
from tests.integration.worlds import execute

ROWS = 40


def mapped(cluster: Cluster, folder: Path) -> Path:
    docs = collection(sharding={"strategy": "hash", "key": "id", "buckets": 1, "placement": {"s0": [0]}})
    return write_map(cluster, folder / "map.yaml", {"docs": docs})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(f'{{"id": {n}, "vector": [1, 2, 3, {n}]}}\n' for n in range(ROWS)))
    return path


async def rows(cluster: Cluster, node: str, table: model.Table) -> int | None:
    connection = await asyncpg.connect(cluster.node(node).dsn)
    try:
        if await connection.fetchval("SELECT to_regclass($1)", str(table)) is None:
            return None
        found: int = await connection.fetchval(f"SELECT count(*) FROM {table}")
        return found
    finally:
        await connection.close()


async def promote(cluster: Cluster, *, kill: bool) -> None:
    """Make s0-b the primary; s0-a lives on as it was, or again."""
    if kill:
        await asyncio.to_thread(cluster.kill, "s0-a")
    await execute(cluster.node("s0-b").dsn, "SELECT pg_promote()")
    if kill:
        await asyncio.to_thread(cluster.start, "s0-a")


async def test_a_primary_that_is_back_on_its_old_timeline_is_not_written_to(
    pair: Cluster, tmp_path: Path, source: Path
) -> None:
    path = mapped(pair, tmp_path)
    table = codec.load(path).collections["docs"].table
    await promote(pair, kill=True)
    applied = await asyncio.to_thread(pgscatter, "schema", "apply", "--map", path)
    assert "created table" in applied.stdout
    loaded = await asyncio.to_thread(pgscatter, "load", source, "--map", path, "--collection", "docs")
    assert f"loaded {ROWS} rows" in loaded.stdout
    assert "note: s0: not waited for: s0-a is not a replica" in loaded.stdout
    assert (await rows(pair, "s0-a", table), await rows(pair, "s0-b", table)) == (None, ROWS)


async def test_two_primaries_on_one_timeline_are_both_left_alone(
    pair: Cluster, tmp_path: Path, source: Path
) -> None:
    path = mapped(pair, tmp_path)
    await asyncio.to_thread(pair.kill, "s0-b")
    (pair.directory / "nodes" / "s0-b" / "data" / "standby.signal").unlink()
    await asyncio.to_thread(pair.start, "s0-b")
    for command in (["schema", "apply"], ["load", source, "--collection", "docs"]):
        done = await asyncio.to_thread(pgscatter, *command, "--map", path, check=False)
        assert done.returncode == 1
        assert "s0: more than one primary on timeline 1: s0-a, s0-b" in done.stderr


async def test_a_load_whose_primary_is_replaced_meanwhile_marks_nothing_there_and_goes_on_elsewhere(
    pair: Cluster, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mapped(pair, tmp_path)
    await asyncio.to_thread(pgscatter, "schema", "apply", "--map", path)
    shard_map = codec.load(path)
    docs = shard_map.collections["docs"]
    await replayed(pair, docs.table)
    mark, marked = resume.mark, 0

    async def and_promote(*args: Any) -> bool:
        nonlocal marked
        marked += 1
        if marked == 2:
            await promote(pair, kill=False)
        found: bool = await mark(*args)
        return found

    monkeypatch.setattr("router.bulk.copy.mark", and_promote)
    monkeypatch.setattr("router.bulk.target._CONFIRM_SECONDS", 0.0)
    with Display() as display, pytest.raises(LoadError) as caught:
        await load(shard_map, docs, source, Options(chunk_rows=10, jobs=1), display)
    assert caught.value.lines == (
        "s0: s0-a: it was replaced as the primary on timeline 1: the primary is s0-b now, on timeline 2",
    )
    assert caught.value.begun
    assert await rows(pair, "s0-a", docs.table) == 10
    monkeypatch.undo()
    await again(shard_map, docs, source)
    assert await rows(pair, "s0-b", docs.table) == ROWS


async def test_a_load_that_ends_on_a_replaced_primary_is_not_done(
    pair: Cluster, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mapped(pair, tmp_path)
    await asyncio.to_thread(pgscatter, "schema", "apply", "--map", path)
    shard_map = codec.load(path)
    docs = shard_map.collections["docs"]
    await replayed(pair, docs.table)
    check_ids = finish.check_ids

    async def and_promote(*args: Any) -> None:
        await check_ids(*args)
        await promote(pair, kill=False)

    monkeypatch.setattr(finish, "check_ids", and_promote)
    with Display() as display, pytest.raises(LoadError, match="s0-a: it was replaced as the primary"):
        await load(shard_map, docs, source, Options(), display)
    monkeypatch.undo()
    await again(shard_map, docs, source)
    assert await rows(pair, "s0-b", docs.table) == ROWS


async def again(shard_map: ShardMap, docs: model.Collection, source: Path) -> None:
    with Display() as display:
        await load(shard_map, docs, source, Options(replay_timeout=1.0), display)


async def replayed(cluster: Cluster, table: model.Table) -> None:
    async with asyncio.timeout(20):
        while await rows(cluster, "s0-b", table) is None:
            await asyncio.sleep(0.05)


async def test_a_schema_that_was_changed_on_a_replaced_primary_is_not_done(
    pair: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_map = codec.load(mapped(pair, tmp_path))
    changes, confirm = schema_apply.changes, Primary.confirm
    started: list[asyncio.Task[None]] = []

    def and_promote(*args: Any, **options: Any) -> Any:
        started.append(asyncio.get_running_loop().create_task(promote(pair, kill=False)))
        return changes(*args, **options)

    async def when_promoted(self: Primary) -> None:
        await asyncio.gather(*started)
        await confirm(self)

    monkeypatch.setattr(schema_apply, "changes", and_promote)
    monkeypatch.setattr(Primary, "confirm", when_promoted)
    with Display() as display:
        (result,) = await schema_apply.apply(shard_map, list(shard_map.collections.values()), display)
    assert result.errors == [
        "s0-a: it was replaced as the primary on timeline 1: the primary is s0-b now, on timeline 2"
    ]


async def test_a_frozen_or_dead_replica_keeps_nobody_from_writing(pair: Cluster, tmp_path: Path) -> None:
    shard = codec.load(mapped(pair, tmp_path)).shards["s0"]
    primary = await primary_of(shard, "test")
    try:
        pair.pause("s0-b")
        try:
            loop = asyncio.get_running_loop()
            started = loop.time()
            await primary.confirm()
            # To look for a primary takes 10 s then.
            assert loop.time() - started < 8
        finally:
            pair.resume("s0-b")
        await asyncio.to_thread(pair.kill, "s0-b")
        await primary.confirm()
    finally:
        primary.close()
    (await primary_of(shard, "test")).close()


@pytest.mark.parametrize("status", [200, 503])
async def test_patroni_is_asked_as_well(pair: Cluster, tmp_path: Path, status: int) -> None:
    class Api(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Api)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        shard = codec.load(mapped(pair, tmp_path)).shards["s0"]
        api = f"http://127.0.0.1:{server.server_port}"
        nodes = tuple(model.Node(node.name, node.dsn, patroni=api) for node in shard.nodes)
        under_patroni = model.Shard("s0", nodes)
        if status == 200:
            primary = await primary_of(under_patroni, "test")
            assert primary.node.name == "s0-a"
            primary.close()
        else:
            with pytest.raises(Exception, match="s0-a: its Patroni says that it does not lead"):
                await primary_of(under_patroni, "test")
    finally:
        server.shutdown()
        server.server_close()
