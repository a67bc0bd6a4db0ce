"""Whether what the shards' indexes have brought settles a search, and which shards to ask again if not. Pure.

Invariant: what is asked again depends on the search and its depth alone, never on the page that wants it,
so that every page of a search sees the same rows at the same depth.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import msgspec

from router.query.merge import Ranked
from router.query.plan import Plan
from router.query.types import Scan, ShardReport, ShardRows, ShardState

__all__ = ["added", "combined", "unsettled"]


def unsettled(
    plan: Plan,
    parts: Mapping[str, ShardRows],
    ranked: Sequence[Ranked],
    exact: Container[str] = (),
    cut: Container[str] = (),
) -> dict[str, Scan]:
    """The shards to ask again, and how.

    Args:
        ranked: the nearest rows of all parts, as many as the plan's depth if there are.
        exact: shards that have been read exactly.
        cut: shards whose scan with a filter ended before it had found its candidates.

    1. A scan that was cut has not seen what lies farther out, where most of what matches may lie; and where
       there are fewer rows than the depth, an index scan may have ended early. Such shards compare every row.
    2. A shard's rows end with one that is as near as the last of all: there may be more of these, of which
       the index has brought any, and the lowest ids are wanted. The shard reads on through them.
    """
    if plan.scan is Scan.EXACT:
        return {}
    few = len(ranked) < plan.depth
    farthest = ranked[-1][0][1] if ranked else None
    again: dict[str, Scan] = {}
    for name, part in parts.items():
        if name in exact:
            continue
        if name in cut or (few and _fell_short(part, plan.limit)):
            again[name] = Scan.EXACT
        elif not few and len(part.rows) == plan.limit and part.rows[-1][1] == farthest:
            again[name] = Scan.TIES
    return again


def _fell_short(part: ShardRows, limit: int) -> bool:
    return part.report.state is ShardState.OK and len(part.rows) < limit


def added(first: ShardRows, second: ShardRows, scan: Scan) -> ShardRows:
    """The second round's rows, with both rounds' time and attempts on the account."""
    one, two = first.report, second.report
    report = msgspec.structs.replace(
        two,
        attempts=one.attempts + two.attempts,
        queue_ms=one.queue_ms + two.queue_ms,
        execute_ms=one.execute_ms + two.execute_ms,
        total_ms=one.total_ms + two.total_ms,
        stale=one.stale or two.stale,
        choice=one.choice,
        matched=one.matched if two.matched is None else two.matched,
        visited=one.visited,
        again="ties" if scan is Scan.TIES else "short",
        plan=_plans([one, two]),
    )
    return ShardRows(second.rows, report)


def combined(reports: Sequence[ShardReport]) -> ShardReport:
    """One account of a shard that searches of several depths asked at once, the deepest last.

    A shard is missing where one of them missed it.
    """
    missing = [report for report in reports if report.state is not ShardState.OK]
    again = {report.again for report in reports}
    return msgspec.structs.replace(
        missing[0] if missing else reports[-1],
        attempts=sum(report.attempts for report in reports),
        hedged=any(report.hedged for report in reports),
        stale=any(report.stale for report in reports),
        lsn=min(report.lsn for report in reports),
        queue_ms=sum(report.queue_ms for report in reports),
        execute_ms=sum(report.execute_ms for report in reports),
        total_ms=max(report.total_ms for report in reports),
        again="short" if "short" in again else "ties" if "ties" in again else None,
        plan=_plans(reports),
    )


def _plans(reports: Sequence[ShardReport]) -> str | None:
    """Of every statement that ran, in their order."""
    return "\n\n".join([report.plan for report in reports if report.plan is not None]) or None
