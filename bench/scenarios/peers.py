"""Beside what else there is: the application's own gather, one unsharded table, other systems.

Each is tuned to the recall by itself. The gather also runs with the router's ef_search, and as it is
without tuning.
"""

from __future__ import annotations

from contextlib import ExitStack

import msgspec

from bench.context import Context
from bench.peers import installed, open_peers
from bench.results import Metric, Outcome, Table
from bench.sample import Sample
from bench.summary import against, every_metric, samples_table
from bench.targets import TargetSpec
from bench.world import SINGLE

__all__ = ["run"]

_CLIENTS = [1, 64]
_OURS, _GATHER = "pgscatter", "direct gather"


def run(context: Context) -> Outcome:
    samples: dict[str, list[Sample]] = {}
    ratios: list[Metric] = []
    with context.world(spread={SINGLE: 1}) as world, world.serve() as router, ExitStack() as stack:
        equal = context.equal(world, router)
        single, _ = context.tuned(world.gather(SINGLE))
        others, absent = open_peers(installed(), world, stack)
        tuned = {name: context.tuned(spec)[0] for name, spec in others.items()}
        specs: dict[str, TargetSpec] = {
            _OURS: world.http(router, ef_search=equal.http),
            _GATHER: world.gather(ef_search=equal.gather),
            f"{_GATHER}, the router's ef_search": world.gather(ef_search=equal.same),
            f"{_GATHER}, not tuned": world.gather(),
            "one table, no router": world.gather(SINGLE, ef_search=single),
            **{name: msgspec.structs.replace(spec, ef_search=tuned[name]) for name, spec in others.items()},
        }
        for clients in context.options.clients or _CLIENTS:
            found = context.compare(world, specs, context.closed(clients), f"{clients} clients")
            ours = found[_OURS]
            ratios += [
                Metric.of(f"searches/s against {name}, {clients} clients", against(ours, taken, "rate"), "x")
                for name, taken in found.items()
                if name != _OURS
            ]
            samples |= {f"{name}, {clients} clients": taken for name, taken in found.items()}
    columns = {
        "": lambda metric: metric.name,
        "ratio": lambda metric: metric.value,
        "least": lambda metric: metric.low,
        "greatest": lambda metric: metric.high,
    }
    return Outcome(
        metrics=[*ratios, *every_metric(samples)],
        tables=[Table.of("pgscatter beside the others", columns, ratios), samples_table("Measured", samples)],
        notes=[
            *equal.notes,
            *(f"not running here: {name}: {reason}" for name, reason in absent.items()),
            f"ef_search 40 where not tuned, {single} on the one table"
            + "".join(f", {width} of {name}" for name, width in tuned.items()),
        ],
        samples=samples,
    )
