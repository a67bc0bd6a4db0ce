"""The seam to asyncpg: how a connection is opened, and what its errors mean.

Nothing above this package sees an asyncpg exception: `node_error` turns each into a `NodeError`
whose `kind` says what may be done about it, and whose text is the server's or our own: the driver's words
go to the log alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import ssl
from collections.abc import Iterable
from decimal import Decimal
from enum import StrEnum
from math import inf
from time import monotonic
from typing import Any, TypeAlias, cast

import asyncpg

from router.network.dial import Dialer, Network
from router.postgres import driver
from router.postgres.collations import FOLDING, stand_in
from router.postgres.pooler import PoolerError, PoolerFullError
from router.postgres.session_settings import SettingsRefusedError, apply_settings
from shard_config.dsn import parameters
from shard_config.times import date_of, days_of, microseconds_of, timestamp_of, timestamptz_of

__all__ = [
    "LASTING",
    "MISSING_EXTENSION",
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

# The shapes of searches differ by filter, limit and columns; each holds a plan on the server.
_STATEMENT_CACHE = 256

# The share of a connection's lifetime by which it may end earlier.
_AGE_JITTER = 0.2

_SEARCH_SETTINGS = {
    "hnsw.iterative_scan": "relaxed_order",
    # Whether a search reads the index is the router's choice: a server that sorts the table instead gives
    # other rows than the statement of another page. What has to be sorted is sorted all the same.
    "enable_sort": "off",
    "enable_indexscan": "on",
    # The router bounds scans with a filter by the rows that they visit, for which pgvector computes up to
    # twice as many distances; hnsw.scan_mem_multiplier ends it a little later.
    "hnsw.max_scan_tuples": "40000",
}

MISSING_EXTENSION = "the vector extension is missing: run `pgscatter schema apply`"

_WITHOUT_TLS = ("disable", "allow", "prefer")
_VECTOR_TYPES = ("vector", "halfvec")
# asyncpg's "tuple" of each is its count of days or microseconds.
_TIMES = (
    ("date", lambda value: (days_of(value),), lambda wire: date_of(wire[0])),
    ("timestamp", lambda value: (microseconds_of(value),), lambda wire: timestamp_of(wire[0])),
    ("timestamptz", lambda value: (microseconds_of(value),), lambda wire: timestamptz_of(wire[0])),
)

_logger = logging.getLogger(__name__)


class _Session(asyncpg.Connection):
    """A connection that needs no clean-up between statements.

    We leave no session state behind but the width of index scans, which `set_ef_search` keeps in mind;
    so release costs no round trip.

    Attributes:
        ef_search: the width as far as known.
        folding: the collation that stands in for FOLDING, where the server lacks it.
        opened, expires, used: when, by `time.monotonic`; the last as far as its pool knows.
        process: the number of the server's process; a pooler in between tells the driver another one.
        origin: the system identifier and the database that it leads to, of one for searches.
        knows_vectors: whether pgvector's types have their codecs; from then on they must not change.
    """

    __slots__ = ("ef_search", "expires", "folding", "knows_vectors", "opened", "origin", "process", "used")

    ef_search: int | None
    expires: float
    folding: str | None
    knows_vectors: bool
    opened: float
    process: int
    origin: tuple[int, str] | None
    used: float

    @property
    def way(self) -> Dialer:
        """Where it leads."""
        return cast(Dialer, self._loop)  # type: ignore[attr-defined]

    async def set_ef_search(self, ef_search: int) -> None:
        """Scan indexes this wide from now on; costs a round trip only when that is a change."""
        if self.ef_search != ef_search:
            self.ef_search = None
            await self.execute(f"SET hnsw.ef_search = {ef_search:d}")
            self.ef_search = ef_search

    def spelled(self, statement: str) -> str:
        """`statement` as this server understands it. It holds no values, so that only a name is replaced."""
        return statement if self.folding is None else statement.replace(FOLDING, self.folding)

    def is_in_transaction(self) -> bool:
        """Also where BEGIN was cancelled: asyncpg would take the next transaction for one within it."""
        begun: bool = self._top_xact is not None  # type: ignore[attr-defined]
        return begun or bool(self._protocol.is_in_transaction())  # type: ignore[attr-defined]

    def get_reset_query(self) -> str:
        return ""

    async def _introspect_types(self, typeoids: Iterable[int], timeout: float | None) -> Any:
        """What asyncpg asks when it meets an unknown type.

        If that is pgvector's, the extension has been created anew under this connection: asyncpg would send
        and read its values as text, where all others are bytes.
        """
        found = await super()._introspect_types(typeoids, timeout)  # type: ignore[misc]
        if self.knows_vectors and any(row["name"] in _VECTOR_TYPES for row in found[0]):
            raise asyncpg.OutdatedSchemaCacheError("pgvector's types are new")
        return found


Connection: TypeAlias = _Session


class ErrorKind(StrEnum):
    """What a failure allows.

    `UNREACHABLE` (no connection to be had), `LOST` (the connection broke under a statement) and
    `TRANSIENT` may succeed on another node or later, `CONFLICT` (a deadlock, a serialization failure) at
    once, `READ_ONLY` says the node is no primary, `DATA` blames the values sent, `FATAL` will repeat until
    an operator mends the server or the table, `DENIED` until the router's role is given a right.
    """

    UNREACHABLE = "unreachable"
    LOST = "lost"
    TRANSIENT = "transient"
    CONFLICT = "conflict"
    READ_ONLY = "read_only"
    DATA = "data"
    FATAL = "fatal"
    DENIED = "denied"


# What an operator has to mend.
LASTING = (ErrorKind.FATAL, ErrorKind.DENIED)


class NodeError(Exception):
    """A statement or connection failed on one node.

    `renewable`: the connection may have been the cause, since it is older than what the error is about;
    nothing was done, and a new connection is worth one more try. `authentication`: the server does not accept
    who we say we are. `closed`: it takes no new connections, as it says itself, while those that are open may
    go on.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        renewable: bool = False,
        authentication: bool = False,
        closed: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.renewable = renewable
        self.authentication = authentication
        self.closed = closed

    @property
    def permanent(self) -> bool:
        """Whether the same statement will fail again for as long as nobody changes the server."""
        return self.kind in (*LASTING, ErrorKind.DATA)

    @property
    def cause(self) -> str:
        """The failure in a word, for those who are told nothing of the inside."""
        return "authentication" if self.authentication else _CAUSES[self.kind]


_CAUSES = {
    ErrorKind.UNREACHABLE: "unreachable",
    ErrorKind.LOST: "unreachable",
    ErrorKind.TRANSIENT: "busy",
    ErrorKind.CONFLICT: "busy",
    ErrorKind.READ_ONLY: "no_primary",
    ErrorKind.DATA: "invalid",
    ErrorKind.FATAL: "misconfigured",
    ErrorKind.DENIED: "misconfigured",
}


async def open_connection(
    dsn: str,
    *,
    connect_timeout: float,
    statement_timeout: float,
    name: str = "pgscatter",
    check_pooler: bool = False,
    network: Network | None = None,
    lifetime: float = inf,
    searches: bool = True,
    lock_timeout: float = 0.0,
) -> Connection:
    """A connection ready for vector statements, within `connect_timeout` seconds.

    It is to be replaced after `lifetime` seconds, or up to a fifth earlier, so that those that were opened
    together are not replaced together. Without `searches` it is one for questions about the server, which
    costs half.

    `statement_timeout` (seconds) is the server's own bound, for the case that a cancel request is
    lost. Iterative scans are on for every statement: without them an HNSW scan ends after ef_search
    tuples, dead and filtered ones included, and returns fewer rows without a word. `check_pooler`: where a
    pooler stands in between, see by a second connection that it keeps sessions whole.

    Raises:
        NodeError: when the node cannot be reached, refuses, or lacks the vector extension.
    """
    deadline = asyncio.get_running_loop().time() + connect_timeout
    try:
        connection = await driver.connect(
            dsn,
            timeout=connect_timeout,
            connection_class=_Session,
            statement_cache_size=_STATEMENT_CACHE,
            max_cached_statement_lifetime=0,
            server_settings={"application_name": name},
            network=network,
        )
    except POSTGRES_ERRORS as exc:
        raise _connect_error(exc, dsn) from exc
    connection.ef_search = None
    connection.knows_vectors = False
    connection.folding = None
    connection.origin = None
    connection.opened = connection.used = monotonic()
    connection.expires = connection.opened + lifetime * random.uniform(1.0 - _AGE_JITTER, 1.0)
    timeout_ms = str(int(statement_timeout * 1000))
    own = {
        "application_name": name,
        "statement_timeout": timeout_ms,
        "lock_timeout": str(int(lock_timeout * 1000)),  # 0 for none
        # A frozen router keeps no rows locked for longer than one that works may.
        "idle_in_transaction_session_timeout": timeout_ms,
    }

    async def another() -> asyncpg.Connection:
        return await driver.connect(dsn, timeout=connect_timeout / 2, statement_cache_size=0, network=network)

    try:
        async with asyncio.timeout_at(deadline):
            # A connection is cut, without a word, when its node does not confirm a cancel.
            connection.process = await apply_settings(
                connection, own | _SEARCH_SETTINGS if searches else own, another if check_pooler else None
            )
            if searches:
                await _set_codecs(connection)
                connection.folding = await stand_in(connection, connection.get_settings().server_encoding)
    except (*POSTGRES_ERRORS, SettingsRefusedError, PoolerError) as exc:
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
    # As text: asyncpg would look the type of an array of names up, which takes milliseconds.
    rows = await connection.fetch(
        "SELECT t.typname, n.nspname, t.oid, t.typarray,"
        " (SELECT system_identifier FROM pg_control_system()) AS system, current_database()::text AS database"
        " FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"
        " JOIN pg_type t ON t.typnamespace = n.oid"
        " WHERE e.extname = 'vector' AND t.typname::text = ANY($1::text[]) AND t.typtype = 'b'",
        _VECTOR_TYPES,
    )
    if not rows:
        raise NodeError(ErrorKind.FATAL, MISSING_EXTENSION)
    connection.origin = rows[0]["system"], rows[0]["database"]
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
    # asyncpg would look an array type up when a statement first needs it, which takes milliseconds as well.
    settings = connection._protocol.get_settings()  # type: ignore[attr-defined]
    settings.register_data_types([_array_type(row) for row in rows])
    connection.knows_vectors = True


def _array_type(row: asyncpg.Record) -> dict[str, object]:
    """What asyncpg's own look-up says of the array type of a type that has a codec."""
    return {
        "oid": row["typarray"],
        "ns": row["nspname"],
        "name": f"_{row['typname']}",
        "kind": b"b",
        "elemtype": row["oid"],
        "elemdelim": b",",
        "elemtype_name": row["typname"],
        **dict.fromkeys(("basetype", "range_subtype", "attrtypoids", "attrnames")),
    }


def _connect_error(exc: BaseException, dsn: str) -> NodeError:
    """Wrong passwords and missing databases repeat; whatever else stops a connection may pass."""
    repeats = (
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.InsufficientPrivilegeError,
        driver.FileError,
    )
    if isinstance(exc, (asyncpg.CannotConnectNowError, asyncpg.ObjectNotInPrerequisiteStateError)):
        return NodeError(ErrorKind.UNREACHABLE, _message(exc), closed=True)
    if isinstance(exc, repeats):
        login = isinstance(exc, asyncpg.InvalidAuthorizationSpecificationError)
        return NodeError(ErrorKind.FATAL, _message(exc), authentication=login)
    if isinstance(exc, asyncpg.ProtocolViolationError):
        # So PgBouncer says that it has no room for one more, as all else; whether there is a server behind
        # it, probes find out.
        return NodeError(ErrorKind.LOST, _message(exc))
    if isinstance(exc, asyncpg.TooManyConnectionsError):
        # The node is well; it has no room for one more.
        return NodeError(ErrorKind.TRANSIENT, _message(exc))
    own = isinstance(exc, ConnectionError) and exc.errno is None
    if own or isinstance(exc, asyncpg.ConnectionDoesNotExistError):
        # Tried again for as long as it is so: no line of the log for each.
        mode = parameters(dsn).get("sslmode", "prefer")
        no_tls = "" if mode in _WITHOUT_TLS else f", or takes no TLS, which sslmode={mode} asks for"
        return NodeError(
            ErrorKind.UNREACHABLE, f"the server ended the connection before it was ready{no_tls}"
        )
    return NodeError(ErrorKind.UNREACHABLE, _message(exc))


def node_error(exc: BaseException) -> NodeError:
    """What `exc`, raised by asyncpg or the socket under it, means for the node.

    By SQLSTATE: 08 connection, 57P0x shutdown, 25P03 and 25P04 sessions that the server ends, 40001 and 40P01
    what a transaction suffers from others (on a replica: from recovery), 40 rollback and 53 resources, 25006
    read-only transaction, and what one row is refused for: 22, 23 and 44 data and constraints, 54 values too
    large or too deep, 09, 21, 27, 2F, 38 and P0 triggers and functions.
    """
    if isinstance(exc, NodeError):
        return exc
    if isinstance(exc, PoolerFullError):
        return NodeError(ErrorKind.TRANSIENT, str(exc))
    if isinstance(exc, (SettingsRefusedError, PoolerError)):
        return NodeError(ErrorKind.FATAL, str(exc))
    if isinstance(exc, driver.FileError):
        return NodeError(ErrorKind.FATAL, str(exc))
    if isinstance(exc, asyncpg.PostgresError):
        return _statement_error(exc)
    if isinstance(exc, asyncpg.OutdatedSchemaCacheError):
        return NodeError(ErrorKind.FATAL, "types of the database have changed under the connection")
    if isinstance(exc, asyncpg.InterfaceError) and isinstance(exc, ValueError):
        # A value that asyncpg cannot encode; its words would repeat the value.
        return NodeError(ErrorKind.DATA, "a value does not fit the type of its column")
    if isinstance(exc, (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        return NodeError(ErrorKind.LOST, _message(exc))
    raise TypeError(f"not an error of a node: {exc!r}") from exc


def _statement_error(exc: asyncpg.PostgresError) -> NodeError:
    state, message = exc.sqlstate or "", _message(exc)
    if state in ("40001", "40P01"):
        return NodeError(ErrorKind.CONFLICT, message)
    if _of_one_row(exc, state):
        return NodeError(ErrorKind.DATA, message)
    if state.startswith(("08", "57P0")) or state in ("25P03", "25P04"):
        return NodeError(ErrorKind.LOST, message)
    if state.startswith(("40", "53")) or state in ("55P03", "57014"):
        return NodeError(ErrorKind.TRANSIENT, message)
    if state == "25006":
        return NodeError(ErrorKind.READ_ONLY, message)
    # Whoever ran the statement may have looked what the role lacks.
    advice = "; ".join(getattr(exc, "__notes__", ())) or _ADVICE.get(state)
    kind = ErrorKind.DENIED if state == "42501" else ErrorKind.FATAL
    return NodeError(kind, f"{message}: {advice}" if advice else message)


_ROW_CLASSES = ("09", "21", "22", "23", "27", "2F", "38", "44", "54", "P0")
_MEND_TABLE = "run `pgscatter schema apply`, which creates what is missing and says what differs from the map"
_UNLIKE_MAP = ("22000", "3F000", "42703", "42704", "42804", "42846", "42883", "42P01", "42P10", "428C9")
_ADVICE = {
    **dict.fromkeys(_UNLIKE_MAP, _MEND_TABLE),
    "42501": "grant the router's role this right (`pgscatter schema check` says which it lacks)",
    **dict.fromkeys(("26000", "42P05"), "where a pooler stands in between, it must pool whole sessions"),
}


def _of_one_row(exc: asyncpg.PostgresError, state: str) -> bool:
    """Whether other rows of the same statement may pass.

    Told by the server's function where the SQLSTATE does not tell: a trigger may RAISE any, and a row that a
    policy refuses has that of a right that is missing, which many functions report.
    """
    if exc.server_source_function == "exec_stmt_raise":
        return True
    if state == "42501":
        return exc.server_source_function == "ExecWithCheckOptions"
    # pgvector's dimensions (22000) and wire formats (22P03) that do not match are the table's fault: values
    # have been checked against the map.
    return state.startswith(_ROW_CLASSES) and state not in ("22000", "22P03")


def _message(exc: BaseException) -> str:
    """One line in the server's words or ours."""
    if isinstance(exc, asyncpg.PostgresError) and exc.severity is not None:
        return str(exc.args[0]).strip().split("\n")[0] or f"error {exc.sqlstate}"
    if isinstance(exc, OSError):
        return _system_message(exc)
    _log(exc)
    return "the connection was lost"


def _system_message(exc: OSError) -> str:
    if isinstance(exc, driver.FileError):
        return str(exc)
    if isinstance(exc, TimeoutError):
        return "timed out"
    if isinstance(exc, ConnectionRefusedError):
        return "connection refused"
    if isinstance(exc, socket.gaierror):
        return "the host's name cannot be resolved"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed: {getattr(exc, 'reason', None) or 'the handshake broke off'}"
    if exc.errno is None:
        # asyncpg's own, such as one error for several addresses.
        _log(exc)
        return "no connection to be had"
    return os.strerror(exc.errno)


def _log(exc: BaseException) -> None:
    """What of an error is not told to clients."""
    _logger.info("driver error", extra={"error": repr(exc)})
