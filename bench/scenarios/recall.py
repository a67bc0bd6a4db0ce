"""Recall against throughput over ef_search, beside the application's own gather."""

from __future__ import annotations

from collections.abc import Mapping

from bench.context import Context
from bench.results import Figure, Outcome, Series
from bench.sample import Sample
from bench.summary import every_metric, over, samples_table
from bench.targets import TargetSpec

__all__ = ["raised_note", "run"]

_WIDTHS = [10, 20, 40, 80, 160, 320]
_QUICK_WIDTHS = [10, 40, 160]
_CLIENTS = 16
_OURS, _GATHER = "pgscatter", "direct gather"


def run(context: Context) -> Outcome:
    options = context.options
    clients = (options.clients or [_CLIENTS])[0]
    samples: dict[str, list[Sample]] = {}
    effective: dict[int, int] = {}
    series: dict[str, list[tuple[float, float, float, float]]] = {_OURS: [], _GATHER: []}
    with context.world() as world, world.serve() as router:
        for width in options.ef_search or (_QUICK_WIDTHS if options.quick else _WIDTHS):
            effective[width] = world.effective(width)
            specs: dict[str, TargetSpec] = {
                _OURS: world.http(router, ef_search=width),
                _GATHER: world.gather(ef_search=width),
            }
            found = context.compare(world, specs, context.closed(clients), f"ef_search {width}")
            for name, taken in found.items():
                samples[f"{name}, ef_search {width}"] = taken
                rate = over(taken, "rate")
                series[name].append((over(taken, "recall").median, rate.median, rate.low, rate.high))
    return Outcome(
        metrics=every_metric(samples),
        tables=[samples_table(f"By ef_search, {clients} clients", samples)],
        figures=[
            Figure(
                *("recall-throughput", f"Recall and throughput, {clients} clients"),
                *(f"recall at {options.k}", "searches/s"),
                [Series(name, points) for name, points in series.items()],
            )
        ],
        notes=[raised_note(effective)],
        samples=samples,
    )


def raised_note(effective: Mapping[int, int]) -> str:
    """How wide the router scans, by the `ef_search` that a search says."""
    raised = [f"{width} to {real}" for width, real in effective.items() if real != width]
    if not raised:
        return "The router scans as wide as each search says: no ef_search was raised."
    return (
        "The router scans no narrower than the candidates that it needs of a shard, and raised ef_search"
        f" {', '.join(raised)}."
    )
