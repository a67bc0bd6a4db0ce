"""Which node of a replica set to ask, and whom next: a pure decision over what is known of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

__all__ = ["Candidate", "Health", "NodeState", "Role", "rank"]


class Role(StrEnum):
    PRIMARY = "primary"
    REPLICA = "replica"


class Health(StrEnum):
    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


class NodeState(msgspec.Struct, frozen=True):
    """What the last probe, or a connection that failed since, said of a node.

    `lsn` is the position that a primary has written, or a replica replayed; `since` is wall-clock time.
    """

    health: Health = Health.UNKNOWN
    role: Role | None = None
    lsn: int = 0
    reason: str | None = None
    since: float = 0.0


class Candidate(Protocol):
    """A node as the decision sees it; `load` counts the searches in flight and waiting there."""

    @property
    def state(self) -> NodeState: ...
    @property
    def load(self) -> int: ...


def rank(
    nodes: Sequence[Candidate], *, primary_only: bool, min_lsn: int, random: Callable[[], float]
) -> list[tuple[int, bool]]:
    """The nodes to try, in order, as (index, whether its answer may be stale).

    1. Nodes that are down are never asked: a probe finds out when they return.
    2. Fresh nodes come first: primaries, and replicas that have replayed `min_lsn`. Among them the
       least loaded, with ties broken by `random`, so that several routers do not herd.
    3. Nodes behind `min_lsn` follow, the least behind first; their answers are stale.
    4. Nodes not probed yet come last, so that a router that has just started can answer.
    """
    fresh: list[tuple[int, float, int]] = []
    behind: list[tuple[int, int]] = []
    unknown: list[int] = []
    for index, node in enumerate(nodes):
        state = node.state
        if state.health is Health.DOWN or (primary_only and state.role is Role.REPLICA):
            continue
        if state.health is Health.UNKNOWN:
            unknown.append(index)
        elif state.role is Role.PRIMARY or state.lsn >= min_lsn:
            fresh.append((node.load, random(), index))
        else:
            behind.append((-state.lsn, index))
    if len(fresh) == 1 and not behind and not unknown:
        return [(fresh[0][2], False)]
    return [
        *((index, False) for _, _, index in sorted(fresh)),
        *((index, True) for _, index in sorted(behind)),
        *((index, min_lsn > 0) for index in unknown),
    ]
