"""The SQL of many documents: those of given ids, and the next ones in the order of ids.

Rows are (id, *columns, bytes of the columns of variable length). The columns are NULL, all of them, where
these bytes exceed a limit, so that what a statement returns is bounded however wide documents are.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.postgres.conditions import PlainParams, where
from router.postgres.sql import Statement, any_of, read_as, result_columns, variable_bytes
from router.query.filter import Filter
from router.query.sizes import variable_columns
from shard_config.model import Collection
from shard_config.values import ValueType

__all__ = ["many_by_id", "next_ids"]


def many_by_id(
    collection: Collection, ids: Sequence[object], include: frozenset[str], most: int | None
) -> Statement:
    """The rows with these ids; `most` is the limit in bytes, None to bring no columns at all."""
    params = PlainParams()
    return _sized(collection, any_of(collection, ids, params), "OFFSET 0", include, most, params)


def next_ids(
    collection: Collection,
    filter: Filter | None,
    after: object,
    limit: int,
    include: frozenset[str],
    most: int | None,
) -> Statement:
    """The `limit` rows that match and have the lowest ids above `after`, which is None to begin with."""
    params = PlainParams()
    # By code point, as Python sorts text, and as the index does that `schema apply` makes.
    collate = ' COLLATE "C"' if collection.id.type is ValueType.TEXT else ""
    conditions = []
    if after is not None:
        conditions.append(f"{collection.id.column} > {params.add(after, str(collection.id.type))}{collate}")
    if filter is not None:
        conditions.append(where(filter, collection, params))
    tail = f"ORDER BY {collection.id.column}{collate} LIMIT {params.add(limit, 'int')}"
    return _sized(collection, " AND ".join(conditions) or "true", tail, include, most, params)


def _sized(
    collection: Collection,
    condition: str,
    tail: str,
    include: frozenset[str],
    most: int | None,
    params: PlainParams,
) -> Statement:
    columns = [column for _, column in result_columns(collection, include)]
    read = "".join(f", {read_as(collection, column)} AS _c{i}" for i, column in enumerate(columns))
    given = "".join(f", NULL AS _c{i}" for i in range(len(columns)))
    if most is None:
        read = ""
    elif columns:
        limit = params.add(most, "int")
        given = "".join(f", CASE WHEN _size <= {limit} THEN _c{i} END" for i in range(len(columns)))
    size = variable_bytes(variable_columns(collection, include))
    sql = (
        f"SELECT _id{given}, _size FROM (SELECT {collection.id.column} AS _id{read}, {size}::bigint AS _size"
        f" FROM {collection.table} WHERE {condition} {tail}) s"
    )
    return Statement(sql, tuple(params.args))
