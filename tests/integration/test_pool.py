"""The connections to one real server: what becomes of them when callers leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from deploy.local import Cluster
from router.postgres.connection import Connection, NodeError, open_connection
from router.postgres.pool import Pool
from router.query.types import Found
from tests.integration.test_search import primary
from tests.integration.worlds import execute, patient, until, world


async def pool_of(
    cluster: Cluster, freed: Callable[[], None] = lambda: None
) -> tuple[Pool, list[Connection]]:
    dsn = primary(cluster, "s0")
    await execute(dsn, "CREATE EXTENSION IF NOT EXISTS vector")
    opened: list[Connection] = []

    async def connect() -> Connection:
        connection = await open_connection(dsn, connect_timeout=20, statement_timeout=20)
        opened.append(connection)
        return connection

    return Pool("n", connect, size=2, queue=10, cancel_timeout=1, freed=freed), opened


async def one(pool: Pool) -> int:
    async with pool.session() as connection:
        return int(await connection.fetchval("SELECT 1"))


async def test_a_connection_that_its_caller_left_is_opened_for_the_next(cluster: Cluster) -> None:
    freed = asyncio.Event()
    pool, opened = await pool_of(cluster, freed.set)
    caller = asyncio.create_task(one(pool))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert (pool.in_flight, pool.mending) == (1, 1)  # its place is taken until it is open
    await asyncio.wait_for(freed.wait(), 20)
    assert (pool.in_flight, pool.mending, pool.connections) == (0, 0, 1)
    assert await one(pool) == 1
    assert len(opened) == 1
    await pool.close()
    assert opened[0].is_closed()


async def test_who_comes_after_a_transaction_that_was_cancelled_as_it_began_begins_a_new_one(
    cluster: Cluster,
) -> None:
    pool, _ = await pool_of(cluster)

    async def transaction() -> int:
        async with pool.session() as connection, connection.transaction():
            return int(await connection.fetchval("SELECT 1"))

    assert await one(pool) == 1
    for turns in range(8):
        caller = asyncio.create_task(transaction())
        for _ in range(turns):
            await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        await pool.mended()
        assert await transaction() == 1
    await pool.close()


async def test_what_is_opened_for_nobody_does_not_outlive_its_pool(cluster: Cluster) -> None:
    pool, opened = await pool_of(cluster)
    caller = asyncio.create_task(one(pool))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await pool.close()
    assert (pool.in_flight, pool.mending, pool.connections) == (0, 0, 0)
    assert all(connection.is_closed() for connection in opened)


async def test_an_opening_that_fails_gives_its_place_back() -> None:
    async def refuse() -> Connection:
        await asyncio.sleep(0.01)
        return await open_connection("postgres://u@127.0.0.1:1/db", connect_timeout=1, statement_timeout=1)

    pool = Pool("n", refuse, size=1, queue=10, cancel_timeout=1)
    for leave in (True, False, True, False):
        caller = asyncio.create_task(one(pool))
        await asyncio.sleep(0)
        if leave:
            caller.cancel()
        outcome = (await asyncio.gather(caller, return_exceptions=True))[0]
        assert isinstance(outcome, asyncio.CancelledError if leave else NodeError)
    await until(lambda: not pool.mending)
    assert (pool.in_flight, pool.connections) == (0, 0)
    await pool.close()


async def test_a_node_that_is_given_up_keeps_no_place(cluster: Cluster) -> None:
    """Whatever its searches are at, and whoever leaves in the same turn of the event loop."""
    async with world(cluster, patient(node_connections=2)) as w:
        await w.put(w.document(1, [0.0] * 8))
        node = w.topology.parts.nodes[0]
        for turns in range(120):
            searches = [asyncio.create_task(w.search([0.0] * 8, 5, cache=False)) for _ in range(3)]
            for _ in range(turns // 3):
                await asyncio.sleep(0)
            for search in searches[:-1]:
                search.cancel()
            for _ in range(turns % 3):
                await asyncio.sleep(0)
            node.abandon()
            *_, last = await asyncio.gather(*searches, return_exceptions=True)
            assert isinstance(last, Found) and last.answer.coverage.full, (turns, last)
        await until(lambda: not node.reads.in_flight and not node.reads.mending)
        assert node.reads.connections <= 2
