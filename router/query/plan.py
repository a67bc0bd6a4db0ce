"""Which shards a search needs, and how many rows to ask of each.

Pure: a query and a map in, a `Plan` out. Invariant: every row that can match the query lies on one
of the plan's targets.
"""

from __future__ import annotations

import math

import msgspec

from router.query.filter import And, Compare, Filter, In, Or
from router.query.types import SearchQuery
from shard_config.model import Collection, Quantization, RangeSharding, ShardMap
from shard_config.partition import shards_for_range, shards_for_values

__all__ = ["EF_SEARCH_MAX", "Plan", "plan_search", "targets", "usual_ef_search"]

# pgvector's upper bound of hnsw.ef_search; the iterative scan continues where it ends.
EF_SEARCH_MAX = 1000


class Plan(msgspec.Struct, frozen=True):
    """`limit` rows are wanted of each target.

    They are the nearest of `asked` candidates that the index is to consider, of which `candidates` must be
    read and compared by their full vectors.
    """

    targets: tuple[str, ...]
    total: int
    limit: int
    asked: int
    candidates: int
    ef_search: int
    exact: bool

    @property
    def skipped(self) -> int:
        return self.total - len(self.targets)


def plan_search(query: SearchQuery, shard_map: ShardMap, *, exact: bool | None = None) -> Plan:
    """The plan of `query`; `exact` overrides what the query says.

    A shard's part of the answer is at most offset + k rows, and `ef_search` is raised where it would cut
    them short. An index over full vectors ranks its candidates by the true distance: the first of them are
    enough, and as many as `ef_search` are considered. Where a filter decides which of them count, or the
    index is quantized and re-ranking tells the near ones apart, overfetch times as many candidates are
    wanted, and read; of a quantized index all that the scan visits.
    """
    exact = query.exact if exact is None else exact
    collection = query.collection
    limit = query.k + query.offset
    wider = limit if exact else math.ceil(limit * collection.search.overfetch)
    asked, candidates = wider, limit
    if not exact and collection.index.quantization is not Quantization.NONE:
        candidates = asked = max(wider, query.ef_search)
    elif not exact and query.filter is not None:
        candidates = wider
    elif not exact:
        asked = min(wider, max(limit, query.ef_search))
    return Plan(
        targets=targets(query.filter, collection, shard_map),
        total=len(shard_map.shards_of(collection)),
        limit=limit,
        asked=asked,
        candidates=candidates,
        ef_search=min(max(query.ef_search, asked), EF_SEARCH_MAX),
        exact=exact,
    )


def usual_ef_search(collection: Collection, limit: int) -> int:
    """The width of a scan for `limit` rows where the search itself does not say.

    It is the collection's, or what overfetch times as many candidates need if nobody has measured that
    the collection's will do.
    """
    search = collection.search
    if search.tuned is not None and limit <= search.tuned.k:
        return search.ef_search
    return min(max(search.ef_search, math.ceil(limit * search.overfetch)), EF_SEARCH_MAX)


def targets(filter: Filter | None, collection: Collection, shard_map: ShardMap) -> tuple[str, ...]:
    """Names of the shards that can hold rows matching `filter`, in the map's order."""
    every = shard_map.shards_of(collection)
    possible = None if filter is None else _possible(filter, collection)
    return every if possible is None else tuple(name for name in every if name in possible)


def _possible(filter: Filter, collection: Collection) -> frozenset[str] | None:
    """Shards that `filter` allows by what it says of the sharding key; None is all of them."""
    sharding = collection.sharding
    match filter:
        case And(parts):
            found: frozenset[str] | None = None
            for part in parts:
                narrowed = _possible(part, collection)
                if narrowed is not None:
                    found = narrowed if found is None else found & narrowed
            return found
        case Or(parts):
            union: frozenset[str] = frozenset()
            for part in parts:
                allowed = _possible(part, collection)
                if allowed is None:
                    return None
                union |= allowed
            return union
        case Compare(field, "=", value) if field.column == sharding.key:
            return shards_for_values(sharding, [value])
        case In(field, values) if field.column == sharding.key:
            return shards_for_values(sharding, values)
        case Compare(field, op, value) if field.column == sharding.key and isinstance(
            sharding, RangeSharding
        ):
            inclusive = op.endswith("=")
            if op.startswith(">"):
                return shards_for_range(sharding, value, inclusive, None, False)
            return shards_for_range(sharding, None, False, value, inclusive)
    return None
