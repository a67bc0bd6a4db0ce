"""Storing documents on one connection."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from router.postgres.connection import Connection, ErrorKind, node_error
from router.query.types import Position

__all__ = ["advisory_lock", "store", "unlock_all", "written_position"]

# What the last commit wrote is in the log up to here. Without synchronous commit the flushed part may
# end before it; what has been inserted never does.
_POSITION = """
SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int,
       (CASE current_setting('synchronous_commit')
        WHEN 'off' THEN pg_current_wal_insert_lsn() ELSE pg_current_wal_flush_lsn() END
        - '0/0'::pg_lsn)::bigint
"""


async def written_position(connection: Connection) -> Position:
    """A write-ahead log position that holds everything this connection has committed."""
    row = await connection.fetchrow(_POSITION)
    assert row is not None, "a SELECT without FROM has a row"
    return Position(row[0], row[1])


async def store(connection: Connection, sql: str, rows: Sequence[tuple[object, ...]]) -> dict[int, str]:
    """Run `sql` for each of `rows` in one transaction; returns the rows that PostgreSQL refused, and why.

    All rows go out together. Only if one of them is refused, by a constraint or a trigger, are they
    sent singly, so that the others are stored all the same.
    """
    try:
        await connection.executemany(sql, rows)
    except asyncpg.PostgresError as exc:
        if node_error(exc).kind is not ErrorKind.DATA or connection.is_closed():
            raise
    else:
        return {}
    refused: dict[int, str] = {}
    await connection.execute("BEGIN")
    for position, row in enumerate(rows):
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
