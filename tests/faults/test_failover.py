"""Primaries change and replicas fall behind: the router follows, and says what is old."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from deploy.local import Cluster
from router.nodes.status import NodeStatus
from router.query.errors import UnavailableError
from router.query.types import Found, Hedge
from router.settings import Settings
from router.topology import Parts, Topology
from shard_config import model
from shard_config.values import ValueType
from tests.integration.worlds import World, column, execute, hits, world

# What is not about limits has long ones: neither a server nor this process may run for seconds.
FAST = Settings(
    **{"probe_interval": 0.2, "max_lag": 0.5, "probe_timeout": 15.0, "connect_timeout": 15.0},
    **{"failover_wait": 20.0, "l2_timeout": 10.0},
)
ROWS = 20


@asynccontextmanager
async def filled(cluster: Cluster, settings: Settings = FAST, **changes: Any) -> AsyncIterator[World]:
    """A filled world; its nodes run again before its table goes."""
    async with world(cluster, settings, **changes) as w:
        await w.put(*(w.document(i, [float(i)] * 8, category="c") for i in range(ROWS)))
        # The replica has the extension, the table and the rows; what the router knows of it may be older.
        await has_rows(cluster, "s0-b", w)
        await until(w, "s0-b", state="up", replay_lag_bytes=0)
        try:
            yield w
        finally:
            for name in ("s0-a", "s0-b"):
                await asyncio.to_thread(cluster.start, name)


async def has_rows(cluster: Cluster, name: str, w: World, rows: int = ROWS) -> None:
    connection = await asyncpg.connect(cluster.node(name).dsn)
    try:
        async with asyncio.timeout(20):
            while await connection.fetchval("SELECT to_regclass($1)", str(w.collection.table)) is None:
                await asyncio.sleep(0.01)
            while await connection.fetchval(f"SELECT count(*) FROM {w.collection.table}") < rows:
                await asyncio.sleep(0.01)
    finally:
        await connection.close()


def node(w: World, name: str) -> NodeStatus:
    return next(status for status in w.router.nodes() if status.name == name)


async def until(w: World, name: str, within: float = 20.0, **wanted: object) -> NodeStatus:
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while True:
        status = node(w, name)
        if all(getattr(status, field) == value for field, value in wanted.items()):
            return status
        assert loop.time() < end, status
        await asyncio.sleep(0.01)


async def until_it_lags(w: World) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + 20
    while (node(w, "s0-b").replay_lag_s or 0) <= FAST.max_lag:
        assert loop.time() < end, str(w.topology.parts.nodes[1].state)
        await asyncio.sleep(0.02)


async def pause_replay(cluster: Cluster) -> None:
    connection = await asyncpg.connect(cluster.node("s0-b").dsn)
    try:
        await connection.execute("SELECT pg_wal_replay_pause()")
        # It takes notice at the next record.
        while await connection.fetchval("SELECT pg_get_wal_replay_pause_state()") != "paused":
            await execute(cluster.node("s0-a").dsn, "SELECT pg_logical_emit_message(false, '', '')")
            await asyncio.sleep(0.02)
    finally:
        await connection.close()


async def stored_on(cluster: Cluster, name: str, w: World) -> set[int]:
    connection = await asyncpg.connect(cluster.node(name).dsn)
    try:
        rows = await connection.fetch(f"SELECT id FROM {w.collection.table} WHERE content = 'new'")
    finally:
        await connection.close()
    return {row["id"] for row in rows}


async def test_writes_wait_for_the_next_primary_and_searches_do_not(pair: Cluster) -> None:
    async with filled(pair) as w:
        await asyncio.to_thread(pair.kill, "s0-a")
        await until(w, "s0-a", state="down")
        document = w.document(100, [100.0] * 8, content="new")
        writing = asyncio.create_task(w.router.upsert(w.collection, [document], w.soon(60)))
        for _ in range(30):
            found = await w.search([0.0] * 8, 5, cache=False)
            assert found.answer.coverage.full
            await asyncio.sleep(0.01)
        assert not writing.done()
        await execute(pair.node("s0-b").dsn, "SELECT pg_promote()")
        async with asyncio.timeout(10):
            outcome = await writing
        assert outcome.stored == 1, outcome
        assert node(w, "s0-b").role == "primary"
        assert node(w, "s0-b").timeline == 2
        assert node(w, "s0-b").role_changes == 1
        assert [hit["id"] for hit in hits(await w.search([100.0] * 8, 1, cache=False))] == [100]


async def test_writes_that_were_never_sent_to_a_frozen_primary_go_to_its_successor(pair: Cluster) -> None:
    settings = Settings(probe_interval=0.2, write_connections=2, failover_wait=10)
    async with filled(pair, settings) as w:
        pair.pause("s0-a")
        documents = [w.document(100 + i, [100.0 + i] * 8, content="new") for i in range(8)]
        writing = [
            asyncio.create_task(w.router.upsert(w.collection, [document], w.soon(8)))
            for document in documents
        ]
        await until(w, "s0-a", state="down")
        await execute(pair.node("s0-b").dsn, "SELECT pg_promote()")
        outcomes = await asyncio.gather(*writing)
        reasons = [failure.reason for outcome in outcomes for failure in outcome.failures]
        stored = await stored_on(pair, "s0-b", w)
        # As many as had connections were on their way.
        assert reasons.count("unknown") == len(reasons) <= 2
        assert len(stored) == sum(outcome.stored for outcome in outcomes) >= 6
        pair.resume("s0-a")


async def test_guarded_writes_wait_for_the_next_primary_too(pair: Cluster) -> None:
    sharding = model.HashSharding(column("category", ValueType.TEXT), ("s0",))
    async with filled(pair, sharding=sharding) as w:
        await asyncio.to_thread(pair.kill, "s0-a")
        writing = [
            asyncio.create_task(
                w.router.upsert(
                    w.collection, [w.document(i, [1.0] * 8, category="c", content="new")], w.soon(60)
                )
            )
            for i in range(3)
        ]
        await asyncio.sleep(0.5)
        await execute(pair.node("s0-b").dsn, "SELECT pg_promote()")
        for outcome in await asyncio.gather(*writing):
            assert outcome.stored == 1, outcome
        assert await stored_on(pair, "s0-b", w) == set(range(3))


@pytest.mark.parametrize("guarded", [False, True])
async def test_a_write_that_is_done_after_all_is_not_hidden_by_a_cache(pair: Cluster, guarded: bool) -> None:
    sharding = model.HashSharding(column("category", ValueType.TEXT), ("s0",))
    settings = Settings(probe_interval=0.2, max_lag=60)
    async with filled(pair, settings, **({"sharding": sharding} if guarded else {})) as w:
        primary = pair.node("s0-a").dsn

        async def waiting_for(standby: str) -> None:
            await execute(primary, f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'")
            await execute(primary, "SELECT pg_reload_conf()")

        async def waits(application: str) -> bool:
            """Whether a commit of it waits for a standby."""
            connection = await asyncpg.connect(primary)
            try:
                found: bool = await connection.fetchval(
                    "SELECT EXISTS (SELECT FROM pg_stat_activity"
                    " WHERE wait_event = 'SyncRep' AND application_name = $1)",
                    application,
                )
                return found
            finally:
                await connection.close()

        async def commits_wait() -> None:
            """The server has taken over the new setting."""
            statement = "SET application_name = 'tried'; SELECT pg_logical_emit_message(true, '', '')"
            while True:
                trying = asyncio.create_task(execute(primary, statement))
                while not trying.done():
                    if await waits("tried"):
                        trying.cancel()
                        await asyncio.wait([trying])
                        return
                await trying

        async def first() -> object:
            found = await w.search([0.0] * 8, 1, include=frozenset({"content"}))
            return hits(found)[0]["content"]

        await pause_replay(pair)
        # The commit waits for a standby that never comes, and its server freezes.
        await waiting_for("nobody")
        try:
            async with asyncio.timeout(20):
                await commits_wait()
            written = w.document(0, [0.0] * 8, category="c", content="new")
            writing = asyncio.create_task(w.router.upsert(w.collection, [written], w.soon(2)))
            while not writing.done() and not await waits("pgscatter writes"):
                await asyncio.sleep(0.01)
            pair.pause("s0-a")
            assert [failure.reason for failure in (await writing).failures] == ["unknown"]
            await until(w, "s0-a", state="down")
            for _ in range(3):
                assert await first() is None
            # What is left of the statement is ended when the server goes on; and so the commit is done.
            pair.resume("s0-a")
            async with asyncio.timeout(20):
                while await first() != "new":
                    await asyncio.sleep(0.02)
        finally:
            pair.resume("s0-a")
            await waiting_for("")
            await execute(pair.node("s0-b").dsn, "SELECT pg_wal_replay_resume()")


async def test_of_two_primaries_the_later_one_takes_writes(pair: Cluster) -> None:
    async with filled(pair, Settings(probe_interval=0.2, failover_wait=0.3)) as w:
        await asyncio.to_thread(pair.kill, "s0-a")
        await execute(pair.node("s0-b").dsn, "SELECT pg_promote()")
        await until(w, "s0-b", role="primary")
        # Nobody has told the old one.
        await asyncio.to_thread(pair.start, "s0-a")
        status = await until(w, "s0-a", state="deposed")
        assert status.reason == "its timeline is 1, but a primary was on 2 since"
        await w.put(*(w.document(i, [float(i)] * 8, content="new") for i in range(5)))
        assert await stored_on(pair, "s0-b", w) == set(range(5))
        assert await stored_on(pair, "s0-a", w) == set()
        for _ in range(20):
            found = await w.search([0.0] * 8, 5, cache=False, include=frozenset({"content"}))
            assert {hit["content"] for hit in hits(found)} == {"new"}
            assert not found.answer.coverage.stale

        # With the later one away, what is left is old, and takes nothing.
        await asyncio.to_thread(pair.kill, "s0-b")
        await until(w, "s0-b", state="down")
        found = await w.search([0.0] * 8, 5, cache=False)
        assert found.answer.coverage.stale == ("s0",)
        outcome = await w.router.upsert(w.collection, [w.document(7, [7.0] * 8, content="new")], w.soon(5))
        assert outcome.stored == 0
        assert "no primary of s0 is up" in outcome.failures[0].message
        assert await stored_on(pair, "s0-a", w) == set()


async def test_two_primaries_with_equal_rights_take_no_writes(pair: Cluster) -> None:
    async with filled(pair, Settings(probe_interval=0.2, failover_wait=0.3)) as w:
        await asyncio.to_thread(pair.kill, "s0-b")
        (pair.directory / "nodes" / "s0-b" / "data" / "standby.signal").unlink()
        await asyncio.to_thread(pair.start, "s0-b")
        for name in ("s0-a", "s0-b"):
            status = await until(w, name, state="deposed")
            assert status.reason == "another node claims to be the primary on timeline 1 too"
        outcome = await w.router.upsert(w.collection, [w.document(7, [7.0] * 8, content="new")], w.soon(5))
        assert outcome.stored == 0
        found = await w.search([0.0] * 8, 5, cache=False)
        assert len(hits(found)) == 5
        assert found.answer.coverage.stale == ("s0",)


async def test_a_write_without_a_primary_fails_after_its_wait(pair: Cluster) -> None:
    async with filled(pair, Settings(probe_interval=0.2, failover_wait=0.5)) as w:
        await asyncio.to_thread(pair.kill, "s0-a")
        # A write on a connection that is not known to be lost would be told that its end is unknown.
        await until(w, "s0-a", state="down")
        loop = asyncio.get_running_loop()
        started = loop.time()
        outcome = await w.router.upsert(w.collection, [w.document(7, [7.0] * 8)], w.soon(30))
        assert 0.4 < loop.time() - started < 15
        assert [failure.reason for failure in outcome.failures] == ["unavailable"]
        deleted = await w.router.delete(w.collection, [7], w.soon(10))
        assert [write.ok for write in deleted.shards] == [False]


async def test_a_probe_that_fails_in_an_unforeseen_way_is_not_the_last_one(
    pair: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with filled(pair) as w:
        with monkeypatch.context() as patched:
            patched.setattr("router.nodes.prober._WITHOUT_IDENTITY", "SELECT 1 AS one")
            status = await until(w, "s0-b", state="down")
            assert status.reason == "its probe failed; the log says how"
            async with asyncio.timeout(20):
                late = Topology(w.router.shard_map, Parts(w.router.shard_map, FAST))
                await late.open()
                await late.close()
        assert "probe of s0-b" in caplog.text
        await until(w, "s0-b", state="up")


async def test_a_replica_of_an_idle_primary_does_not_lag(pair: Cluster) -> None:
    async with filled(pair) as w:
        await until(w, "s0-b", replay_lag_bytes=0)
        await asyncio.sleep(2 * FAST.max_lag)
        # It writes a record of its own now and then, which the replica lacks for a moment.
        await until(w, "s0-b", replay_lag_s=0.0)


async def test_a_replica_that_lags_is_not_read_until_it_has_caught_up(pair: Cluster) -> None:
    async with filled(pair) as w:
        await pause_replay(pair)
        # Another router's write, of which this one knows nothing.
        await w.on_primaries(f"UPDATE {w.collection.table} SET content = 'new'")
        await until_it_lags(w)
        for _ in range(30):
            found = await w.search([0.0] * 8, 5, cache=False, include=frozenset({"content"}))
            assert {hit["content"] for hit in hits(found)} == {"new"}
            assert not found.answer.coverage.stale

        await asyncio.to_thread(pair.kill, "s0-a")
        await until(w, "s0-a", state="down")
        # How far behind it is stays known when nobody can say by how many bytes.
        status = await until(w, "s0-b", replay_lag_bytes=None)
        assert (status.replay_lag_s or 0) > FAST.max_lag
        found = await w.search([0.0] * 8, 5, cache=False, include=frozenset({"content"}))
        assert {hit["content"] for hit in hits(found)} == {None}
        assert found.answer.coverage.stale == ("s0",)
        assert not found.answer.cacheable
        await execute(pair.node("s0-b").dsn, "SELECT pg_wal_replay_resume()")
        await asyncio.to_thread(pair.start, "s0-a")
        await until(w, "s0-b", replay_lag_s=0.0, replay_lag_bytes=0)
        assert not (await w.search([0.0] * 8, 5, cache=False)).answer.coverage.stale


async def test_a_router_that_has_just_started_does_not_take_an_old_replica_for_a_fresh_one(
    pair: Cluster,
) -> None:
    async with filled(pair) as w:
        await pause_replay(pair)
        await w.on_primaries(f"UPDATE {w.collection.table} SET content = 'new'")
        await asyncio.sleep(2 * FAST.max_lag)

        async def started() -> list[Found]:
            late = Topology(w.router.shard_map, Parts(w.router.shard_map, FAST))
            await late.open()
            try:
                other = World(pair, late)
                searches = [
                    other.search([0.0] * 8, 5, cache=False, include=frozenset({"content"})) for _ in range(30)
                ]
                return await asyncio.gather(*searches)
            finally:
                await late.close()

        for found in await started():
            assert {hit["content"] for hit in hits(found)} == {"new"}
            assert not found.answer.coverage.stale
        await asyncio.to_thread(pair.kill, "s0-a")
        for found in await started():
            assert {hit["content"] for hit in hits(found)} == {None}
            assert found.answer.coverage.stale == ("s0",)
        await execute(pair.node("s0-b").dsn, "SELECT pg_wal_replay_resume()")


async def test_a_replica_that_followed_another_primary_is_not_taken_for_fresh() -> None:
    with Cluster.temporary(shards=1, replicas=2, fsync=False) as trio:
        async with world(trio, FAST) as w:
            await w.put(*(w.document(i, [float(i)] * 8, content="old") for i in range(ROWS)))
            for name in ("s0-b", "s0-c"):
                await until(w, name, state="up", replay_lag_bytes=0)
            # One replica gets a good deal more of the primary's log than the other, which is promoted.
            await asyncio.to_thread(trio.pause, "s0-c")
            await execute(trio.node("s0-a").dsn, "CREATE TABLE much AS SELECT generate_series(1, 300000) n")
            await until(w, "s0-b", replay_lag_bytes=0)
            await asyncio.to_thread(trio.kill, "s0-a")
            await asyncio.to_thread(trio.resume, "s0-c")
            await execute(trio.node("s0-c").dsn, "SELECT pg_promote()")
            await until(w, "s0-c", role="primary")
            status = await until(w, "s0-b", state="deposed")
            assert status.reason == "it has replayed what the primary never wrote: it followed another one"
            # A router that is started now knows that before its first search.
            other = Topology(w.router.shard_map, Parts(w.router.shard_map, FAST))
            await other.open()
            try:
                seen = {one.name: (one.state, one.reason) for one in other.snapshot.nodes()}
            finally:
                await other.close()
            assert seen["s0-b"] == ("deposed", status.reason)
            await w.put(*(w.document(i, [float(i)] * 8, content="new") for i in range(ROWS)))
            # Also when the new primary has written as much.
            await execute(trio.node("s0-c").dsn, "CREATE TABLE more AS SELECT generate_series(1, 600000) n")
            for _ in range(10):
                for _ in range(5):
                    found = await w.search([0.0] * 8, 5, cache=False, include=frozenset({"content"}))
                    assert {hit["content"] for hit in hits(found)} == {"new"}
                    assert not found.answer.coverage.stale
                await asyncio.sleep(FAST.probe_interval / 3)
            assert node(w, "s0-b").state == "deposed"
            await asyncio.to_thread(trio.kill, "s0-c")
            await until(w, "s0-c", state="down")
            assert (await w.search([0.0] * 8, 5, cache=False)).answer.coverage.stale == ("s0",)
            for name in ("s0-a", "s0-c"):
                await asyncio.to_thread(trio.start, name)


@pytest.mark.parametrize("by_id", [True, False])
async def test_a_document_from_a_replica_that_is_behind_says_so_and_none_is_no_proof(
    pair: Cluster, by_id: bool
) -> None:
    key = column("id", ValueType.BIGINT) if by_id else column("category", ValueType.TEXT)
    sharding = model.HashSharding(key, ("s0",))
    async with filled(pair, Settings(probe_interval=0.2), sharding=sharding) as w, w.over_http() as client:
        await pause_replay(pair)
        await w.put(*(w.document(i, [0.0] * 8, category="c", content="new") for i in (3, 100)))
        fresh = await client.get("/documents/100")
        assert (fresh.status_code, "x-stale-shard" in fresh.headers) == (200, False)
        await asyncio.to_thread(pair.kill, "s0-a")
        await until(w, "s0-a", state="down")

        old = await client.get("/documents/3")
        assert (old.status_code, old.headers["x-stale-shard"]) == (200, "s0")
        assert (old.json()["content"], old.json()["shard"]) == (None, "s0")
        lost = await client.get("/documents/100")
        assert (lost.status_code, lost.headers["retry-after"]) == (503, "1")
        assert [error["path"] for error in lost.json()["errors"]] == ["shards.s0"]
        said = lost.json()["errors"][0]["message"]
        assert "s0-b may be behind, and no node that is well is fresher" in said

        await asyncio.to_thread(pair.start, "s0-a")
        await until(w, "s0-a", state="up")
        found = await client.get("/documents/100")
        assert (found.status_code, "x-stale-shard" in found.headers) == (200, False)
        assert (await client.get("/documents/101")).status_code == 404


async def test_with_the_policy_error_nothing_old_is_read(pair: Cluster) -> None:
    async with filled(pair, Settings(probe_interval=0.2, max_lag=0.5, lag_policy="error")) as w:
        await pause_replay(pair)
        await w.on_primaries(f"UPDATE {w.collection.table} SET content = 'new'")
        await until_it_lags(w)
        await asyncio.to_thread(pair.kill, "s0-a")
        await until(w, "s0-a", state="down")
        with pytest.raises(UnavailableError) as caught:
            await w.search([0.0] * 8, 5, cache=False)
        assert "s0-b is up as replica, " in caught.value.problems[0].message
        assert " s behind" in caught.value.problems[0].message


async def test_a_node_without_room_for_connections_is_left_for_its_partner(pair: Cluster) -> None:
    async with filled(pair) as w:
        taken: list[asyncpg.Connection] = []
        try:
            with pytest.raises(asyncpg.TooManyConnectionsError):
                while True:
                    taken.append(await asyncpg.connect(pair.node("s0-b").dsn))
            late = Topology(w.router.shard_map, Parts(w.router.shard_map, FAST))
            await late.open()
            try:
                other = World(pair, late)
                for found in await asyncio.gather(
                    *(other.search([float(i)] * 8, 5, cache=False) for i in range(50))
                ):
                    assert found.answer.coverage.full
            finally:
                await late.close()
        finally:
            for connection in taken:
                connection.terminate()


async def test_the_loser_of_a_hedge_is_cancelled_on_its_server(pair: Cluster) -> None:
    async with filled(pair, Settings(max_lag=60)) as w:
        # The replica does not learn of the lock, so that statements wait on the primary alone.
        await pause_replay(pair)
        connection = await asyncpg.connect(pair.node("s0-a").dsn)
        try:
            await connection.execute(f"BEGIN; LOCK TABLE {w.collection.table} IN ACCESS EXCLUSIVE MODE")
            lost = tried = 0
            # After a third one the node would be left out.
            while lost < 2:
                found = await w.search([float(tried)] * 8, 5, cache=False)
                assert found.answer.coverage.full
                lost += found.answer.reports[0].hedge is Hedge.WON
                tried += 1
                assert tried < 60
            end = asyncio.get_running_loop().time() + 20
            while await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE wait_event_type = 'Lock' AND application_name = 'pgscatter reads'"
            ):
                assert asyncio.get_running_loop().time() < end
                await asyncio.sleep(0.02)
        finally:
            connection.terminate()
            await execute(pair.node("s0-b").dsn, "SELECT pg_wal_replay_resume()")
