"""Whether a pooler between the router and a server keeps sessions whole.

What the router sets is a session's: its settings, prepared statements, advisory locks. PgBouncer in session
mode gives a client one server process for as long as it stays, and all of these hold. In transaction or
statement mode each transaction may run in another process: settings are lost, and with them rows of filtered
searches, without an error.

How many clients share a process cannot be seen while there is one. So two connections ask in turn which
process they are in, and the first asks again: those that share one, or change theirs, are no sessions. A pool
with one free process gives it to both, whoever of several is given next, the one used last or the one that
has rested longest. Nothing is set before that: it would be set for the pooler's other clients.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import asyncpg

__all__ = ["SHARED", "Another", "PoolerError", "PoolerFullError", "check_sessions"]

SHARED = (
    "a pooler that shares server processes between transactions (PgBouncer in transaction or statement mode)"
    " stands between the router and the server: use session mode (pool_mode = session), or the server's own"
    " port"
)
# Opens a second connection to the same address, without statements that it keeps prepared.
Another = Callable[[], Awaitable[asyncpg.Connection]]

_PROCESS = "SELECT pg_catalog.pg_backend_pid()"


class PoolerError(Exception):
    """The pooler does not keep sessions whole; the text says so."""


class PoolerFullError(PoolerError):
    """It may keep them, but has none left."""


async def check_sessions(connection: asyncpg.Connection, another: Another | None) -> None:
    """See that statements of `connection`, which goes through a pooler, stay in one process of their own.

    Without `another` only a change of processes is seen.

    Raises:
        PoolerError
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: the connection failed.
    """
    own = {await _process(connection), await _process(connection)}
    if another is not None:
        try:
            other = await another()
        except TimeoutError:
            raise PoolerFullError(
                "the pooler between the router and the server gave no second session in time: its pool_size"
                " must be larger than all that routers and commands open"
            ) from None
        try:
            if await _process(other) in own:
                raise PoolerError(SHARED)
        finally:
            other.terminate()
        own.add(await _process(connection))
    if len(own) > 1:
        raise PoolerError(SHARED)


async def _process(connection: asyncpg.Connection) -> int:
    """Which process runs a statement, of which nothing stays there.

    Parsed and run within one transaction: else the process might be another one by then, and the unnamed
    statement there another client's.
    """
    statement = await connection.prepare(_PROCESS, name="")
    statement._state.mark_unprepared()  # type: ignore[attr-defined]
    process: int = await statement.fetchval()
    return process
