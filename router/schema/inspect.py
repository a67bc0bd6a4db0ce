"""What a server has at the place of a collection's table, read from its catalogs into one value."""

from __future__ import annotations

import asyncpg
import msgspec

from router.schema.load_lock import LOAD_CLASS
from shard_config.model import Collection
from shard_config.predicate import sql_predicate

__all__ = ["Found", "FoundColumn", "FoundIndex", "Misplaced", "inspect", "misplaced"]


class FoundColumn(msgspec.Struct, frozen=True):
    """`filled`: an insert may leave it out. `generated`: an upsert may not give it; of an identity column,
    which can be inserted and not updated, the id alone may. `stored`: what its values are computed by before
    they are stored."""

    name: str
    type: str
    not_null: bool
    filled: bool
    generated: bool
    deterministic: bool
    collation: str | None = None
    default: str | None = None
    stored: str | None = None


class FoundIndex(msgspec.Struct, frozen=True):
    """`keys` are column names or expressions as the server writes them; `opclass` is the first key's.

    Attributes:
        total: over all rows, and checked at once.
        valid: built to its end.
        collation: the first key's, None if its type has none.
        default_opclass: the first key's operator class is that of its type.
        building: some session is at work on it.
        analyzed: the server has statistics of its expressions, if it has any and the role may see them.
    """

    name: str
    method: str
    definition: str
    keys: tuple[str, ...]
    opclass: str
    options: dict[str, str]
    unique: bool
    total: bool
    valid: bool
    collation: str | None = None
    default_opclass: bool = True
    building: bool = False
    analyzed: bool = True


class Found(msgspec.Struct, frozen=True):
    """`kind` and what follows describe the table; None where there is none.

    Attributes:
        vector: version of the extension in this database, None if it has to be created.
        vector_offered: version that creating it would give, None if the server has no such extension.
        vector_home: schema to create it in: `public`, or the table's if there is none.
        relations: names of all tables and indexes in the table's schema.
        loading: a load is at work on it, or another run builds its indexes.
        policed: its policies may hide rows from the session's role.
        constraints: those that are no indexes, as the server writes them.
        triggers: those that are on, each with its function.
        locale: by which the database tells letters from other characters, and large ones from small ones.
        languages: text search configurations that can be named without a schema.
        outdated: collations of its indexes' keys that are not as when these were built: name, version then
            and now.
    """

    vector: str | None
    vector_offered: str | None
    vector_home: str
    schema: bool
    relations: frozenset[str]
    oid: int | None = None
    kind: str | None = None
    permanent: bool = True
    columns: dict[str, FoundColumn] = {}
    indexes: tuple[FoundIndex, ...] = ()
    empty: bool = True
    loading: bool = False
    policed: bool = False
    encoding: str = "UTF8"
    constraints: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    outdated: tuple[tuple[str, str, str], ...] = ()
    languages: frozenset[str] = frozenset()
    locale: str = ""


class Misplaced(msgspec.Struct, frozen=True):
    """Rows that the map places elsewhere, of all rows of the table, and one of them."""

    count: int
    rows: int
    example: object


_ATTEMPTS = 5
_SERVER = """
SELECT (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS vector,
       (SELECT default_version FROM pg_available_extensions WHERE name = 'vector') AS offered,
       CASE WHEN to_regnamespace('public') IS NULL THEN $1 ELSE 'public' END AS home,
       EXISTS (SELECT FROM pg_namespace WHERE nspname = $1) AS schema,
       (SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()) AS encoding,
       (SELECT concat_ws(', ', datctype, to_jsonb(d) ->> 'daticulocale', to_jsonb(d) ->> 'datlocale')
        FROM pg_database d WHERE datname = current_database()) AS locale,
       ARRAY(SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1) AS relations,
       ARRAY(SELECT cfgname::text FROM pg_ts_config WHERE pg_ts_config_is_visible(oid)) AS languages
"""

_TABLE = f"""
SELECT c.oid, c.relkind::text AS kind, c.relpersistence = 'p' AS permanent,
       ARRAY(SELECT pg_get_constraintdef(oid) FROM pg_constraint
             WHERE conrelid = c.oid AND contype IN ('c', 'f', 'x')) AS constraints,
       ARRAY(SELECT tgname || ' that calls ' || tgfoid::regproc::text FROM pg_trigger
             WHERE tgrelid = c.oid AND NOT tgisinternal AND tgenabled <> 'D') AS triggers,
       c.relpages = 0 AND c.reltuples <= 0 AS unfilled, row_security_active(c.oid) AS policed,
       EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
               WHERE l.locktype = 'advisory' AND l.classid = {LOAD_CLASS} AND l.objid = c.oid
                 AND l.objsubid = 1 AND l.granted AND d.datname = current_database()
                 AND l.pid <> pg_backend_pid()) AS loading
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2
"""

# pgvector's types are named without its schema, as the map does, also where the role may not use that.
_COLUMNS = """
SELECT a.attname AS name,
       CASE WHEN t.typname IN ('vector', 'halfvec')
                 AND t.typnamespace = (SELECT extnamespace FROM pg_extension WHERE extname = 'vector')
            THEN t.typname || CASE WHEN a.atttypmod > 0 THEN '(' || a.atttypmod || ')' ELSE '' END
            ELSE format_type(a.atttypid, a.atttypmod) END AS type,
       a.attnotnull AS not_null,
       a.atthasdef OR a.attidentity <> '' AS filled,
       a.attgenerated <> '' OR (a.attidentity = 'a' AND a.attname <> $2) AS generated,
       COALESCE(l.collisdeterministic, true) AS deterministic, l.collname::text AS collation,
       CASE a.attgenerated WHEN '' THEN pg_get_expr(d.adbin, d.adrelid) END AS default,
       CASE a.attgenerated WHEN 's' THEN pg_get_expr(d.adbin, d.adrelid) END AS stored
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_collation l ON l.oid = a.attcollation
     LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""

# Who builds which index is shown to few roles, and by REINDEX CONCURRENTLY also the old one is invalid for a
# time; but everybody sees who builds some and which table he has locked for it.
# A deferrable unique index cannot serve ON CONFLICT, nor can one over part of the rows.
_INDEXES = """
SELECT c.relname AS name, m.amname AS method, pg_get_indexdef(i.indexrelid) AS definition,
       ARRAY(SELECT pg_get_indexdef(i.indexrelid, k, true)
             FROM generate_series(1, i.indnkeyatts) k ORDER BY k) AS keys,
       o.opcname AS opclass, COALESCE(c.reloptions, '{}') AS options, i.indisunique AS unique,
       i.indpred IS NULL AND i.indimmediate AS total,
       i.indisvalid AND i.indisready AND i.indislive AS valid,
       (SELECT collname::text FROM pg_collation l WHERE l.oid = i.indcollation[0]) AS collation,
       o.opcdefault AS default_opclass,
       EXISTS (SELECT FROM pg_stat_progress_create_index b WHERE b.index_relid = c.oid OR NOT i.indisvalid
               AND b.pid IN (SELECT pid FROM pg_locks WHERE relation = i.indrelid AND granted
                             AND mode = 'ShareUpdateExclusiveLock')) AS building,
       c.relkind = 'I'  -- of whose partitions alone there are any
           OR i.indexprs IS NULL
           OR NOT has_column_privilege(c.oid, 1::int2, 'SELECT')  -- who is not shown any
           OR EXISTS (SELECT FROM pg_stats s JOIN pg_namespace n ON n.nspname = s.schemaname
                      WHERE n.oid = c.relnamespace AND s.tablename = c.relname) AS analyzed
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
     JOIN pg_opclass o ON o.oid = i.indclass[0]
WHERE i.indrelid = $1
ORDER BY c.relname
"""
# An index on texts is in the order of its collation as that was when it was built; rows are not found in one
# that an upgrade of the system has changed.
_OUTDATED = """
SELECT * FROM (
    SELECT CASE l.collprovider WHEN 'd' THEN 'of the database' ELSE quote_ident(l.collname) END AS name,
           CASE l.collprovider WHEN 'd' THEN d.datcollversion ELSE l.collversion END AS built,
           CASE l.collprovider WHEN 'd' THEN pg_database_collation_actual_version(d.oid)
                ELSE pg_collation_actual_version(l.oid) END AS now
    FROM pg_collation l, pg_database d
    WHERE d.datname = current_database()
      AND l.oid IN (SELECT unnest(i.indcollation) FROM pg_index i WHERE i.indrelid = $1)) v
WHERE built <> now ORDER BY name
"""
# Older ones keep no version of the database's own.
_OUTDATED_SINCE = 15


async def inspect(connection: asyncpg.Connection, collection: Collection, *, read_rows: bool = True) -> Found:
    """What is there now; nothing is locked, so the caller holds what keeps others from changing it.

    Without `read_rows` the catalogs alone are read, which waits for nobody's lock on the table and needs no
    right on it; a table that was filled after it was last analyzed then counts as `empty`.
    """
    table = collection.table
    server = await connection.fetchrow(_SERVER, table.schema)
    assert server is not None
    found = Found(
        vector=server["vector"],
        vector_offered=server["offered"],
        vector_home=server["home"],
        schema=server["schema"],
        relations=frozenset(server["relations"]),
        encoding=server["encoding"],
        languages=frozenset(server["languages"]),
        locale=server["locale"],
    )
    row = await connection.fetchrow(_TABLE, table.schema, table.name)
    if row is None:
        return found
    columns = [
        FoundColumn(**column) for column in await connection.fetch(_COLUMNS, row["oid"], collection.id.column)
    ]
    indexes = await _indexes(connection, row["oid"])
    known = connection.get_server_version().major >= _OUTDATED_SINCE
    outdated = await connection.fetch(_OUTDATED, row["oid"]) if known else []
    stored = row["kind"] in ("r", "p")
    empty = not stored or row["unfilled"]
    if stored and read_rows:
        empty = await connection.fetchval(f"SELECT NOT EXISTS (SELECT FROM {table})")
    return msgspec.structs.replace(
        found,
        oid=row["oid"],
        kind=row["kind"],
        permanent=row["permanent"],
        loading=row["loading"],
        policed=row["policed"],
        constraints=tuple(row["constraints"]),
        triggers=tuple(row["triggers"]),
        outdated=tuple((one["name"], one["built"], one["now"]) for one in outdated),
        columns={column.name: column for column in columns},
        indexes=tuple(indexes),
        empty=empty,
    )


async def _indexes(connection: asyncpg.Connection, table: int) -> list[FoundIndex]:
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            return [_index(index) for index in await connection.fetch(_INDEXES, table)]
        except asyncpg.InternalServerError:
            # pg_get_indexdef looks at the catalog as it is now, the rest of the statement as it was when that
            # began: an index that is dropped in between is "cache lookup failed".
            if not attempts_left:
                raise
    raise AssertionError("the last attempt returns or raises")


def _index(row: asyncpg.Record) -> FoundIndex:
    options = dict(option.split("=", 1) for option in row["options"])
    return FoundIndex(**{**row, "keys": tuple(row["keys"]), "options": options})


async def misplaced(connection: asyncpg.Connection, collection: Collection, shard: str) -> Misplaced:
    """Count the rows that `shard` should not hold, a NULL key's included; reads the whole table."""
    wrong = f"({sql_predicate(collection.sharding, shard)}) IS NOT TRUE"
    counted = await connection.fetchrow(
        f"SELECT count(*) FILTER (WHERE {wrong}) AS wrong, count(*) AS rows FROM {collection.table}"
    )
    assert counted is not None
    example = None
    if counted["wrong"]:
        example = await connection.fetchval(
            f"SELECT {collection.id.column} FROM {collection.table} WHERE {wrong} LIMIT 1"
        )
    return Misplaced(counted["wrong"], counted["rows"], example)
