"""Storing documents on one connection."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import asyncpg

from router.postgres.connection import POSTGRES_ERRORS, Connection, ErrorKind, NodeError, node_error
from router.postgres.patch import PatchStatement
from router.postgres.rights import Use, held_rights, lacking, missing_rights
from shard_config.model import Collection

__all__ = [
    "Patched",
    "Upsert",
    "delete",
    "explained",
    "lock_holder",
    "patch",
    "repeated",
    "store",
    "try_advisory_lock",
    "unlock_all",
]

T = TypeVar("T")

Upsert: TypeAlias = tuple[str, Sequence[tuple[object, ...]]]  # a statement, and arguments for each row


class Patched(NamedTuple):
    """Rows that a patch has found, and of these how many were not yet as it wants them."""

    found: int
    changed: int


# Of a transaction that deadlocks or cannot be serialised, and seconds before the second one.
_TRIES, _FIRST_PAUSE = 6, 0.02
_DROPPED = "not stored: a trigger of the table returned NULL for it"

_HOLDER = """
SELECT l.pid, host(a.client_addr) AS client
FROM unnest($1::bigint[]) k
JOIN pg_locks l ON l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.pid <> pg_backend_pid()
    AND l.classid = ((k >> 32) & 4294967295)::oid AND l.objid = (k & 4294967295)::oid
JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LIMIT 1
"""


async def explained(connection: Connection, collection: Collection, work: Callable[[], Awaitable[T]]) -> T:
    """`work`, and if the role may not do it, which rights it lacks.

    Raises:
        NodeError: transactions are read-only though the node is a primary: no other one will take the write.
        whatever `work` raises
    """
    try:
        return await work()
    except asyncpg.InsufficientPrivilegeError as exc:
        denied = node_error(exc).kind is ErrorKind.DENIED
        if denied and not connection.is_closed():
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
            held = await held_rights(connection, collection)
            missing = held and lacking(missing_rights(collection, held, Use.WRITE), held.role)
            if missing:
                exc.add_note(f"the router's role lacks {missing}")
        raise
    except asyncpg.ReadOnlySQLTransactionError as exc:
        if connection.is_in_transaction() or await connection.fetchval("SELECT pg_is_in_recovery()"):
            raise
        said = f"{node_error(exc)}, though it is the primary: something there sets transaction_read_only"
        raise NodeError(ErrorKind.DENIED, said) from exc


async def repeated(connection: Connection, transaction: Callable[[], Awaitable[T]]) -> T:
    """Run `transaction` on `connection`, and again when another one's locks or writes undid it.

    Each pause is of random length up to twice the one before, so that two do not meet again.
    """
    pause = _FIRST_PAUSE
    for _ in range(_TRIES - 1):
        try:
            return await transaction()
        except asyncpg.PostgresError as exc:
            if node_error(exc).kind is not ErrorKind.CONFLICT or connection.is_closed():
                raise
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
        await asyncio.sleep(random.uniform(0, pause))
        pause *= 2
    return await transaction()


async def store(connection: Connection, upserts: Sequence[Upsert]) -> dict[int, str]:
    """Run each statement for its rows, all in one transaction.

    A statement returns the first value of each row that it has stored. All rows of a statement go out
    together. Only if one of them is refused, by a constraint, a policy or a trigger, are they sent singly,
    so that the others are stored all the same.

    Returns:
        By position among the rows of all statements, why PostgreSQL refused a row.
    """
    return await repeated(connection, lambda: _store(connection, upserts))


async def _store(connection: Connection, upserts: Sequence[Upsert]) -> dict[int, str]:
    try:
        if len(upserts) == 1:
            returned = await connection.fetchmany(*upserts[0])
        else:
            returned = await _in_transaction(connection, lambda: _all_returned(connection, upserts))
    except POSTGRES_ERRORS as exc:
        if not _blames_row(connection, exc):
            raise
        return await _store_singly(connection, upserts)
    if len(returned) == sum(len(rows) for _, rows in upserts):
        return {}
    stored = {row[0] for row in returned}
    every = (row for _, rows in upserts for row in rows)
    return {position: _DROPPED for position, row in enumerate(every) if row[0] not in stored}


async def _store_singly(connection: Connection, upserts: Sequence[Upsert]) -> dict[int, str]:
    refused: dict[int, str] = {}
    # A constraint that is checked at the end would refuse all for one.
    await connection.execute("BEGIN; SET CONSTRAINTS ALL IMMEDIATE")
    singly = ((sql, row) for sql, rows in upserts for row in rows)
    for position, (sql, row) in enumerate(singly):
        await connection.execute("SAVEPOINT one")
        try:
            if not await connection.fetch(sql, *row):
                refused[position] = _DROPPED
        except POSTGRES_ERRORS as exc:
            if not _blames_row(connection, exc):
                raise
            refused[position] = str(node_error(exc))
            await connection.execute("ROLLBACK TO SAVEPOINT one")
        await connection.execute("RELEASE SAVEPOINT one")
    await connection.execute("COMMIT")
    return refused


async def delete(connection: Connection, sql: str, args: Sequence[object]) -> int:
    """Run `sql`, which says how many rows it has found and deleted, in a transaction of its own.

    Raises:
        NodeError: a trigger kept some of them; then none is deleted.
    """

    async def work() -> int:
        row = await connection.fetchrow(connection.spelled(sql), *args)
        assert row is not None, "a SELECT without FROM has a row"
        found, deleted = int(row["found"]), int(row["deleted"])
        if deleted < found:
            kept = f"{found - deleted} of {found} documents"
            raise NodeError(
                ErrorKind.DATA, f"nothing deleted: a trigger of the table returned NULL for {kept}"
            )
        return deleted

    return await _in_transaction(connection, work)


async def patch(connection: Connection, prepared: PatchStatement) -> Patched:
    """Run the statement of a patch in a transaction of its own.

    Raises:
        NodeError: something in a document is in the way, or a trigger kept some; then none is changed.
    """
    statement = prepared.statement

    async def work() -> Patched:
        row = await connection.fetchrow(connection.spelled(statement.sql), *statement.args)
        assert row is not None, "a SELECT from a row has a row"
        found, wanted, changed, refused = (int(row[i]) for i in range(4))
        if refused:
            where = (
                f"{prepared.parents[row['parent']]} of {refused} of {found} documents, such as {row['id']}"
            )
            within = "is no object, so that nothing within it can be set or unset"
            raise NodeError(ErrorKind.DATA, f"nothing patched: {where}, {within}")
        if changed < wanted:
            kept = f"{wanted - changed} of {found} documents"
            raise NodeError(
                ErrorKind.DATA, f"nothing patched: a trigger of the table returned NULL for {kept}"
            )
        return Patched(found, changed)

    return await _in_transaction(connection, work)


async def _all_returned(connection: Connection, upserts: Sequence[Upsert]) -> list[asyncpg.Record]:
    return [row for upsert in upserts for row in await connection.fetchmany(*upsert)]


async def _in_transaction(connection: Connection, work: Callable[[], Awaitable[T]]) -> T:
    """Not by asyncpg's `transaction`: of a caller who has left, its rollback waits for a frozen server."""
    await connection.execute("BEGIN")
    try:
        result = await work()
    except (asyncpg.PostgresError, NodeError):
        if not connection.is_closed():
            await connection.execute("ROLLBACK")
        raise
    await connection.execute("COMMIT")
    return result


def _blames_row(connection: Connection, exc: BaseException) -> bool:
    return node_error(exc).kind is ErrorKind.DATA and not connection.is_closed()


async def try_advisory_lock(connection: Connection, keys: Sequence[int]) -> bool:
    """Hold `keys` until `unlock_all` or the end of the connection; False if others hold some of them.

    Some may be held then as well, which the caller has to give back.
    """
    locked: bool = await connection.fetchval(
        "SELECT bool_and(pg_try_advisory_lock(k)) FROM unnest($1::bigint[]) k", keys
    )
    return locked


async def lock_holder(connection: Connection, keys: Sequence[int]) -> str | None:
    """Who else holds one of `keys`, in words for an operator."""
    row = await connection.fetchrow(_HOLDER, keys)
    if row is None:
        return None
    client = f" of client {row['client']}" if row["client"] else ""
    return f"server process {row['pid']}{client}"


async def unlock_all(connection: Connection) -> None:
    await connection.execute("SELECT pg_advisory_unlock_all()")
