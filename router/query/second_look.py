"""Whether what the shards' indexes have brought settles a search, and which shards to ask again if not. Pure.

Invariant: what is asked again depends on the search and its depth alone, never on the page that wants it,
so that every page of a search sees the same rows at the same depth.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import msgspec

from router.query.answer import joined
from router.query.plan import Plan
from router.query.ranked import Ranked
from router.query.types import Scan, ShardRows, ShardState, Unsettled

__all__ = ["looked_again", "not_settled", "unsettled"]


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


def looked_again(first: ShardRows, second: ShardRows, scan: Scan) -> ShardRows:
    """The second round's rows, on an account of both rounds."""
    one, two = first.report, second.report
    report = msgspec.structs.replace(
        joined(two, one),
        choice=one.choice,
        matched=one.matched if two.matched is None else two.matched,
        visited=one.visited,
        again="ties" if scan is Scan.TIES else "short",
    )
    return ShardRows(second.rows, report)


def not_settled(scans: Mapping[str, Scan]) -> tuple[Unsettled, ...]:
    """What to tell the reader of shards that were to be asked again, each by its scan, and did not answer."""
    return tuple(
        [Unsettled(shard, "ties" if scan is Scan.TIES else "scan_limit") for shard, scan in scans.items()]
    )
