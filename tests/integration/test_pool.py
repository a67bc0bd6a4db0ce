"""The connections to one real server: what becomes of them when callers leave."""

from __future__ import annotations

import asyncio

import pytest

from deploy.local import Cluster
from router.postgres.connection import Connection, NodeError, open_connection
from router.postgres.pool import Pool
from tests.integration.test_search import primary
from tests.integration.worlds import execute


async def pool_of(cluster: Cluster) -> tuple[Pool, list[Connection]]:
    dsn = primary(cluster, "s0")
    await execute(dsn, "CREATE EXTENSION IF NOT EXISTS vector")
    opened: list[Connection] = []

    async def connect() -> Connection:
        connection = await open_connection(dsn, connect_timeout=5, statement_timeout=5)
        opened.append(connection)
        return connection

    return Pool("n", connect, size=2, queue=10, cancel_timeout=1), opened


async def one(pool: Pool) -> int:
    async with pool.session() as connection:
        return int(await connection.fetchval("SELECT 1"))


async def test_a_connection_that_its_caller_left_is_opened_for_the_next(cluster: Cluster) -> None:
    pool, opened = await pool_of(cluster)
    caller = asyncio.create_task(one(pool))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert (pool.in_flight, pool.mending) == (1, 1)  # its place is taken until it is open
    freed = asyncio.Event()
    pool.freed = freed.set
    await asyncio.wait_for(freed.wait(), 5)
    assert (pool.in_flight, pool.mending, pool.connections) == (0, 0, 1)
    assert await one(pool) == 1
    assert len(opened) == 1
    await pool.close()
    assert opened[0].is_closed()


async def test_what_is_opened_for_nobody_does_not_outlive_its_pool(cluster: Cluster) -> None:
    pool, opened = await pool_of(cluster)
    for end in (pool.abandon, pool.close):
        caller = asyncio.create_task(one(pool))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        ending = end()
        if ending is not None:
            await ending
        while pool.mending:
            await asyncio.sleep(0.01)
        assert (pool.in_flight, pool.connections) == (0, 0)
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
    while pool.mending:
        await asyncio.sleep(0.01)
    assert (pool.in_flight, pool.connections) == (0, 0)
    await pool.close()


async def test_a_connection_that_is_ended_between_two_steps_of_a_statement_is_lost(cluster: Cluster) -> None:
    pool, _ = await pool_of(cluster)
    for steps in range(60):
        caller = asyncio.create_task(one(pool))
        for _ in range(steps):
            await asyncio.sleep(0)
        pool.abandon()
        (outcome,) = await asyncio.gather(caller, return_exceptions=True)
        assert outcome == 1 or isinstance(outcome, NodeError), (steps, outcome)
    with pytest.raises(NodeError):
        async with pool.session() as connection:
            pool.abandon()
            await connection.fetchval("SELECT 1")
    with pytest.raises(NodeError):
        async with pool.session() as connection:
            connection.terminate()
            raise AttributeError("as asyncpg does")
    await pool.close()
