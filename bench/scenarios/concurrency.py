"""Throughput and latency by the number of clients, and by a fixed rate of arrivals, beside the gather.

Each has the smallest ef_search with which it reaches the recall. The rates are shares of the greatest
throughput that the router had with clients that wait, and the same for both; latency counts from when a
search was to start, so that neither hides its queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from bench.context import Context
from bench.interleave import spread
from bench.results import Figure, Outcome, Table
from bench.sample import Sample
from bench.summary import Curve, curve_figure, metrics_of, samples_table, values
from bench.targets import TargetSpec
from bench.world import Router, World

__all__ = ["run"]

_CLIENTS = [1, 4, 16, 64, 256]
_QUICK_CLIENTS = [1, 16, 64]
_SHARES = [0.25, 0.5, 0.75, 0.9]
_QUICK_SHARES = [0.5, 0.8]
_OURS, _GATHER = "pgscatter", "direct gather"

_Curves = dict[str, dict[float, list[Sample]]]


def run(context: Context) -> Outcome:
    clients = context.options.clients or (_QUICK_CLIENTS if context.options.quick else _CLIENTS)
    curves: _Curves = {_OURS: {}, _GATHER: {}}
    samples: dict[str, list[Sample]] = {}
    with context.world() as world, world.serve() as router:
        equal = context.equal(world, router)
        specs: dict[str, TargetSpec] = {
            _OURS: world.http(router, ef_search=equal.http),
            _GATHER: world.gather(ef_search=equal.gather),
        }
        for count in clients:
            load = context.closed(count)
            variants = {
                name: partial(context.sample, world, spec, load, router if name == _OURS else None)
                for name, spec in specs.items()
            }
            for name, found in context.interleave(variants, f"{count} clients").items():
                curves[name][count] = found
                samples[f"{name}, {count} clients"] = found
        capacity = max(spread(values(found, lambda s: s.rate)).median for found in curves[_OURS].values())
        arrivals, rates = _arrivals(context, world, router, specs, capacity)
    opened = {
        f"{name}, {at}": found
        for name, curve in arrivals.items()
        for at, found in zip(rates, curve.values(), strict=True)
    }
    every = {**samples, **opened}
    return Outcome(
        metrics=[metric for name, found in every.items() for metric in metrics_of(name, found)],
        tables=[samples_table("By the number of clients", samples), _open_table(arrivals)],
        figures=[
            curve_figure("throughput", "Throughput", "clients", "searches/s", curves, lambda s: s.rate),
            curve_figure(
                "p99", "99th percentile", "clients", "p99 in ms", curves, lambda s: s.p99 * 1e3, log_y=True
            ),
            _open_figure(arrivals),
        ],
        notes=[*equal.notes, f"capacity of the router with waiting clients: {capacity:,.0f} searches/s"],
        samples=every,
    )


def _arrivals(
    context: Context, world: World, router: Router, specs: Mapping[str, TargetSpec], capacity: float
) -> tuple[_Curves, list[str]]:
    """Samples by arrivals a second, and the rates' names, which stay the same from run to run."""
    shares = _QUICK_SHARES if context.options.quick else _SHARES
    rates = {f"arrivals at {share:.0%} of capacity": share * capacity for share in shares}
    if context.options.open_loop is not None:
        rates = {f"{rate:g} arrivals/s": rate for rate in context.options.open_loop}
    curves: _Curves = {name: {} for name in specs}
    for at, rate in rates.items():
        variants = {
            name: partial(context.sample, world, spec, context.open(rate), router if name == _OURS else None)
            for name, spec in specs.items()
        }
        for name, found in context.interleave(variants, at).items():
            curves[name][rate] = found
    return curves, list(rates)


def _open_table(curves: Curve) -> Table:
    columns = ["variant", "arrivals/s", "answers/s", "p50 ms", "p99 ms", "p99.9 ms", "generator late p99 ms"]
    rows: list[list[str | float | None]] = []
    for name, curve in curves.items():
        for rate, found in curve.items():
            answers, *times = (
                spread([getattr(sample, field) for sample in found]).median
                for field in ("rate", "p50", "p99", "p999", "lag99")
            )
            lost = (str(sum(getattr(sample, field) for sample in found)) for field in ("shed", "failed"))
            rows.append([name, rate, answers, *(seconds * 1e3 for seconds in times), *lost])
    return Table("By the rate of arrivals", [*columns, "shed", "failed"], rows)


def _open_figure(curves: Curve) -> Figure:
    return curve_figure(
        "open-loop",
        "99th percentile from the intended start",
        "arrivals/s",
        "p99 in ms",
        curves,
        lambda s: s.p99 * 1e3,
        log_x=False,
        log_y=True,
    )
