"""What the router tells operators of a node."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["NodeStatus"]


class NodeStatus(msgspec.Struct, frozen=True):
    """What the router knows of a node now.

    Attributes:
        role: `primary` or `replica`; None while unknown.
        reason: why it is down.
        since: when state or role changed last, in seconds since the epoch.
        in_flight, waiting, connections: this process's statements and connections.
    """

    name: str
    shard: str
    zone: str | None
    role: str | None
    state: Literal["up", "down", "unknown"]
    reason: str | None
    since: float
    in_flight: int
    waiting: int
    connections: int
    replay_lag_bytes: int | None
