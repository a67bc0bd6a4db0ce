"""The router's own statement, looped inside PostgreSQL: what searches cost with no client at all.

The loop is a plpgsql function, which keeps its plan as a prepared statement does. It runs on all shards
at the same time, as searches under load do.
"""

from __future__ import annotations

import asyncio

import asyncpg
import numpy as np
from pgvector.asyncpg import register_vector

from bench.resources import usage
from bench.sql import on_each
from bench.world import World

__all__ = ["cpu_per_search", "prepare"]

_LOOP = """
CREATE OR REPLACE FUNCTION public.pgscatter_bench_loop(seconds float8) RETURNS bigint LANGUAGE plpgsql
SET hnsw.ef_search = {ef_search} AS $f$
DECLARE
    _q vector;
    _row record;
    _n bigint := 0;
    _end timestamptz := clock_timestamp() + make_interval(secs => seconds);
BEGIN
    LOOP
        FOR _q IN SELECT v FROM public.pgscatter_bench_queries LOOP
            FOR _row IN {statement} LOOP
            END LOOP;
            _n := _n + 1;
            IF clock_timestamp() >= _end THEN
                RETURN _n;
            END IF;
        END LOOP;
    END LOOP;
END $f$
"""
# What the router's connections have, see router.postgres.connection.
_SETTINGS = {"hnsw.iterative_scan": "relaxed_order", "jit": "off"}
_WARM_UP = 0.5


def prepare(world: World, ef_search: int) -> None:
    """Put queries and loop onto every shard."""
    statement = world.statements(ef_search)[0]
    _, candidates, limit = statement.args
    sql = statement.shape.single.replace("$1", "_q").replace("$2", str(candidates)).replace("$3", str(limit))
    loop = _LOOP.format(statement=sql, ef_search=world.effective(ef_search))
    vectors = [(np.array(vector),) for vector in world.dataset.queries]

    async def one(connection: asyncpg.Connection, _: int) -> None:
        await register_vector(connection)
        await connection.execute(
            "DROP TABLE IF EXISTS public.pgscatter_bench_queries;"
            f" CREATE TABLE public.pgscatter_bench_queries (v vector({world.dataset.dimensions}))"
        )
        await connection.copy_records_to_table(
            "pgscatter_bench_queries", schema_name="public", records=vectors, columns=["v"]
        )
        await connection.execute(loop)

    asyncio.run(on_each([node.dsn for node in world.primaries], one))


def cpu_per_search(world: World, seconds: float) -> float:
    """Processor seconds of all shards together for one search."""

    nodes = world.primaries

    async def one(connection: asyncpg.Connection, number: int) -> float:
        statement = "SELECT public.pgscatter_bench_loop($1)"
        await connection.fetchval(statement, _WARM_UP)
        pids = [pid for pid in [nodes[number].pid] if pid is not None]
        before = usage(pids)
        count: int = await connection.fetchval(statement, seconds)
        return usage(pids).since(before) / count

    return sum(asyncio.run(on_each([node.dsn for node in nodes], one, _SETTINGS)))
