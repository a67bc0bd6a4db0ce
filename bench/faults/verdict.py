"""Whether a fault explains what became of requests, and what it did to them: pure.

A fault says which outcomes it explains, and on which shards; nothing else is allowed, and nothing at all once
the fault has been over for `RECOVERY` seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from bench.faults.outcomes import Event, Operation
from bench.summary import quarters

__all__ = [
    *("DETECTION", "RECOVERY", "Window", "grown", "percentile", "quiet", "searched", "slices"),
    *("unexplained", "written"),
]

# A node that is left out is tried within 5 s, and that may take a second.
RECOVERY = 7.0
# A node that does not answer is known to be gone after a probe's interval and its time.
DETECTION = 2.0
_SETTLING = 1.0


class Window(msgspec.Struct):
    """A fault from its beginning to its end, and until all was well again, None if it never was.

    `shards` are those that it happens to.
    """

    name: str
    explains: frozenset[str]
    shards: frozenset[str]
    injected: float
    healed: float
    well: float | None = None

    @property
    def recovery(self) -> float | None:
        """Seconds until all was well."""
        return None if self.well is None else max(self.well - self.healed, 0.0)


def unexplained(events: Iterable[Event], windows: Sequence[Window]) -> list[Event]:
    """Those that are neither full answers nor what a fault, while it lasts, may lead to."""
    return [
        event
        for event in events
        if event.what != "full" and not any(_explains(window, event) for window in windows)
    ]


def _explains(window: Window, event: Event) -> bool:
    return (
        window.injected <= event.at + event.seconds
        and event.at <= window.healed + RECOVERY
        and event.name in window.explains
        and event.said.shards <= window.shards
    )


def grown(readings: Sequence[Mapping[str, float]], bounds: Mapping[str, tuple[float, float]]) -> list[str]:
    """What is more in the last quarter than in the second: by more than this share of it, and this beside."""
    found = []
    for name, (share, most) in bounds.items():
        early, late = quarters([one[name] for one in readings])
        if late > early * (1 + share) + most:
            found.append(f"{name} grew from {early:g} to {late:g}, more than {share:.0%} and {most:g}")
    return found


def quiet(events: Iterable[Event], began: float, injected: float) -> list[Event]:
    """Searches of a load before the fault, without those that warmed the router up."""
    return [e for e in events if e.operation == "search" and began + _SETTLING <= e.at < injected]


def searched(events: Sequence[Event], began: float, window: Window) -> dict[str, float | None]:
    """Of the searches since the fault began, by the names of the report; counts are whole numbers.

    `late` are those without a shard after detection; `to full coverage` is from the end of the fault until
    the last of them.
    """
    healthy = quiet(events, began, window.injected)
    since = _since(events, "search", window)
    during = [one for one in since if one.at < window.healed]
    broken = [one for one in since if one.what not in ("full", "stale")]
    partial = sum(one.what == "partial" for one in broken)
    ends = [one.at + one.seconds - window.healed for one in broken if one.at >= window.healed]
    return {
        "searches": len(since),
        "failed": len(broken) - partial,
        "partial": partial,
        "late": sum(one.at >= window.injected + DETECTION for one in broken),
        "stale": sum(one.what == "stale" for one in since),
        "healthy p50 ms": percentile(healthy, 50),
        "healthy p99 ms": percentile(healthy, 99),
        "p50 ms": percentile(during, 50),
        "p99 ms": percentile(during, 99),
        "slowest ms": percentile(since, 100),
        "to full coverage s": max(ends, default=0.0),
        "all well after s": window.recovery,
    }


def written(events: Sequence[Event], window: Window) -> dict[str, float | None]:
    """Of the writes since the fault began, likewise."""
    writes = _since(events, "write", window)
    return {
        "writes": len(writes),
        "failed": sum(one.what != "full" for one in writes),
        "slowest s": max((one.seconds for one in writes), default=0.0),
    }


def _since(events: Iterable[Event], operation: Operation, window: Window) -> list[Event]:
    return [one for one in events if one.operation == operation and one.at >= window.injected]


def slices(
    events: Iterable[Event], began: float, width: float
) -> list[tuple[float, float, float, float, float]]:
    """Searches by time of arrival: middle, p50, p99, share answered, share with all shards, of each slice.

    Times in seconds, the middle from the beginning.
    """
    found: dict[int, list[Event]] = {}
    for event in events:
        if event.operation == "search":
            found.setdefault(int((event.at - began) / width), []).append(event)
    return [
        (
            (number + 0.5) * width,
            (percentile(part, 50) or 0.0) / 1e3,
            (percentile(part, 99) or 0.0) / 1e3,
            sum(one.what in ("full", "stale", "partial") for one in part) / len(part),
            sum(one.what in ("full", "stale") for one in part) / len(part),
        )
        for number, part in sorted(found.items())
    ]


def percentile(events: Iterable[Event], of: float) -> float | None:
    """Of their times, in ms; None if there are none."""
    times = [one.seconds * 1e3 for one in events]
    return float(np.percentile(times, of)) if times else None
