"""A statement on one node, past the router."""

from __future__ import annotations

import asyncpg

__all__ = ["execute"]

_SECONDS = 60.0


async def execute(dsn: str, statement: str) -> None:
    """
    Raises:
        asyncpg.PostgresError, OSError, TimeoutError
    """
    connection = await asyncpg.connect(dsn, timeout=_SECONDS)
    try:
        await connection.execute(statement, timeout=_SECONDS)
    finally:
        connection.terminate()
