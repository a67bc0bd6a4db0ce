"""Recall against throughput over ef_search, beside the application's own gather."""

from __future__ import annotations

from functools import partial

from bench.context import Context
from bench.interleave import spread
from bench.results import Figure, Outcome, Series
from bench.sample import Sample
from bench.summary import metrics_of, samples_table, values

__all__ = ["run"]

_WIDTHS = [10, 20, 40, 80, 160, 320]
_QUICK_WIDTHS = [10, 40, 160]
_CLIENTS = 16


def run(context: Context) -> Outcome:
    widths = context.options.ef_search or (_QUICK_WIDTHS if context.options.quick else _WIDTHS)
    clients = (context.options.clients or [_CLIENTS])[0]
    load = context.closed(clients)
    samples: dict[str, list[Sample]] = {}
    with context.world() as world, world.serve() as router:
        for width in widths:
            http, gather = world.http(router, ef_search=width), world.gather(ef_search=width)
            variants = {
                f"pgscatter, ef_search {width}": partial(context.sample, world, http, load, router),
                f"direct gather, ef_search {width}": partial(context.sample, world, gather, load),
            }
            samples |= context.interleave(variants, f"ef_search {width}")
    names = ("pgscatter", "direct gather")
    return Outcome(
        metrics=[metric for name, found in samples.items() for metric in metrics_of(name, found)],
        tables=[samples_table(f"By ef_search, {clients} clients", samples)],
        figures=[
            Figure(
                "recall-throughput",
                f"Recall and throughput, {clients} clients",
                f"recall at {context.options.k}",
                "searches/s",
                [
                    Series(name, [_point(samples[f"{name}, ef_search {width}"]) for width in widths])
                    for name in names
                ],
            )
        ],
        notes=[
            "The router asks each shard for k x overfetch rows, 20 by default, and raises a narrower"
            " ef_search to that."
        ],
        samples=samples,
    )


def _point(samples: list[Sample]) -> tuple[float, float, float, float]:
    rate = spread(values(samples, lambda s: s.rate))
    recall = spread([sample.recall or 0.0 for sample in samples]).median
    return recall, rate.median, rate.low, rate.high
