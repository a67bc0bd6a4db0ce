"""What the router tells operators of a node."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

__all__ = ["NodeLabel", "NodeStatus"]

NodeLabel: TypeAlias = Literal["up", "ejected", "deposed", "foreign", "down", "unknown"]


class NodeStatus(msgspec.Struct, frozen=True):
    """What the router knows of a node now.

    Attributes:
        role: `primary` or `replica`; None while unknown.
        state: an `ejected` node answers probes, but has failed when it was searched; a `deposed` one says
            that it is the primary, but another has a better right to, or has followed such a one; a `foreign`
            one is none of the shard's, and is neither read nor written.
        reason: why it is down, ejected, deposed or foreign, takes no new connections, or is behind.
        cause: the same in a word out of few, which tells nothing of the inside: `timeout`, `unreachable`,
            `authentication`, `busy`, `misconfigured`, `lagging`, or the state itself.
        since: when state or role changed last, in seconds since the epoch.
        ejections, role_changes: how many this process has seen.
        timeline: of a primary.
        system: its server's system identifier, which all copies of one primary share.
        holds_shard: the shard that it says it is; None if it does not say.
        holds_map: the version of the map that was applied to it last.
        lost_bytes: of the shard's log, that were written or acknowledged and are gone.
        in_flight, waiting, connections: this process's statements and connections.
    """

    name: str
    shard: str
    zone: str | None
    role: str | None
    state: NodeLabel
    reason: str | None
    since: float
    ejections: int
    role_changes: int
    in_flight: int
    waiting: int
    connections: int
    replay_lag_bytes: int | None
    replay_lag_s: float | None
    timeline: int | None
    cause: str | None = None
    system: str | None = None
    holds_shard: str | None = None
    holds_map: int | None = None
    lost_bytes: int = 0
