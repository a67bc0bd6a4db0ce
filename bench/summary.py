"""Samples of all rounds as metrics, rows of a table, and points of a figure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

from bench.interleave import Spread, ratios, spread
from bench.results import Cell, Figure, Metric, Series, Table
from bench.sample import Sample

__all__ = [
    *("Curve", "against", "curve_figure", "every_metric", "over"),
    *("quarters", "samples_table", "values"),
]

# What is read of a measurement, by its name or in another way.
Of: TypeAlias = str | Callable[[Any], float]
_COLUMNS = {
    "searches/s": ("rate", 1.0),
    "p50 ms": ("p50", 1e3),
    "p99 ms": ("p99", 1e3),
    "p99.9 ms": ("p999", 1e3),
    "recall": ("recall", 1.0),
    "router CPU µs": ("router_cpu_per_search", 1e6),
    "PostgreSQL CPU µs": ("server_cpu_per_search", 1e6),
    "failed": ("lost", 0.0),
}
# By the name of a curve, at each x, a round's measurement each.
Curve = Mapping[str, Mapping[Any, Sequence[object]]]


def values(found: Sequence[object], of: Of) -> list[float]:
    read = attrgetter(of) if isinstance(of, str) else of
    return [read(one) or 0.0 for one in found]


def over(found: Sequence[object], of: Of, factor: float = 1.0) -> Spread:
    """Over the rounds, in a unit that is `factor` times the measurement's."""
    return spread(values(found, of), factor)


def quarters(found: Sequence[float]) -> tuple[float, float]:
    """Medians of the second and of the last quarter of a run's figures, in their order."""
    quarter = len(found) // 4
    return statistics.median(found[quarter : 2 * quarter]), statistics.median(found[-quarter:])


def against(found: Sequence[object], base: Sequence[object], of: Of, factor: float = 1.0) -> Spread | None:
    """The ratio of both, round by round; None where a base is zero."""
    return ratios(values(found, of), values(base, of), factor)


def every_metric(samples: Mapping[str, Sequence[Sample]]) -> list[Metric]:
    """The figures by which a later run is compared with this one."""
    return [
        metric
        for name, found in samples.items()
        for metric in (
            Metric.of(f"{name}: searches/s", over(found, "rate"), "/s"),
            Metric.of(f"{name}: p50", over(found, "p50", 1e3), "ms", "lower"),
            Metric.of(f"{name}: p99", over(found, "p99", 1e3), "ms", "lower"),
            Metric.of(f"{name}: recall", _recall(found)),
        )
    ]


def samples_table(
    title: str,
    samples: Mapping[Any, Sequence[Sample]],
    columns: Mapping[str, tuple[str, float]] = _COLUMNS,
    labels: Sequence[str] = ("variant",),
) -> Table:
    """A row for each variant, whose key is what stands under `labels`: medians over the rounds.

    `columns` say what is read of a sample and in which unit; counts (unit 0) are added up.
    """
    rows: list[list[Cell]] = []
    for key, found in samples.items():
        row: list[Cell] = list(key) if isinstance(key, tuple) else [key]
        for of, unit in columns.values():
            if not unit:
                row.append(str(sum(getattr(sample, of) for sample in found)))
            elif of == "recall":
                recall = _recall(found)
                row.append(None if recall is None else f"{recall.median:.4f}")
            else:
                row.append(over(found, of, unit).median)
        rows.append(row)
    return Table(title, [*labels, *columns], rows)


def curve_figure(
    name: str,
    title: str,
    x: str,
    y: str,
    curves: Curve,
    of: Of,
    factor: float = 1.0,
    *,
    log_x: bool = True,
    log_y: bool = False,
) -> Figure:
    series = [
        Series.of(label, {at: over(found, of, factor) for at, found in points.items()})
        for label, points in curves.items()
    ]
    return Figure(name, title, x, y, series, log_x=log_x, log_y=log_y)


def _recall(samples: Sequence[Sample]) -> Spread | None:
    found = [sample.recall for sample in samples if sample.recall is not None]
    return spread(found) if found else None
