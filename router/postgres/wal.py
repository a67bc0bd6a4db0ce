"""Where a server's write-ahead log stands: the only SQL text that asks for timelines and positions.

A position is counted in bytes from the beginning of the log, as a bigint. The timeline is read from the
name of the present log file, because the control file has it only after the first checkpoint.
"""

from __future__ import annotations

from router.postgres.connection import Connection
from router.query.types import Position

__all__ = ["FLUSHED", "LOG_COLUMNS", "REPLAYED", "STATE_COLUMNS", "STATE_SOURCE", "written_position"]


def _position(lsn: str) -> str:
    return f"({lsn} - '0/0'::pg_lsn)::bigint"


_TIMELINE = "('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"

# Of a primary: until here, every commit of a session with synchronous_commit on or local is on its disk.
FLUSHED = _position("pg_current_wal_flush_lsn()")
# Of a replica; NULL before it has replayed anything.
REPLAYED = _position("pg_last_wal_replay_lsn()")

# Whether it is a replica (`standby`), how far its log reaches (`lsn`), and, of a primary, its `timeline`.
# During recovery PostgreSQL refuses to say where the present log ends, so that stands behind a CASE.
STATE_COLUMNS = f"""r.standby,
       CASE WHEN r.standby THEN {REPLAYED} ELSE {FLUSHED} END AS lsn,
       CASE WHEN NOT r.standby THEN {_TIMELINE} END AS timeline"""
# What tells that log is missing: where a primary's ends, flushed or not (`written`), where its replay ended
# when it was started or promoted (`recovered`), and whether its commits wait for replicas; and of a replica,
# whether it is being sent the log.
LOG_COLUMNS = f"""CASE WHEN NOT r.standby THEN {_position("pg_current_wal_insert_lsn()")} END AS written,
       CASE WHEN NOT r.standby THEN {REPLAYED} END AS recovered,
       current_setting('synchronous_standby_names') <> '' AS synchronous,
       NOT r.standby OR EXISTS (SELECT FROM pg_stat_wal_receiver) AS receiving"""
STATE_SOURCE = "(SELECT pg_is_in_recovery() AS standby) r"

# What the last commit wrote is in the log up to here. Without synchronous commit the flushed part may
# end before it; what has been inserted never does.
_WRITTEN = f"""
SELECT {_TIMELINE},
       CASE current_setting('synchronous_commit')
       WHEN 'off' THEN {_position("pg_current_wal_insert_lsn()")} ELSE {FLUSHED} END
"""


async def written_position(connection: Connection) -> Position:
    """A position of a primary's log up to which it holds everything this connection has committed."""
    row = await connection.fetchrow(_WRITTEN)
    assert row is not None, "a SELECT without FROM has a row"
    return Position(row[0], row[1])
