"""Where a shard keeps its word about itself: `pgscatter.map`, a row for each version of the map it was given.

The newest version is the one in force. Everybody who may connect may read it, since it holds no address and
no password; only its owner writes it.
"""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec

from router.postgres.connection import ErrorKind, NodeError
from shard_config.identity import Holding, Identity

__all__ = ["IDENTITY_COLUMN", "READABLE", "UNREADABLE_ERRORS", "create", "read_identity", "write_identity"]

# Whether there is a table that this session may read. Looked up by name in the catalog: `to_regclass` fails
# for a role that may not use the schema.
READABLE = """
EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'pgscatter' AND c.relname = 'map'
          AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))
"""

_NEWEST = "FROM pgscatter.map ORDER BY version DESC LIMIT 1"
# For a probe: another text whenever the row in force is another one or was changed (`xmin`, which replicas
# have too); NULL where the table is empty.
IDENTITY_COLUMN = f"(SELECT concat_ws(' ', version, digest, xmin) {_NEWEST}) AS identity"
_CURRENT = f"""
SELECT shard, version, digest, holds::text, CASE WHEN digest <> ALL ($1::text[]) THEN content::text END
{_NEWEST}
"""
# Maps that are in force on different shards while a newer one is applied, and some more.
_CONTENTS_KEPT = 4

# "pgscmap" in ASCII: two runs at once must not both create it.
_LOCK = 0x706773636D6170
_CREATE = f"""
SELECT pg_advisory_xact_lock({_LOCK});
CREATE SCHEMA IF NOT EXISTS pgscatter;
GRANT USAGE ON SCHEMA pgscatter TO PUBLIC;
CREATE TABLE IF NOT EXISTS pgscatter.map (
    version bigint PRIMARY KEY,
    digest text NOT NULL,
    shard text NOT NULL,
    holds jsonb NOT NULL,
    content jsonb NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE pgscatter.map IS 'which shard this is, by version of the map; the newest is in force';
GRANT SELECT ON pgscatter.map TO PUBLIC;
"""
# Versions that are kept.
_KEPT = 100

# The table cannot be read after all: it was dropped, or a right taken, since it was looked for.
UNREADABLE_ERRORS = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InvalidSchemaNameError,
)

_holds = msgspec.json.Decoder(dict[str, Holding])
_content = msgspec.json.Decoder(dict[str, Any])


async def read_identity(
    connection: asyncpg.Connection, contents: dict[str, dict[str, Any]] | None = None
) -> Identity | None:
    """What the shard says of itself; None if it says nothing that this session may read.

    `contents` has some by their digests: all shards keep the same one, which is large where shards are many.

    Raises:
        NodeError: what it says cannot be understood.
    """
    if not await connection.fetchval(f"SELECT {READABLE}"):
        return None
    contents = {} if contents is None else contents
    known = dict(contents)  # others change it while this waits
    try:
        row = await connection.fetchrow(_CURRENT, list(known))
    except UNREADABLE_ERRORS:
        return None
    if row is None:
        return None
    shard, version, digest, holds, said = row
    try:
        if digest not in contents:
            if len(contents) == _CONTENTS_KEPT:
                contents.clear()
            contents[digest] = known[digest] if said is None else _content.decode(said)
        return Identity(shard, version, digest, _holds.decode(holds), contents[digest])
    except msgspec.DecodeError as exc:
        raise NodeError(
            ErrorKind.FATAL,
            f"version {version} in pgscatter.map cannot be understood ({exc}): DROP TABLE pgscatter.map"
            " there, then run `pgscatter schema apply` with the map in force",
        ) from exc


async def create(connection: asyncpg.Connection) -> None:
    """Make the table if there is none; within a transaction."""
    if not await connection.fetchval(f"SELECT {READABLE}"):
        await connection.execute(_CREATE)


async def write_identity(connection: asyncpg.Connection, identity: Identity) -> None:
    """Put `identity` in force; within a transaction, after `create`."""
    await connection.execute(
        "INSERT INTO pgscatter.map (version, digest, shard, holds, content) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (version) DO UPDATE SET digest = EXCLUDED.digest, shard = EXCLUDED.shard,"
        " holds = EXCLUDED.holds, content = EXCLUDED.content, applied_at = now()",
        identity.version,
        identity.digest,
        identity.shard,
        msgspec.json.encode(identity.holds).decode(),
        msgspec.json.encode(identity.content).decode(),
    )
    await connection.execute(
        "DELETE FROM pgscatter.map WHERE version NOT IN"
        f" (SELECT version FROM pgscatter.map ORDER BY version DESC LIMIT {_KEPT})"
    )
