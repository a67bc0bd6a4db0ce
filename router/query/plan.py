"""Which shards a search needs, and how many rows to ask of each.

Pure: a query and a map in, a `Plan` out. Invariant: every row that can match the query lies on one
of the plan's targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from router.query.filter import And, Compare, Filter, In, Or
from router.query.types import Scan, SearchQuery
from shard_config.model import Collection, Quantization, RangeSharding, ShardMap
from shard_config.partition import NoPlaceError, locate, shards_for_range, shards_for_values

__all__ = [
    "EF_SEARCH_MAX",
    "Plan",
    "depths",
    "exactly",
    "ids_by_shard",
    "plan_search",
    "targets",
    "usual_ef_search",
]

# pgvector's upper bound of hnsw.ef_search; the iterative scan continues where it ends.
EF_SEARCH_MAX = 1000


# How much deeper each further search of a page is. A page's deepest search looks for at most this many
# times the rows up to the page's end, and all others together for a third of that. With 4, the second to
# fourth pages of ten need two searches, of 10 and 40 rows, which the usual ef_search of 40 covers.
_DEEPER = 4
# The share of searches that may ask a shard again in vain: less time than a row more for all of them.
_RARE = 0.005
# Of a scan with a filter, where nobody has measured which width will do. Recall@10 of filters that keep half
# of the rows or more, on four shards of text embeddings: 2,500 rows each, 0.984 at 40; 15,000 rows, 0.956 at
# 40, 0.969 at 60, 0.974 at 80; 125,000 rows, 0.915 at 40, 0.956 at 120, 0.965 at 160, 0.974 at 240. So it
# grows with the root of the rows. Clusters of 125,000 rows: 0.937 at 40, 0.970 at 160.
_USUAL_ROWS, _USUAL_WIDTH, _MEASURED_WIDTH = 15_000, 80, 240


class Plan(msgspec.Struct, frozen=True):
    """One search of the `targets`, out of `total` shards, for the nearest rows of all.

    Attributes:
        depth: how many nearest rows of all shards together the search looks for.
        limit: how many rows a shard's statement returns at most.
        candidates: how many rows a shard's statement reads, of which it returns the nearest `limit`.
        asked: how many candidates a shard's index scan considers at least, of which the statement reads the
            nearest `candidates`; where no index is used, how many rows are wanted.
        ef_search: the width of a shard's index scan.
    """

    targets: tuple[str, ...]
    total: int
    depth: int
    limit: int
    asked: int
    candidates: int
    ef_search: int
    scan: Scan


def depths(query: SearchQuery) -> list[int]:
    """How many of the nearest rows to search for: one search for each number, rising.

    An approximate search for more rows is another search, and no continuation: its wider scan finds rows
    that a narrower one has missed, so that pages cut out of searches of different depths would repeat
    rows and lose others. So the depths depend on k alone, and `router.query.merge.page` has the rule by
    which their results make one list, whatever page of it is wanted. Exact searches do continue each other.
    """
    end = query.offset + query.k
    if query.exact or not query.offset:
        return [end]
    found = [query.k]
    while found[-1] < end:
        found.append(found[-1] * _DEEPER)
    return found


def plan_search(
    query: SearchQuery,
    shard_map: ShardMap,
    depth: int | None = None,
    *,
    scan: Scan | None = None,
    rows: float = 0.0,
) -> Plan:
    """The plan of searching for the nearest `depth` rows, which are k unless said.

    A shard's part of the answer is at most `depth` rows, and one more may show whether those beyond are as
    near as the last; `ef_search` is raised where it would cut them short. An index over full vectors ranks
    its candidates by the true distance: the first of them are enough, and as many as `ef_search` are
    considered, of a filtered search overfetch times as many at least. Behind a filter the scan goes on: of
    one shard of 15,000 or 125,000 rows, the first ten that match were 98.3 to 100 % of the ten nearest, for
    filters that keep 1 to 90 %, so that more would cost time for nothing.
    Where the index is quantized and re-ranking tells the near ones apart, overfetch times as many candidates
    are wanted, and read: all that the scan visits.

    Args:
        scan: how to read, instead of what the query says.
        rows: of the largest shard, where that is known: a filter's scan is as wide as so many need.
    """
    collection = query.collection
    depth = query.k if depth is None else depth
    if scan is None:
        scan = Scan.EXACT if query.exact else Scan.INDEX
    chosen, total = targets(query.filter, collection, shard_map), len(shard_map.shards_of(collection))
    width = least = query.ef_search or usual_ef_search(collection, depth)
    if query.filter is not None and query.ef_search is None and not _is_tuned(collection, depth):
        least = _filtered_width(rows)
    exact = scan is Scan.EXACT
    limit = depth
    if not exact and (len(chosen) < total or _one_may_bring_all(depth, shard_map.largest_share(collection))):
        limit += 1
    wider = limit if exact else max(limit, math.ceil(depth * collection.search.overfetch))
    asked, candidates = wider, limit
    if not exact and collection.index.quantization is not Quantization.NONE:
        candidates = asked = max(wider, width)
    elif not exact and query.filter is None:
        asked = min(wider, max(limit, width))
    return Plan(
        targets=chosen,
        total=total,
        depth=depth,
        limit=limit,
        asked=asked,
        candidates=candidates,
        ef_search=min(max(width, asked, least), EF_SEARCH_MAX),
        scan=scan,
    )


def exactly(plan: Plan) -> Plan:
    """The same search by exact reads."""
    depth = plan.depth
    return msgspec.structs.replace(plan, limit=depth, asked=depth, candidates=depth, scan=Scan.EXACT)


def _one_may_bring_all(depth: int, share: float) -> bool:
    """Whether it is no rarity that a single shard has all of an answer's rows.

    That shard must show that its next row is farther away, or is asked again. One that has `share` of rows
    which are spread by chance has them all with a probability of about share ** (depth - 1). Where that is
    rare, all shards are spared the row more.
    """
    return share ** (depth - 1) > _RARE


def usual_ef_search(collection: Collection, limit: int) -> int:
    """The width of a scan for `limit` rows where the search itself does not say.

    It is the collection's, or what overfetch times as many candidates need if nobody has measured that
    the collection's will do.
    """
    search = collection.search
    if _is_tuned(collection, limit):
        return search.ef_search
    return min(max(search.ef_search, math.ceil(limit * search.overfetch)), EF_SEARCH_MAX)


def _is_tuned(collection: Collection, limit: int) -> bool:
    tuned = collection.search.tuned
    return tuned is not None and limit <= tuned.k


def _filtered_width(rows: float) -> int:
    """How wide the scan of an index of so many rows is at least, behind a filter."""
    return min(round(_USUAL_WIDTH * math.sqrt(rows / _USUAL_ROWS)), _MEASURED_WIDTH)


def targets(filter: Filter | None, collection: Collection, shard_map: ShardMap) -> tuple[str, ...]:
    """Names of the shards that can hold rows matching `filter`, in the map's order."""
    every = shard_map.shards_of(collection)
    possible = None if filter is None else _possible(filter, collection)
    return every if possible is None else tuple(name for name in every if name in possible)


def ids_by_shard(
    ids: Sequence[object], collection: Collection, shard_map: ShardMap
) -> dict[str, list[object]]:
    """The ids that each shard may hold, in their order; one that has no place is on none."""
    if not collection.sharded_by_id:
        return {shard: list(ids) for shard in shard_map.shards_of(collection)} if ids else {}
    groups: dict[str, list[object]] = {}
    for id_ in ids:
        with suppress(NoPlaceError):
            groups.setdefault(locate(collection.sharding, id_), []).append(id_)
    return groups


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
