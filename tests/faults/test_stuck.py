"""A server that is alive but gets nowhere: what was given up does not go on there, nor pile up."""

from __future__ import annotations

import asyncio

import asyncpg

from deploy.local import Cluster
from router.settings import Settings
from tests.integration.worlds import World, world

STUCK = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgscatter reads' AND state = 'active'"
)


async def under_way(w: World) -> list[int]:
    """Statements of searches, by node, as the servers see them."""
    counts = []
    for node in w.cluster.nodes:
        connection = await asyncpg.connect(node.dsn)
        try:
            counts.append(await connection.fetchval(STUCK))
        finally:
            await connection.close()
    return counts


async def test_statements_on_an_abandoned_node_end_although_it_answers_none(pair: Cluster) -> None:
    async with world(pair, Settings(node_connections=8, node_statements=8)) as w, asyncio.timeout(100):
        await w.put(*(w.document(i, [float(i)] * 8) for i in range(20)))

        async def ask(count: int) -> None:
            searches = [w.search([float(n)] * 8, 5, cache=False, within=0.3) for n in range(count)]
            await asyncio.gather(*searches, return_exceptions=True)

        locker = await asyncpg.connect(pair.nodes[0].dsn)
        try:
            async with locker.transaction():
                # The lock travels to the replica by WAL: both accept statements, and answer none.
                await locker.execute(f"LOCK TABLE {w.collection.table.name} IN ACCESS EXCLUSIVE MODE")
                while not any(status.state == "ejected" for status in w.router.nodes()):
                    await ask(20)
                for _ in range(10):
                    await ask(20)
                    # Those that were cancelled, too, are gone before others come.
                    assert max(await under_way(w)) <= 2 * 8
                async with asyncio.timeout(20):
                    while any(await under_way(w)):
                        await asyncio.sleep(0.1)
        finally:
            await locker.close()
        while not (await w.search([0.0] * 8, 5, cache=False)).answer.coverage.full:
            await asyncio.sleep(0.05)
