"""The tables in which `load` marks what it has loaded; `router.bulk.resume` says what stands in them.

`schema apply` creates them, so that whoever loads needs no right to create anything.
"""

from __future__ import annotations

import asyncpg

from router.postgres.connection import ErrorKind, NodeError
from router.schema.session import Connection

__all__ = ["create_load_tables"]

# Runs of any kind create the tables one after the other; the number is "pgscatml" in ASCII.
_LOCK = 0x70677363_61746D6C
# By the catalogs: to name a table is refused where its schema may not be used.
_CREATED = """
SELECT count(*) = 2 AND bool_or(EXISTS (
    SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'rejected'))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgscatter' AND c.relname IN ('load', 'load_chunk')
"""
_TABLES = f"""
SELECT pg_advisory_xact_lock({_LOCK});
CREATE SCHEMA IF NOT EXISTS pgscatter;
CREATE TABLE IF NOT EXISTS pgscatter.load (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relation oid NOT NULL,
    source text NOT NULL,
    options text NOT NULL,
    chunk_rows bigint NOT NULL,
    deferred_index text,
    began_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    UNIQUE (relation, source, options)
);
COMMENT ON COLUMN pgscatter.load.deferred_index IS 'statement that builds the index once all rows are in';
CREATE TABLE IF NOT EXISTS pgscatter.load_chunk (
    load bigint NOT NULL REFERENCES pgscatter.load ON DELETE CASCADE,
    chunk bigint NOT NULL,
    rows bigint NOT NULL,
    refused bigint NOT NULL,
    PRIMARY KEY (load, chunk)
);
ALTER TABLE pgscatter.load_chunk ADD COLUMN IF NOT EXISTS rejected bigint NOT NULL DEFAULT 0;
"""


async def create_load_tables(connection: Connection) -> bool:
    """Create the tables if they are missing; whether they were.

    Raises:
        NodeError: the role may not, and what has to be granted instead.
    """
    if await connection.fetchval(_CREATED):
        return False
    try:
        async with connection.transaction():
            await connection.execute(_TABLES)
    except asyncpg.InsufficientPrivilegeError as exc:
        role = await connection.fetchval("SELECT quote_ident(current_user)")
        raise NodeError(
            ErrorKind.DENIED,
            "`load` marks what is loaded in tables of schema pgscatter, which are missing, and the role"
            f" {role} may not create them: run `pgscatter schema apply` as one with CREATE on the database,"
            f" then: GRANT USAGE ON SCHEMA pgscatter TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON"
            f" pgscatter.load, pgscatter.load_chunk TO {role}",
        ) from exc
    return True
