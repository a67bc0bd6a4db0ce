"""Storing documents on one connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import asyncpg

from router.postgres.connection import Connection, ErrorKind, node_error

__all__ = ["Upsert", "advisory_lock", "store", "unlock_all", "written_position"]

Upsert: TypeAlias = tuple[str, Sequence[tuple[object, ...]]]  # a statement, and arguments for each row

# What the last commit wrote is in the log up to here. Without synchronous commit the flushed part may
# end before it; what has been inserted never does.
_POSITION = """
SELECT (CASE current_setting('synchronous_commit')
        WHEN 'off' THEN pg_current_wal_insert_lsn() ELSE pg_current_wal_flush_lsn() END
        - '0/0'::pg_lsn)::bigint
"""


async def written_position(connection: Connection) -> int:
    """A write-ahead log position that holds everything this connection has committed."""
    position: int = await connection.fetchval(_POSITION)
    return position


async def store(connection: Connection, upserts: Sequence[Upsert]) -> dict[int, str]:
    """Run each statement for its rows, all in one transaction.

    All rows of a statement go out together. Only if one of them is refused, by a constraint or a trigger,
    are they sent singly, so that the others are stored all the same.

    Returns:
        By position among the rows of all statements, why PostgreSQL refused a row.
    """
    try:
        if len(upserts) == 1:
            await connection.executemany(*upserts[0])
        else:
            async with connection.transaction():
                for upsert in upserts:
                    await connection.executemany(*upsert)
    except asyncpg.PostgresError as exc:
        if node_error(exc).kind is not ErrorKind.DATA or connection.is_closed():
            raise
    else:
        return {}
    refused: dict[int, str] = {}
    await connection.execute("BEGIN")
    singly = ((sql, row) for sql, rows in upserts for row in rows)
    for position, (sql, row) in enumerate(singly):
        await connection.execute("SAVEPOINT one")
        try:
            await connection.execute(sql, *row)
        except asyncpg.PostgresError as exc:
            error = node_error(exc)
            if error.kind is not ErrorKind.DATA or connection.is_closed():
                raise
            refused[position] = str(error)
            await connection.execute("ROLLBACK TO SAVEPOINT one")
        await connection.execute("RELEASE SAVEPOINT one")
    await connection.execute("COMMIT")
    return refused


async def advisory_lock(connection: Connection, keys: Sequence[int]) -> None:
    """Hold `keys` until `unlock_all` or the end of the connection; waits for other holders.

    Everyone takes them in ascending order, so that no two can wait for each other.
    """
    await connection.execute("SELECT pg_advisory_lock(k) FROM unnest($1::bigint[]) k", sorted(set(keys)))


async def unlock_all(connection: Connection) -> None:
    await connection.execute("SELECT pg_advisory_unlock_all()")
