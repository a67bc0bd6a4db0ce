"""Deleting by a filter reads what the filter's index finds, and not the table in the order of its ids."""

from __future__ import annotations

from deploy.local import Cluster
from router.postgres.connection import Connection
from router.postgres.sql import delete_matching
from router.query.filter import parse
from tests.integration.worlds import world


async def test_a_delete_by_filter_uses_the_filters_index(cluster: Cluster) -> None:
    async with world(cluster) as w:
        table = w.collection.table
        await w.on_primaries(
            f"INSERT INTO {table} (id, embedding, category) SELECT i, array_fill(i, ARRAY[8])::vector,"
            f" 'c' || i % 500 FROM generate_series(1, 20000) i;"
            f" CREATE INDEX ON {table} (category); ANALYZE {table}"
        )
        filter = parse(w.collection, {"category": "c7"}, w.topology.parts.settings)
        statement = delete_matching(w.collection, filter)
        node = w.topology.parts.nodes[0]

        async def plan(connection: Connection) -> str:
            lines = await connection.fetch(f"EXPLAIN {statement.sql}", *statement.args)
            return "\n".join(line[0] for line in lines)

        shown = await node.writes.run(plan)
        assert "Index Scan on" in shown and "_category_idx" in shown, shown
        assert "Sort Key: (GREATEST" in shown, shown
