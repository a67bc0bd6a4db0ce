"""What the router adds, and what it saves: the table of targets, on one machine in one run.

In the comparisons with the direct gather both are tuned to the recall, each by itself. Rates per core
are answers for each second of the answering process's processor time, since clients, router and
servers share the machine.
"""

from __future__ import annotations

import contextlib
from functools import partial

from bench import inside
from bench.bare import BARE, L1_HITS, L2_HITS, hits_and_bare
from bench.context import Context, Equal
from bench.copying import Copying, Loaded
from bench.generators import Closed
from bench.interleave import ratios, spread
from bench.results import Metric, Outcome
from bench.sample import Sample
from bench.scrape import scrape
from bench.summary import against, every_metric, over, samples_table, values
from bench.targets import TIERS, TargetSpec
from bench.world import Router, World
from router.settings import Settings

__all__ = ["run"]

_CLIENTS = 64

_HTTP, _GATHER = "pgscatter", "direct gather"
_SAME, _DEFAULT = "direct gather, the router's ef_search", "direct gather, not tuned"
_HTTP1, _GATHER1 = "pgscatter, 1 client", "direct gather, 1 client"
# An entry takes 1,500 bytes and its hits, so this many fill the default cache with k=10.
_DISTINCT = 40_000
_FILLING_SECONDS, _MOST_FILLINGS, _FULL = 10.0, 60, 0.98
# A load of them takes some seconds.
_LEAST_ROWS = 240_000

Samples = dict[str, list[Sample]]


def run(context: Context) -> Outcome:
    options = context.options
    clients = (options.clients or [_CLIENTS])[0]
    with context.world(copied=True) as world:
        with world.serve() as router:
            equal = context.equal(world, router)
            samples = _searches(context, world, router, clients, equal)
            inside.prepare(world, equal.http)
            looped = {"loop": partial(inside.cpu_per_search, world, options.seconds)}
            loop = context.interleave(looped, "the same searches inside PostgreSQL")["loop"]
        with world.serve() as router:
            context.say("filling a router's L1")
            full, share = _fill_l1(context, world, router, clients)
        copying = Copying(world, least_rows=0 if options.quick else _LEAST_ROWS)
        rows = context.interleave(
            {"load": copying.loaded, "copy": copying.copied}, "pgscatter load and raw COPY"
        )
    return Outcome(
        metrics=[*_targets(samples, clients, loop, rows, full, share), *every_metric(samples)],
        tables=[samples_table("Measured", samples)],
        notes=[*equal.notes, *_doubts(context, samples)],
        samples=samples,
    )


def _searches(context: Context, world: World, router: Router, clients: int, equal: Equal) -> Samples:
    """All variants in turns, in one run."""
    http, gather = world.http(router, ef_search=equal.http), world.gather(ef_search=equal.gather)
    with contextlib.ExitStack() as stack:
        shared = stack.enter_context(world.serve(redis=True, l1_bytes=0))
        hits, _ = stack.enter_context(hits_and_bare(world, router, shared, equal.http))
        variants: dict[str, tuple[TargetSpec, int]] = {
            _HTTP: (http, clients),
            _GATHER: (gather, clients),
            _HTTP1: (http, 1),
            _GATHER1: (gather, 1),
            _SAME: (world.gather(ef_search=equal.same), clients),
            _DEFAULT: (world.gather(), clients),
            **{name: (spec, clients) for name, spec in hits.items()},
        }
        measured = {
            name: partial(context.sample, world, spec, context.closed(count), judged=name != BARE)
            for name, (spec, count) in variants.items()
        }
        return context.interleave(measured, "searches")


def _fill_l1(context: Context, world: World, router: Router, clients: int) -> tuple[Sample, float]:
    """Distinct searches until the cache is full; the last sample, and how full it is from 0 to 1."""
    spec = world.http(router, queries=world.distinct(_DISTINCT), cache=True, ef_search=context.options.k)
    size_bytes = Settings().l1_bytes
    with context.display.meter("filling L1", size_bytes, "bytes") as meter:
        for turn in range(_MOST_FILLINGS):
            load = Closed(clients, _FILLING_SECONDS, 0.0, seed=turn)
            sample = context.sample(world, spec, load, judged=False)
            held = scrape(router)["pgscatter_l1_bytes"]
            meter.reach(int(held))
            if held >= _FULL * size_bytes:
                break
    return sample, held / size_bytes


def _targets(
    samples: Samples,
    clients: int,
    loop: list[float],
    rows: dict[str, list[Loaded]],
    full: Sample,
    share: float,
) -> list[Metric]:
    http, gather, l1, l2, bare = (samples[name] for name in (_HTTP, _GATHER, L1_HITS, L2_HITS, BARE))
    at = f"{clients} clients"
    rate, p99 = (against(http, gather, of) for of in ("rate", "p99"))
    alone = against(samples[_HTTP1], samples[_GATHER1], "p50")
    cpu = over(http, "router_cpu_per_search", 1e6)
    inside_it = ratios(values(http, "server_cpu_per_search"), loop)
    looped = f"loop {spread(loop).median * 1e6:,.0f} µs"
    l1_share, l2_share = against(l1, bare, _per_core, 100), against(l2, l1, _per_core, 100)
    rates = "{:,.0f} and {:,.0f} /s".format(*(over(found, _per_core).median for found in (l1, bare)))
    loaded = against(rows["load"], rows["copy"], "rate", 100)
    memory, filled = full.router_rss_bytes / 1e6, f"L1 {share:.0%} full"
    same, default = (against(http, samples[name], "rate") for name in (_SAME, _DEFAULT))
    return [
        Metric.of(f"1. searches/s against the direct gather, {at}", rate, "x", "higher", 2.5),
        Metric.of("2. p99 against the same", p99, "x", "lower", 0.25),
        Metric.of("3. p50 against the direct gather, 1 client", alone, "x", "lower", 1.0),
        Metric.of("4. router CPU per uncached search", cpu, "µs", "lower", 250.0),
        Metric.of(
            "5. PostgreSQL CPU per search against a loop inside it", inside_it, "x", "lower", 1.15, looped
        ),
        Metric.of(
            "6. L1 hits per core against a bare Starlette endpoint", l1_share, "%", "higher", 60.0, rates
        ),
        Metric.of("7. L2 hits per core against L1 hits", l2_share, "%", "higher", 40.0),
        Metric.of("8. pgscatter load against raw parallel COPY, rows/s", loaded, "%", "higher", 85.0),
        Metric.of(f"9. router memory, {at}, full L1", memory, "MB", "lower", 300.0, filled),
        Metric.of("searches/s against the direct gather with the router's ef_search", same, "x"),
        Metric.of("searches/s against the direct gather, not tuned", default, "x"),
    ]


def _per_core(sample: Sample) -> float:
    """Answers per second of the answering process's own time."""
    return sample.searches / max(sample.router_cpu, 1e-9)


def _doubts(context: Context, samples: Samples) -> list[str]:
    """What would make a figure mean something else than its name says."""
    found = []
    for name, expected in ((L1_HITS, "l1"), (L2_HITS, "l2")):
        total = sum(sample.account.get(tier, 0) for sample in samples[name] for tier in TIERS)
        other = total - sum(sample.account.get(expected, 0) for sample in samples[name])
        if other:
            found.append(f"{name}: {other:,} of {total:,} answers came from elsewhere")
    for name in (_HTTP, _GATHER):
        least = min(sample.recall or 0.0 for sample in samples[name])
        if least < context.options.recall:
            found.append(f"{name}: recall {least:.4f} in one round, below {context.options.recall:g}")
    for name, taken in samples.items():
        if failed := sum(sample.failed for sample in taken):
            found.append(f"{name}: {failed:,} searches failed: {taken[-1].reasons}")
    return found
