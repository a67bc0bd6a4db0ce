"""Whether what the shards' indexes have brought settles a search, and which shards to ask again if not. Pure.

Invariant: what is asked again depends on the search and its depth alone, never on the page that wants it,
so that every page of a search sees the same rows at the same depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from router.query.merge import Ranked
from router.query.plan import Plan
from router.query.types import Scan, ShardReport, ShardRows, ShardState

__all__ = ["added", "combined", "unsettled"]


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


def added(first: ShardRows, second: ShardRows) -> ShardRows:
    """The second round's rows, with both rounds' time and attempts on the account."""
    one, two = first.report, second.report
    report = msgspec.structs.replace(
        two,
        attempts=one.attempts + two.attempts,
        queue_ms=one.queue_ms + two.queue_ms,
        execute_ms=one.execute_ms + two.execute_ms,
        total_ms=one.total_ms + two.total_ms,
        stale=one.stale or two.stale,
    )
    return ShardRows(second.rows, report)


def combined(reports: Sequence[ShardReport]) -> ShardReport:
    """One account of a shard that searches of several depths asked at once, the deepest last.

    A shard is missing where one of them missed it.
    """
    missing = [report for report in reports if report.state is not ShardState.OK]
    return msgspec.structs.replace(
        missing[0] if missing else reports[-1],
        attempts=sum(report.attempts for report in reports),
        hedged=any(report.hedged for report in reports),
        stale=any(report.stale for report in reports),
        lsn=min(report.lsn for report in reports),
        queue_ms=sum(report.queue_ms for report in reports),
        execute_ms=sum(report.execute_ms for report in reports),
        total_ms=max(report.total_ms for report in reports),
    )
