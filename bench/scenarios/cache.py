"""Caches under queries of Zipf's distribution: hit rates and latency by tier, beside the tiers' bare cost.

Routers without a cache, with L1, with L2, with both, and with an L1 that holds a tenth of the queries.
Before a router is measured it answers the same distribution for as long as a measurement, so its caches
are warm. Redis keeps everything that any of the routers has stored.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import uvloop

from bench.bare import BARE, L1_HITS, L2_HITS, hits_and_bare, lookup_seconds, redis_gets
from bench.context import Context
from bench.interleave import spread
from bench.percentiles import Latencies
from bench.results import Cell, Figure, Metric, Outcome, Table
from bench.sample import Sample
from bench.scrape import scrape
from bench.summary import against, curve_figure, every_metric, over, samples_table, values
from bench.targets import TIERS, TargetSpec
from bench.world import Router, World

__all__ = ["run"]

_EXPONENTS = [0.7, 1.0, 1.3]
_QUICK_EXPONENTS = [1.0]
_QUERIES = 20_000
_QUICK_QUERIES = 1_000
_CLIENTS = 16
_EF_SEARCH = 40
# An entry of L1 with ten hits, by its own account (router.stages.local_cache).
_ENTRY_BYTES = 2_000
_TENTH = 10
_NONE, _L1, _L2, _BOTH, _SMALL = "no cache", "L1", "L2", "L1 and L2", "a tenth in L1, and L2"

# By the exponent and the router.
_Found = dict[tuple[float, str], list[Sample]]


def run(context: Context) -> Outcome:
    options = context.options
    count = _QUICK_QUERIES if options.quick else _QUERIES
    clients = (options.clients or [_CLIENTS])[0]
    found: _Found = {}
    with context.world() as world, ExitStack() as stack:
        plain = stack.enter_context(world.serve())
        routers = {
            _NONE: plain,
            _L1: plain,
            _L2: stack.enter_context(world.serve(redis=True, l1_bytes=0)),
            _BOTH: stack.enter_context(world.serve(redis=True)),
            _SMALL: stack.enter_context(world.serve(redis=True, l1_bytes=count // _TENTH * _ENTRY_BYTES)),
        }
        for exponent in _QUICK_EXPONENTS if options.quick else _EXPONENTS:
            taken = _popular(context, world, routers, count, exponent, clients)
            found |= {(exponent, name): samples for name, samples in taken.items()}
        entries = {name: scrape(routers[name])["pgscatter_l1_entries"] for name in (_L1, _BOTH, _SMALL)}
        hits, bare = _hits(context, world, routers)
    samples = {f"{name}, Zipf {exponent:g}": taken for (exponent, name), taken in found.items()} | hits
    return Outcome(
        metrics=[*_hit_rates(found), *_against_bare(hits, bare), *every_metric(samples)],
        tables=[_tiers(found), _bare_table(hits, bare), samples_table("Measured", samples)],
        figures=[_figure(found)] if len(found) > len(routers) else [],
        notes=[
            f"{count:,} different queries, {clients} clients; ef_search {_EF_SEARCH}",
            *(f"{name}: {held:,.0f} answers in L1 at the end" for name, held in entries.items()),
            "Hits alone are asked by one client, after every query has been asked once.",
        ],
        samples=samples,
    )


def _popular(
    context: Context, world: World, routers: dict[str, Router], count: int, exponent: float, clients: int
) -> dict[str, list[Sample]]:
    # Other queries for each exponent, or the last one's answers would be hits of this one.
    queries = world.distinct(count, seed=int(1000 * exponent))
    specs: dict[str, TargetSpec] = {
        name: world.http(router, queries=queries, cache=name != _NONE, ef_search=_EF_SEARCH, tiers=True)
        for name, router in routers.items()
    }
    with context.display.meter(f"warming caches, Zipf {exponent:g}", len(routers), "routers") as meter:
        for name, spec in specs.items():
            if name != _NONE:
                context.sample(world, spec, context.closed(clients, zipf=exponent, seed=1), judged=False)
            meter.add(1)
    load = context.closed(clients, zipf=exponent)
    return context.compare(world, specs, load, f"Zipf {exponent:g}", unjudged=specs)


def _hits(
    context: Context, world: World, routers: dict[str, Router]
) -> tuple[dict[str, list[Sample]], dict[str, float]]:
    """Samples of hits alone by one client, and the seconds of the bare costs."""
    with hits_and_bare(world, routers[_L1], routers[_L2], _EF_SEARCH) as (specs, size_bytes):
        hits = context.compare(world, specs, context.closed(1), "hits alone", unjudged=[BARE])
    # Under the loop that the router has.
    gets = uvloop.run(redis_gets(world.cluster.redis_url, size_bytes, context.options.seconds))
    return hits, {**lookup_seconds(len(world.dataset.queries)), "Redis GET": gets.at(50)}


def _share(*tiers: str) -> Callable[[Sample], float]:
    """Of a sample's answers those by `tiers`, in percent."""

    def share(sample: Sample) -> float:
        counts = {one: sample.account.get(one, 0) for one in TIERS}
        return 100 * sum(counts[one] for one in tiers) / max(1, sum(counts.values()))

    return share


def _hit_rates(found: _Found) -> list[Metric]:
    return [
        Metric.of(f"{tier} hits, {name}, Zipf {exponent:g}", share, "%")
        for (exponent, name), samples in found.items()
        for tier in ("l1", "l2")
        if (share := over(samples, _share(tier))).high
    ]


def _against_bare(hits: dict[str, list[Sample]], bare: dict[str, float]) -> list[Metric]:
    l1, l2 = hits[L1_HITS], hits[L2_HITS]
    longer = [1e6 * (more - less) for more, less in zip(values(l2, "p50"), values(l1, "p50"), strict=True)]
    endpoint = against(l1, hits[BARE], "p50")
    lookups = ("dict", "cachetools' LRU")
    return [
        Metric.of("p50 of an L1 hit against a bare endpoint", endpoint, "x", "lower"),
        Metric.of("what an L2 hit takes longer than an L1 hit, p50", spread(longer), "µs", "lower"),
        Metric.of("bare GET from Redis, p50", bare["Redis GET"] * 1e6, "µs", "lower"),
        *(Metric.of(f"bare lookup in {name}", bare[name] * 1e6, "µs", "lower") for name in lookups),
    ]


def _tiers(found: _Found) -> Table:
    """Latencies are of all rounds together."""
    rows: list[list[Cell]] = []
    for (exponent, name), samples in found.items():
        for tier in TIERS:
            together = Latencies()
            together.merge(Latencies.decode(one.tiers[tier]) for one in samples if tier in one.tiers)
            if together.count:
                times = (together.at(percentile) * 1e3 for percentile in (50, 99, 99.9))
                rows.append(
                    [f"{exponent:g}", name, tier, f"{over(samples, _share(tier)).median:.1f}%", *times]
                )
    columns = ["Zipf", "router", "answered by", "share", "p50 ms", "p99 ms", "p99.9 ms"]
    return Table("By tier", columns, rows)


def _bare_table(hits: dict[str, list[Sample]], bare: dict[str, float]) -> Table:
    rows: list[list[Cell]] = [
        [name, over(samples, "p50", 1e6).median, over(samples, "router_cpu_per_search", 1e6).median]
        for name, samples in hits.items()
    ]
    for name, seconds in bare.items():
        rows.append([f"bare {name}", seconds * 1e6, None if name == "Redis GET" else seconds * 1e6])
    return Table("Hits alone, and bare", ["", "p50 µs", "CPU µs of who answers"], rows)


def _figure(found: _Found) -> Figure:
    curves = {
        wanted: {exponent: samples for (exponent, name), samples in found.items() if name == wanted}
        for wanted in (_L1, _L2, _BOTH, _SMALL)
    }
    axes = ("exponent of Zipf's distribution", "% of answers")
    return curve_figure("hits", "Hits of either tier", *axes, curves, _share("l1", "l2"), log_x=False)
