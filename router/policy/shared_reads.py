"""How many searches one statement should carry that reads rows once for all of them. Pure.

What one more costs differs: next to nothing where few rows match, and as much as a statement of its own
where a large vector has to be fetched for each of many rows. So it is found out. The first statement carries
as many as are expected to take twice the time of one. From a statement's time, as if all of it were spent on
its searches one by one, follows how many keep within the time allowed; twice as many as before are tried at
most. Allowed is the time of other statements, or twice what one search alone takes, if that is more.
"""

from __future__ import annotations

from collections.abc import Hashable

import msgspec

__all__ = ["SharedReads"]

_KINDS = 256
# Before anything was measured: what is expected may be wrong.
_FIRST = 16
# Times as many as other statements carry.
_MOST = 4
_PATIENCE, _GROWTH = 2.0, 2.0
_ALONE_WEIGHT = 0.3
_LEAST_SECONDS = 1e-6


class _Known(msgspec.Struct):
    most: float
    alone: float  # seconds of a statement for one search


class SharedReads:
    """By kind of search, for one node.

    Args:
        together: searches that another statement carries at most; with 1, none is shared.
        seconds: that another statement may take.
    """

    def __init__(self, together: int, seconds: float) -> None:
        self._bound = together * _MOST if together > 1 else 1
        self._seconds = seconds
        # Ascending by when they were last measured; a plain dictionary, as in `SearchCost`.
        self._kinds: dict[Hashable, _Known] = {}

    def __repr__(self) -> str:
        return f"<SharedReads of {len(self._kinds)} kinds>"

    def most(self, kind: Hashable, expected: int) -> int:
        """How many the next statement may carry; `expected` are thought to take twice the time of one."""
        known = self._kinds.get(kind)
        return min(min(expected, _FIRST) if known is None else int(known.most), self._bound)

    def took(self, kind: Hashable, searches: int, seconds: float, expected: int) -> int:
        """A statement for so many has taken the node so long; returns how many it could have carried."""
        known = self._kinds.pop(kind, None)
        if known is None:
            # If `expected` take twice the time of one, `searches` take so many times as long as one.
            times = (expected - 1 + searches) / expected
            most = float(max(searches, self.most(kind, expected)))
            known = _Known(most, alone=seconds / times)
            if len(self._kinds) >= _KINDS:
                del self._kinds[next(iter(self._kinds))]
        elif searches == 1:
            known.alone += _ALONE_WEIGHT * (seconds - known.alone)
        self._kinds[kind] = known
        allowed = max(self._seconds, _PATIENCE * known.alone)
        fitting = searches * min(allowed / max(seconds, _LEAST_SECONDS), _GROWTH)
        if seconds > allowed or fitting > known.most:
            known.most = min(max(fitting, 1.0), float(self._bound))
        return max(searches, int(known.most))
