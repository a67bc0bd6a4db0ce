"""What a fault did to searches and writes: pure, from the events of a load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from bench.faults.load import Event, States

__all__ = ["DETECTION", "Verdict", "judge", "quiet", "slices"]

# A node that does not answer is known to be gone after a probe's interval and its time.
DETECTION = 2.0
_SETTLING = 1.0


class Verdict(msgspec.Struct, frozen=True):
    """Times in seconds; shares of events.

    Attributes:
        failed, partial: searches during the fault and after it; `late` of them after detection.
        recovered: from the healing until the last answer that lacked a shard; 0 if none did.
        back: from the healing until the node is up again by the router's account, None if it never is.
    """

    healthy_p50: float
    healthy_p99: float
    fault_p50: float
    fault_p99: float
    slowest: float
    searches: int
    failed: int
    partial: int
    late: int
    stale: int
    recovered: float
    back: float | None
    writes: int
    writes_failed: int
    slowest_write: float
    reasons: dict[str, int]


def quiet(events: Sequence[Event], injected: float) -> list[float]:
    """Times of the searches before the fault, without those that warmed the router up."""
    return [e.seconds for e in events if e.what == "search" and _SETTLING <= e.at < injected]


def judge(events: Sequence[Event], states: States, node: str, injected: float, healed: float) -> Verdict:
    searches = [event for event in events if event.what == "search"]
    writes = [event for event in events if event.what == "write" and event.at >= injected]
    healthy = quiet(events, injected)
    during = [event for event in searches if injected <= event.at < healed]
    since = [event for event in searches if event.at >= injected]
    broken = [event for event in since if event.outcome in ("failed", "partial")]
    up = [at for at, known in states if at >= healed and known.get(node) == "up"]
    down = [at for at, known in states if at >= healed and known.get(node) != "up"]
    later = [at for at in up if at > max(down, default=healed)]
    return Verdict(
        healthy_p50=_at(healthy, 50),
        healthy_p99=_at(healthy, 99),
        fault_p50=_at([event.seconds for event in during], 50),
        fault_p99=_at([event.seconds for event in during], 99),
        slowest=max((event.seconds for event in since), default=0.0),
        searches=len(since),
        failed=sum(event.outcome == "failed" for event in since),
        partial=sum(event.outcome == "partial" for event in since),
        late=sum(event.at >= injected + DETECTION for event in broken),
        stale=sum(event.outcome == "stale" for event in since),
        recovered=max(
            (event.at + event.seconds - healed for event in broken if event.at >= healed), default=0.0
        ),
        back=min(later) - healed if later else None,
        writes=len(writes),
        writes_failed=sum(event.outcome == "failed" for event in writes),
        slowest_write=max((event.seconds for event in writes), default=0.0),
        reasons=dict(Counter(event.reason for event in events if event.reason).most_common(5)),
    )


def slices(events: Sequence[Event], width: float) -> list[tuple[float, float, float, float, float]]:
    """Searches by time of arrival: middle, p50, p99, share answered, share with all shards, of each slice."""
    found: dict[int, list[Event]] = {}
    for event in events:
        if event.what == "search":
            found.setdefault(int(event.at / width), []).append(event)
    return [
        (
            (number + 0.5) * width,
            _at([event.seconds for event in part], 50),
            _at([event.seconds for event in part], 99),
            sum(event.outcome != "failed" for event in part) / len(part),
            sum(event.outcome in ("full", "stale") for event in part) / len(part),
        )
        for number, part in sorted(found.items())
    ]


def _at(seconds: Sequence[float], percentile: float) -> float:
    return float(np.percentile(seconds, percentile)) if seconds else 0.0
