"""The seam to asyncpg: how a connection is opened, and what its errors mean.

Nothing above this package sees an asyncpg exception: `node_error` turns each into a `NodeError`
whose `kind` says what may be done about it.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from enum import StrEnum
from typing import TypeAlias

import asyncpg

from shard_config.times import date_of, days_of, microseconds_of, timestamp_of, timestamptz_of

__all__ = [
    "CLIENT_CHECK",
    "POSTGRES_ERRORS",
    "Connection",
    "ErrorKind",
    "NodeError",
    "node_error",
    "open_connection",
]

# What a statement raises; `node_error` says what it means. asyncpg's internal error is what a statement
# gets on a connection that the server has just ended.
POSTGRES_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)

# A server of PostgreSQL 14 or newer ends the statement of a client that is gone after this time, instead of
# searching or building an index for nobody. Older ones have no such setting.
CLIENT_CHECK = (
    "SELECT set_config('client_connection_check_interval', '1s', false)"
    " WHERE current_setting('client_connection_check_interval', true) IS NOT NULL"
)

# The shapes of searches differ by filter, limit and columns; each holds a plan on the server.
_STATEMENT_CACHE = 256


# asyncpg's "tuple" of each is its count of days or microseconds.
_TIMES = (
    ("date", lambda value: (days_of(value),), lambda wire: date_of(wire[0])),
    ("timestamp", lambda value: (microseconds_of(value),), lambda wire: timestamp_of(wire[0])),
    ("timestamptz", lambda value: (microseconds_of(value),), lambda wire: timestamptz_of(wire[0])),
)


class _Session(asyncpg.Connection):
    """A connection that needs no clean-up between statements.

    We leave no session state behind but the width of index scans, which `set_ef_search` keeps in mind;
    so release costs no round trip.
    """

    __slots__ = ("ef_search",)

    ef_search: int | None  # as far as known

    async def set_ef_search(self, ef_search: int) -> None:
        """Scan indexes this wide from now on; costs a round trip only when that is a change."""
        if self.ef_search != ef_search:
            self.ef_search = None
            await self.execute(f"SET hnsw.ef_search = {ef_search:d}")
            self.ef_search = ef_search

    def get_reset_query(self) -> str:
        return ""


Connection: TypeAlias = _Session


class ErrorKind(StrEnum):
    """What a failure allows.

    `UNREACHABLE` (no connection to be had), `LOST` (the connection broke under a statement) and
    `TRANSIENT` may succeed on another node or later, `READ_ONLY` says the node is no primary, `DATA`
    blames the values sent, `FATAL` will repeat.
    """

    UNREACHABLE = "unreachable"
    LOST = "lost"
    TRANSIENT = "transient"
    READ_ONLY = "read_only"
    DATA = "data"
    FATAL = "fatal"


class NodeError(Exception):
    """A statement or connection failed on one node."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


async def open_connection(
    dsn: str, *, connect_timeout: float, statement_timeout: float, name: str = "pgscatter"
) -> Connection:
    """A connection ready for vector statements, within `connect_timeout` seconds.

    `statement_timeout` (seconds) is the server's own bound, for the case that a cancel request is
    lost. Iterative scans are on for every statement: without them an HNSW scan ends after ef_search
    tuples, dead and filtered ones included, and returns fewer rows without a word.

    Raises:
        NodeError: when the node cannot be reached, refuses, or lacks the vector extension.
    """
    try:
        connection = await asyncpg.connect(
            dsn,
            timeout=connect_timeout,
            connection_class=_Session,
            statement_cache_size=_STATEMENT_CACHE,
            max_cached_statement_lifetime=0,
            server_settings={
                "application_name": name,
                "hnsw.iterative_scan": "relaxed_order",
                "jit": "off",
                "statement_timeout": str(int(statement_timeout * 1000)),
            },
        )
    except POSTGRES_ERRORS as exc:
        raise _connect_error(exc) from exc
    connection.ef_search = None
    try:
        async with asyncio.timeout(connect_timeout):
            # A connection is cut, without a word, when its node does not confirm a cancel.
            await connection.execute(CLIENT_CHECK)
            await _set_codecs(connection)
    except POSTGRES_ERRORS as exc:
        connection.terminate()
        raise node_error(exc) from exc
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _set_codecs(connection: Connection) -> None:
    """Vectors travel as wire bytes both ways; `router.query.wire` knows the format.

    Times have codecs of our own since asyncpg's fail on years beyond 1 to 9999, with all rows of a
    statement, and take the ends of Python's calendar for infinities. Numbers of any precision travel as
    text: asyncpg's binary form of 1e131071, six bytes of a request, would take 64 KiB.
    """
    rows = await connection.fetch(
        "SELECT t.typname, n.nspname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace"
        " WHERE t.typname IN ('vector', 'halfvec') AND t.typtype = 'b'"
    )
    if not rows:
        raise NodeError(ErrorKind.FATAL, "the vector extension is missing: run `pgscatter schema apply`")
    for row in rows:
        await connection.set_type_codec(
            row["typname"], schema=row["nspname"], encoder=bytes, decoder=bytes, format="binary"
        )
    for name, encoder, decoder in _TIMES:
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=encoder, decoder=decoder, format="tuple"
        )
    await connection.set_type_codec(
        "numeric", schema="pg_catalog", encoder=str, decoder=Decimal, format="text"
    )
    # asyncpg looks a new array type up when a statement first needs it, which takes milliseconds.
    await connection.prepare(
        "SELECT " + ", ".join(f"NULL::{row['nspname']}.{row['typname']}[]" for row in rows)
    )


def _connect_error(exc: BaseException) -> NodeError:
    """Wrong passwords and missing databases repeat; whatever else stops a connection may pass."""
    repeats = (
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.InsufficientPrivilegeError,
    )
    if isinstance(exc, repeats):
        return NodeError(ErrorKind.FATAL, _message(exc))
    if isinstance(exc, asyncpg.TooManyConnectionsError):
        # The node is well; it has no room for one more.
        return NodeError(ErrorKind.TRANSIENT, _message(exc))
    return NodeError(ErrorKind.UNREACHABLE, _message(exc))


def node_error(exc: BaseException) -> NodeError:
    """What `exc`, raised by asyncpg or the socket under it, means for the node.

    By SQLSTATE class: 08 connection, 53 resources, 57P0x shutdown, 40 rollback (on a replica: conflict
    with recovery), 25006 read-only transaction, 22, 23 and 44 data and constraints, 54 values too large
    or too deep, P0 what a trigger raises.
    """
    if isinstance(exc, NodeError):
        return exc
    if isinstance(exc, asyncpg.PostgresError):
        state = exc.sqlstate or ""
        if state.startswith(("08", "57P0")):
            return NodeError(ErrorKind.LOST, _message(exc))
        if state.startswith(("40", "53")) or state in ("55P03", "57014"):
            return NodeError(ErrorKind.TRANSIENT, _message(exc))
        if state == "25006":
            return NodeError(ErrorKind.READ_ONLY, _message(exc))
        if state.startswith(("22", "23", "44", "54", "P0")):
            return NodeError(ErrorKind.DATA, _message(exc))
        return NodeError(ErrorKind.FATAL, _message(exc))
    if isinstance(exc, (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        return NodeError(ErrorKind.LOST, _message(exc))
    raise TypeError(f"not an error of a node: {exc!r}") from exc


def _message(exc: BaseException) -> str:
    text = str(exc).strip().split("\n")[0]
    return text or ("timed out" if isinstance(exc, TimeoutError) else type(exc).__name__)
