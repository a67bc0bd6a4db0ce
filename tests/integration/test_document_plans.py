"""Deletes and patches by a filter read what the filter's index finds, and pages the next rows of the id's."""

from __future__ import annotations

import pytest

from deploy.local import Cluster
from router.postgres.connection import Connection
from router.postgres.listing import next_ids
from router.postgres.patch import patch_matching
from router.postgres.sql import delete_matching
from router.query.filter import parse
from router.query.patch import Changes, Patch
from shard_config.values import ValueType
from tests.integration.worlds import column, world


@pytest.mark.parametrize("write", ["delete", "patch"])
async def test_a_delete_or_patch_by_filter_uses_the_filters_index(cluster: Cluster, write: str) -> None:
    async with world(cluster) as w:
        table = w.collection.table
        await w.on_primaries(
            f"INSERT INTO {table} (id, embedding, category) SELECT i, array_fill(i, ARRAY[8])::vector,"
            f" 'c' || i % 500 FROM generate_series(1, 20000) i;"
            f" CREATE INDEX ON {table} (category); ANALYZE {table}"
        )
        filter = parse(w.collection, {"category": "c7"}, w.topology.parts.settings)
        statement = delete_matching(w.collection, filter)
        if write == "patch":
            changes = Patch({"price": 1.0}, (), Changes(within={"a": Changes({"b": "1"})}))
            statement = patch_matching(w.collection, filter, changes, frozenset()).statement
        node = w.topology.parts.nodes[0]

        async def plan(connection: Connection) -> str:
            lines = await connection.fetch(f"EXPLAIN {statement.sql}", *statement.args)
            return "\n".join(line[0] for line in lines)

        shown = await node.writes.run(plan)
        assert "Index Scan on" in shown and "_category_idx" in shown, shown
        assert "Sort Key: (GREATEST" in shown, shown


@pytest.mark.parametrize(("id_type", "after"), [(ValueType.BIGINT, 15_000), (ValueType.TEXT, "15000")])
async def test_a_page_reads_the_next_rows_by_the_ids_index(
    cluster: Cluster, id_type: ValueType, after: object
) -> None:
    async with world(cluster, id=column("id", id_type)) as w:
        table = w.collection.table
        if id_type is ValueType.TEXT:
            await w.on_primaries(f'ALTER TABLE {table} ALTER id TYPE text COLLATE "C"')
        await w.on_primaries(
            f"INSERT INTO {table} (id, embedding, category) SELECT i, array_fill(i, ARRAY[8])::vector,"
            f" 'c' || i % 5 FROM generate_series(1, 20000) i; ANALYZE {table}"
        )
        filter = parse(w.collection, {"category": "c3"}, w.topology.parts.settings)
        statement = next_ids(w.collection, filter, after, 101, frozenset({"content", "category"}), 1000)

        async def plan(connection: Connection) -> str:
            lines = await connection.fetch(f"EXPLAIN {statement.sql}", *statement.args)
            return "\n".join(line[0] for line in lines)

        shown = await w.topology.parts.nodes[0].reads.run(plan)
        assert "Index Scan using" in shown and "_pkey" in shown and "Index Cond: (id > " in shown, shown
        assert "Sort" not in shown, shown
