"""Reading what a server knows of a collection's values: `pg_stats`, extended statistics, and its indexes.

Only what the role may see is there: PostgreSQL shows nobody the statistics of columns that he may not read or
whose rows a policy hides, and those of an index's expressions to the table's owner alone. What is not shown
is as if ANALYZE had never run. Invariant: whatever the tables hold, a reading brings at most `most_bytes`
of values, and no more than `_MOST_VALUES` of one column.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from router.postgres.connection import Connection
from router.postgres.filter_indexes import key_of, same_expression
from router.query.statistics import (
    ColumnStatistics,
    CombinedStatistics,
    FilterIndex,
    Lookup,
    PathStatistics,
    Place,
    TableStatistics,
    column_statistics,
    distinct_values,
    equal_key,
    path_statistics,
)
from shard_config.model import Collection, Column, MetadataType
from shard_config.values import ValueType, from_text

__all__ = ["path_of", "read_statistics"]

# ANALYZE keeps 100 by default, of at most 1 kB each; of more, the first are the most common.
_MOST_VALUES = 1000
# Each costs a lookup in every estimate.
_MOST_INDEXES = 64
_OLDEST_WITH_EXPRESSIONS = 14

# As estimate_rel_size (src/backend/optimizer/util/plancat.c): the density that VACUUM or ANALYZE found, times
# the pages of now. Without one, what the server has counted since it started, which a replica has not.
_SIZE = """
WITH parts AS (SELECT c.oid, c.reltuples, c.relpages, c.reltoastrelid FROM pg_class c
               WHERE c.oid = $1 OR c.oid IN (SELECT relid FROM pg_partition_tree($1) WHERE isleaf)),
     sizes AS (SELECT p.*, pg_relation_size(p.oid) / 8192 AS pages,
                      pg_relation_size(nullif(p.reltoastrelid, 0)) / 8192 AS toast
               FROM parts p)
SELECT sum(pages)::bigint AS pages, coalesce(sum(toast), 0)::bigint AS toast_pages,
       bool_and(pages = 0 OR (reltuples >= 0 AND relpages > 0)) AS counted,
       sum(CASE WHEN reltuples >= 0 AND relpages > 0 THEN reltuples / relpages * pages
                ELSE pg_stat_get_live_tuples(oid) END)::float8 AS rows
FROM sizes
"""

_TABLE = """
SELECT c.oid, c.relkind = 'p' AS partitioned FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2
"""

# The collation of an index's column decides whether `=`, and `<` by code point, can use it.
_INDEXES = """
SELECT c.relname AS name, m.amname AS method, i.indisunique AND i.indimmediate AS unique,
       pg_get_expr(i.indpred, i.indrelid) AS predicate, keys.*
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam,
     LATERAL (SELECT array_agg(a.attname::text ORDER BY k) AS columns,
                     array_agg(pg_get_indexdef(i.indexrelid, k, true) ORDER BY k) AS expressions,
                     array_agg(x.attname::text ORDER BY k) AS statistics,
                     array_agg(o.opcname::text ORDER BY k) AS opclasses,
                     array_agg(i.indcollation[k - 1] IN (0, a.attcollation) ORDER BY k) AS same,
                     array_agg(i.indcollation[k - 1] = 0 OR l.collname = 'C' ORDER BY k) AS code_point
              FROM generate_series(1, i.indnkeyatts) k
                   JOIN pg_opclass o ON o.oid = i.indclass[k - 1]
                   JOIN pg_attribute x ON x.attrelid = i.indexrelid AND x.attnum = k
                   LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k - 1]
                        AND a.attnum > 0
                   LEFT JOIN pg_collation l ON l.oid = i.indcollation[k - 1]) keys
WHERE i.indrelid = $1 AND i.indisvalid AND i.indisready AND m.amname IN ('btree', 'hash', 'gin')
ORDER BY c.relname LIMIT $2
"""

_SIZES = """
SELECT attname AS name, coalesce(octet_length(most_common_vals::text), 0)
                        + coalesce(octet_length(histogram_bounds::text), 0) AS size
FROM pg_stats WHERE schemaname = $1 AND tablename = $2 AND inherited = $3 AND attname::text = ANY($4::text[])
"""

# anyarray is nothing that an expression can take apart, but its text is.
_VALUES = """
SELECT attname AS name, null_frac AS nulls, n_distinct AS distinct,
       (most_common_vals::text::{type}[])[:{most}] AS common, most_common_freqs[:{most}] AS shares,
       histogram_bounds::text::{type}[] AS bounds
FROM pg_stats WHERE schemaname = $1 AND tablename = $2 AND inherited = $3 AND attname::text = ANY($4::text[])
"""

_EXPRESSIONS = """
SELECT expr AS expression, null_frac AS nulls, n_distinct AS distinct,
       (most_common_vals::text::text[])[:{most}] AS common, most_common_freqs[:{most}] AS shares,
       histogram_bounds::text::text[] AS bounds
FROM pg_stats_ext_exprs
WHERE schemaname = $1 AND tablename = $2 AND coalesce(octet_length(most_common_vals::text), 0) < $3
      AND coalesce(octet_length(histogram_bounds::text), 0) < $3
LIMIT $4
"""

_COMBINED = """
SELECT attnames::text[] AS columns, dependencies::text AS dependencies, most_common_vals AS common,
       most_common_val_nulls AS nulls, most_common_freqs AS shares, most_common_base_freqs AS independent,
       ARRAY(SELECT a.attname::text || '=' || a.attnum FROM pg_attribute a
             WHERE a.attrelid = $3 AND a.attname = ANY(e.attnames)) AS numbers
FROM pg_stats_ext e
WHERE schemaname = $1 AND tablename = $2 AND cardinality(attnames) > 1
      AND coalesce(octet_length(most_common_vals::text), 0) < $4
LIMIT $5
"""


async def read_statistics(
    connection: Connection, collection: Collection, most_bytes: int
) -> TableStatistics | None:
    """What this server knows of the collection's table; None where it has no such table.

    Raises:
        one of POSTGRES_ERRORS
    """
    table = collection.table
    found = await connection.fetchrow(_TABLE, table.schema, table.name)
    if found is None:
        return None
    size = await connection.fetchrow(_SIZE, found["oid"])
    assert size is not None
    rows = size["rows"] if size["counted"] else max(size["rows"], _by_size(size, collection))
    reading = _Reading(connection, collection, found["oid"], found["partitioned"], rows, most_bytes)
    index_rows = await connection.fetch(_INDEXES, found["oid"], _MOST_INDEXES)
    columns = await reading.columns()
    return TableStatistics(
        rows=rows,
        counted=size["counted"],
        pages=size["pages"],
        toast_pages=size["toast_pages"],
        columns=columns,
        paths=await reading.paths(index_rows),
        combined=await reading.combined(),
        indexes=tuple(index for row in index_rows if (index := _index(row, collection)) is not None),
    )


def _by_size(size: Any, collection: Collection) -> float:
    """A row for every vector that the pages have room for, where nobody has counted them."""
    return float((size["pages"] + size["toast_pages"]) * 8192 / (4 * collection.vector.dimensions + 64))


class _Reading:
    """Of one table; `_left` counts the bytes that may still come."""

    def __init__(
        self,
        connection: Connection,
        collection: Collection,
        oid: int,
        partitioned: bool,
        rows: float,
        most_bytes: int,
    ) -> None:
        self._connection = connection
        self._collection = collection
        self._oid = oid
        self._partitioned = partitioned
        self._rows = rows
        self._left = most_bytes

    @property
    def _table(self) -> tuple[str, str]:
        return self._collection.table.schema, self._collection.table.name

    async def columns(self) -> dict[str, ColumnStatistics]:
        fields = _fields(self._collection)
        names = await self._affordable(*self._table, [*fields])
        found: dict[str, ColumnStatistics] = {}
        for type_ in {fields[name].type for name in names}:
            wanted = [name for name in names if fields[name].type is type_]
            for row in await self._values(type_, *self._table, wanted):
                common = [*zip(row["common"] or (), row["shares"] or (), strict=True)]
                bounds = _thinned(row["bounds"] or ())
                found[row["name"]] = column_statistics(
                    row["nulls"],
                    distinct_values(row["distinct"], self._rows),
                    common,
                    bounds,
                    # A locale that orders these as code points do orders what is between them so as well.
                    quantiles=type_ is not ValueType.TEXT or bounds == sorted(bounds),
                )
        return found

    async def paths(self, indexes: Iterable[Any]) -> dict[tuple[str, ...], PathStatistics]:
        """From expressions of indexes over all rows, and from statistics that were created on expressions."""
        metadata = self._collection.metadata
        found: dict[tuple[str, ...], PathStatistics] = {}
        if metadata is None:
            return found
        for row in indexes:
            paths: dict[str, tuple[tuple[str, ...], MetadataType | None]] = {}
            keys = zip(row["statistics"], row["columns"], row["expressions"], strict=True)
            for name, column, expression in keys:
                read, of = _path_and_type(expression, self._collection)
                if column is None and read is not None:
                    paths[name] = read, of
            if not paths or row["predicate"] is not None:
                continue
            names = await self._affordable(self._collection.table.schema, row["name"], [*paths])
            for one in await self._values("text", self._collection.table.schema, row["name"], names):
                place, of = paths[one["name"]]
                found[place] = self._path(one, of)
        if self._connection.get_server_version().major >= _OLDEST_WITH_EXPRESSIONS:
            statement = _EXPRESSIONS.format(most=_MOST_VALUES)
            for row in await self._connection.fetch(
                statement, *self._table, self._left // (4 * _MOST_INDEXES), _MOST_INDEXES
            ):
                path = path_of(row["expression"], metadata)
                if path is not None:
                    found[path] = self._path(row)
        return found

    async def combined(self) -> tuple[CombinedStatistics, ...]:
        rows = await self._connection.fetch(
            _COMBINED, *self._table, self._oid, self._left // (4 * _MOST_INDEXES), _MOST_INDEXES
        )
        fields = _fields(self._collection)
        return tuple(_combined(row, fields) for row in rows if all(name in fields for name in row["columns"]))

    def _path(self, row: Any, of: MetadataType | None = None) -> PathStatistics:
        common = [_as_json(value, of) for value in row["common"] or ()]
        bounds = [_as_json(value, of) for value in _thinned(row["bounds"] or ())]
        distinct = distinct_values(row["distinct"], self._rows)
        return path_statistics(
            row["nulls"], distinct, [*zip(common, row["shares"] or (), strict=True)], bounds
        )

    async def _affordable(self, schema: str, relation: str, names: Sequence[str]) -> list[str]:
        """Those of `names`, in their order, whose values are within what may still come."""
        rows = await self._connection.fetch(_SIZES, schema, relation, self._partitioned, names)
        sizes = {row["name"]: row["size"] for row in rows}
        afforded: list[str] = []
        for name in names:
            if name in sizes and sizes[name] <= self._left:
                self._left -= sizes[name]
                afforded.append(name)
        return afforded

    async def _values(self, type_: str, schema: str, relation: str, names: Sequence[str]) -> list[Any]:
        statement = _VALUES.format(type=type_, most=_MOST_VALUES)
        rows: list[Any] = await self._connection.fetch(statement, schema, relation, self._partitioned, names)
        return rows


def _fields(collection: Collection) -> dict[str, Column]:
    """The columns that filters know, by the server's names."""
    columns = [collection.id, *collection.columns.values()]
    if collection.content is not None:
        columns.append(Column("content", collection.content, ValueType.TEXT))
    return {column.column: column for column in columns}


def _thinned(bounds: Sequence[Any]) -> list[Any]:
    """Every so-many-th bound of a finer histogram, and the last: bins of one size still, but for one."""
    step = -(-len(bounds) // _MOST_VALUES)
    if step <= 1:
        return list(bounds)
    return [*bounds[:-1:step], bounds[-1]]


# --- indexes ---

_STEP = re.compile(r"\(?(?P<inner>.+) -> '(?P<step>(?:[^'\\]|'')*)'::text\)?", re.DOTALL)
_STEPS = re.compile(r"\(?(?P<inner>\S+) #> '\{(?P<steps>(?:[^'\\]|'')*)\}'::text\[\]\)?", re.DOTALL)
_ELEMENT = re.compile(r'"((?:[^"\\])*)"|([^",{}]+)')


def path_of(expression: str, metadata: str) -> tuple[str, ...] | None:
    """The path that an expression of the server reads of the metadata; None where it is something else.

    `metadata -> 'a' -> 'b'` and `metadata #> '{a,b}'` are one and the same but for steps that may be
    positions in an array, which only the second takes for such.
    """
    if match := _STEPS.fullmatch(expression):
        if match["inner"] != metadata:
            return None
        elements = _ELEMENT.findall(match["steps"].replace("''", "'"))
        return tuple(quoted or bare for quoted, bare in elements)
    steps: list[str] = []
    while match := _STEP.fullmatch(expression):
        steps.insert(0, match["step"].replace("''", "'"))
        expression = match["inner"]
    return tuple(steps) if steps and expression == metadata else None


def _path_and_type(
    expression: str, collection: Collection
) -> tuple[tuple[str, ...], MetadataType | None] | tuple[None, None]:
    """The path whose values an expression has; with a type if it is the key of the map's index on it."""
    metadata = str(collection.metadata)
    for path, of in collection.metadata_indexes.items():
        if of is not MetadataType.ARRAY and same_expression(expression, key_of(metadata, path, of)):
            return path, of
    path_read = path_of(expression, metadata)
    return (None, None) if path_read is None else (path_read, None)


def _as_json(value: str, of: MetadataType | None) -> str:
    """A value of the key of a map's index, as the metadata has it; an array has one key whatever it holds."""
    match of:
        case MetadataType.TEXT:
            return json.dumps(value) if value else "[]"
        case MetadataType.NUMBER:
            return "[]" if value == "NaN" else value
    return value


def _index(row: Any, collection: Collection) -> FilterIndex | None:
    """The index by what it can look up; None where that is nothing that filters ask for."""
    fields = _fields(collection)
    keys: list[tuple[Lookup, ...]] = []
    of_keys = (row["columns"], row["expressions"], row["opclasses"], row["same"], row["code_point"])
    for column, expression, opclass, same, code_point in zip(*of_keys, strict=True):
        place, of = _place(column, expression, fields, collection)
        by_value, by_code_point = same is True, code_point is True
        if column in fields and fields[column].index:
            by_value = by_code_point
        if of is not None:
            keys.append(tuple(_typed_lookups(row["method"], place, of, by_code_point=by_code_point)))
            continue
        keys.append(
            tuple(_lookups(row["method"], opclass, place, by_value=by_value, by_code_point=by_code_point))
        )
    if not any(keys):
        return None
    return FilterIndex(row["name"], row["method"], tuple(keys), row["unique"], row["predicate"])


def _place(
    column: str | None, expression: str, fields: Mapping[str, Column], collection: Collection
) -> tuple[Place | None, MetadataType | None]:
    if column is not None:
        return () if column == collection.metadata else column if column in fields else None, None
    return _path_and_type(expression, collection) if collection.metadata is not None else (None, None)


def _typed_lookups(
    method: str, place: Place | None, of: MetadataType, *, by_code_point: bool
) -> Iterable[Lookup]:
    """Of the key of a map's index for texts or numbers."""
    if place is None or method != "btree" or not by_code_point:
        return
    yield Lookup(place, "equal", of)
    yield Lookup(place, "range", of)
    if of is MetadataType.TEXT:
        yield Lookup(place, "prefix", of)


def _lookups(
    method: str, opclass: str, place: Place | None, *, by_value: bool, by_code_point: bool
) -> Iterable[Lookup]:
    """What conditions, as `router.postgres.conditions` writes them, such a key serves."""
    if place is None:
        return
    if isinstance(place, tuple):
        if method == "gin" and opclass in ("jsonb_ops", "jsonb_path_ops"):
            yield Lookup(place, "element")
        elif method == "btree" and opclass == "jsonb_ops":
            yield Lookup(place, "range")
    elif method == "hash":
        if by_value:
            yield Lookup(place, "equal")
    elif method == "btree":
        patterns = opclass.endswith("_pattern_ops")
        if by_value:
            yield Lookup(place, "equal")
        if by_code_point and not patterns:
            yield Lookup(place, "range")
        if patterns or (by_code_point and opclass in ("text_ops", "varchar_ops")):
            yield Lookup(place, "prefix")


# --- extended statistics ---

_DEPENDENCIES = msgspec.json.Decoder(dict[str, float])


def _combined(row: Any, fields: Mapping[str, Column]) -> CombinedStatistics:
    columns = tuple(row["columns"])
    names = {number: name for name, _, number in (one.rpartition("=") for one in row["numbers"])}
    dependencies: list[tuple[frozenset[str], str, float]] = []
    for rule, degree in _DEPENDENCIES.decode(row["dependencies"] or "{}").items():
        given, _, decided = rule.partition(" => ")
        involved = [*given.split(", "), decided]
        if all(number in names for number in involved):
            *before, after = (names[number] for number in involved)
            dependencies.append((frozenset(before), after, degree))
    common: dict[tuple[object, ...], tuple[float, float]] = {}
    if row["common"] is not None:
        types = [fields[name].type for name in columns]
        listed = zip(row["common"], row["nulls"], row["shares"], row["independent"], strict=True)
        for values, nulls, share, independent in listed:
            try:
                key = tuple(
                    None if null else equal_key(_from_server(type_, value))
                    for type_, value, null in zip(types, values, nulls, strict=True)
                )
            except ValueError:
                # A column of another type than the map says; its combinations are never asked for.
                continue
            common[key] = share, independent
    # The strongest first, as the planner takes them.
    dependencies.sort(key=lambda one: -one[2])
    others = max(1.0 - sum(share for share, _ in common.values()), 0.0)
    return CombinedStatistics(columns, tuple(dependencies), common, others)


def _from_server(type_: ValueType, text: str) -> object:
    if type_ is ValueType.BOOLEAN:
        return text in ("t", "true")
    if type_ is ValueType.TIMESTAMPTZ:
        # The server writes +00, and a request has to say minutes.
        return from_text(type_, re.sub(r"([+-][0-9]{2})$", r"\1:00", text))
    return from_text(type_, text)
