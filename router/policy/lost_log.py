"""Whether a shard's log has lost what was written to it. Pure.

A log only grows. A position that was acknowledged, and lies beyond where the primary's log ends or where its
present part began, is gone: the shard was restored from an older backup, or a replica was promoted that had
not received everything.
"""

from __future__ import annotations

from router.policy.selection import NodeState
from router.query.types import Position

__all__ = ["lost_bytes"]

# Where the log is flushed by whole pages, the flushed part may end within a record, which a crash takes with
# it although it holds no commit that was acknowledged. PostgreSQL's default, and next to nobody changes it.
_PAGE = 8192


def lost_bytes(state: NodeState, acknowledged: Position | None, seen: Position | None) -> int:
    """How many bytes of log are gone from the shard whose primary is in `state`; 0 if none is known to be.

    Args:
        acknowledged: up to where writes were acknowledged before this state was asked for.
        seen: where a probe found the log to end, flushed to disk. After a promotion it says nothing: what
            only the earlier primary had written may never have been acknowledged.
    """
    lost = 0
    if seen is not None and seen.timeline == state.timeline and seen.lsn % _PAGE:
        lost = seen.lsn - state.written
    if acknowledged is not None and acknowledged.lsn % _PAGE:
        if acknowledged.timeline == state.timeline:
            lost = max(lost, acknowledged.lsn - state.written)
        elif acknowledged.timeline < state.timeline:
            # What it replayed before it was promoted is all that it has of the earlier timeline.
            end = state.written if state.recovered is None else state.recovered
            lost = max(lost, acknowledged.lsn - end)
        else:
            # It was replaced by one that took the write, which is away: how much that had is not known.
            lost = max(lost, acknowledged.lsn - state.written, 1)
    return max(lost, 0)
