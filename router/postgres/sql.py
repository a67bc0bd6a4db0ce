"""The only SQL text of the request path.

Every function returns a statement whose text depends on the request's shape alone: values are bound
parameters, identifiers come from the validated shard map and need no quoting. Equal shapes give
equal text, so that text names a prepared statement.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from router.query.filter import And, Compare, Exists, Field, Filter, In, Like, Not, Or
from shard_config.model import Collection, Metric, Quantization
from shard_config.values import ValueType

__all__ = [
    "Statement",
    "count",
    "delete_by_ids",
    "delete_matching",
    "distance_operator",
    "existing_ids",
    "result_columns",
    "sample",
    "search",
    "select_by_id",
    "upsert",
    "where",
]

_OPERATORS = {Metric.L2: "<->", Metric.COSINE: "<=>", Metric.INNER_PRODUCT: "<#>", Metric.L1: "<+>"}


class Statement(msgspec.Struct, frozen=True):
    sql: str
    args: tuple[object, ...]


class _Params:
    """Collects arguments and hands out their placeholders."""

    def __init__(self, *args: object) -> None:
        self.args = list(args)

    def add(self, value: object, type_: str) -> str:
        self.args.append(value)
        return f"${len(self.args)}::{type_}"


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


def search(
    collection: Collection,
    vector: bytes,
    *,
    limit: int,
    candidates: int,
    ef_search: int,
    exact: bool,
    filter: Filter | None,
    include: frozenset[str],
) -> Statement:
    """The nearest `limit` rows as (id, distance, *included columns), ascending by (distance, id).

    `vector` is in wire format. The inner query is the one that the HNSW index serves; it brings
    `candidates` rows. The outer one has the full distance where the index holds less, and orders ties
    and what an iterative scan found out of order. The scan's width is set inside the statement, which
    spares a round trip and ends with it. LIMIT is a literal: as a parameter, a generic plan would sort
    the whole table.
    """
    params = _Params(vector)
    columns = [column for _, column in result_columns(collection, include)]
    conditions = []
    source = ""
    if not exact:
        width = params.add(str(ef_search), "text")
        source = f"WITH s AS MATERIALIZED (SELECT set_config('hnsw.ef_search', {width}, true)) "
        conditions.append("(SELECT count(*) FROM s) > 0")
    if filter is not None:
        conditions.append(where(filter, collection, params))
    distance = f"{collection.vector.column} {_OPERATORS[collection.vector.metric]} {_query(collection)}"
    # Adding 0 keeps the index out. Ties at the limit go by id where all rows are compared; an index
    # scan knows no ids.
    order = f"({distance}) + 0, t.{_id(collection)}" if exact else _index_distance(collection)
    inner = (
        f"SELECT {_id(collection)} AS _id, {distance} AS _d{_list(columns, 'AS _c')}"
        f" FROM {collection.table} t{_where(conditions)} ORDER BY {order} LIMIT {candidates}"
    )
    # NaN is what cosine makes of a zero vector, which no direction compares to.
    outer = (
        f"SELECT _id, _d{_list(columns, '_c')} FROM ({inner}) r"
        f" WHERE _d <> 'NaN' ORDER BY _d, _id LIMIT {limit}"
    )
    return Statement(source + outer, tuple(params.args))


def select_by_id(collection: Collection, id_: object, include: frozenset[str]) -> Statement:
    """One row as (id, *included columns)."""
    params = _Params()
    columns = [column for _, column in result_columns(collection, include)]
    condition = f"{collection.id.column} = {params.add(id_, collection.id.type)}"
    selected = f"{collection.id.column} AS _id{_list(columns, 'AS _c')}"
    sql = f"SELECT {selected} FROM {collection.table} WHERE {condition}"
    return Statement(sql, tuple(params.args))


def count(collection: Collection, filter: Filter | None) -> Statement:
    params = _Params()
    conditions = [] if filter is None else [where(filter, collection, params)]
    return Statement(f"SELECT count(*) AS n FROM {collection.table}{_where(conditions)}", tuple(params.args))


def delete_by_ids(collection: Collection, ids: Sequence[object]) -> Statement:
    params = _Params()
    array = params.add(list(ids), f"{collection.id.type}[]")
    return Statement(
        f"DELETE FROM {collection.table} WHERE {collection.id.column} = ANY({array})", tuple(params.args)
    )


def delete_matching(collection: Collection, filter: Filter) -> Statement:
    params = _Params()
    condition = where(filter, collection, params)
    return Statement(f"DELETE FROM {collection.table} WHERE {condition}", tuple(params.args))


def existing_ids(collection: Collection, ids: Sequence[object]) -> Statement:
    """Which of `ids` this shard holds, as rows of (id,)."""
    params = _Params()
    array = params.add(list(ids), f"{collection.id.type}[]")
    sql = (
        f"SELECT {collection.id.column} AS id FROM {collection.table}"
        f" WHERE {collection.id.column} = ANY({array})"
    )
    return Statement(sql, tuple(params.args))


def sample(collection: Collection, count: int) -> Statement:
    """`count` random rows as (id, vector); reads every id once, but only the chosen vectors."""
    id_, table = collection.id.column, collection.table
    sql = (
        f"SELECT t.{id_}, t.{collection.vector.column} FROM {table} t"
        f" JOIN (SELECT {id_} FROM {table} ORDER BY random() LIMIT $1) chosen USING ({id_})"
    )
    return Statement(sql, (count,))


def upsert(collection: Collection) -> str:
    """Insert or replace one document; parameters are id, vector, content?, metadata?, *columns."""
    columns = [(collection.id.column, str(collection.id.type))]
    columns.append((collection.vector.column, str(collection.vector.type)))
    if collection.content is not None:
        columns.append((collection.content, "text"))
    if collection.metadata is not None:
        columns.append((collection.metadata, "jsonb"))
    columns += [(column.column, str(column.type)) for column in collection.columns.values()]
    names = ", ".join(name for name, _ in columns)
    values = ", ".join(f"${i}::{type_}" for i, (_, type_) in enumerate(columns, 1))
    updates = ", ".join(f"{name} = EXCLUDED.{name}" for name, _ in columns[1:])
    return (
        f"INSERT INTO {collection.table} ({names}) VALUES ({values})"
        f" ON CONFLICT ({collection.id.column}) DO UPDATE SET {updates}"
    )


def where(filter: Filter, collection: Collection, params: _Params) -> str:
    """The condition's SQL; each node is either true or not, so that NULLs never leak out of `Not`."""
    match filter:
        case And(parts):
            return _joined(" AND ", "true", [where(part, collection, params) for part in parts])
        case Or(parts):
            return _joined(" OR ", "false", [where(part, collection, params) for part in parts])
        case Not(part):
            return f"({where(part, collection, params)}) IS NOT TRUE"
        case Exists(field):
            return f"{_operand(field, collection, params)} IS NOT NULL"
        case Compare(field, op, value):
            return _compare(field, op, value, collection, params)
        case In(field, values):
            return _in(field, values, collection, params)
        case Like(field, pattern, ignore_case):
            return _like(field, pattern, ignore_case, collection, params)


def _compare(field: Field, op: str, value: object, collection: Collection, params: _Params) -> str:
    operand = _operand(field, collection, params)
    if field.column is not None:
        # Order by code point everywhere, as the router does when it routes by ranges of text.
        collate = ' COLLATE "C"' if field.column.type is ValueType.TEXT and op != "=" else ""
        return f"{operand} {op} {params.add(value, field.column.type)}{collate}"
    bound = f"{operand} {op} {params.add(_json(value), 'jsonb')}"
    if op == "=":
        return bound
    # jsonb orders values of different types too; a comparison here means values of the same type.
    return f"(jsonb_typeof({operand}) = '{_json_type(value)}' AND {bound})"


def _in(field: Field, values: tuple[object, ...], collection: Collection, params: _Params) -> str:
    operand = _operand(field, collection, params)
    if field.column is not None:
        return f"{operand} = ANY({params.add(list(values), f'{field.column.type}[]')})"
    return f"{operand} = ANY({params.add([_json(value) for value in values], 'jsonb[]')})"


def _like(field: Field, pattern: str, ignore_case: bool, collection: Collection, params: _Params) -> str:
    operator = "ILIKE" if ignore_case else "LIKE"
    operand = _operand(field, collection, params)
    if field.column is not None:
        return f"{operand} {operator} {params.add(pattern, 'text')}"
    # #>> '{}' is the string inside a jsonb string; numbers have no pattern to match.
    text = f"({operand} #>> '{{}}')"
    return f"(jsonb_typeof({operand}) = 'string' AND {text} {operator} {params.add(pattern, 'text')})"


def _operand(field: Field, collection: Collection, params: _Params) -> str:
    if field.column is not None:
        return field.column.column
    return f"({collection.metadata} #> {params.add(list(field.path), 'text[]')})"


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _json_type(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "number"


def _query(collection: Collection) -> str:
    """The query vector at full precision."""
    return f"$1::{collection.vector.type}"


def _index_distance(collection: Collection) -> str:
    """The expression that the HNSW index is built on, against the query."""
    vector = collection.vector
    match collection.index.quantization:
        case Quantization.NONE:
            return f"{vector.column} {_OPERATORS[vector.metric]} {_query(collection)}"
        case Quantization.HALFVEC:
            half = f"halfvec({vector.dimensions})"
            return f"({vector.column}::{half}) {_OPERATORS[vector.metric]} ({_query(collection)}::{half})"
        case Quantization.BINARY:
            bits = f"bit({vector.dimensions})"
            query = f"binary_quantize({_query(collection)})::{bits}"
            return f"(binary_quantize({vector.column})::{bits}) <~> ({query})"


def _id(collection: Collection) -> str:
    """The id in the order that the router merges by: text by code point."""
    collate = ' COLLATE "C"' if collection.id.type is ValueType.TEXT else ""
    return f"{collection.id.column}{collate}"


def _list(columns: Sequence[str], alias: str) -> str:
    """`, column AS _c0, …` where the columns are read, `, _c0, …` where they are passed on."""
    if alias.startswith("AS"):
        return "".join(f", {column} {alias}{i}" for i, column in enumerate(columns))
    return "".join(f", {alias}{i}" for i in range(len(columns)))


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _joined(operator: str, empty: str, parts: Sequence[str]) -> str:
    return f"({operator.join(parts)})" if parts else empty
