"""Which node of a shard is its primary, and how far its replicas are behind. Pure.

The shard map has no roles: nodes say what they are. After a failover two may say that they are primaries;
PostgreSQL counts its timeline up at each promotion, so the one on the later timeline is. Where Patroni is
asked as well, a node that it does not call the leader takes no writes, and of several primaries on the same
timeline the one that it calls the leader is taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from router.policy.selection import Health, NodeState, Role

__all__ = ["Heads", "claims", "elect"]

# Beyond this many samples, every second one of the older half is dropped: old ends need less precision.
_SAMPLES = 128


def claims(state: NodeState) -> bool:
    """Whether the node says that it is a primary."""
    return state.health is Health.UP and state.role is Role.PRIMARY


def elect(states: Sequence[NodeState], latest: int) -> int | None:
    """The index of the node that takes writes, if there is exactly one with the best right to.

    `latest` is the latest timeline that any node of the set was ever on: a primary on an earlier one has
    been replaced, even if its successor is away now.
    """
    timelines = [state.timeline if claims(state) and state.leads is not False else -1 for state in states]
    best = max(timelines, default=-1)
    if best < max(latest, 0):
        return None
    equals = [index for index, timeline in enumerate(timelines) if timeline == best]
    named = [index for index in equals if states[index].leads]
    wins = named or equals
    return wins[0] if len(wins) == 1 else None


class Heads:
    """Where the end of a primary's log was, and when; replicas' lag is measured by it.

    Lag is the age of the oldest known end of the log that a replica has not replayed. So a replica of an
    idle primary has none, other than by the time of its last transaction, and nothing has to be written
    to find that out. It is exact to the time between two probes of the primary.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def __repr__(self) -> str:
        return f"<Heads {len(self._samples)}>"

    @property
    def known(self) -> bool:
        return bool(self._samples)

    def saw(self, lsn: int, now: float) -> None:
        """The primary's log reached `lsn` at `now`."""
        # A new primary may have less of the log than its predecessor, whose further positions it writes anew.
        while self._samples and self._samples[-1][1] > lsn:
            self._samples.pop()
        if self._samples and self._samples[-1][1] == lsn:
            return
        self._samples.append((now, lsn))
        if len(self._samples) > _SAMPLES:
            samples = list(self._samples)
            half = len(samples) // 2
            self._samples = deque([*samples[:half:2], *samples[half:]])

    def lag(self, lsn: int, now: float, age: float) -> float:
        """Seconds for which a replica that has replayed up to `lsn` has lacked something, at most.

        `age` is how long ago the last transaction that it has replayed was committed, in seconds.
        """
        if not self._samples:
            return age
        for index, (seen, end) in enumerate(self._samples):
            if end > lsn:
                return now - seen if index else max(now - seen, age)
        return 0.0
