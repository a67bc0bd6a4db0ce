"""What the router tells operators of a node."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["NodeStatus"]


class NodeStatus(msgspec.Struct, frozen=True):
    """What the router knows of a node now.

    Attributes:
        role: `primary` or `replica`; None while unknown.
        state: an `ejected` node answers probes, but has kept silent when it was searched.
        reason: why it is down, or ejected.
        since: when state or role changed last, in seconds since the epoch.
        ejections: how many times it was ejected, by this process.
        in_flight, waiting, connections: this process's statements and connections.
    """

    name: str
    shard: str
    zone: str | None
    role: str | None
    state: Literal["up", "ejected", "down", "unknown"]
    reason: str | None
    since: float
    ejections: int
    in_flight: int
    waiting: int
    connections: int
    replay_lag_bytes: int | None
