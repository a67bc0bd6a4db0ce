"""What a session knows of the database changes under it, and nobody notices but the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import msgspec
import pytest

from deploy.local import Cluster
from router.postgres.connection import MISSING_EXTENSION, Connection, ErrorKind, NodeError
from router.query.errors import RouterError
from shard_config import model
from shard_config.values import ValueType
from tests.integration.worlds import World, column, hits, patient, replayed, until, world

BY_CATEGORY = model.HashSharding(column("category", ValueType.TEXT), ("s0", "s1"))
EVERYTHING = frozenset({"vector", "content", "metadata", "category", "price"})
ANEW = """
DROP EXTENSION vector CASCADE; CREATE EXTENSION vector {schema};
ALTER TABLE {table} ADD COLUMN embedding {type}(8);
UPDATE {table} SET embedding = ('[' || id || repeat(',' || id, 7) || ']')::vector::{type};
ALTER TABLE {table} ALTER COLUMN embedding SET NOT NULL
"""


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    """Two shards with a replica each, whose extension tests may drop."""
    with Cluster.temporary(shards=2, replicas=1, fsync=False) as running:
        yield running


async def everything_works(w: World, number: int) -> None:
    """Each of these once, and none of them has a second chance at this level."""
    category = f"c{number}"
    # Together with statements of their own and as one, on several connections of each node.
    searches = [w.search([float(i)] * 8, 3, cache=False, include=EVERYTHING) for i in range(24)]
    for i, found in enumerate(await asyncio.gather(*searches)):
        assert found.answer.coverage.full
        nearest = next(hit for hit in hits(found) if hit["id"] == i)
        assert (nearest["distance"], nearest["vector"]) == (0.0, [float(i)] * 8)
    exact = await w.search([1.0] * 8, 3, cache=False, exact=True, filter={"price": {"$gte": 0}})
    assert exact.answer.coverage.full
    answer = await w.router.read(w.collection, 7, EVERYTHING, w.soon())
    assert answer is not None
    assert msgspec.json.decode(answer.document["vector"]) == [7.0] * 8
    assert (await w.router.count(w.collection, None, w.soon())).coverage.full
    await w.put(*(w.document(i, [float(i)] * 8, category=f"c{i}", price=1.0) for i in range(30)))
    assert (await w.router.delete(w.collection, [29], w.soon())).deleted == 1
    await w.put(w.document(29, [29.0] * 8, category="c29", price=1.0, content=category))


@pytest.mark.parametrize(
    ("vector_type", "sharding"),
    [
        (model.VectorType.VECTOR, None),
        (model.VectorType.HALFVEC, BY_CATEGORY),
        pytest.param(model.VectorType.VECTOR, BY_CATEGORY, marks=pytest.mark.full),
        pytest.param(model.VectorType.HALFVEC, None, marks=pytest.mark.full),
    ],
)
async def test_an_extension_that_is_created_anew_costs_no_request(
    two: Cluster, vector_type: model.VectorType, sharding: model.Sharding | None
) -> None:
    kind = model.Vector("embedding", vector_type, 8, model.Metric.L2)
    sharding = sharding or model.HashSharding(column("id", ValueType.BIGINT), ("s0", "s1"))
    settings = patient(node_connections=4, node_statements=4)
    async with world(two, settings, vector=kind, sharding=sharding) as w:
        await w.put(*(w.document(i, [float(i)] * 8, category=f"c{i}", price=1.0) for i in range(30)))
        await everything_works(w, 0)
        for number, schema in enumerate(("", "SCHEMA elsewhere", "")):
            await w.on_primaries("CREATE SCHEMA IF NOT EXISTS elsewhere")
            anew = ANEW.format(table=w.collection.table, type=vector_type, schema=schema)
            await w.on_primaries(anew if not schema else f"SET search_path = public, elsewhere; {anew}")
            await replayed(two)
            await everything_works(w, number + 1)


async def test_a_shard_without_the_extension_is_not_ready_until_it_is_back(two: Cluster) -> None:
    sharding = model.HashSharding(column("id", ValueType.BIGINT), ("s0", "s1"))
    async with world(two, patient(probe_interval=0.1), sharding=sharding) as w:
        await w.put(*(w.document(i, [float(i)] * 8, category=f"c{i}", price=1.0) for i in range(30)))
        await w.on_primaries("DROP EXTENSION vector CASCADE")
        await until(lambda: w.router.ready() == (False, {"s0": False, "s1": False}))
        assert {node.reason for node in w.router.nodes()} == {MISSING_EXTENSION}
        _, *back = ANEW.format(table=w.collection.table, type="vector", schema="").split(";")
        await w.on_primaries(";".join(back))
        await replayed(two)
        # Not even the next probe is waited for.
        await everything_works(w, 0)
        await until(lambda: w.router.ready() == (True, {"s0": True, "s1": True}))


async def test_prepared_statements_that_are_gone_are_prepared_again(two: Cluster) -> None:
    sharding = model.HashSharding(column("id", ValueType.BIGINT), ("s0", "s1"))
    async with world(two, patient(node_connections=4, node_statements=4), sharding=sharding) as w:
        await w.put(*(w.document(i, [float(i)] * 8, category=f"c{i}", price=1.0) for i in range(30)))
        await everything_works(w, 0)
        for node in w.topology.parts.nodes:
            for pool in (node.reads, node.writes):
                for connection in pool._idle:
                    await connection.execute("DEALLOCATE ALL")
        await everything_works(w, 1)


async def test_a_request_that_is_wrong_for_good_does_not_reconnect_each_time(two: Cluster) -> None:
    sharding = model.HashSharding(column("id", ValueType.BIGINT), ("s0", "s1"))
    async with world(two, patient(node_connections=2), sharding=sharding) as w:
        await w.put(*(w.document(i, [float(i)] * 8) for i in range(30)))
        wrong = msgspec.structs.replace(w.collection, table=model.Table("public", "no_such_table"))
        opened = 0

        def counted(open_: object) -> object:
            async def connect() -> Connection:
                nonlocal opened
                opened += 1
                return await open_()  # type: ignore[operator]

            return connect

        for node in w.topology.parts.nodes:
            node.reads._open = counted(node.reads._open)  # type: ignore[assignment]
        began = time.monotonic()
        for _ in range(100):
            with pytest.raises(RouterError):
                await w.router.count(wrong, None, w.soon())
        # Two on each of four nodes for every request would be 800; `tests/unit/test_renewal.py` has how many
        # a second may be.
        assert opened < 8 * (10 + time.monotonic() - began)


async def test_a_probe_does_not_take_a_node_down_for_its_connection(two: Cluster) -> None:
    sharding = model.HashSharding(column("id", ValueType.BIGINT), ("s0", "s1"))
    async with world(two, patient(probe_interval=0.05), sharding=sharding) as w:
        seen: set[tuple[str, str | None]] = set()
        for _ in range(3):
            await w.on_primaries(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'pgscatter probe'"
            )
            for _ in range(50):
                await asyncio.sleep(0.01)
                seen |= {(node.state, node.reason) for node in w.router.nodes()}
        assert seen == {("up", None)}


async def test_an_error_that_a_new_connection_has_too_is_told(two: Cluster) -> None:
    sharding = model.HashSharding(column("id", ValueType.BIGINT), ("s0", "s1"))
    async with world(two, sharding=sharding) as w:
        node = w.topology.parts.nodes[0]

        async def wrong(connection: Connection) -> None:
            await connection.fetch("SELECT * FROM no_such_table")

        for _ in range(3):
            with pytest.raises(NodeError, match='relation "no_such_table" does not exist') as caught:
                await node.reads.run(wrong)
            assert caught.value.kind is ErrorKind.FATAL
