"""Whether what the shards' indexes have brought settles a search, and which shards to ask again if not. Pure.

Invariant: what is asked again depends on the search and its depth alone, never on the page that wants it,
so that every page of a search sees the same rows at the same depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.query.plan import Plan
from router.query.ranked import Ranked
from router.query.types import Scan, ShardRows, ShardState, Unsettled

__all__ = ["not_settled", "unsettled"]


def unsettled(
    plan: Plan, parts: Mapping[str, ShardRows], ranked: Sequence[Ranked]
) -> tuple[Scan, list[str]] | None:
    """How to ask again, and which shards; None if what they brought will do.

    Args:
        ranked: the nearest rows of all parts, as many as the plan's depth if there are.

    1. Fewer rows than the depth: an index scan gives up after hnsw.max_scan_tuples, so few rows do not mean
       that there are few. The shards that came up short compare every row.
    2. A shard's rows end with one that is as near as the last of all: there may be more of these, of which
       the index has brought any, and the lowest ids are wanted. The shard reads on through them.
    """
    if plan.scan is Scan.EXACT:
        return None
    limit = plan.limit
    if len(ranked) < plan.depth:
        scan, again = Scan.EXACT, [name for name, part in parts.items() if _fell_short(part, limit)]
    else:
        farthest = ranked[-1][0][1]
        scan = Scan.TIES
        again = [
            name for name, part in parts.items() if len(part.rows) == limit and part.rows[-1][1] == farthest
        ]
    return (scan, again) if again else None


def _fell_short(part: ShardRows, limit: int) -> bool:
    return part.report.state is ShardState.OK and len(part.rows) < limit


def not_settled(scan: Scan, shards: Sequence[str]) -> tuple[Unsettled, ...]:
    """What to tell the reader of `shards` that were to be asked again by `scan`, and did not answer."""
    return tuple([Unsettled(shard, "ties" if scan is Scan.TIES else "scan_limit") for shard in shards])
