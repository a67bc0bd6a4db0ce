"""What PostgreSQL refuses: one document, one transaction, or everything until somebody mends it."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import msgspec
import numpy as np
import pytest

from deploy.local import Cluster
from router.bulk.errors import LoadError
from router.bulk.load import Options, load
from router.documents.types import UpsertOutcome
from router.schema.apply import apply
from router.terminal import Display
from shard_config import model
from shard_config.values import ValueType
from tests.integration.worlds import World, column, execute, patient, shard_map, world

ID, CATEGORY = column("id", ValueType.BIGINT), column("category", ValueType.TEXT)
SHARDINGS = [model.HashSharding(ID, ("s0",)), model.HashSharding(CATEGORY, ("s0",))]


@pytest.fixture(scope="module")
def single() -> Iterator[Cluster]:
    """One server, which a role without rights of its own uses."""
    with Cluster.temporary(shards=1, replicas=0, fsync=False) as running:
        asyncio.run(execute(running.nodes[0].dsn, "CREATE EXTENSION vector; CREATE ROLE limited LOGIN"))
        asyncio.run(execute(running.nodes[0].dsn, "GRANT ALL ON SCHEMA public TO limited"))
        asyncio.run(execute(running.nodes[0].dsn, "GRANT ALL ON DATABASE postgres TO limited"))
        yield running


class AsLimited:
    """The cluster's nodes as this role reaches them."""

    def __init__(self, cluster: Cluster) -> None:
        self.redis_url = ""
        self.nodes = [dataclasses.replace(node, dsn=_as_limited(node.dsn)) for node in cluster.nodes]


def _as_limited(dsn: str) -> str:
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"limited@{parts.netloc.rsplit('@')[-1]}"))


def limited(cluster: Cluster) -> Cluster:
    return cast(Cluster, AsLimited(cluster))


async def upsert(w: World, ids: Any, within: float = 20.0) -> UpsertOutcome:
    documents = [w.document(i, [float(i)] * 8, category="c", content=f"text {i}") for i in ids]
    numbered = [msgspec.structs.replace(d, index=n) for n, d in enumerate(documents)]
    return await w.router.upsert(w.collection, numbered, w.soon(within))


def trigger(table: object, body: str, when: str = "BEFORE INSERT OR UPDATE") -> str:
    name = str(table).replace(".", "_")
    return (
        f"CREATE FUNCTION {name}_f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;"
        f" CREATE TRIGGER t {when} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}_f()"
    )


REFUSING = {
    "a policy": (
        "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        "CREATE POLICY p ON {table} USING (true) WITH CHECK (id <> 3)",
        "new row violates row-level security policy",
    ),
    "a trigger that returns NULL": (
        "IF NEW.id = 3 THEN RETURN NULL; END IF; RETURN NEW;",
        "not stored: a trigger of the table returned NULL for it",
    ),
    "a trigger that raises": (
        "IF NEW.id = 3 THEN RAISE EXCEPTION 'three is refused'; END IF; RETURN NEW;",
        "three is refused",
    ),
    "a trigger that raises an error of another class": (
        "IF NEW.id = 3 THEN RAISE EXCEPTION 'never mind' USING ERRCODE = '42P01'; END IF; RETURN NEW;",
        "never mind",
    ),
    "a trigger that raises an error of its own": (
        "IF NEW.id = 3 THEN RAISE EXCEPTION 'ours' USING ERRCODE = 'OU001'; END IF; RETURN NEW;",
        "ours",
    ),
    "a constraint": ("ALTER TABLE {table} ADD CHECK (id <> 3)", "violates check constraint"),
    "a constraint that is checked at the end": (
        "CREATE TABLE {table}_texts (content text PRIMARY KEY);"
        "INSERT INTO {table}_texts SELECT 'text ' || i FROM generate_series(0, 9) i WHERE i <> 3;"
        "ALTER TABLE {table} ADD FOREIGN KEY (content) REFERENCES {table}_texts"
        " DEFERRABLE INITIALLY DEFERRED",
        "violates foreign key constraint",
    ),
}


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("what", REFUSING)
async def test_a_document_that_is_refused_fails_alone_and_says_why(
    single: Cluster, what: str, sharding: model.Sharding
) -> None:
    async with world(limited(single), sharding=sharding) as w:
        table = w.collection.table
        statement, says = REFUSING[what]
        if what.startswith("a trigger"):
            statement = trigger(table, statement)
        await w.on_primaries(statement.format(table=table))
        outcome = await upsert(w, range(6))
        assert outcome.stored == 5
        (failure,) = outcome.failures
        assert (failure.index, failure.id, failure.reason, failure.shard) == (3, 3, "invalid", "s0")
        assert says in failure.message
        assert (await w.router.count(w.collection, None, w.soon())).count == 5
        alone = await upsert(w, [3])
        assert (alone.stored, [f.reason for f in alone.failures]) == (0, ["invalid"])
        await w.on_primaries(f"DROP TABLE IF EXISTS {table}_texts CASCADE")


async def test_documents_that_a_policy_hides_are_not_there(single: Cluster) -> None:
    async with world(limited(single), sharding=SHARDINGS[0]) as w:
        await upsert(w, range(6))
        await w.on_primaries(
            f"ALTER TABLE {w.collection.table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
            f" CREATE POLICY p ON {w.collection.table} USING (id <> 3)"
        )
        assert await w.ids([3.0] * 8, 6, exact=True, cache=False) == [2, 4, 1, 5, 0]
        assert (await w.router.count(w.collection, None, w.soon())).count == 5
        # To check a table, all of it must be seen.
        with Display(io.StringIO()) as display:
            (result,) = await apply(w.router.shard_map, [w.collection], display)
        assert ["row-level security" in error for error in result.errors] == [True]


@pytest.mark.parametrize("state", ["40001", "40P01"])
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("times", [3, 1000])
async def test_a_transaction_that_loses_against_others_is_repeated_a_few_times(
    single: Cluster, sharding: model.Sharding, state: str, times: int
) -> None:
    async with world(limited(single), sharding=sharding) as w:
        table = w.collection.table
        body = (
            f"IF nextval('{table}_seq') <= {times} THEN RAISE EXCEPTION 'lost' USING ERRCODE = '{state}';"
            " END IF; IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW;"
        )
        await w.on_primaries(f"CREATE SEQUENCE {table}_seq")
        await w.on_primaries(trigger(table, body, "BEFORE INSERT OR DELETE"))
        outcome = await upsert(w, range(6))
        if times == 3:
            assert (outcome.stored, outcome.failures) == (6, ())
            await w.on_primaries(f"SELECT setval('{table}_seq', 1)")
            assert (await w.router.delete(w.collection, [1, 2, 3], w.soon())).deleted == 3
        else:
            assert {(f.reason, f.message) for f in outcome.failures} == {("unavailable", "s0-a: lost")}
            assert (await w.router.count(w.collection, None, w.soon())).count == 0
            tries = await value(w, f"SELECT last_value FROM {table}_seq")
            assert tries == 6
        await w.on_primaries(f"DROP SEQUENCE {table}_seq")


@pytest.mark.parametrize("sharding", SHARDINGS)
async def test_a_delete_that_a_trigger_keeps_from_happening_says_so(
    single: Cluster, sharding: model.Sharding
) -> None:
    async with world(limited(single), sharding=sharding) as w, w.over_http() as client:
        await upsert(w, range(6))
        keep = "IF OLD.id = 3 THEN RETURN NULL; END IF; RETURN OLD;"
        await w.on_primaries(trigger(w.collection.table, keep, "BEFORE DELETE"))
        one = await client.delete("/documents/3")
        assert (one.status_code, "a trigger of the table returned NULL" in one.text) == (409, True)
        for body in ({"ids": [3, 4]}, {"filter": {"id": {"$in": [3, 4]}}}):
            some = await client.post("/documents/delete", json=body)
            assert (some.status_code, "for 1 of 2 documents" in some.text) == (409, True)
        assert (await w.router.count(w.collection, None, w.soon())).count == 6
        assert (await w.router.delete(w.collection, [4, 5], w.soon())).deleted == 2


async def value(w: World, query: str) -> Any:
    connection = await asyncpg.connect(w.cluster.nodes[0].dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@pytest.mark.parametrize("sharding", SHARDINGS)
async def test_a_real_deadlock_costs_the_router_a_second_try_and_no_document(
    single: Cluster, sharding: model.Sharding
) -> None:
    async with world(single, sharding=sharding) as w:
        await upsert(w, range(6))
        other = await asyncpg.connect(single.nodes[0].dsn)
        try:
            # The other one waits longer before it looks for deadlocks, so that the router is the victim.
            await other.execute("SET deadlock_timeout = '30s'; BEGIN")
            await other.execute(f"UPDATE {w.collection.table} SET content = 'other' WHERE id = 5")
            ours = asyncio.create_task(upsert(w, range(6)))
            while not await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
            await other.execute(f"UPDATE {w.collection.table} SET content = 'other' WHERE id = 0")
            await other.execute("COMMIT")
            outcome = await ours
        finally:
            await other.close()
        assert (outcome.stored, outcome.failures) == (6, ())


@pytest.mark.parametrize("how", ["ALWAYS", "BY DEFAULT"])
async def test_ids_of_an_identity_column_are_the_callers(single: Cluster, how: str) -> None:
    async with world(limited(single), sharding=SHARDINGS[0]) as w:
        table = w.collection.table
        await w.on_primaries(f"ALTER TABLE {table} ALTER COLUMN id ADD GENERATED {how} AS IDENTITY")
        with Display(io.StringIO()) as display:
            (result,) = await apply(w.router.shard_map, [w.collection], display)
        assert result.errors == []
        assert (await upsert(w, range(6))).stored == 6
        assert (await upsert(w, range(6))).stored == 6
        assert await w.ids([3.0] * 8, 2, exact=True, cache=False) == [3, 2]


WRONG = {
    "a table that is missing": ("ALTER TABLE {table} RENAME TO {name}_away", "pgscatter schema apply"),
    "a column that is missing": ("ALTER TABLE {table} RENAME embedding TO other", "pgscatter schema apply"),
    "a column of another type": (
        "ALTER TABLE {table} ALTER COLUMN embedding TYPE text USING embedding::text",
        "pgscatter schema apply",
    ),
    "a column of other dimensions": (
        "TRUNCATE {table}; ALTER TABLE {table} ALTER COLUMN embedding TYPE vector(4)",
        "pgscatter schema apply",
    ),
    "a unique index that is missing": (
        "ALTER TABLE {table} DROP CONSTRAINT {name}_pkey",
        "pgscatter schema apply",
    ),
    "a right that is missing": (
        "REVOKE ALL ON {table} FROM limited",
        "permission denied for table {name}: ",
    ),
}


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("what", WRONG)
async def test_what_lasts_until_somebody_mends_it_is_no_503(
    single: Cluster, what: str, sharding: model.Sharding
) -> None:
    async with world(limited(single), sharding=sharding) as w, w.over_http() as client:
        table = w.collection.table
        await upsert(w, range(6))
        statement, says = WRONG[what]
        names = {"table": str(table), "name": table.name}
        await w.on_primaries(statement.format(**names))
        vector = [1.0] * 8
        document = {"id": 1, "vector": vector, "category": "c"}
        answers = {}
        if "type" not in what:
            answers["put"] = await client.put("/documents", json={"documents": [document]})
        if "unique" not in what and "dimensions" not in what:
            answers["search"] = await client.post("/search", json={"vector": vector, "cache": False})
            whole = {"vector": vector, "allow_partial": False, "exact": True}
            answers["whole"] = await client.post("/search", json=whole)
        if what in ("a table that is missing", "a right that is missing"):
            answers["count"] = await client.get("/count")
            answers["read"] = await client.get("/documents/1")
            answers["delete"] = await client.delete("/documents/1")
        for name, answer in answers.items():
            body = answer.json()
            denied = "right" in what and name in ("put", "delete")
            expected = (403, "write-denied") if denied else (500, "misconfigured")
            assert (answer.status_code, body["type"].split(":")[-1]) == expected, name
            assert "retry-after" not in answer.headers
            said = body["failures"] if name == "put" else body["errors"]
            assert says.format(**names) in said[0]["message"], said
            assert "s0" in (said[0].get("path") or said[0].get("shard"))
        if "missing" in what and "table" in what:
            await w.on_primaries(f"ALTER TABLE {table}_away RENAME TO {table.name}")


async def test_a_delete_that_a_constraint_forbids_is_a_conflict(single: Cluster) -> None:
    async with world(limited(single), sharding=SHARDINGS[0]) as w, w.over_http() as client:
        table = w.collection.table
        await upsert(w, range(6))
        await w.on_primaries(f"CREATE TABLE {table}_part AS SELECT 1::bigint AS whole")
        await w.on_primaries(f"ALTER TABLE {table}_part ADD FOREIGN KEY (whole) REFERENCES {table}")
        answer = await client.delete("/documents/1")
        assert (answer.status_code, "retry-after" in answer.headers) == (409, False)
        assert "violates foreign key constraint" in answer.json()["errors"][0]["message"]
        await w.on_primaries(f"DROP TABLE {table}_part")


async def test_an_extension_that_is_missing_is_no_503_on_a_new_router_either(single: Cluster) -> None:
    await execute(single.nodes[0].dsn, "CREATE DATABASE bare")
    node = dataclasses.replace(single.nodes[0], dsn=single.nodes[0].dsn.rsplit("/", 1)[0] + "/bare")
    bare = AsLimited(single)
    bare.nodes = [node]
    from router.topology import Parts, Topology

    shards = shard_map(cast(Cluster, bare), sharding=SHARDINGS[0])
    topology = Topology(shards, Parts(shards, patient()))
    await topology.open()
    try:
        async with World(cast(Cluster, bare), topology).over_http() as client:
            answer = await client.post("/search", json={"vector": [1.0] * 8})
    finally:
        await topology.close()
    assert (answer.status_code, "retry-after" in answer.headers) == (500, False)
    assert "the vector extension is missing: run `pgscatter schema apply`" in answer.text


async def test_a_load_does_not_count_what_a_trigger_drops(single: Cluster, tmp_path: Path) -> None:
    async with world(limited(single), sharding=SHARDINGS[0]) as w:
        await w.on_primaries(
            trigger(w.collection.table, "IF NEW.id = 3 THEN RETURN NULL; END IF; RETURN NEW;")
        )
        np.save(tmp_path / "rows.npy", np.ones((10, 8), np.float32))
        with (
            Display(io.StringIO()) as display,
            pytest.raises(LoadError, match=r"row 3: not stored, and no error: a trigger"),
        ):
            await load(w.router.shard_map, w.collection, tmp_path / "rows.npy", Options(), display)
        assert (await w.router.count(w.collection, None, w.soon())).count == 0
