"""Searches that match from a thousandth of the rows to all: latency, throughput, recall, rows returned.

The condition is on a column of its own that has no index and nothing to do with the vectors. The direct
gather has the same condition, and iterative scans as pgvector's documentation shows them; both have the
same ef_search. Exact answers are those among the matching rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import numpy as np

from bench.context import Context
from bench.interleave import ratios, spread
from bench.results import Figure, Metric, Outcome, Series, Table
from bench.sample import Sample
from bench.summary import curve_figure, metrics_of, samples_table, values
from bench.targets import GatherSpec, HttpSpec
from bench.truth import Truth, truth_of
from bench.world import SLICE, SLICES, Router, World, slices_of

__all__ = ["run"]

# Of a thousand slices of the rows.
_MATCHING = [1, 3, 10, 30, 100, 300, 1000]
_QUICK_MATCHING = [1, 10, 100, 1000]
_CLIENTS = 16
_EF_SEARCH = 100
_OURS, _GATHER = "pgscatter", "direct gather"


def run(context: Context) -> Outcome:
    options = context.options
    matching = _QUICK_MATCHING if options.quick else _MATCHING
    clients = (options.clients or [_CLIENTS])[0]
    width = (options.ef_search or [_EF_SEARCH])[0]
    load = context.closed(clients)
    found: dict[str, dict[float, list[Sample]]] = {_OURS: {}, _GATHER: {}}
    rows: dict[float, int] = {}
    notes: list[str] = []
    with context.world(sliced=True) as world, world.serve() as router:
        notes.append(f"ef_search {width}; the router scans {world.effective(width, options.k)} wide for it")
        for slices in matching:
            percent = 100 * slices / SLICES
            truth, rows[percent] = _truth(context, slices)
            http, gather = _specs(world, router, slices, width)
            variants = {
                _OURS: partial(context.sample, world, http, load, router, truth=truth),
                _GATHER: partial(context.sample, world, gather, load, truth=truth),
            }
            for name, taken in context.interleave(variants, f"{percent:g} % match").items():
                found[name][percent] = taken
            chosen = context.unindexed(world, router, width, filter=http.extra["filter"])
            if chosen:
                notes.append(
                    f"{percent:g} %: the planner reads the rows of {', '.join(chosen)} without index"
                )
    samples = {
        f"{name}, {percent:g} %": taken for name, curve in found.items() for percent, taken in curve.items()
    }
    metrics = [_ratio(found, percent) for percent in rows]
    every = [metric for name, taken in samples.items() for metric in metrics_of(name, taken)]
    return Outcome(
        metrics=[*metrics, *every],
        tables=[_answers(found, rows, options.k), samples_table(f"{clients} clients", samples)],
        figures=_figures(found, clients, options.k),
        notes=notes,
        samples=samples,
    )


def _specs(world: World, router: Router, slices: int, width: int) -> tuple[HttpSpec, GatherSpec]:
    extra: dict[str, Any] = {"filter": {SLICE: {"$lt": slices}}}
    http = world.http(router, ef_search=width, extra=extra)
    settings = {"hnsw.iterative_scan": "strict_order"}
    gather = world.gather(ef_search=width, where=f"{SLICE} < {slices}", settings=settings)
    return http, gather


def _truth(context: Context, slices: int) -> tuple[Truth, int]:
    """The exact answers among the rows that match, and how many those are."""
    ids = np.flatnonzero(slices_of(len(context.dataset.base)) < slices)
    part = msgspec.structs.replace(context.dataset, base=context.dataset.base[ids])
    meter = context.display.meter("exact answers", len(part.queries), "queries")
    try:
        truth = truth_of(part, min(context.options.k, len(ids)), meter.reach)
    finally:
        meter.end()
    return Truth(ids[truth.ids], truth.distances), len(ids)


def _ratio(found: dict[str, dict[float, list[Sample]]], percent: float) -> Metric:
    ours, theirs = (values(found[name][percent], lambda s: s.rate) for name in (_OURS, _GATHER))
    return Metric.of(f"searches/s against the direct gather, {percent:g} %", ratios(ours, theirs), "x")


def _answers(found: dict[str, dict[float, list[Sample]]], rows: dict[float, int], k: int) -> Table:
    """Whether answers had the rows that there are."""
    made: list[list[str | float | None]] = []
    for percent, count in rows.items():
        wanted = min(k, count)
        for name in (_OURS, _GATHER):
            taken = found[name][percent]
            returned = spread([sample.returned or 0.0 for sample in taken]).median
            short: dict[str, int] = {}
            for sample in taken:
                for reason, times in sample.account.items():
                    if reason.startswith("short"):
                        short[reason] = short.get(reason, 0) + times
            made.append(
                [
                    *(f"{percent:g} %", f"{count:,}", name, f"{returned:.2f} of {wanted}"),
                    f"{returned / wanted:.1%}",
                    f"{spread([sample.recall or 0.0 for sample in taken]).median:.4f}",
                    ", ".join(f"{reason}, {times:,} times" for reason, times in short.items()),
                ]
            )
    columns = ["match", "rows", "variant", "returned", "of what there is", "recall", "said by the router"]
    return Table("Rows of the answers", columns, made)


def _figures(found: dict[str, dict[float, list[Sample]]], clients: int, k: int) -> list[Figure]:
    x = "% of the rows match"
    at = f"{clients} clients"
    recall = [
        Series(name, [_recall(share, taken) for share, taken in curve.items()])
        for name, curve in found.items()
    ]
    return [
        curve_figure(
            "throughput",
            f"Throughput, {at}",
            x,
            "searches/s",
            found,
            lambda s: s.rate,
            log_y=True,
        ),
        curve_figure(
            "p99",
            f"99th percentile, {at}",
            x,
            "p99 in ms",
            found,
            lambda s: s.p99 * 1e3,
            log_y=True,
        ),
        Figure("recall", "Recall among the matching rows", x, f"recall at {k}", recall, log_x=True),
    ]


def _recall(x: float, samples: list[Sample]) -> tuple[float, float, float, float]:
    found = spread([sample.recall or 0.0 for sample in samples])
    return x, found.median, found.low, found.high
