"""Throughput and latency by the number of clients, beside the application's own gather.

Each has the smallest ef_search with which it reaches the recall.
"""

from __future__ import annotations

from functools import partial

from bench.context import Context
from bench.results import Outcome
from bench.sample import Sample
from bench.summary import curve_figure, metrics_of, samples_table

__all__ = ["run"]

_CLIENTS = [1, 4, 16, 64, 256]
_QUICK_CLIENTS = [1, 16, 64]


def run(context: Context) -> Outcome:
    clients = context.options.clients or (_QUICK_CLIENTS if context.options.quick else _CLIENTS)
    curves: dict[str, dict[float, list[Sample]]] = {"pgscatter": {}, "direct gather": {}}
    samples: dict[str, list[Sample]] = {}
    with context.world() as world, world.serve() as router:
        equal = context.equal(world, router)
        http = world.http(router, ef_search=equal.http)
        gather = world.gather(ef_search=equal.gather)
        for count in clients:
            load = context.closed(count)
            variants = {
                "pgscatter": partial(context.sample, world, http, load, router),
                "direct gather": partial(context.sample, world, gather, load),
            }
            for name, found in context.interleave(variants, f"{count} clients").items():
                curves[name][count] = found
                samples[f"{name}, {count} clients"] = found
    return Outcome(
        metrics=[metric for name, found in samples.items() for metric in metrics_of(name, found)],
        tables=[samples_table("By the number of clients", samples)],
        figures=[
            curve_figure("throughput", "Throughput", "clients", "searches/s", curves, lambda s: s.rate),
            curve_figure(
                "p99", "99th percentile", "clients", "p99 in ms", curves, lambda s: s.p99 * 1e3, log_y=True
            ),
        ],
        notes=equal.notes,
        samples=samples,
    )
