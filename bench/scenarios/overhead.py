"""What the router adds, and what it saves: the table of targets, on one machine in one run.

In the comparisons with the direct gather both are tuned to the recall, each by itself. Rates per core
are answers for each second of the answering process's processor time, since clients, router and
servers share the machine.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

from bench import inside, tuning
from bench.bare import serving
from bench.context import Context, Equal
from bench.copying import Copying
from bench.interleave import Spread, ratios, spread
from bench.memory import fill_l1
from bench.results import Metric, Outcome
from bench.sample import Sample
from bench.summary import metrics_of, samples_table, values
from bench.world import Router, World

__all__ = ["run"]

_CLIENTS = 64
_ALONE = 1

_HTTP, _GATHER = "pgscatter", "direct gather"
_SAME, _DEFAULT = "direct gather, the router's ef_search", "direct gather, not tuned"
_HTTP1, _GATHER1 = "pgscatter, 1 client", "direct gather, 1 client"
_L1, _L2, _BARE = "L1 hits", "L2 hits", "bare endpoint"

_TIERS = ("l1", "l2", "miss", "bypass")
# A load of them takes some seconds.
_LEAST_ROWS = 240_000

Samples = dict[str, list[Sample]]


def run(context: Context) -> Outcome:
    clients = (context.options.clients or [_CLIENTS])[0]
    with context.world(copied=True) as world:
        with world.serve() as router:
            equal = context.equal(world, router)
            samples = _searches(context, world, router, clients, equal)
            loop = _inside(context, world, equal.http)
        with world.serve() as router:
            context.say("filling a router's L1")
            full, share = fill_l1(context, world, router, clients)
        copying = Copying(world, least_rows=0 if context.options.quick else _LEAST_ROWS)
        rows = context.interleave(
            {"load": copying.loaded, "copy": copying.copied}, "pgscatter load and raw COPY"
        )
        rates = {name: [one.rate for one in taken] for name, taken in rows.items()}
    metrics = [
        *_against_gather(samples, clients),
        *_processor(samples, loop),
        *_caches(samples),
        Metric.of(
            "8. pgscatter load against raw parallel COPY, rows/s",
            _percent(rates["load"], rates["copy"]),
            "%",
            target=85.0,
        ),
        Metric(
            name=f"9. router memory, {clients} clients, full L1",
            value=full.router_rss_bytes / 1e6,
            unit="MB",
            better="lower",
            target=300.0,
            note=f"L1 {share:.0%} full",
        ),
    ]
    every = [metric for name, found in samples.items() for metric in metrics_of(name, found)]
    return Outcome(
        metrics=[*metrics, *every],
        tables=[samples_table("Measured", samples)],
        notes=[*equal.notes, *_doubts(context, samples)],
        samples=samples,
    )


def _searches(context: Context, world: World, router: Router, clients: int, equal: Equal) -> Samples:
    """All variants in turns, in one run."""
    many, alone = context.closed(clients), context.closed(_ALONE)
    k = context.options.k
    http, gather = world.http(router, ef_search=equal.http), world.gather(ef_search=equal.gather)
    same = world.gather(ef_search=equal.same)
    cached: dict[str, Any] = {"cache": True, "ef_search": equal.http}
    with contextlib.ExitStack() as stack:
        shared = stack.enter_context(world.serve(redis=True, l1_bytes=0))
        for one in (router, shared):
            tuning.ask(world.http(one, **cached), len(world.dataset.queries))
        answer, _ = world.ask(router, 0, k=k, **cached)
        bare = stack.enter_context(serving(answer, world.folder))
        variants = {
            _HTTP: partial(context.sample, world, http, many, router),
            _GATHER: partial(context.sample, world, gather, many),
            _HTTP1: partial(context.sample, world, http, alone, router),
            _GATHER1: partial(context.sample, world, gather, alone),
            _SAME: partial(context.sample, world, same, many),
            _DEFAULT: partial(context.sample, world, world.gather(), many),
            _L1: partial(context.sample, world, world.http(router, **cached), many, router),
            _L2: partial(context.sample, world, world.http(shared, **cached), many, shared),
            _BARE: partial(context.sample, world, world.http(bare), many, bare, judged=False),
        }
        return context.interleave(variants, "searches")


def _inside(context: Context, world: World, ef_search: int) -> list[float]:
    inside.prepare(world, ef_search, context.options.k)
    looped = {"loop": partial(inside.cpu_per_search, world, context.options.seconds)}
    return context.interleave(looped, "the same searches inside PostgreSQL")["loop"]


def _against_gather(samples: Samples, clients: int) -> list[Metric]:
    def compared(of: str, left: str, right: str) -> list[list[float]]:
        return [[getattr(sample, of) for sample in samples[name]] for name in (left, right)]

    return [
        Metric.of(
            f"1. searches/s against the direct gather, {clients} clients",
            ratios(*compared("rate", _HTTP, _GATHER)),
            "x",
            target=2.5,
        ),
        Metric.of(
            "searches/s against the direct gather with the router's ef_search",
            ratios(*compared("rate", _HTTP, _SAME)),
            "x",
        ),
        Metric.of(
            "searches/s against the direct gather, not tuned", ratios(*compared("rate", _HTTP, _DEFAULT)), "x"
        ),
        Metric.of(
            "2. p99 against the same", ratios(*compared("p99", _HTTP, _GATHER)), "x", "lower", target=0.25
        ),
        Metric.of(
            "3. p50 against the direct gather, 1 client",
            ratios(*compared("p50", _HTTP1, _GATHER1)),
            "x",
            "lower",
            target=1.0,
        ),
    ]


def _processor(samples: Samples, loop: list[float]) -> list[Metric]:
    router = spread(values(samples[_HTTP], lambda s: s.router_cpu_per_search))
    servers = values(samples[_HTTP], lambda s: s.server_cpu_per_search)
    inside = spread(loop)
    return [
        Metric.of("4. router CPU per uncached search", router.scaled(1e6), "µs", "lower", target=250.0),
        Metric.of(
            "5. PostgreSQL CPU per search against a loop inside it",
            ratios(servers, loop),
            "x",
            "lower",
            target=1.15,
            note=f"loop {inside.median * 1e6:,.0f} µs",
        ),
    ]


def _caches(samples: Samples) -> list[Metric]:
    """By answers per second of the process's own time."""
    l1, l2, bare = (
        values(samples[name], lambda s: s.searches / max(s.router_cpu, 1e-9)) for name in (_L1, _L2, _BARE)
    )
    return [
        Metric.of(
            "6. L1 hits per core against a bare Starlette endpoint",
            _percent(l1, bare),
            "%",
            target=60.0,
            note=f"{spread(l1).median:,.0f} and {spread(bare).median:,.0f} /s",
        ),
        Metric.of("7. L2 hits per core against L1 hits", _percent(l2, l1), "%", target=40.0),
    ]


def _percent(values: list[float], base: list[float]) -> Spread | None:
    found = ratios(values, base)
    return None if found is None else found.scaled(100)


def _doubts(context: Context, samples: Samples) -> list[str]:
    """What would make a figure mean something else than its name says."""
    found = []
    for name, expected in ((_L1, "l1"), (_L2, "l2")):
        total = sum(sample.account.get(tier, 0) for sample in samples[name] for tier in _TIERS)
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
