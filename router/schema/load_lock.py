"""The lock of a table that a load holds while it is at work, and `schema apply` while it builds indexes.

A load drops the index of an empty table and builds it when the rows are in, many times faster than row by
row. An index that somebody else builds meanwhile undoes that, and a load that begins under a build waits for
it row by row as well. Invariant: only one of the two has a table. The lock is of a session, so that whatever
ends a load or a build gives it back.
"""

from __future__ import annotations

__all__ = ["LOAD_CLASS", "load_lock"]

# Any number will do as long as all versions agree on it: "load" in ASCII.
LOAD_CLASS = 0x6C6F6164


def load_lock(relation: int) -> int:
    """The advisory lock's key for the table of this oid; `pg_locks` shows its halves."""
    return LOAD_CLASS << 32 | relation
