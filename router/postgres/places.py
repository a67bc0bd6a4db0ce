"""Reading rows by their places in the table, which is what PostgreSQL does once an index has found them.

So what an index would take is known before there is one: the look-up itself is a matter of microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.postgres.conditions import PlainParams, where
from router.postgres.sql import Statement, distance_operator
from router.query.filter import Filter
from shard_config.model import Collection

__all__ = ["matching_places", "nearest_at"]


def matching_places(collection: Collection, filter: Filter, most: int) -> Statement:
    """The places of up to `most` rows that match, as (ctid,)."""
    params = PlainParams()
    condition = where(filter, collection, params)
    limit = params.add(most, "int")
    return Statement(
        f"SELECT ctid FROM {collection.table} WHERE {condition} LIMIT {limit}", tuple(params.args)
    )


def nearest_at(collection: Collection, places: Sequence[object], vector: bytes, limit: int) -> Statement:
    """The nearest of the rows at `places`, as (id, distance)."""
    params = PlainParams()
    listed = params.add(list(places), "tid[]")
    query = params.add(vector, str(collection.vector.type))
    distance = f"{collection.vector.column} {distance_operator(collection.vector.metric)} {query}"
    # Adding 0 keeps the HNSW index out.
    sql = (
        f"SELECT {collection.id.column}, {distance} AS _d FROM {collection.table} WHERE ctid = ANY({listed})"
        f" ORDER BY ({distance}) + 0 LIMIT {params.add(limit, 'int')}"
    )
    return Statement(sql, tuple(params.args))
