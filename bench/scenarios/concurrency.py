"""Throughput and latency by the number of clients, and by a fixed rate of arrivals, beside the gather.

Each has the smallest ef_search with which it reaches the recall. The rates are shares of the greatest
throughput that the router had with clients that wait, and the same for both; latency counts from when a
search was to start, so that neither hides its queue.
"""

from __future__ import annotations

from bench.context import Context
from bench.results import Outcome
from bench.sample import Sample
from bench.summary import curve_figure, every_metric, over, samples_table
from bench.targets import TargetSpec

__all__ = ["run"]

_CLIENTS = [1, 4, 16, 64, 256]
_QUICK_CLIENTS = [1, 16, 64]
_SHARES = [0.25, 0.5, 0.75, 0.9]
_QUICK_SHARES = [0.5, 0.8]
_OURS, _GATHER = "pgscatter", "direct gather"
_OPEN = {
    "answers/s": ("rate", 1.0),
    **{f"{name} ms": (of, 1e3) for name, of in (("p50", "p50"), ("p99", "p99"), ("p99.9", "p999"))},
    "generator late p99 ms": ("lag99", 1e3),
    "shed": ("shed", 0.0),
    "failed": ("failed", 0.0),
}


def run(context: Context) -> Outcome:
    options = context.options
    curves: dict[str, dict[float, list[Sample]]] = {_OURS: {}, _GATHER: {}}
    arrivals: dict[str, dict[float, list[Sample]]] = {_OURS: {}, _GATHER: {}}
    samples: dict[str, list[Sample]] = {}
    opened: dict[str, list[Sample]] = {}
    with context.world() as world, world.serve() as router:
        equal = context.equal(world, router)
        specs: dict[str, TargetSpec] = {
            _OURS: world.http(router, ef_search=equal.http),
            _GATHER: world.gather(ef_search=equal.gather),
        }
        for count in options.clients or (_QUICK_CLIENTS if options.quick else _CLIENTS):
            found = context.compare(world, specs, context.closed(count), f"{count} clients")
            for name, taken in found.items():
                curves[name][count] = samples[f"{name}, {count} clients"] = taken
        capacity = max(over(found, "rate").median for found in curves[_OURS].values())
        # By names that stay the same from run to run.
        shares = _QUICK_SHARES if options.quick else _SHARES
        rates = {f"arrivals at {share:.0%} of capacity": share * capacity for share in shares}
        if options.open_loop is not None:
            rates = {f"{rate:g} arrivals/s": rate for rate in options.open_loop}
        for at, rate in rates.items():
            for name, taken in context.compare(world, specs, context.open(rate), at).items():
                arrivals[name][rate] = opened[f"{name}, {at}"] = taken
    by_rate = {(name, rate): found for name, curve in arrivals.items() for rate, found in curve.items()}
    every = {**samples, **opened}
    return Outcome(
        metrics=every_metric(every),
        tables=[
            samples_table("By the number of clients", samples),
            samples_table("By the rate of arrivals", by_rate, _OPEN, ["variant", "arrivals/s"]),
        ],
        figures=[
            curve_figure("throughput", "Throughput", "clients", "searches/s", curves, "rate"),
            curve_figure("p99", "99th percentile", "clients", "p99 in ms", curves, "p99", 1e3, log_y=True),
            curve_figure(
                *("open-loop", "99th percentile from the intended start", "arrivals/s", "p99 in ms"),
                *(arrivals, "p99", 1e3),
                log_x=False,
                log_y=True,
            ),
        ],
        notes=[*equal.notes, f"capacity of the router with waiting clients: {capacity:,.0f} searches/s"],
        samples=every,
    )
