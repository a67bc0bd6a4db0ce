"""The settings that every connection of pgscatter runs under, whatever the server, database or role say.

PostgreSQL takes defaults for a session from its command line, `postgresql.conf`, the database, the role and
the environment. Those that decide whether a statement is allowed, what it means, when it is ended or how its
values are written are set here, after the connection is open: that outranks all of these, and a pooler that
refuses unknown startup parameters takes it. What only decides speed or durability is the operator's and stays
as it is: `synchronous_commit`, `work_mem`, planner costs, most of `enable_*`, parallel workers, tablespaces,
`session_replication_role`. Sessions that search set some of their own, see `open_connection`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import asyncpg

from router.postgres.pooler import Another, check_sessions

__all__ = ["EVERYWHERE", "SettingsRefusedError", "apply_settings", "session_settings", "set_search_path"]


class Setting(NamedTuple):
    """`value` is as `pg_settings.setting` shows it; `since` is the first major version that has it."""

    name: str
    value: str
    why: str
    since: int = 0


EVERYWHERE = (
    Setting("default_transaction_isolation", "read committed", "replicas refuse `serializable`"),
    Setting("default_transaction_read_only", "off", "primaries are written to"),
    Setting("default_transaction_deferrable", "off", "no statement waits for a snapshot"),
    Setting("statement_timeout", "0", "the router's time limits; commands bound each statement themselves"),
    Setting("lock_timeout", "0", "as `statement_timeout`"),
    Setting("idle_in_transaction_session_timeout", "0", "as `statement_timeout`"),
    Setting("idle_session_timeout", "0", "idle connections are kept", 14),
    Setting("transaction_timeout", "0", "as `statement_timeout`", 17),
    Setting("client_connection_check_interval", "1000", "no statement goes on for a client that is gone", 14),
    Setting("exit_on_error", "off", "one refused document leaves the connection open for the others"),
    Setting("row_security", "on", "policies refuse single rows; commands that check whole tables use `off`"),
    Setting("client_encoding", "UTF8", "texts are sent so"),
    Setting("DateStyle", "ISO, MDY", "one form of dates in texts"),
    Setting("IntervalStyle", "postgres", "one form of intervals in texts"),
    Setting("TimeZone", "UTC", "one form of timestamps in texts"),
    Setting("extra_float_digits", "1", "floats lose no digits in texts"),
    Setting("bytea_output", "hex", "one form of bytes in texts"),
    Setting("standard_conforming_strings", "on", "a backslash in SQL is one"),
    Setting("array_nulls", "on", "`NULL` in an array's text is no string"),
    Setting("transform_null_equals", "off", "`= NULL` is never true"),
    Setting("quote_all_identifiers", "off", "definitions of indexes are compared"),
    Setting("gin_fuzzy_search_limit", "0", "an index returns all rows that match"),
    Setting("client_min_messages", "warning", "nobody reads notices"),
    Setting("jit", "off", "compiling takes longer than a search"),
)

# The server ends the session of a machine that has vanished, whose locks nobody else would give back, after a
# minute and not two hours. Not read back: over a Unix socket these stay 0.
_VANISHED = (
    "SET tcp_keepalives_idle = 30",
    "SET tcp_keepalives_interval = 10",
    "SET tcp_keepalives_count = 3",
)

# With this alone, the next statement means what it says whatever objects a user's schemas hold.
_SAFE_PATH = "SET search_path = pg_catalog"

# pgvector's schema comes right after the built-in one, so that no other object takes the name of a type or an
# operator; then what the role has, for triggers that name their tables without a schema; temporary objects,
# which would be first otherwise, come last.
_PATH = """
set_config('search_path', concat_ws(', ', 'pg_catalog',
    (SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
     WHERE e.extname = 'vector'), nullif(reset_val, ''), 'pg_temp'), false)
"""
_CHECK = f"""
SELECT name, setting, pg_backend_pid() AS process, CASE name WHEN 'search_path' THEN {_PATH} END
FROM pg_settings WHERE name = ANY($1) OR name = 'search_path'
"""
# By default, a replica may be set to refuse every query, and any error to end the session.
_FIRST = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET exit_on_error = off"
# Undoes what it runs with, unless the connection leads to the server process that it was told of: only a
# pooler, which answers newcomers itself, invents one.
_DIRECT = (
    "SELECT 1 OPERATOR(pg_catalog./) (pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) {})::pg_catalog.int4"
)
# What clients before may have left in a pooler's session, where its server_reset_query is empty.
_CLEAN = (
    "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; DEALLOCATE ALL; UNLISTEN *;"
    " SELECT pg_catalog.pg_advisory_unlock_all()"
)


class SettingsRefusedError(Exception):
    """The server, or a pooler before it, does not let the session have its settings; the text says which."""


def session_settings(major: int, own: Mapping[str, str]) -> dict[str, str]:
    """All settings of a session on a server of this major version, with the session's `own` over them."""
    common = {setting.name: setting.value for setting in EVERYWHERE if setting.since <= major}
    return common | dict(own)


async def apply_settings(
    connection: asyncpg.Connection, own: Mapping[str, str], another: Another | None = None
) -> int:
    """Set everything, see that it holds, and find pgvector's schema; takes two round trips.

    Where a pooler stands in between, `another` connection shows whether it keeps sessions whole.

    Returns:
        The number of the server's process.

    Raises:
        SettingsRefusedError
        PoolerError
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: another failure of the connection.
    """
    settings = session_settings(connection.get_server_version().major, own)
    commands = [*(f"SET {name} = '{value}'" for name, value in settings.items()), *_VANISHED, _SAFE_PATH]
    try:
        await _run(connection, [_FIRST, _DIRECT.format(connection.get_server_pid()), *commands])
    except asyncpg.DivisionByZeroError:
        await check_sessions(connection, another)
        await _run(connection, [_FIRST, _CLEAN, *commands])
    rows = await connection.fetch(_CHECK, list(settings))
    for name, setting, *_ in rows:
        wanted = settings.get(name, setting)
        if setting != wanted:
            raise SettingsRefusedError(
                f"the session has {name} = {setting!r} after it was set to {wanted!r}; a pooler between the"
                " router and the server must pool whole sessions"
            )
    process: int = rows[0]["process"]
    return process


async def set_search_path(connection: asyncpg.Connection) -> None:
    """Look for pgvector's schema again, after the extension has been created."""
    await connection.execute(f"SELECT {_PATH} FROM pg_settings WHERE name = 'search_path'")


async def _run(connection: asyncpg.Connection, commands: list[str]) -> None:
    """All in one transaction; when one is refused, each alone, to say which are."""
    try:
        await connection.execute("; ".join(commands))
    except asyncpg.DivisionByZeroError:
        raise
    except asyncpg.PostgresError:
        if connection.is_closed():
            raise
        await _run_singly(connection, commands)


async def _run_singly(connection: asyncpg.Connection, commands: list[str]) -> None:
    refused: list[str] = []
    for command in commands:
        try:
            await connection.execute(command)
        except asyncpg.PostgresError as exc:
            if connection.is_closed():
                raise
            refused.append(f"{command} ({exc.args[0]})")
    if refused:
        raise SettingsRefusedError(f"the server refuses {'; '.join(refused)}")
