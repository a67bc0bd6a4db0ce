"""Beside what else there is: the application's own gather, one unsharded table, other systems.

Each is tuned to the recall by itself. The gather also runs with the router's ef_search, and as it is
without tuning.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import msgspec

from bench.context import Context
from bench.interleave import ratios
from bench.peers import installed, open_peers
from bench.results import Metric, Outcome, Table
from bench.sample import Sample
from bench.summary import metrics_of, samples_table, values
from bench.targets import TargetSpec
from bench.world import SINGLE, Router, World

__all__ = ["run"]

_CLIENTS = [1, 64]
_OURS, _GATHER = "pgscatter", "direct gather"


def run(context: Context) -> Outcome:
    samples: dict[str, list[Sample]] = {}
    metrics: list[Metric] = []
    with context.world(single=True) as world, world.serve() as router, ExitStack() as stack:
        equal = context.equal(world, router)
        notes = list(equal.notes)
        single, _ = context.tuned(world.gather(SINGLE))
        others, absent = open_peers(installed(), world, stack)
        notes += [f"not running here: {name}: {reason}" for name, reason in absent.items()]
        tuned = {name: context.tuned(spec)[0] for name, spec in others.items()}
        specs: dict[str, TargetSpec] = {
            _OURS: world.http(router, ef_search=equal.http),
            _GATHER: world.gather(ef_search=equal.gather),
            f"{_GATHER}, the router's ef_search": world.gather(ef_search=equal.same),
            f"{_GATHER}, not tuned": world.gather(),
            "one table, no router": world.gather(SINGLE, ef_search=single),
            **{name: msgspec.structs.replace(spec, ef_search=tuned[name]) for name, spec in others.items()},
        }
        notes.append(
            f"ef_search 40 where not tuned, {single} on the one table"
            + "".join(f", {width} of {name}" for name, width in tuned.items())
        )
        for clients in context.options.clients or _CLIENTS:
            found = _measured(context, world, router, specs, clients)
            metrics += [_ratio(found, name, clients) for name in specs if name != _OURS]
            samples |= {f"{name}, {clients} clients": taken for name, taken in found.items()}
    every = [metric for name, found in samples.items() for metric in metrics_of(name, found)]
    return Outcome(
        metrics=[*metrics, *every],
        tables=[_ratios_table(metrics), samples_table("Measured", samples)],
        notes=notes,
        samples=samples,
    )


def _measured(
    context: Context, world: World, router: Router, specs: dict[str, TargetSpec], clients: int
) -> dict[str, list[Sample]]:
    load = context.closed(clients)
    variants = {
        name: partial(context.sample, world, spec, load, router if name == _OURS else None)
        for name, spec in specs.items()
    }
    return context.interleave(variants, f"{clients} clients")


def _ratio(found: dict[str, list[Sample]], name: str, clients: int) -> Metric:
    ours, theirs = (values(found[one], lambda s: s.rate) for one in (_OURS, name))
    return Metric.of(f"searches/s against {name}, {clients} clients", ratios(ours, theirs), "x")


def _ratios_table(metrics: list[Metric]) -> Table:
    rows: list[list[str | float | None]] = [
        [metric.name, metric.value, metric.low, metric.high] for metric in metrics
    ]
    return Table("pgscatter beside the others", ["", "ratio", "least", "greatest"], rows)
