"""Which node of a replica set to ask, and whom next: a pure decision over what is known of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

__all__ = ["Candidate", "Health", "NodeState", "Role", "rank"]


# Times the fastest node's mean.
_OUTLIER = 2.0


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
    """A node as the decision sees it.

    Attributes:
        load: searches in flight and waiting there.
        ejected: whether it is left out, although probes find it well.
    """

    @property
    def state(self) -> NodeState: ...
    @property
    def load(self) -> int: ...
    @property
    def ejected(self) -> bool: ...
    def mean(self, now: float) -> float:
        """Seconds that it took for a search lately; 0 if that is not known."""
        ...


def rank(
    nodes: Sequence[Candidate], *, primary_only: bool, min_lsn: int, now: float, random: Callable[[], float]
) -> list[tuple[int, bool]]:
    """The nodes to try, in order, as (index, whether its answer may be stale).

    1. Nodes that are down are never asked: a probe finds out when they return.
    2. Fresh nodes come first: primaries, and replicas that have replayed `min_lsn`. Among them the
       least busy, with ties broken by `random`, so that several routers do not herd. A node that is
       some times slower than the fastest counts as so many times busier.
    3. Nodes behind `min_lsn` follow, the least behind first; their answers are stale.
    4. Nodes not probed yet follow, so that a router that has just started can answer.
    5. Ejected nodes come last, in the same order: something is better than nothing.
    """
    fresh: list[tuple[bool, float, float, int]] = []
    behind: list[tuple[bool, int, int]] = []
    unknown: list[tuple[bool, int]] = []
    for index, node in enumerate(nodes):
        state = node.state
        if state.health is Health.DOWN or (primary_only and state.role is Role.REPLICA):
            continue
        if state.health is Health.UNKNOWN:
            unknown.append((node.ejected, index))
        elif state.role is Role.PRIMARY or state.lsn >= min_lsn:
            fresh.append((node.ejected, node.load + 1.0, random(), index))
        else:
            behind.append((node.ejected, -state.lsn, index))
    if len(fresh) == 1 and not behind and not unknown:
        return [(fresh[0][3], False)]
    ranked = [
        *((out, index, False) for out, _, _, index in sorted(_weighted(fresh, nodes, now))),
        *((out, index, True) for out, _, index in sorted(behind)),
        *((out, index, min_lsn > 0) for out, index in sorted(unknown)),
    ]
    return [(index, stale) for out in (False, True) for left_out, index, stale in ranked if left_out is out]


def _weighted(
    fresh: list[tuple[bool, float, float, int]], nodes: Sequence[Candidate], now: float
) -> list[tuple[bool, float, float, int]]:
    """Load times latency, as in Finagle's peak EWMA; smaller differences are chance, or the load itself."""
    means = [nodes[index].mean(now) for *_, index in fresh]
    fastest = min((mean for mean in means if mean > 0), default=0.0)
    if not fastest or max(means) <= _OUTLIER * fastest:
        return fresh
    return [
        (out, load * (mean / fastest if mean > _OUTLIER * fastest else 1.0), chance, index)
        for (out, load, chance, index), mean in zip(fresh, means, strict=True)
    ]
