"""Samples of all rounds as rows of a table, points of a figure, and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench.interleave import spread
from bench.results import Figure, Metric, Series, Table
from bench.sample import Sample

__all__ = ["Curve", "curve_figure", "metrics_of", "samples_table", "values"]

_COLUMNS = [
    *("variant", "searches/s", "p50 ms", "p99 ms", "p99.9 ms", "recall"),
    *("router CPU µs", "PostgreSQL CPU µs", "failed"),
]

# By the name of a curve, at each x, a round's samples each.
Curve = Mapping[str, Mapping[float, Sequence[Sample]]]


def values(samples: Sequence[Sample], of: Callable[[Sample], float]) -> list[float]:
    return [of(sample) for sample in samples]


def samples_table(title: str, samples: Mapping[str, Sequence[Sample]]) -> Table:
    """Medians over the rounds; processor time is for each search."""
    return Table(title, _COLUMNS, [_row(name, found) for name, found in samples.items()])


def metrics_of(name: str, samples: Sequence[Sample]) -> list[Metric]:
    """The figures by which a later run is compared with this one."""
    recalls = [sample.recall for sample in samples if sample.recall is not None]
    return [
        Metric.of(f"{name}: searches/s", spread(values(samples, lambda s: s.rate)), "/s"),
        Metric.of(f"{name}: p50", spread(values(samples, lambda s: s.p50 * 1e3)), "ms", "lower"),
        Metric.of(f"{name}: p99", spread(values(samples, lambda s: s.p99 * 1e3)), "ms", "lower"),
        Metric.of(f"{name}: recall", spread(recalls) if recalls else None),
    ]


def curve_figure(
    name: str,
    title: str,
    x: str,
    y: str,
    curves: Curve,
    of: Callable[[Sample], float],
    *,
    log_x: bool = True,
    log_y: bool = False,
) -> Figure:
    series = []
    for label, points in curves.items():
        spreads = [(at, spread(values(samples, of))) for at, samples in points.items()]
        series.append(Series(label, [(at, one.median, one.low, one.high) for at, one in spreads]))
    return Figure(name, title, x, y, series, log_x=log_x, log_y=log_y)


def _row(name: str, samples: Sequence[Sample]) -> list[str | float | None]:
    def median(of: Callable[[Sample], float]) -> float:
        return spread(values(samples, of)).median

    recalls = [sample.recall for sample in samples if sample.recall is not None]
    return [
        name,
        median(lambda s: s.rate),
        median(lambda s: s.p50 * 1e3),
        median(lambda s: s.p99 * 1e3),
        median(lambda s: s.p999 * 1e3),
        f"{spread(recalls).median:.4f}" if recalls else None,
        median(lambda s: s.router_cpu_per_search * 1e6),
        median(lambda s: s.server_cpu_per_search * 1e6),
        str(sum(sample.failed + sample.shed for sample in samples)),
    ]
