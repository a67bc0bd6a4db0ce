"""Writes on the real cluster: every document's outcome is told and true, and an id stands on one shard."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import numpy as np
import pytest

from deploy.local import Cluster
from router.documents.rows import upserts
from router.documents.types import Document, ShardWrite, UpsertOutcome
from router.documents.unique_ids import _lock_key
from router.query.errors import UnavailableError
from router.query.filter import parse
from router.query.patch import Changes, Patch
from router.query.types import Consistency
from router.settings import Settings
from shard_config import model
from shard_config.partition import locate
from shard_config.values import ValueType
from tests.integration.worlds import World, column, hits, patient, until, world

BY_CATEGORY = model.HashSharding(column("category", ValueType.TEXT), ("s0", "s1", "s2", "s3"))
ID = column("id", ValueType.BIGINT)
ONES = [1.0] * 8
PATCH = Patch({"price": 2.5}, (), Changes({"seen": "true"}))


@pytest.fixture(scope="module")
def breakable() -> Iterator[Cluster]:
    """Two shards without replicas, whose nodes tests may kill."""
    with Cluster.temporary(shards=2, replicas=0, fsync=False) as running:
        yield running


def primary(cluster: Cluster, shard: str) -> str:
    return next(node.dsn for node in cluster.nodes if node.shard == shard and node.role == "primary")


def categories(w: World) -> dict[str, str]:
    """For each shard a category that is stored on it."""
    found: dict[str, str] = {}
    for number in range(100):
        found.setdefault(locate(w.collection.sharding, f"c{number}"), f"c{number}")
    return found


async def upsert(w: World, *documents: Document, within: float = 10.0) -> UpsertOutcome:
    numbered = [msgspec.structs.replace(d, index=i) for i, d in enumerate(documents)]
    return await w.router.upsert(w.collection, numbered, w.soon(within))


async def written(w: World, how: str, documents: Sequence[Document]) -> tuple[ShardWrite, ...]:
    """What became of these documents' upsert, deletion or patch, or of that of the first one's category."""
    if how == "upsert":
        return (await upsert(w, *documents)).shards
    if how == "delete":
        return (await w.router.delete(w.collection, [d.id for d in documents], w.soon())).shards
    if how == "patch":
        return (await w.router.patch(w.collection, [d.id for d in documents], PATCH, w.soon())).shards
    filter_ = parse(w.collection, {"category": documents[0].columns["category"]}, Settings())
    if how == "patch matching":
        return (await w.router.patch_matching(w.collection, filter_, PATCH, w.soon())).shards
    return (await w.router.delete_matching(w.collection, filter_, w.soon())).shards


async def count(w: World, filter: dict[str, Any] | None = None) -> int:
    tree = None if filter is None else parse(w.collection, filter, w.topology.parts.settings)
    return (await w.router.count(w.collection, tree, w.soon())).count


async def read(w: World, id_: object, *include: str) -> dict[str, Any] | None:
    answer = await w.router.read(w.collection, id_, frozenset(include), w.soon())
    assert answer is None or answer.stale is None
    if answer is None:
        return None
    vector = answer.document.get("vector")
    return answer.document | ({} if vector is None else {"vector": msgspec.json.decode(vector)})


async def on_every_primary(cluster: Cluster, query: str, *args: object) -> list[Any]:
    values = []
    for node in cluster.nodes:
        if node.role == "primary":
            connection = await asyncpg.connect(node.dsn)
            try:
                values.append(await connection.fetchval(query, *args))
            finally:
                await connection.close()
    return values


async def no_lock_is_held(cluster: Cluster, within: float = 20.0) -> None:
    # Lock 1 serialises the tests' own CREATE EXTENSION.
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT (classid = 0 AND objid = 1)"
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while any(held := await on_every_primary(cluster, query)) and loop.time() < end:
        await asyncio.sleep(0.02)
    assert not any(held)


@asynccontextmanager
async def locked(dsn: str, table: object, mode: str = "ACCESS EXCLUSIVE") -> AsyncIterator[None]:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"BEGIN; LOCK TABLE {table} IN {mode} MODE")
        yield
        await connection.execute("ROLLBACK")
    finally:
        await connection.close()


@pytest.mark.parametrize("sharding", [None, BY_CATEGORY])
async def test_documents_are_stored_replaced_read_counted_and_deleted(
    cluster: Cluster, sharding: model.Sharding | None
) -> None:
    async with world(cluster, **({} if sharding is None else {"sharding": sharding})) as w:
        await w.put(*(w.document(i, ONES, category=f"c{i % 7}", content=str(i)) for i in range(100)))
        assert await count(w) == 100
        assert await count(w, {"category": "c3"}) == 14
        again = await upsert(w, *(w.document(i, ONES, category=f"c{i % 7}", price=2.0) for i in range(50)))
        assert (again.stored, again.failures) == (50, ())
        assert sum(shard.rows for shard in again.shards) == 50
        assert await count(w) == 100
        replaced, kept = await read(w, 3, "content", "price", "vector"), await read(w, 77, "content")
        assert replaced is not None
        assert kept is not None
        # A replaced document is the new one altogether: what it does not have is gone.
        assert (replaced["content"], replaced["price"], replaced["vector"]) == (None, 2.0, ONES)
        assert kept["content"] == "77"
        assert await read(w, 1000) is None

        gone = await w.router.delete(w.collection, [1, 2, 3, 1000], w.soon())
        assert gone.deleted == 3
        assert await read(w, 2) is None
        deleted = await w.router.delete_matching(
            w.collection, parse(w.collection, {"category": {"$in": ["c4", "c5"]}}, Settings()), w.soon()
        )
        assert deleted.deleted == 28
        assert await count(w) == 69
        assert await w.ids(ONES, 100, exact=True) == [
            i for i in range(100) if i not in (1, 2, 3) and i % 7 not in (4, 5)
        ]


@pytest.mark.parametrize(
    "sharding",
    [
        model.ListSharding(ID, {1: "s0", 2: "s1", 3: "s1"}, None),
        model.RangeSharding(ID, (model.RangePart(0, 3, "s0"), model.RangePart(3, 10, "s1"))),
    ],
)
async def test_an_id_that_has_no_place_is_not_there(cluster: Cluster, sharding: model.Sharding) -> None:
    async with world(cluster, sharding=sharding) as w, w.over_http() as client:
        await w.put(*(w.document(i, ONES) for i in (1, 2, 3)))
        assert (await client.get("/documents/1000")).status_code == 404
        gone = await client.delete("/documents/1000")
        assert (gone.status_code, gone.json()["detail"]) == (404, "no document '1000' in collection docs")
        several = await client.post("/documents/delete", json={"ids": [1, 1000, 3, -5]})
        assert (several.status_code, several.json()["deleted"]) == (200, 2)
        nobody = await client.post("/documents/delete", json={"ids": [1000, 1001]})
        assert (nobody.status_code, nobody.json()) == (200, {"deleted": 0, "shards": {}})
        assert await w.ids(ONES) == [2]


@pytest.mark.parametrize("sharding", [None, BY_CATEGORY])
@pytest.mark.parametrize("refusal", ["check", "trigger", "too large"])
async def test_a_document_that_postgresql_refuses_does_not_hold_up_the_others(
    cluster: Cluster, sharding: model.Sharding | None, refusal: str
) -> None:
    async with world(cluster, **({} if sharding is None else {"sharding": sharding})) as w:
        table = w.collection.table
        refusals = {
            "check": f"ALTER TABLE {table} ADD CONSTRAINT positive CHECK (price > 0)",
            "trigger": (
                f"CREATE FUNCTION {table}_check() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN IF NEW.price <= 0 THEN RAISE 'positive only'; END IF; RETURN NEW; END $$;"
                f" CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW"
                f" EXECUTE FUNCTION {table}_check()"
            ),
            "too large": f"CREATE INDEX positive_{table.name} ON {table} (content)",
        }
        await w.on_primaries(refusals[refusal])
        rng = random.Random(1)
        huge = "".join(chr(rng.randint(33, 126)) for _ in range(9000))

        def document(i: int) -> Document:
            bad = i in (7, 23)
            price = -1.0 if bad and refusal != "too large" else 1.0
            return w.document(i, ONES, category=f"c{i}", price=price, content=huge if bad else "x")

        outcome = await upsert(w, *(document(i) for i in reversed(range(40))))
        assert outcome.stored == 38
        assert [(f.index, f.id, f.reason) for f in outcome.failures] == [
            (16, 23, "invalid"),
            (32, 7, "invalid"),
        ]
        assert all(
            ("index row" if refusal == "too large" else "positive") in f.message for f in outcome.failures
        )
        assert all(shard.ok for shard in outcome.shards)
        assert await w.ids(ONES, 50, exact=True) == [i for i in range(40) if i not in (7, 23)]
        await no_lock_is_held(cluster)
        if refusal == "trigger":
            await w.on_primaries(f"DROP FUNCTION {table}_check CASCADE")


@pytest.mark.parametrize("id_type", [ValueType.BIGINT, ValueType.UUID])
async def test_a_key_that_would_move_a_document_is_refused(cluster: Cluster, id_type: ValueType) -> None:
    async with world(cluster, sharding=BY_CATEGORY, id=column("id", id_type)) as w:
        by_shard = categories(w)
        one, two = (1, 2) if id_type is ValueType.BIGINT else (uuid.UUID(int=1), uuid.UUID(int=2**100))
        await w.put(w.document(one, ONES, category=by_shard["s1"], content="old"))
        outcome = await upsert(
            w,
            w.document(two, ONES, category=by_shard["s2"]),
            w.document(one, ONES, category=by_shard["s2"], content="new"),
        )
        assert outcome.stored == 1
        (failure,) = outcome.failures
        assert (failure.index, failure.id, failure.reason) == (1, one, "conflict")
        assert "s1" in failure.message
        assert "s2" in failure.message
        kept = await read(w, one, "content")
        assert kept is not None
        assert (kept["content"], kept["shard"]) == ("old", "s1")
        assert await count(w) == 2

        # Deleted first, as the message says, it may live elsewhere.
        await w.router.delete(w.collection, [one], w.soon())
        await w.put(w.document(one, ONES, category=by_shard["s2"], content="new"))
        moved = await read(w, one, "content")
        assert moved is not None
        assert (moved["content"], moved["shard"]) == ("new", "s2")
        await no_lock_is_held(cluster)


async def test_concurrent_upserts_of_one_new_id_store_it_once(cluster: Cluster) -> None:
    async with world(cluster, sharding=BY_CATEGORY) as w:
        for id_ in range(5):
            outcomes = await asyncio.gather(
                *(upsert(w, w.document(id_, ONES, category=f"c{n}"), within=20) for n in range(20))
            )
            held = await on_every_primary(
                cluster, f"SELECT count(*) FROM {w.collection.table} WHERE id = $1", id_
            )
            assert sorted(held) == [0, 0, 0, 1]
            shard = ("s0", "s1", "s2", "s3")[held.index(1)]
            for n, outcome in enumerate(outcomes):
                # Whoever stored did so where the first one did; everybody else was refused.
                assert (outcome.stored == 1) == (locate(BY_CATEGORY, f"c{n}") == shard)
                assert {failure.reason for failure in outcome.failures} <= {"conflict"}
        await no_lock_is_held(cluster)


async def test_concurrent_batches_with_common_ids_do_not_wait_for_each_other_for_ever(
    cluster: Cluster,
) -> None:
    async with world(cluster, sharding=BY_CATEGORY) as w:
        rng = random.Random(9)

        async def batch() -> UpsertOutcome:
            ids = rng.sample(range(60), 30)
            return await upsert(
                w, *(w.document(i, ONES, category=f"c{rng.randrange(40)}") for i in ids), within=20
            )

        outcomes = await asyncio.gather(*(batch() for _ in range(16)))
        reasons = {failure.reason for outcome in outcomes for failure in outcome.failures}
        assert reasons <= {"conflict"}
        held = await on_every_primary(cluster, f"SELECT array_agg(id) FROM {w.collection.table}")
        ids = [id_ for part in held for id_ in part or []]
        assert len(ids) == len(set(ids))
        assert await count(w) == len(ids) > 0
        await no_lock_is_held(cluster)


async def test_a_lock_that_a_frozen_router_holds_keeps_no_other_write_waiting(cluster: Cluster) -> None:
    async with world(cluster, sharding=BY_CATEGORY) as w:
        key = _lock_key("docs", 1)
        others = [i for i in range(2, 400) if _lock_key("docs", i) != key]
        await w.put(*(w.document(i, ONES, category=f"c{i}") for i in others[:100]))
        home = ("s0", "s1", "s2", "s3")[key % 4]
        frozen = await asyncpg.connect(primary(cluster, home))
        try:
            await frozen.execute("SELECT pg_advisory_lock($1)", key)
            blocked = [
                asyncio.create_task(upsert(w, w.document(1, ONES, category="c1"), within=60))
                for _ in range(3 * w.topology.parts.settings.write_connections)
            ]
            await asyncio.sleep(0.5)
            outcomes = await asyncio.gather(
                *(upsert(w, w.document(i, ONES, category=f"c{i}"), within=30) for i in others[:20])
            )
            assert [outcome.stored for outcome in outcomes] == [1] * 20
            assert (await w.router.delete(w.collection, others[:20], w.soon(30))).deleted == 20
            pid = await frozen.fetchval("SELECT pg_backend_pid()")
            (failure,) = (await upsert(w, w.document(1, ONES, category="c1"), within=3)).failures
            assert failure.reason == "unavailable"
            assert failure.message == (
                "other writers of these ids did not finish in time:"
                f" server process {pid} of client 127.0.0.1 of {home} holds their lock"
            )
            assert not any(task.done() for task in blocked)
            await frozen.execute("SELECT pg_advisory_unlock_all()")
            assert [outcome.stored for outcome in await asyncio.gather(*blocked)] == [1] * len(blocked)
        finally:
            await frozen.close()
        await no_lock_is_held(cluster)


@pytest.mark.parametrize("sharding", [None, BY_CATEGORY])
async def test_overlapping_writes_in_any_order_do_not_deadlock(
    cluster: Cluster, sharding: model.Sharding | None
) -> None:
    async with world(cluster, **({} if sharding is None else {"sharding": sharding})) as w:
        rng = random.Random(3)
        documents = [w.document(i, ONES, category=f"c{i % 7}") for i in range(400)]
        everything = parse(w.collection, {"id": {"$lt": 400}}, Settings())
        await w.put(*reversed(documents))
        for n in range(3):
            stored = [upsert(w, *rng.sample(documents, 400), within=30) for _ in range(6)]
            deleted = [
                w.router.delete(w.collection, rng.sample(range(400), 400), w.soon(30)),
                w.router.delete_matching(w.collection, everything, w.soon(30)),
            ]
            patch = msgspec.structs.replace(PATCH, values={"price": float(n)})
            patched = [
                w.router.patch(w.collection, rng.sample(range(400), 400), patch, w.soon(30)),
                w.router.patch_matching(w.collection, everything, patch, w.soon(30)),
            ]
            outcomes = await asyncio.gather(*stored, *deleted, *patched)
            assert [write.error for outcome in outcomes for write in outcome.shards if not write.ok] == []
        await w.put(*documents)


@pytest.mark.parametrize("write", ["upsert", "delete", "delete matching", "patch", "patch matching"])
@pytest.mark.parametrize("sharding", ["by id", "by category"])
@pytest.mark.parametrize("id_type", [ValueType.BIGINT, ValueType.TEXT, ValueType.UUID])
async def test_a_write_locks_its_rows_by_rising_id(
    cluster: Cluster, id_type: ValueType, sharding: str, write: str
) -> None:
    id_ = column("id", id_type)
    on_one = model.HashSharding(id_ if sharding == "by id" else column("category", ValueType.TEXT), ("s0",))
    ids: list[Any] = list(range(10))
    if id_type is ValueType.TEXT:
        ids = sorted(["B", "Z", "Äpfel", "a", "a-b", "aB", "ab", "z", "é", "\U0001f600"])
    elif id_type is ValueType.UUID:
        ids = sorted(uuid.UUID(int=i << 121 | 10 - i) for i in ids)
    async with world(cluster, id=id_, sharding=on_one) as w:
        table = w.collection.table
        documents = [w.document(i, ONES, category="c") for i in ids]
        for document in reversed(documents):
            await w.put(document)
        dsn = primary(cluster, "s0")
        holder, other = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
        try:
            await holder.execute("BEGIN")
            await holder.execute(f"SELECT FROM {table} WHERE id = $1 FOR UPDATE", ids[5])
            task = asyncio.create_task(
                written(w, write, [documents[i] for i in (7, 2, 9, 5, 0, 3, 8, 1, 6, 4)])
            )
            while not await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
            free = await other.fetch(f"SELECT id FROM {table} FOR UPDATE SKIP LOCKED")
            assert {row["id"] for row in free} == set(ids[6:])
            await holder.execute("ROLLBACK")
            assert [(shard.ok, shard.rows) for shard in await task] == [(True, 10)]
        finally:
            await holder.close()
            await other.close()


async def test_more_ids_than_postgresql_has_room_for_locks(cluster: Cluster) -> None:
    async with world(cluster, sharding=BY_CATEGORY) as w:
        documents = [w.document(i, ONES, category=f"c{i % 50}") for i in range(9000)]
        outcomes = await asyncio.gather(
            upsert(w, *documents[:6000], within=60), upsert(w, *documents[3000:], within=60)
        )
        assert [outcome.stored for outcome in outcomes] == [6000, 6000]
        assert await count(w) == 9000


async def test_a_cancelled_upsert_neither_keeps_locks_nor_doubles_ids(cluster: Cluster) -> None:
    before = asyncio.all_tasks()
    async with world(cluster, sharding=BY_CATEGORY) as w:
        rng = random.Random(4)
        for start in range(0, 200, 20):
            tasks = [
                asyncio.create_task(
                    upsert(w, *(w.document(start + i, ONES, category=f"c{n}") for i in range(5)))
                )
                for n in range(20)
            ]
            for task in tasks:
                asyncio.get_running_loop().call_later(rng.uniform(0, 0.1), task.cancel)
            await asyncio.gather(*tasks, return_exceptions=True)
        await no_lock_is_held(cluster)
        held = await on_every_primary(cluster, f"SELECT array_agg(id) FROM {w.collection.table}")
        ids = [id_ for part in held for id_ in part or []]
        assert len(ids) == len(set(ids))
        await w.put(w.document(1000, ONES, category="c1"))
        await until(lambda: not any(n.writes.in_flight or n.writes.waiting for n in w.topology.parts.nodes))
        for node in w.topology.parts.nodes:
            assert node.writes.connections <= w.topology.parts.settings.write_connections
    assert asyncio.all_tasks() == before


async def test_an_id_whose_first_writer_timed_out_midway_is_not_stored_twice(cluster: Cluster) -> None:
    async with world(cluster, patient(cancel_timeout=0.2), sharding=BY_CATEGORY) as w:
        by_shard = categories(w)
        # SHARE lets the id be looked for, and holds up the INSERT.
        async with locked(primary(cluster, "s1"), w.collection.table, "SHARE"):
            late = await upsert(w, w.document(1, ONES, category=by_shard["s1"]), within=2.5)
            assert [failure.reason for failure in late.failures] == ["unknown"]
            await asyncio.sleep(0.5)  # so much time that the router has let go of its sessions
            other = asyncio.create_task(upsert(w, w.document(1, ONES, category=by_shard["s2"]), within=30))
            await asyncio.sleep(0.3)
        await other
        await asyncio.sleep(0.2)
        held = await on_every_primary(cluster, f"SELECT count(*) FROM {w.collection.table}")
        assert sum(held) == 1
        await no_lock_is_held(cluster)


@pytest.mark.parametrize("sharding", [None, BY_CATEGORY])
async def test_a_write_that_runs_out_of_time_says_what_it_does_not_know(
    cluster: Cluster, sharding: model.Sharding | None
) -> None:
    async with world(cluster, **({} if sharding is None else {"sharding": sharding})) as w:
        documents = [w.document(i, ONES, category=f"c{i}") for i in range(40)]
        loop = asyncio.get_running_loop()
        async with locked(primary(cluster, "s2"), w.collection.table, "SHARE"):
            started = loop.time()
            outcome = await upsert(w, *documents, within=2.0)
            assert loop.time() - started < 10
            failed = [shard for shard in outcome.shards if not shard.ok]
            assert [shard.shard for shard in failed] == ["s2"]
            assert {failure.reason for failure in outcome.failures} == {"unknown"}
            assert outcome.stored == 40 - len(outcome.failures)
            # Nothing was stored, as it happens: the statement has been cancelled.
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                f" AND query LIKE '%{w.collection.table.name}%'"
            )
            async with asyncio.timeout(20):
                while any(await on_every_primary(cluster, waiting)):
                    await asyncio.sleep(0.02)
            strong = await w.search(ONES, 50, exact=True, consistency=Consistency.STRONG)
            assert strong.answer.count == outcome.stored
        # Sending it again is safe.
        assert (await upsert(w, *documents)).stored == 40
        assert await count(w) == 40


async def test_what_a_write_without_an_answer_did_is_left_open(cluster: Cluster) -> None:
    async with world(cluster, patient(write_timeout=2.0)) as w, w.over_http() as client:
        ids = [i for i in range(40) if locate(w.collection.sharding, i) == "s2"]
        await w.put(*(w.document(i, ONES) for i in ids))
        async with locked(primary(cluster, "s2"), w.collection.table, "SHARE"):
            body = {"documents": [{"id": i, "vector": ONES} for i in ids]}
            deleted, stored = await asyncio.gather(
                client.delete(f"/documents/{ids[0]}"), client.put("/documents", json=body)
            )
        assert (deleted.status_code, stored.status_code) == (503, 503)
        assert deleted.json()["detail"] == (
            "1 of 1 shards did not confirm the delete; on 1 of them documents may have been deleted"
        )
        assert deleted.json()["errors"] == [
            {"path": "shards.s2", "message": "unknown: no answer from the primary in time"}
        ]
        assert stored.json()["detail"] == (
            f"none of {len(ids)} documents is known to be stored;"
            f" {len(ids)} may be, and sending them again is safe"
        )
        assert stored.json()["shards"]["s2"] == {
            "ok": False,
            "rows": 0,
            "error": "no answer from the primary in time",
            "unknown": True,
        }


async def test_each_shard_has_its_own_outcome_when_a_primary_is_down(breakable: Cluster) -> None:
    settings = patient(probe_interval=0.1, failover_wait=0.5)
    async with world(breakable, settings) as w, AsyncRestart(breakable, "s1-a", w):
        await w.put(*(w.document(i, ONES) for i in range(20)))
        await asyncio.to_thread(breakable.kill, "s1-a")
        for _ in range(2):  # before the prober knows, and after
            outcome = await upsert(w, *(w.document(i, ONES, price=1.0) for i in range(40)))
            shards = {shard.shard: shard for shard in outcome.shards}
            assert shards["s0"].ok
            assert not shards["s1"].ok
            on_s0 = [i for i in range(40) if locate(w.collection.sharding, i) == "s0"]
            assert outcome.stored == shards["s0"].rows == len(on_s0)
            assert {failure.id for failure in outcome.failures} == set(range(40)) - set(on_s0)
            assert {failure.reason for failure in outcome.failures} <= {"unavailable", "unknown"}
            await until(lambda: states(w)["s1-a"] == "down")
        assert {failure.reason for failure in outcome.failures} == {"unavailable"}
        answer = await w.router.count(w.collection, None, w.soon())
        assert not answer.coverage.full
        assert answer.count == len(on_s0)
        gone = next(i for i in range(40) if i not in on_s0)
        with pytest.raises(UnavailableError):
            await read(w, gone)
        deleted = await w.router.delete(w.collection, [on_s0[0], gone], w.soon())
        assert deleted.deleted == 1
        assert {write.shard: write.ok for write in deleted.shards} == {"s0": True, "s1": False}


async def test_ids_cannot_be_checked_while_a_primary_is_down_and_nothing_is_stored(
    breakable: Cluster,
) -> None:
    settings = patient(probe_interval=0.1, failover_wait=0.5)
    sharding = model.HashSharding(column("category", ValueType.TEXT), ("s0", "s1"))
    async with world(breakable, settings, sharding=sharding) as w, AsyncRestart(breakable, "s1-a", w):
        by_shard = categories(w)
        await asyncio.to_thread(breakable.kill, "s1-a")
        for _ in range(2):
            outcome = await upsert(w, w.document(1, ONES, category=by_shard["s0"]))
            assert outcome.stored == 0
            assert [failure.reason for failure in outcome.failures] == ["unavailable"]
            await until(lambda: states(w)["s1-a"] == "down")
        assert (await w.router.count(w.collection, None, w.soon())).count == 0


def states(w: World) -> dict[str, str]:
    return {node.name: node.state for node in w.router.nodes()}


class AsyncRestart:
    """Starts a node again after the block, and waits until the router has seen it."""

    def __init__(self, cluster: Cluster, node: str, w: World) -> None:
        self._cluster, self._node, self._world = cluster, node, w

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._cluster.start, self._node)
        await until(lambda: set(states(self._world).values()) == {"up"})
        assert hits(await self._world.search(np.ones(8), 1)) is not None


@pytest.mark.parametrize("sharding", [None, BY_CATEGORY])
async def test_columns_that_a_document_leaves_out_get_the_tables_default(
    cluster: Cluster, sharding: model.Sharding | None
) -> None:
    columns = {
        "category": column("category", ValueType.TEXT),
        "price": column("price", ValueType.FLOAT8),
        "stock": column("stock", ValueType.INTEGER),
        "twice": column("twice", ValueType.INTEGER),
        "serial": column("serial", ValueType.BIGINT),
    }
    async with world(cluster, columns=columns, **({} if sharding is None else {"sharding": sharding})) as w:
        table = w.collection.table
        await w.on_primaries(
            f"ALTER TABLE {table} ALTER price SET DEFAULT 1.5, ALTER price SET NOT NULL,"
            " ALTER content SET DEFAULT 'none', ALTER metadata SET DEFAULT '{\"a\": 1}',"
            f" DROP twice; ALTER TABLE {table} ADD twice integer GENERATED ALWAYS AS (stock * 2) STORED,"
            " DROP serial, ADD CHECK (stock < 1000);"
            f" ALTER TABLE {table} ADD serial bigint GENERATED ALWAYS AS IDENTITY"
        )
        c = "c1"
        given: list[dict[str, Any]] = [
            {},
            {"price": 2.0},
            {"content": "x", "stock": 3},
            {"price": 4.0, "stock": 5},
            {"metadata": {"b": 2}},
            {},
            {"stock": 7},
        ]
        # First written, then replaced: a default is not what the old row had.
        everything = {"price": 9.0, "content": "old", "metadata": {"old": True}, "stock": 8}
        await w.put(*(w.document(i, ONES, category=c, **everything) for i in range(0, len(given), 2)))
        await w.put(*(w.document(i, ONES, category=c, **fields) for i, fields in enumerate(given)))
        names = ("price", "content", "metadata", "stock", "twice")
        for i, fields in enumerate(given):
            found = await read(w, i, *names, "serial")
            assert found is not None
            assert isinstance(found["serial"], int)
            found["metadata"] = msgspec.json.decode(found["metadata"])
            stock = fields.get("stock")
            defaults = {"price": 1.5, "content": "none", "metadata": {"a": 1}, "stock": None}
            expected = {**defaults, **fields, "twice": None if stock is None else 2 * stock}
            assert {name: found[name] for name in names} == expected
        # One refused row among several statements' rows is named by its place, and fails alone.
        outcome = await upsert(
            w,
            w.document(20, ONES, category=c),
            w.document(21, ONES, category=c, price=2.0, stock=1000),
            w.document(22, ONES, category=c, content="x"),
        )
        assert outcome.stored == 2
        assert [(failure.index, failure.id, failure.reason) for failure in outcome.failures] == [
            (1, 21, "invalid")
        ]


async def test_documents_that_differ_in_what_they_leave_out_share_a_statement_where_there_is_no_default(
    cluster: Cluster,
) -> None:
    async with world(cluster) as w:
        shard = next(iter(w.router.shard_map.shards))
        ids = [i for i in range(400) if locate(w.collection.sharding, i) == shard][:60]
        sparse = [w.document(i, ONES, **({"price": 1.0} if i % 2 else {"content": "x"})) for i in ids]
        assert len(upserts(w.collection, sparse, frozenset())) == 1
        assert len(upserts(w.collection, sparse, frozenset({"price"}))) > 1
        await w.put(*sparse)
        assert await count(w) == len(ids)
