"""Statements on nodes past the router, each on a connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import asyncpg

from bench.errors import BenchError
from router.postgres.driver import connect

__all__ = ["execute", "fetch", "on_each"]

T = TypeVar("T")

_CONNECT_SECONDS = 60.0
# An index of the largest data sets.
_STATEMENT_SECONDS = 4 * 3600.0


async def on_each(
    dsns: Iterable[str],
    work: Callable[[asyncpg.Connection, int], Awaitable[T]],
    settings: Mapping[str, str] | None = None,
) -> list[T]:
    """What `work` returns of a connection to each of `dsns` and its position, all at the same time.

    Raises:
        BenchError: a node cannot be reached, or refuses a statement.
    """

    async def one(dsn: str, position: int) -> T:
        connection = await connect(
            dsn,
            timeout=_CONNECT_SECONDS,
            command_timeout=_STATEMENT_SECONDS,
            server_settings=dict(settings or {}),
        )
        try:
            return await work(connection, position)
        finally:
            connection.terminate()

    try:
        return await asyncio.gather(*(one(dsn, position) for position, dsn in enumerate(dsns)))
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as exc:
        raise BenchError(f"a node failed: {type(exc).__name__}: {exc}") from exc


async def execute(statement: str, *dsns: str) -> None:
    """Run one statement, or several with semicolons, on all of `dsns`."""
    await on_each(dsns, lambda connection, _: connection.execute(statement))


async def fetch(statement: str, *dsns: str) -> list[Any]:
    """The rows of all of `dsns`, in their order."""
    return [row for rows in await on_each(dsns, lambda c, _: c.fetch(statement)) for row in rows]
