"""prometheus-client's counters and histograms, for what happens many times in each request.

A call of prometheus-client checks its metric, takes a lock and, with several workers, writes to a file. Made
some twenty times in a search of four shards, that was an eighth of the router's processor time. These add to
a plain number, which is written to the metric when somebody looks.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from prometheus_client import Counter, Histogram

__all__ = ["TallyCounter", "TallyHistogram", "Unwritten"]


class Unwritten:
    """The counters and histograms that have counted something since they were written last."""

    def __init__(self) -> None:
        self._metrics: list[TallyCounter | TallyHistogram] = []

    def append(self, metric: TallyCounter | TallyHistogram) -> None:
        self._metrics.append(metric)

    def write(self) -> None:
        metrics, self._metrics = self._metrics, []
        for metric in metrics:
            metric.write()


class TallyCounter(Counter):
    """Belongs to one thread. Whoever makes one, or a child of one, says where it reports: `unwritten`."""

    unwritten: Unwritten

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._amount = 0.0
        self._noted = False

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        self._amount += amount
        if not self._noted:
            self._noted = True
            self.unwritten.append(self)

    def write(self) -> None:
        amount, self._amount, self._noted = self._amount, 0.0, False
        super().inc(amount)


class TallyHistogram(Histogram):
    """As `TallyCounter`. prometheus-client has no call for several observations, hence its inner values."""

    unwritten: Unwritten

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._counts = [0] * len(self._upper_bounds)
        self._total = 0.0
        self._noted = False

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        self._counts[bisect_left(self._upper_bounds, amount)] += 1
        self._total += amount
        if not self._noted:
            self._noted = True
            self.unwritten.append(self)

    def write(self) -> None:
        self._sum.inc(self._total)
        for value, count in zip(self._buckets, self._counts, strict=True):
            if count:
                value.inc(count)
        self._counts = [0] * len(self._counts)
        self._total, self._noted = 0.0, False
