"""What became of each request: pure.

An outcome is named `operation:what`, such as `search:partial` or `write:unknown`. Loads count by these names,
and a fault says by them what it explains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

__all__ = ["Event", "Operation", "Said", "said", "unanswered"]

Operation = Literal["search", "read", "count", "write"]

_NAMES = {404: "absent", 429: "overloaded", 503: "unavailable", 504: "late"}
# Times to try again are owed with these.
_RETRIED = (429, 503)
# What `bench.http_client` says first of a request that has no answer.
_UNANSWERED = {"no connection": "refused", "connection lost": "lost"}
# Seconds after which an answer comes too late whatever it says: thrice what a search, a read or a count may
# take by default, and more than `write_timeout`.
_LATEST: dict[Operation, float] = {"search": 6.0, "read": 6.0, "count": 6.0, "write": 40.0}


class Said(msgspec.Struct, frozen=True):
    """What an answer says of itself: `full`, `stale`, `partial`, or why there is none; on which shards."""

    what: str
    shards: frozenset[str] = frozenset()
    detail: str = ""


class Event(msgspec.Struct, frozen=True):
    """One request, sent `at` and answered `seconds` later."""

    at: float
    seconds: float
    operation: Operation
    said: Said
    request_id: str = ""

    @property
    def what(self) -> str:
        """What the answer says, unless it came so late that it does not matter; `silent` if none came."""
        in_time = self.seconds < _LATEST[self.operation] or self.said.what == "silent"
        return self.said.what if in_time else "slow"

    @property
    def name(self) -> str:
        return f"{self.operation}:{self.what}"


def unanswered(reason: str) -> Said:
    """Of a request whose connection gave no answer."""
    return Said(_UNANSWERED.get(reason.partition(":")[0], "silent"), detail=reason)


def said(status: int, headers: Mapping[str, str], answer: Mapping[str, Any]) -> Said:
    """Of an answer to a search, a read, a count or a write; `answer` is its body."""
    if status == 200 and "coverage" in answer:
        return _covered(answer["coverage"])
    if status in (200, 503) and "stored" in answer:
        return _stored(answer, headers)
    if status == 200 and "deleted" in answer:
        return _deleted(answer["shards"])
    stale = frozenset(headers[name] for name in headers.keys() & {"x-stale-shard"})
    if status == 200:
        return Said("stale" if stale else "full", stale)
    errors = answer.get("errors") or []
    shards = frozenset(e["path"].removeprefix("shards.") for e in errors if e["path"].startswith("shards."))
    detail = f"{status} {answer.get('detail')}: {'; '.join(str(e['message']) for e in errors)}"[:500]
    if status in _RETRIED and "retry-after" not in headers:
        return Said(f"{status} without Retry-After", shards, detail)
    what = _NAMES.get(status, f"{status} {str(answer.get('type')).rpartition(':')[2]}")
    if status == 503 and any(str(e["message"]).startswith("unknown") for e in errors):
        what = "unknown"
    return Said(what, shards, detail)


def _covered(coverage: Mapping[str, Any]) -> Said:
    failures, stale = coverage["failures"], coverage.get("stale", ())
    if coverage["full"]:
        return Said("stale" if stale else "full", frozenset(stale))
    why = "; ".join(f"{one['shard']} {one['state']}: {one['error']}" for one in failures)
    return Said("partial", frozenset(one["shard"] for one in failures), why[:500])


def _stored(answer: Mapping[str, Any], headers: Mapping[str, str]) -> Said:
    failures = answer["failures"]
    if not failures:
        return Said("full")
    if not answer["stored"] and "retry-after" not in headers:
        return Said("503 without Retry-After")
    reasons = sorted({one["reason"] for one in failures})
    what = "unknown" if reasons in (["unavailable", "unknown"], ["unknown"]) else " ".join(reasons)
    shards = frozenset(one["shard"] for one in failures if one["shard"])
    return Said(what, shards, "; ".join(sorted({str(one["message"]) for one in failures}))[:500])


def _deleted(shards: Mapping[str, Mapping[str, Any]]) -> Said:
    failed = {shard: one for shard, one in shards.items() if not one["ok"]}
    if not failed:
        return Said("full")
    what = "unknown" if any(one.get("unknown") for one in failed.values()) else "unavailable"
    return Said(what, frozenset(failed), "; ".join(str(one["error"]) for one in failed.values())[:500])
