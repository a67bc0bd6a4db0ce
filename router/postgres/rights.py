"""What a role must be allowed on a shard for what it does there, and what of that it lacks.

`missing_rights` is pure: it compares what `held_rights` has read with the table below, and writes what is
missing as the statements that grant it. An owner or a superuser lacks nothing.

    read     searches, counts, documents by id, statistics: SELECT on the columns of the map
    write    also upserts and deletes: INSERT and UPDATE on those columns, DELETE on the table, USAGE on the
             sequences that columns take their defaults from
    load     INSERT on those columns, SELECT on the id, all on the marks of `load` in schema pgscatter, and
             the sequences
    build    indexes and ANALYZE, by `schema apply` and at the end of a load: to own the table
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

import asyncpg
import msgspec

from router.postgres.sql import mapped_columns
from shard_config.model import Collection

__all__ = ["PROGRESS", "Held", "Use", "held_rights", "lacking", "missing_rights"]

# The tables in which `load` marks what it has loaded.
PROGRESS = ("pgscatter.load", "pgscatter.load_chunk")
_PROGRESS_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")
_MAINTAIN_SINCE = 17


class Use(StrEnum):
    """What a role does on a shard; one that builds indexes has to own the table."""

    READ = "read"
    WRITE = "write"
    LOAD = "load"
    BUILD = "build"


class Held(msgspec.Struct, frozen=True):
    """What the session's role may do; `role` and `owner` are quoted as SQL takes them.

    Attributes:
        owns: the table is its own, as far as building indexes and ANALYZE go.
        analyzes: it may gather the table's statistics.
        table: rights on the table as a whole.
        columns: rights on each column, those that it has by the whole table included.
        schemas: of the table's, pgvector's and `pgscatter`, those that exist; whether it may use them.
        progress: rights on each of `PROGRESS` that exists.
        database: the database, and whether it may create schemas there.
        shut: by column, the sequence that its default reads and the role may not.
    """

    role: str
    owner: str
    owns: bool
    analyzes: bool
    table: frozenset[str]
    columns: dict[str, frozenset[str]]
    schemas: dict[str, bool]
    progress: dict[str, frozenset[str]]
    database: tuple[str, bool] = ("", False)
    shut: Mapping[str, str] = {}


_HELD = """
SELECT c.oid, quote_ident(current_user) AS role, quote_ident(pg_get_userbyid(c.relowner)) AS owner,
       pg_has_role(c.relowner, 'USAGE') AS owns,
       ARRAY(SELECT p FROM unnest($3::text[]) p WHERE has_table_privilege(c.oid, p)) AS rights,
       (SELECT extnamespace FROM pg_extension WHERE extname = 'vector') AS vector,
       quote_ident(current_database()) AS database,
       has_database_privilege(current_database(), 'CREATE') AS creates
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2
"""
_COLUMNS = """
SELECT attname::text AS name,
       ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) p
             WHERE has_column_privilege(attrelid, attnum, p)) AS rights
FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
"""
_SCHEMAS = """
SELECT nspname::text AS name, has_schema_privilege(oid, 'USAGE') AS usable
FROM pg_namespace WHERE oid = $1 OR nspname = ANY($2::text[])
"""
# By the catalogs: to name a table is refused where its schema may not be used.
_PROGRESS = """
SELECT n.nspname || '.' || c.relname AS name,
       ARRAY(SELECT p FROM unnest($2::text[]) p WHERE has_table_privilege(c.oid, p)) AS rights
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = ANY($1::text[])
"""
# An identity column needs no right on its sequence, and has no expression for a default.
_SHUT = """
SELECT a.attname::text AS name, quote_ident(n.nspname) || '.' || quote_ident(s.relname) AS sequence
FROM pg_attrdef e JOIN pg_attribute a ON a.attrelid = e.adrelid AND a.attnum = e.adnum
     JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = e.oid
                      AND d.refclassid = 'pg_class'::regclass
     JOIN pg_class s ON s.oid = d.refobjid JOIN pg_namespace n ON n.oid = s.relnamespace
WHERE e.adrelid = $1
  AND CASE s.relkind WHEN 'S' THEN NOT has_sequence_privilege(s.oid, 'USAGE, UPDATE') ELSE false END
"""


async def held_rights(connection: asyncpg.Connection, collection: Collection) -> Held | None:
    """What the session's role may do with the collection's table; None where there is no such table.

    Reads the catalogs alone, which every role may.

    Raises:
        one of POSTGRES_ERRORS
    """
    table = collection.table
    asked = ["SELECT", "INSERT", "UPDATE", "DELETE"]
    if connection.get_server_version().major >= _MAINTAIN_SINCE:
        asked.append("MAINTAIN")
    row = await connection.fetchrow(_HELD, table.schema, table.name, asked)
    if row is None:
        return None
    columns = await connection.fetch(_COLUMNS, row["oid"])
    schemas = await connection.fetch(_SCHEMAS, row["vector"], [table.schema, "pgscatter"])
    progress = await connection.fetch(_PROGRESS, list(PROGRESS), list(_PROGRESS_RIGHTS))
    shut = await connection.fetch(_SHUT, row["oid"])
    rights = frozenset(row["rights"])
    return Held(
        role=row["role"],
        owner=row["owner"],
        owns=row["owns"],
        analyzes=row["owns"] or "MAINTAIN" in rights,
        table=rights,
        columns={column["name"]: frozenset(column["rights"]) for column in columns},
        schemas={schema["name"]: schema["usable"] for schema in schemas},
        progress={one["name"]: frozenset(one["rights"]) for one in progress},
        database=(row["database"], row["creates"]),
        shut={one["name"]: one["sequence"] for one in shut},
    )


def missing_rights(collection: Collection, held: Held, use: Use) -> list[str]:
    """The statements that grant what the role lacks for `use`, in an order in which they can be run.

    Columns and tables that do not exist are not missed here: that is for whoever looks at the shape.
    """
    schemas = [name for name in held.schemas if name != "pgscatter" or use is Use.LOAD]
    grants = [f"GRANT USAGE ON SCHEMA {name} TO {held.role}" for name in schemas if not held.schemas[name]]
    if use is Use.BUILD:
        return grants if held.owns else [*grants, f"GRANT {held.owner} TO {held.role}"]
    id_ = collection.id.column
    columns = [name for name in mapped_columns(collection) if name in held.columns]
    needed: dict[str, list[str]] = {
        "SELECT": [id_] if use is Use.LOAD else [*columns, *_words(collection, held)]
    }
    if use is not Use.READ:
        needed["INSERT"] = columns
    if use is Use.WRITE:
        # An upsert replaces all but the id, and a delete locks the rows first.
        needed["UPDATE"] = [name for name in columns if name != id_]
    on = f"ON {collection.table} TO {held.role}"
    for right, names in needed.items():
        lacking = [name for name in names if right not in held.columns[name]]
        if lacking:
            some = "" if lacking == names else f" ({', '.join(lacking)})"
            grants.append(f"GRANT {right}{some} {on}")
    if use is Use.WRITE and "DELETE" not in held.table:
        grants.append(f"GRANT DELETE {on}")
    if use is not Use.READ:
        # What every document has reads no default.
        given = (id_, collection.vector.column, collection.sharding.key.column)
        read = sorted({sequence for name, sequence in held.shut.items() if name not in given})
        grants += [f"GRANT USAGE ON SEQUENCE {sequence} TO {held.role}" for sequence in read]
    if use is Use.LOAD:
        grants += _on_progress(held)
    return grants


def lacking(grants: Iterable[str], role: str) -> str:
    """The rights that `grants` of `missing_rights` give, for a message that does not name the role."""
    return ", ".join(grant.removeprefix("GRANT ").removesuffix(f" TO {role}") for grant in grants)


def _words(collection: Collection, held: Held) -> list[str]:
    """The column that keeps each row's words: it is read, and nobody may write a generated one."""
    stored = None if collection.fulltext is None else collection.fulltext.stored
    return [stored] if stored is not None and stored in held.columns else []


def _on_progress(held: Held) -> Iterable[str]:
    for name, rights in held.progress.items():
        lacking = [right for right in _PROGRESS_RIGHTS if right not in rights]
        if lacking:
            yield f"GRANT {', '.join(lacking)} ON {name} TO {held.role}"
