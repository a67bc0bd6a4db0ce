"""A statement on one node, past the router."""

from __future__ import annotations

from router.postgres.driver import connect

__all__ = ["execute"]

_SECONDS = 60.0


async def execute(dsn: str, statement: str) -> None:
    """
    Raises:
        asyncpg.PostgresError, OSError, TimeoutError
    """
    connection = await connect(dsn, timeout=_SECONDS)
    try:
        await connection.execute(statement, timeout=_SECONDS)
    finally:
        connection.terminate()
