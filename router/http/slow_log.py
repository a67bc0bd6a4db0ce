"""A line for a search that was slow, and which indexes its filter lacks.

Invariant: at most one line a second, which says how many others there were; no line holds a vector or a value
of a filter.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from router.query.index_advice import advised, fields
from router.query.types import Found, SearchQuery

__all__ = ["SlowLog"]

_logger = logging.getLogger(__name__)

_EVERY = 1.0
# Of a search's time; what it spent waiting for other searches no index would save.
_MOSTLY = 0.5


class SlowLog:
    """Changed only by `note`."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`seconds` is what a search may take before it is slow; 0 for any time."""
        self._least_ms = seconds * 1000 or float("inf")
        self._clock = clock
        self._next = 0.0
        self._left_out = 0

    def __repr__(self) -> str:
        return f"<SlowLog from {self._least_ms:g} ms, {self._left_out} left out>"

    def note(self, request_id: str, query: SearchQuery, found: Found, took_ms: float) -> None:
        if took_ms < self._least_ms:
            return
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return
        self._next = now + _EVERY
        line: dict[str, object] = {
            "request_id": request_id,
            "collection": query.collection.name,
            "took_ms": took_ms,
            "k": query.k,
            "others": self._left_out,
        }
        self._left_out = 0
        slowest = max(found.answer.reports, key=lambda report: report.total_ms, default=None)
        if slowest is not None:
            names = ("shard", "node", "attempts", "together", "queue_ms", "execute_ms", "asked", "returned")
            line |= {name: getattr(slowest, name) for name in names}
        if query.filter is not None:
            line["filter_fields"] = fields(query.filter)
            if slowest is not None and slowest.execute_ms >= _MOSTLY * took_ms:
                line["map_lacks"] = [str(advice) for advice in advised(query.filter, query.collection)]
        _logger.warning("slow search", extra=line)
