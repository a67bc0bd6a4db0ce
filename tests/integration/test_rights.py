"""A role with the rights that it needs and no others: what it can do, and what is said of the rest."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import msgspec
import numpy as np
import pytest

from deploy.local import Cluster
from router.bulk.errors import LoadError
from router.bulk.load import Options, Summary, load
from router.postgres.filter_indexes import filter_indexes
from router.postgres.rights import Use, held_rights, missing_rights
from router.postgres.sql import mapped_columns
from router.schema import ddl
from router.schema.apply import ShardResult, apply
from router.schema.check import read_facts
from router.schema.findings import shard_findings
from router.terminal import Display
from router.topology import Parts, Topology
from shard_config import model
from shard_config.values import ValueType
from tests.integration.worlds import World, column, execute, patient, shard_map, until, world

_numbers = itertools.count()


@pytest.fixture(scope="module")
def owned() -> Iterator[Cluster]:
    """Two shards whose tables the superuser owns; PUBLIC may do nothing there but use the schema."""
    with Cluster.temporary(shards=2, replicas=0, fsync=False) as running:
        for node in running.nodes:
            asyncio.run(execute(node.dsn, "CREATE EXTENSION vector"))
        yield running


def as_role(dsn: str, role: str) -> str:
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rsplit('@')[-1]}"))


class Tables:
    """The table of one collection, made by its owner, and a role that has what is granted and no more."""

    def __init__(self, cluster: Cluster, owner: World, role: str) -> None:
        self.cluster = cluster
        self.collection = owner.collection
        self.role = role

    async def grant(self, *statements: str, shard: int | None = None) -> None:
        nodes = self.cluster.nodes if shard is None else [self.cluster.nodes[shard]]
        for node in nodes:
            for statement in statements:
                named = statement.format(table=self.collection.table, role=self.role)
                await execute(node.dsn, named)

    async def lacks(self, use: Use) -> list[str]:
        """The grants that the role needs for `use` on the first shard."""
        connection = await asyncpg.connect(as_role(self.cluster.nodes[0].dsn, self.role))
        try:
            found = await held_rights(connection, self.collection)
        finally:
            await connection.close()
        assert found is not None
        return missing_rights(self.collection, found, use)

    @asynccontextmanager
    async def router(self, **settings: Any) -> AsyncIterator[World]:
        """A router that connects as the role."""
        nodes = [dataclasses.replace(n, dsn=as_role(n.dsn, self.role)) for n in self.cluster.nodes]
        async with routed(cast(Cluster, _Nodes(nodes)), self.collection, **settings) as served:
            yield served


class _Nodes:
    redis_url = ""

    def __init__(self, nodes: list[Any]) -> None:
        self.nodes = nodes


@asynccontextmanager
async def routed(cluster: Cluster, collection: model.Collection, **settings: Any) -> AsyncIterator[World]:
    """A router over a table that is there already."""
    base = shard_map(cluster)
    shards = model.ShardMap(1, base.shards, {"docs": collection})
    topology = Topology(shards, Parts(shards, patient(**settings)))
    await topology.open()
    try:
        yield World(cluster, topology)
    finally:
        await topology.close()


@asynccontextmanager
async def tables(cluster: Cluster, **changes: Any) -> AsyncIterator[Tables]:
    role = f"role_{next(_numbers)}"
    async with world(cluster, **changes) as owner:
        made = Tables(cluster, owner, role)
        await made.grant("CREATE ROLE {role} LOGIN")
        await owner.put(*(owner.document(i, [float(i)] * 8, category="c", price=1.0) for i in range(6)))
        try:
            yield made
        finally:
            await made.grant("DROP OWNED BY {role}", "DROP ROLE {role}")


READS = {
    "search": ("POST", "/search", {"vector": [1.0] * 8, "include": ["content", "metadata", "category"]}),
    "exact search": ("POST", "/search", {"vector": [1.0] * 8, "exact": True}),
    "filtered search": ("POST", "/search", {"vector": [1.0] * 8, "filter": {"category": "c"}}),
    "strongly consistent search": ("POST", "/search", {"vector": [1.0] * 8, "consistency": "strong"}),
    "explained search": ("POST", "/search", {"vector": [1.0] * 8, "explain": True, "cache": False}),
    "batch": ("POST", "/search/batch", {"searches": [{"vector": [1.0] * 8}]}),
    "document": ("GET", "/documents/1", None),
    "document with its vector": ("GET", "/documents/1?include=vector,price", None),
    "count": ("GET", "/count", None),
    "filtered count": ("GET", "/count?filter=%7B%22price%22%3A1%7D", None),
    "locate": ("GET", "/locate?key=1", None),
}
KEY = model.HashSharding(column("category", ValueType.TEXT), ("s0", "s1"))
SHARDINGS = pytest.mark.parametrize("changes", [{}, {"sharding": KEY}], ids=["by id", "by another key"])


@SHARDINGS
async def test_whoever_may_read_the_columns_of_the_map_may_read_everything(
    owned: Cluster, changes: dict[str, Any]
) -> None:
    async with tables(owned, **changes) as made:
        grants = await made.lacks(Use.READ)
        assert grants == [f"GRANT SELECT ON {made.collection.table} TO {made.role}"]
        columns = ", ".join(mapped_columns(made.collection))
        await made.grant(f"GRANT SELECT ({columns}) ON {{table}} TO {{role}}")
        assert await made.lacks(Use.READ) == []
        async with made.router() as served, served.over_http() as client:
            for name, (method, path, body) in READS.items():
                answer = await client.request(method, path, json=body)
                assert answer.status_code == 200, (name, answer.text)
                if "coverage" in answer.json():
                    assert answer.json()["coverage"]["full"], name
            assert {node.state for node in served.router.nodes()} == {"up"}
            statistics = served.topology.parts.statistics
            await until(lambda: statistics.of("docs", "s0") is not None)


async def test_a_column_that_may_not_be_read_fails_what_reads_it_and_nothing_else(owned: Cluster) -> None:
    async with tables(owned) as made:
        await made.grant("GRANT SELECT (id, embedding) ON {table} TO {role}")
        assert await made.lacks(Use.READ) == [
            f"GRANT SELECT (content, metadata, category, price) ON {made.collection.table} TO {made.role}"
        ]
        async with made.router() as served, served.over_http() as client:
            assert (await client.post("/search", json={"vector": [1.0] * 8})).status_code == 200
            assert (await client.get("/documents/1?include=vector")).status_code == 200
            assert (await client.get("/count")).status_code == 200
            answer = await client.get("/documents/1")
            assert (answer.status_code, "permission denied" in answer.text) == (500, True)
            # What to grant is told by the check: the answer names no role.
            assert "`pgscatter schema check` says which it lacks" in answer.text


async def test_a_check_by_a_role_with_few_rights_finds_these_missing_and_nothing_else(owned: Cluster) -> None:
    indexes = {("lang",): model.MetadataType.TEXT}
    async with tables(owned, metadata_indexes=indexes) as made:
        (node, *_) = owned.nodes
        table = made.collection.table
        (wanted,) = filter_indexes(made.collection)
        create = ddl.create_filter_index(made.collection, wanted, f"{table.name}_lang")
        await made.grant(create.replace("{", "{{").replace("}", "}}"), f"ANALYZE {table}")
        await made.grant("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
        try:

            async def found() -> set[str]:
                connection = await asyncpg.connect(as_role(node.dsn, made.role))
                try:
                    facts = await read_facts(connection, node.name, [made.collection])
                finally:
                    await connection.close()
                return {str(one) for one in shard_findings("s0", [made.collection], [facts], nodes=1)}

            before = await found()
            assert before >= {
                f"error: docs: the role lacks a right: GRANT USAGE ON SCHEMA public TO {made.role}",
                f"error: docs: the role lacks a right: GRANT SELECT ON {table} TO {made.role}",
            }
            # Of all else, what a superuser is told too.
            await made.grant("GRANT USAGE ON SCHEMA public TO {role}", "GRANT SELECT ON {table} TO {role}")
            note = f"note: docs: role {made.role} may read, but not write"
            rest = {one for one in before if "lacks a right" not in one}
            assert await found() == {*rest, note}
            await made.grant("ALTER ROLE {role} SUPERUSER")
            assert await found() == rest
        finally:
            await made.grant("GRANT USAGE ON SCHEMA public TO PUBLIC")


WRITES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "put": (
        "PUT",
        "/documents",
        {"json": {"documents": [{"id": i, "vector": [1.0] * 8, "category": "c"} for i in range(6)]}},
    ),
    "stream": (
        "PUT",
        "/documents",
        {
            "content": b"".join(
                b'{"id": %d, "vector": [1,1,1,1,1,1,1,1], "category": "c"}\n' % i for i in range(6)
            ),
            "headers": {"content-type": "application/x-ndjson"},
        },
    ),
    "delete one": ("DELETE", "/documents/1", {}),
    "delete by ids": ("POST", "/documents/delete", {"json": {"ids": [0, 1, 2, 3]}}),
    "delete by filter": ("POST", "/documents/delete", {"json": {"filter": {"category": "c"}}}),
    "patch one": ("PATCH", "/documents/1", {"json": {"set": {"price": 2}}}),
    "patch by filter": (
        "POST",
        "/documents/patch",
        {"json": {"filter": {"category": "c"}, "unset": ["metadata.a", "content"]}},
    ),
}


@SHARDINGS
async def test_a_role_that_may_only_read_is_told_so_at_every_write_and_at_once(
    owned: Cluster, changes: dict[str, Any]
) -> None:
    async with tables(owned, **changes) as made:
        await made.grant("GRANT SELECT ON {table} TO {role}")
        table = made.collection.table
        lacks = f"the router's role lacks INSERT ON {table}, UPDATE ON {table}, DELETE ON {table}"
        async with made.router(failover_wait=60.0) as served, served.over_http() as client:
            for name, (method, path, options) in WRITES.items():
                began = time.monotonic()
                answer = await client.request(method, path, **options)
                assert time.monotonic() - began < 20.0, name  # `write_timeout` is 30
                body = answer.json()
                assert (answer.status_code, body["type"]) == (403, "urn:pgscatter:problem:write-denied"), name
                assert "retry-after" not in answer.headers
                first = body["errors"][0]
                assert f"permission denied for table {table.name}: {lacks}" in first["message"], name
                assert made.role not in answer.text
                if name in ("put", "stream"):
                    assert body["failed"] == 6
                    assert {failure["reason"] for failure in body["failures"]} == {"denied"}
                    assert "(shard s" in first["message"]
                else:
                    assert first["path"] in ("shards.s0", "shards.s1")
            assert (await client.get("/count")).json()["count"] == 6
            assert {node.state for node in served.router.nodes()} == {"up"}


@pytest.mark.parametrize("right", ["INSERT", "UPDATE", "DELETE"])
async def test_the_one_right_that_is_missing_is_named(owned: Cluster, right: str) -> None:
    rest = ", ".join({"SELECT", "INSERT", "UPDATE", "DELETE"} - {right})
    async with tables(owned) as made:
        await made.grant(f"GRANT {rest} ON {{table}} TO {{role}}")
        assert await made.lacks(Use.WRITE) == [f"GRANT {right} ON {made.collection.table} TO {made.role}"]
        async with made.router() as served, served.over_http() as client:
            method, path, options = WRITES["delete by ids" if right == "DELETE" else "put"]
            answer = await client.request(method, path, **options)
            assert answer.status_code == 403
            assert f"the router's role lacks {right} ON {made.collection.table}" in answer.text
            await made.grant(*await made.lacks(Use.WRITE))
            for method, path, options in WRITES.values():
                assert (await client.request(method, path, **options)).status_code in (200, 404)


async def test_a_default_that_reads_a_sequence_which_the_role_may_not_denies_writes(owned: Cluster) -> None:
    async with tables(owned) as made:
        sequence = f"{made.collection.table}_numbers"
        await made.grant(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}",
            f"CREATE SEQUENCE {sequence}",
            f"ALTER TABLE {{table}} ADD COLUMN number bigint NOT NULL DEFAULT nextval('{sequence}')",
            f"ALTER SEQUENCE {sequence} OWNED BY {{table}}.number",
        )
        assert await made.lacks(Use.WRITE) == [f"GRANT USAGE ON SEQUENCE {sequence} TO {made.role}"]
        async with made.router() as served, served.over_http() as client:
            method, path, options = WRITES["put"]
            answer = await client.request(method, path, **options)
            assert (answer.status_code, answer.json()["type"]) == (403, "urn:pgscatter:problem:write-denied")
            lacks = f"the router's role lacks USAGE ON SEQUENCE {sequence}"
            assert lacks in answer.text
            # Also where documents are sent singly, because one is invalid, before another reads the default.
            await made.grant(
                "ALTER TABLE {table} DROP COLUMN number, ADD CHECK (price <> 13)",
                f"CREATE SEQUENCE {sequence}",
                f"ALTER TABLE {{table}} ALTER price SET DEFAULT nextval('{sequence}')",
            )
            documents: list[dict[str, Any]] = [{"id": i, "vector": [1.0] * 8} for i in range(60)]
            for document in documents[:30]:
                document["price"] = 13.0
            answer = await client.put("/documents", json={"documents": documents})
            said = [failure["message"] for failure in answer.json()["failures"]]
            assert (answer.status_code, len(said), all(lacks in one for one in said)) == (403, 60, True)
            await made.grant(*await made.lacks(Use.WRITE))
            assert (await client.request(method, path, **options)).json()["stored"] == 6


@SHARDINGS
@pytest.mark.parametrize("right", ["SELECT (id)", "UPDATE"])
async def test_a_right_that_is_revoked_has_the_shard_looked_at_when_a_write_lacks_it(
    owned: Cluster, changes: dict[str, Any], right: str
) -> None:
    async with tables(owned, **changes) as made:
        rights = "SELECT (id, embedding, content, metadata, category, price), INSERT, UPDATE, DELETE"
        await made.grant(f"GRANT {rights} ON {{table}} TO {{role}}")
        # Else the shards would be looked at every two seconds, for that.
        await made.grant("ALTER TABLE {table} ALTER category SET NOT NULL")
        async with made.router(schema_check_interval=1000.0) as served, served.over_http() as client:

            def found() -> bool:
                return any("lacks a right" in one.message for one in served.router.schema().findings)

            assert not served.router.schema().wrong
            await made.grant(f"REVOKE {right} ON {{table}} FROM {{role}}")
            method, path, options = WRITES["put"]
            answer = await client.request(method, path, **options)
            assert answer.status_code == 403
            assert f"the router's role lacks {right} ON {made.collection.table}" in answer.text
            await until(found)


async def test_rights_that_one_shard_denies_fail_its_documents_alone(owned: Cluster) -> None:
    async with tables(owned) as made:
        await made.grant("GRANT SELECT ON {table} TO {role}")
        await made.grant("GRANT INSERT, UPDATE, DELETE ON {table} TO {role}", shard=0)
        async with made.router() as served, served.over_http() as client:
            method, path, options = WRITES["put"]
            answer = await client.request(method, path, **options)
            body = answer.json()
            assert (answer.status_code, body["shards"]["s0"]["ok"], body["shards"]["s1"]["ok"]) == (
                *(200, True, False),
            )
            assert body["stored"] + body["failed"] == 6
            assert {(failure["reason"], failure["shard"]) for failure in body["failures"]} == {
                ("denied", "s1")
            }
            answer = await client.post("/documents/delete", json={"ids": list(range(6))})
            assert (answer.status_code, answer.json()["shards"]["s1"]["ok"]) == (200, False)
            assert answer.json()["deleted"] == body["stored"]
            # What is left is all on the shard that denies it.
            again = await client.post("/documents/delete", json={"ids": list(range(6))})
            assert (again.status_code, again.json()["errors"][0]["path"]) == (403, "shards.s1")


async def test_where_the_id_is_not_the_key_one_denying_shard_is_named_for_all(owned: Cluster) -> None:
    async with tables(owned, sharding=KEY) as made:
        await made.grant("GRANT SELECT, INSERT, UPDATE ON {table} TO {role}", shard=0)
        async with made.router() as served, served.over_http() as client:
            method, path, options = WRITES["put"]
            answer = await client.request(method, path, **options)
            assert answer.status_code == 403
            assert "must be asked whether they hold the id: s1-a: permission denied" in answer.text


@SHARDINGS
async def test_a_primary_whose_transactions_are_read_only_is_not_taken_for_a_replica(
    owned: Cluster, changes: dict[str, Any]
) -> None:
    async with tables(owned, **changes) as made:
        await made.grant(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}",
            "ALTER ROLE {role} SET default_transaction_read_only = on",
        )
        async with made.router(failover_wait=60.0) as served, served.over_http() as client:
            method, path, options = WRITES["put"]
            # The role's default does not count: the router sets its own.
            assert (await client.request(method, path, **options)).json()["stored"] == 6
            name = made.collection.table.name
            await made.grant(
                f"CREATE FUNCTION {name}_f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " PERFORM set_config('transaction_read_only', 'on', true);"
                f" DELETE FROM {{table}} WHERE id = -1; RETURN NEW; END $$;"
                f" CREATE TRIGGER t BEFORE INSERT ON {{table}} FOR EACH ROW EXECUTE FUNCTION {name}_f()"
            )
            began = time.monotonic()
            answer = await client.request(method, path, **options)
            assert time.monotonic() - began < 20.0
            assert (answer.status_code, answer.json()["type"]) == (
                *(403, "urn:pgscatter:problem:write-denied"),
            )
            assert "in a read-only transaction, though it is the primary" in answer.text
            assert {node.role for node in served.router.nodes()} == {"primary"}
            assert sum(node.role_changes for node in served.router.nodes()) == 0
        await made.grant(f"DROP FUNCTION {name}_f() CASCADE")


async def loaded(made: Tables, source: Path) -> Summary:
    """What a load by the role has come to."""
    nodes = [dataclasses.replace(n, dsn=as_role(n.dsn, made.role)) for n in made.cluster.nodes]
    shards = msgspec.structs.replace(
        shard_map(cast(Cluster, _Nodes(nodes))), collections={"docs": made.collection}
    )
    with Display(io.StringIO()) as display:
        return await load(shards, made.collection, source, Options(), display)


def owners_map(made: Tables) -> model.ShardMap:
    return msgspec.structs.replace(shard_map(made.cluster), collections={"docs": made.collection})


async def applied(made: Tables, shards: model.ShardMap) -> list[ShardResult]:
    """What `schema apply` by the owner has done."""
    with Display(io.StringIO()) as display:
        return await apply(shards, [made.collection], display)


def source(folder: Path) -> Path:
    np.save(folder / "rows.npy", np.ones((50, 8), np.float32))
    return folder / "rows.npy"


async def test_a_load_by_a_role_that_owns_nothing_says_what_to_grant_and_then_works(
    owned: Cluster, tmp_path: Path
) -> None:
    async with tables(owned) as made:
        await made.grant("TRUNCATE {table}")
        shards = owners_map(made)
        for result in await applied(made, shards):
            assert result.errors == []
        assert not any(result.done for result in await applied(made, shards))
        with pytest.raises(LoadError, match="may not load into") as caught:
            await loaded(made, source(tmp_path))
        assert caught.value.lines[0].startswith("s0: ")
        await made.grant(*caught.value.lines[0].split(": ", 2)[-1].split("; "))
        assert await made.lacks(Use.LOAD) == []
        summary = await loaded(made, source(tmp_path))
        assert (summary.rows, summary.earlier) == (50, 0)
        assert ["statistics of" in note for note in summary.notes] == [True, True]
        # The index was not dropped by somebody who could not have built it again.
        (index,) = await owned_rows(made, "SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%hnsw%'")
        assert index >= 1
        again = await loaded(made, source(tmp_path))
        assert (again.rows, again.earlier, again.idle) == (0, 50, True)


async def owned_rows(made: Tables, query: str) -> list[Any]:
    connection = await asyncpg.connect(made.cluster.nodes[0].dsn)
    try:
        return [row[0] for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def test_a_role_that_may_not_create_the_tables_of_a_load_is_told_who_does(
    owned: Cluster, tmp_path: Path
) -> None:
    async with tables(owned) as made:
        await made.grant(
            "DROP SCHEMA IF EXISTS pgscatter CASCADE",
            "TRUNCATE {table}",
            "GRANT INSERT, SELECT ON {table} TO {role}",
            "GRANT MAINTAIN ON {table} TO {role}",
        )
        with pytest.raises(LoadError, match="run `pgscatter schema apply` as one with CREATE") as caught:
            await loaded(made, source(tmp_path))
        for result in await applied(made, owners_map(made)):
            assert "created the tables of `load` in schema pgscatter" in result.done
        await made.grant(*caught.value.lines[0].rsplit("then: ", 1)[1].split("; "))
        summary = await loaded(made, source(tmp_path))
        assert (summary.rows, summary.notes) == (50, [])


async def test_whoever_applies_a_schema_without_creating_schemas_is_told_that_loads_lack_theirs(
    owned: Cluster,
) -> None:
    async with tables(owned) as made:
        await made.grant(
            "DROP SCHEMA IF EXISTS pgscatter CASCADE",
            "GRANT CREATE ON SCHEMA public TO {role}",
            "ALTER TABLE {table} OWNER TO {role}",
        )
        nodes = [dataclasses.replace(n, dsn=as_role(n.dsn, made.role)) for n in owned.nodes]
        shards = msgspec.structs.replace(
            shard_map(cast(Cluster, _Nodes(nodes))), collections={"docs": made.collection}
        )
        with Display(io.StringIO()) as display:
            for result in await apply(shards, [made.collection], display):
                assert result.errors == []
                assert sum("may not create them" in note for note in result.notes) == 1
        await made.grant("ALTER TABLE {table} OWNER TO postgres")
