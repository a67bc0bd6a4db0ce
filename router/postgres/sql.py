"""The SQL text of single documents, counts and writes; `router.postgres.search` has that of searches.

Every function returns a statement whose text depends on the request's shape alone: values are bound
parameters, identifiers come from the validated shard map and need no quoting. Equal shapes give
equal text, so that text names a prepared statement.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from router.postgres.conditions import PlainParams, where
from router.query.filter import Field, Filter
from router.query.sizes import variable_columns
from shard_config.model import Collection, Metric
from shard_config.template import TemplateField
from shard_config.values import ValueType

__all__ = [
    "Statement",
    "any_of",
    "count",
    "defaulted_columns",
    "delete_by_ids",
    "delete_matching",
    "distance_operator",
    "existing_ids",
    "mapped_columns",
    "read_as",
    "result_columns",
    "sample",
    "select_by_id",
    "select_by_ids",
    "sizes_by_ids",
    "texts_by_ids",
    "upsert",
    "values_by_ids",
    "variable_bytes",
]

_OPERATORS = {Metric.L2: "<->", Metric.COSINE: "<=>", Metric.INNER_PRODUCT: "<#>", Metric.L1: "<+>"}


class Statement(msgspec.Struct, frozen=True):
    sql: str
    args: tuple[object, ...]


def distance_operator(metric: Metric) -> str:
    return _OPERATORS[metric]


def result_columns(collection: Collection, include: frozenset[str]) -> list[tuple[str, str]]:
    """(name in the answer, column in the table) of what `include` asks for, in a fixed order."""
    columns: list[tuple[str, str]] = []
    if collection.content is not None and "content" in include:
        columns.append(("content", collection.content))
    if collection.metadata is not None and "metadata" in include:
        columns.append(("metadata", collection.metadata))
    if "vector" in include:
        columns.append(("vector", collection.vector.column))
    columns += [(name, column.column) for name, column in collection.columns.items() if name in include]
    return columns


def mapped_columns(collection: Collection) -> dict[str, str]:
    """Every column that the map names, and the type of its parameter; the id comes first."""
    columns = {
        collection.id.column: str(collection.id.type),
        collection.vector.column: str(collection.vector.type),
    }
    if collection.content is not None:
        columns[collection.content] = "text"
    if collection.metadata is not None:
        columns[collection.metadata] = "jsonb"
    return columns | {column.column: str(column.type) for column in collection.columns.values()}


def read_as(collection: Collection, column: str) -> str:
    """`column` in the form that answers are made from.

    A vector that is of another type than the map says, as after an ALTER TABLE on one shard, is converted.
    """
    return f"{column}::{collection.vector.type}" if column == collection.vector.column else column


def select_by_id(collection: Collection, id_: object, include: frozenset[str], most: int) -> Statement:
    """One row as (id, *included columns, their size).

    Columns of variable length that take more than `most` bytes together are not brought, nor any other then.
    """
    params = PlainParams()
    columns = [column for _, column in result_columns(collection, include)]
    condition = f"{collection.id.column} = {params.add(id_, collection.id.type)}"
    read = [read_as(collection, column) for column in columns]
    selected = f"{collection.id.column} AS _id{_list(read, 'AS _c')}"
    size = variable_bytes(variable_columns(collection, include))
    given = "".join(
        f", CASE WHEN _size <= {params.add(most, 'int')} THEN _c{i} END" for i in range(len(columns))
    )
    sql = (
        f"SELECT _id{given}, _size FROM"
        f" (SELECT {selected}, {size} AS _size FROM {collection.table} WHERE {condition} OFFSET 0) s"
    )
    return Statement(sql, tuple(params.args))


def select_by_ids(
    collection: Collection, ids: Sequence[object], include: frozenset[str], filter: Filter | None = None
) -> Statement:
    """Rows as (id, *included columns), of those of `ids` that match `filter`."""
    selected = "".join(
        f", {read_as(collection, column)}" for _, column in result_columns(collection, include)
    )
    return _by_ids(collection, ids, selected, filter)


def sizes_by_ids(
    collection: Collection, ids: Sequence[object], include: frozenset[str], filter: Filter | None = None
) -> Statement:
    """Rows as (id, bytes of the included columns of variable length)."""
    size = variable_bytes(variable_columns(collection, include))
    return _by_ids(collection, ids, f", {size} AS size", filter)


def texts_by_ids(
    collection: Collection, fields: Sequence[TemplateField], characters: int, ids: Sequence[object]
) -> Statement:
    """Rows as (id, *`fields` as text, each cut after so many characters)."""
    params = PlainParams()
    selected = ""
    for field in fields:
        if field.path:
            value = f"{collection.metadata} #>> {params.add(field.path, 'text[]')}"
        elif field.name == "content":
            value = str(collection.content)
        else:
            column = collection.columns.get(field.name)
            value = f"{collection.metadata if column is None else column.column}::text"
        selected += f", left({value}, {characters})"
    return _by_ids(collection, ids, selected, params=params)


def values_by_ids(collection: Collection, field: Field, most_bytes: int, ids: Sequence[object]) -> Statement:
    """Rows as (id, value of `field`, its bytes as text), the value only if it takes at most `most_bytes`.

    A value of the metadata is text, of a column what its type is.
    """
    params = PlainParams()
    if field.column is None:
        value = f"({collection.metadata} #> {params.add(tuple(field.path), 'text[]')})::text"
    else:
        value = field.column.column
    size = f"octet_length({value}::text)"
    selected = f", CASE WHEN {size} <= {most_bytes} THEN {value} END AS _v, {size} AS _size"
    return _by_ids(collection, ids, selected, params=params)


def variable_bytes(columns: Sequence[str]) -> str:
    """The bytes that the values of `columns` take as text; that of text is known without reading it."""
    return " + ".join(f"coalesce(octet_length({column}::text), 0)::bigint" for column in columns) or "0"


def count(collection: Collection, filter: Filter | None) -> Statement:
    params = PlainParams()
    conditions = [] if filter is None else [where(filter, collection, params)]
    return Statement(f"SELECT count(*) AS n FROM {collection.table}{_where(conditions)}", tuple(params.args))


def delete_by_ids(collection: Collection, ids: Sequence[object]) -> Statement:
    params = PlainParams()
    return _delete(collection, any_of(collection, ids, params), params)


def delete_matching(collection: Collection, filter: Filter) -> Statement:
    params = PlainParams()
    return _delete(collection, where(filter, collection, params), params)


def existing_ids(collection: Collection, ids: Sequence[object]) -> Statement:
    """Which of `ids` this shard holds, as rows of (id,)."""
    params = PlainParams()
    condition = any_of(collection, ids, params)
    sql = f"SELECT {collection.id.column} AS id FROM {collection.table} WHERE {condition}"
    return Statement(sql, tuple(params.args))


def sample(collection: Collection, count: int, columns: Sequence[str]) -> Statement:
    """`count` random rows as (id, *columns of the table); reads every id once, and no other row's columns."""
    id_, table = collection.id.column, collection.table
    read = "".join(f", t.{column}" for column in columns)
    sql = (
        f"SELECT t.{id_}{read} FROM {table} t"
        f" JOIN (SELECT {id_} FROM {table} ORDER BY random() LIMIT $1) chosen USING ({id_})"
    )
    return Statement(sql, (count,))


def upsert(collection: Collection, left_out: frozenset[str] = frozenset()) -> str:
    """Insert or replace one document; parameters are id, vector, content?, metadata?, *columns.

    Columns of the table that are in `left_out` have no parameter and get the table's default.
    Returns the id that was sent as a row of (id,), or no row where a trigger kept the document from being
    stored. The id may be `GENERATED ALWAYS AS IDENTITY`: it is the caller's all the same.
    """
    columns = mapped_columns(collection)
    given = [(name, type_) for name, type_ in columns.items() if name not in left_out]
    names = ", ".join(name for name, _ in given)
    values = ", ".join(f"${i}::{type_}" for i, (_, type_) in enumerate(given, 1))
    changes = [f"{name} = {'DEFAULT' if name in left_out else f'EXCLUDED.{name}'}" for name in [*columns][1:]]
    updates = ", ".join(changes)
    return (
        f"INSERT INTO {collection.table} ({names}) OVERRIDING SYSTEM VALUE VALUES ({values})"
        f" ON CONFLICT ({collection.id.column}) DO UPDATE SET {updates}"
        f" RETURNING $1::{collection.id.type}"
    )


def defaulted_columns(collection: Collection) -> Statement:
    """The table's columns that leaving out fills with anything but NULL, as rows of (name,)."""
    sql = (
        "SELECT a.attname::text FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
        f" WHERE a.attrelid = '{collection.table}'::regclass AND a.attnum > 0"
        " AND (a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL)"
    )
    return Statement(sql, ())


def _delete(collection: Collection, condition: str, params: PlainParams) -> Statement:
    """Returns how many rows it has found, and deleted; a trigger may keep some.

    Locks the rows by rising id before it deletes them, as upserts do: else the two could deadlock.

    Left to itself a DELETE takes rows as its scan finds them. The order costs 2 to 5 µs per row, measured
    on half of 200,000.
    """
    id_ = collection.id.column
    # By code point, as Python sorts text.
    collate = ' COLLATE "C"' if collection.id.type is ValueType.TEXT else ""
    # No index has the order of `greatest`: by one that has, PostgreSQL would read the whole table, since
    # sessions plan with `enable_sort` off.
    sql = (
        f"WITH doomed AS (SELECT {id_} AS _id FROM {collection.table} WHERE {condition}"
        f" ORDER BY greatest({id_}, {id_}){collate} FOR UPDATE), gone AS"
        f" (DELETE FROM {collection.table} AS t USING doomed WHERE t.{id_} = doomed._id RETURNING 1)"
        " SELECT (SELECT count(*) FROM doomed) AS found, (SELECT count(*) FROM gone) AS deleted"
    )
    return Statement(sql, tuple(params.args))


def any_of(collection: Collection, ids: Sequence[object], params: PlainParams) -> str:
    """The condition that a row's id is one of `ids`."""
    return f"{collection.id.column} = ANY({params.add(list(ids), f'{collection.id.type}[]')})"


def _by_ids(
    collection: Collection,
    ids: Sequence[object],
    selected: str,
    filter: Filter | None = None,
    params: PlainParams | None = None,
) -> Statement:
    """Rows as (id, *`selected`), of which `params` are the parameters."""
    params = PlainParams() if params is None else params
    conditions = [any_of(collection, ids, params)]
    if filter is not None:
        conditions.append(where(filter, collection, params))
    sql = f"SELECT {collection.id.column} AS _id{selected} FROM {collection.table}{_where(conditions)}"
    return Statement(sql, tuple(params.args))


def _list(columns: Sequence[str], alias: str) -> str:
    """`, column AS _c0, …` where the columns are read, `, _c0, …` where they are passed on."""
    if alias.startswith("AS"):
        return "".join(f", {column} {alias}{i}" for i, column in enumerate(columns))
    return "".join(f", {alias}{i}" for i in range(len(columns)))


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""
