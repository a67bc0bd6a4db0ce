"""What callers are told of a failure who may not see the inside of the cluster. Pure.

The full text of an error may hold names of nodes, hosts, roles and whatever a server says. A cause is a word
out of few, which anybody may read; only what PostgreSQL says of the caller's own values stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

__all__ = ["ShardFault", "redacted", "worst"]

# What these say is our own text without names, or the server's on what the caller has sent.
_ANYBODY = ("timeout", "invalid", "conflict")
_WORDS: Mapping[str, str] = {
    "unreachable": "its servers cannot be reached",
    "no_node": "none of its servers can be read now",
    "no_primary": "it has no primary now",
    "busy": "its servers are too busy",
    "misconfigured": "it is not set up for this, and an operator has to mend it",
    "authentication": "its servers do not let the router in, and an operator has to mend it",
    "denied": "it does not let the router write, and an operator has to grant that",
    "unavailable": "it cannot be written now",
    "unknown": "it has not confirmed the write, which may have been done",
}
_MOST_NAMED = 5
_REASON_CHARACTERS = 200


class ShardFault(msgspec.Struct, frozen=True):
    """Why a shard is missing, for the log; `reason` is None where it may hold values of the caller."""

    shard: str
    state: str
    cause: str
    reason: str | None = None

    @classmethod
    def of(cls, shard: str, state: str, cause: str, error: str | None) -> ShardFault:
        told = cause not in ("invalid", "conflict") and error is not None
        return cls(shard, state, cause, (error or "")[:_REASON_CHARACTERS] if told else None)


def redacted(cause: str, error: str) -> str:
    """`error` for those who may read only its cause."""
    if cause in _ANYBODY:
        return error
    return _WORDS.get(cause, "it could not answer; the router's log says why")


def worst(faults: Sequence[ShardFault]) -> tuple[list[ShardFault], int]:
    """The first shards' faults, one of each shard, and how many more shards there are."""
    by_shard: dict[str, ShardFault] = {}
    for fault in faults:
        by_shard.setdefault(fault.shard, fault)
    return list(by_shard.values())[:_MOST_NAMED], max(0, len(by_shard) - _MOST_NAMED)
