"""How many searches one statement should carry that reads rows once for all of them. Pure.

What one more costs differs: next to nothing where few rows match, and as much as a statement of its own where
a large vector has to be fetched for each of many rows. So it is found out: twice as many as before while a
statement keeps within its time, fewer in proportion when one has not. Its time is that of other statements,
or twice what a statement for one search has taken, if that is more.
"""

from __future__ import annotations

from collections.abc import Hashable

import msgspec
from cachetools import LRUCache

__all__ = ["SharedReads"]

_KINDS = 256
# Before anything was measured.
_FIRST = 4
# Times as many as other statements carry.
_MOST = 4
_PATIENCE = 2.0
_ALONE_WEIGHT = 0.3


class _Known(msgspec.Struct):
    most: float
    alone: float = 0.0  # seconds of a statement for one search


class SharedReads:
    """By kind of search, for one node.

    Args:
        together: searches that another statement carries at most; with 1, none is shared.
        seconds: that another statement may take.
    """

    def __init__(self, together: int, seconds: float) -> None:
        self._bound = together * _MOST if together > 1 else 1
        self._seconds = seconds
        self._kinds: LRUCache[Hashable, _Known] = LRUCache(_KINDS)

    def __repr__(self) -> str:
        return f"<SharedReads of {len(self._kinds)} kinds>"

    def most(self, kind: Hashable) -> int:
        """How many the next statement may carry."""
        known = self._kinds.get(kind)
        return min(_FIRST if known is None else int(known.most), self._bound)

    def took(self, kind: Hashable, searches: int, seconds: float) -> None:
        """A statement for so many has taken the node so long."""
        known = self._kinds.get(kind)
        if known is None:
            known = self._kinds[kind] = _Known(float(min(_FIRST, self._bound)))
        if searches == 1:
            known.alone += (_ALONE_WEIGHT if known.alone else 1.0) * (seconds - known.alone)
        allowed = max(self._seconds, _PATIENCE * known.alone)
        if seconds > allowed:
            known.most = max(searches * allowed / seconds, 1.0)
        elif 2 * searches > known.most:
            known.most = min(2.0 * searches, float(self._bound))
