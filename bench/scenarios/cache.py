"""Caches under queries of Zipf's distribution: hit rates and latency by tier, beside the tiers' bare cost.

Routers without a cache, with L1, with L2, with both, and with an L1 that holds a tenth of the queries.
Before a router is measured it answers the same distribution for as long as a measurement, so its caches
are warm. Redis keeps everything that any of the routers has stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import msgspec
import numpy as np

from bench import tuning
from bench.bare import serving
from bench.cachecost import lookup_seconds, redis_gets
from bench.context import Context
from bench.generators import Closed
from bench.interleave import ratios, spread
from bench.memory import distinct
from bench.percentiles import Latencies
from bench.results import Figure, Metric, Outcome, Series, Table
from bench.sample import Sample
from bench.scrape import scrape
from bench.summary import metrics_of, samples_table, values
from bench.targets import HttpSpec
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
_TIERS = ("l1", "l2", "miss", "bypass")
_NONE, _L1, _L2, _BOTH, _SMALL = "no cache", "L1", "L2", "L1 and L2", "a tenth in L1, and L2"
_BARE = "bare endpoint"


def run(context: Context) -> Outcome:
    options = context.options
    count = _QUICK_QUERIES if options.quick else _QUERIES
    clients = (options.clients or [_CLIENTS])[0]
    found: dict[tuple[float, str], list[Sample]] = {}
    entries: dict[str, float] = {}
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
            # Other queries for each, or the last one's answers would be hits of this one.
            path = world.folder / "popular.npy"
            np.save(path, distinct(context.dataset, count, seed=int(1000 * exponent)))
            taken = _popular(context, world, routers, str(path), count, exponent, clients)
            found |= {(exponent, name): samples for name, samples in taken.items()}
        entries = {name: scrape(routers[name])["pgscatter_l1_entries"] for name in (_L1, _BOTH, _SMALL)}
        hits, bare = _hits(context, world, routers, stack)
    samples = {f"{name}, Zipf {exponent:g}": taken for (exponent, name), taken in found.items()} | hits
    return Outcome(
        metrics=[*_hit_rates(found), *_against_bare(hits, bare), *_every(samples)],
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
    context: Context,
    world: World,
    routers: dict[str, Router],
    queries: str,
    count: int,
    exponent: float,
    clients: int,
) -> dict[str, list[Sample]]:
    load = msgspec.structs.replace(context.closed(clients), zipf=exponent)

    def measured(name: str, load: Closed) -> Sample:
        cached = name != _NONE
        spec = world.http(routers[name], cache=cached, ef_search=_EF_SEARCH, tiers=True)
        spec = msgspec.structs.replace(spec, queries=queries)
        return context.sample(world, spec, load, routers[name], judged=False, queries=count)

    meter = context.display.meter(f"warming caches, Zipf {exponent:g}", len(routers), "routers")
    for name in routers:
        if name != _NONE:
            measured(name, msgspec.structs.replace(load, seed=1))
        meter.add(1)
    meter.end()
    variants = {name: partial(measured, name, load) for name in routers}
    return context.interleave(variants, f"Zipf {exponent:g}")


def _hits(
    context: Context, world: World, routers: dict[str, Router], stack: ExitStack
) -> tuple[dict[str, list[Sample]], dict[str, float]]:
    """Samples of hits alone by one client, and the seconds of the bare costs."""
    alone = context.closed(1)
    specs: dict[str, HttpSpec] = {}
    for name, router in ((f"{_L1} hits", routers[_L1]), (f"{_L2} hits", routers[_L2])):
        specs[name] = world.http(router, cache=True, ef_search=_EF_SEARCH)
        tuning.ask(specs[name], len(world.dataset.queries))
    answer, _ = world.ask(routers[_L1], 0, k=context.options.k, cache=True, ef_search=_EF_SEARCH)
    bare = stack.enter_context(serving(answer, world.folder))
    specs[_BARE] = world.http(bare)
    by_name = {f"{_L1} hits": routers[_L1], f"{_L2} hits": routers[_L2], _BARE: bare}
    variants = {
        name: partial(context.sample, world, spec, alone, by_name[name], judged=name != _BARE)
        for name, spec in specs.items()
    }
    hits = context.interleave(variants, "hits alone")
    costs = lookup_seconds(len(world.dataset.queries))
    gets = redis_gets(world.cluster.redis_url, len(answer), context.options.seconds)
    return hits, {**costs, "Redis GET": gets.at(50)}


def _share(samples: Sequence[Sample], tier: str) -> list[float]:
    """Of the answers of each round, in percent."""
    return [
        100 * sample.account.get(tier, 0) / max(1, sum(sample.account.get(one, 0) for one in _TIERS))
        for sample in samples
    ]


def _hit_rates(found: dict[tuple[float, str], list[Sample]]) -> list[Metric]:
    return [
        Metric.of(f"{tier} hits, {name}, Zipf {exponent:g}", spread(_share(samples, tier)), "%")
        for (exponent, name), samples in found.items()
        for tier in ("l1", "l2")
        if any(_share(samples, tier))
    ]


def _against_bare(hits: dict[str, list[Sample]], bare: dict[str, float]) -> list[Metric]:
    l1, l2, endpoint = (
        [1e6 * value for value in values(hits[name], lambda s: s.p50)]
        for name in (f"{_L1} hits", f"{_L2} hits", _BARE)
    )
    added = [more - less for more, less in zip(l2, l1, strict=True)]
    return [
        Metric.of("p50 of an L1 hit against a bare endpoint", ratios(l1, endpoint), "x", "lower"),
        Metric.of("what an L2 hit takes longer than an L1 hit, p50", spread(added), "µs", "lower"),
        Metric(name="bare GET from Redis, p50", value=bare["Redis GET"] * 1e6, unit="µs", better="lower"),
        *(
            Metric(name=f"bare lookup in {name}", value=bare[name] * 1e6, unit="µs", better="lower")
            for name in ("dict", "cachetools' LRU")
        ),
    ]


def _every(samples: dict[str, list[Sample]]) -> list[Metric]:
    return [metric for name, taken in samples.items() for metric in metrics_of(name, taken)]


def _tiers(found: dict[tuple[float, str], list[Sample]]) -> Table:
    """Latencies are of all rounds together."""
    rows: list[list[str | float | None]] = []
    for (exponent, name), samples in found.items():
        for tier in _TIERS:
            together = Latencies()
            together.merge(Latencies.decode(one.tiers[tier]) for one in samples if tier in one.tiers)
            if together.count:
                share = spread(_share(samples, tier)).median
                times = (together.at(percentile) * 1e3 for percentile in (50, 99, 99.9))
                rows.append([f"{exponent:g}", name, tier, f"{share:.1f}%", *times])
    columns = ["Zipf", "router", "answered by", "share", "p50 ms", "p99 ms", "p99.9 ms"]
    return Table("By tier", columns, rows)


def _bare_table(hits: dict[str, list[Sample]], bare: dict[str, float]) -> Table:
    rows: list[list[str | float | None]] = []
    for name, samples in hits.items():
        cpu = spread(values(samples, lambda s: s.router_cpu_per_search)).median * 1e6
        rows.append([name, spread(values(samples, lambda s: s.p50)).median * 1e6, cpu])
    for name, seconds in bare.items():
        rows.append([f"bare {name}", seconds * 1e6, None if name == "Redis GET" else seconds * 1e6])
    return Table("Hits alone, and bare", ["", "p50 µs", "CPU µs of who answers"], rows)


def _figure(found: dict[tuple[float, str], list[Sample]]) -> Figure:
    series = []
    for wanted in (_L1, _L2, _BOTH, _SMALL):
        points = []
        for (exponent, name), samples in found.items():
            if name == wanted:
                both = zip(_share(samples, "l1"), _share(samples, "l2"), strict=True)
                share = spread([one + other for one, other in both])
                points.append((exponent, share.median, share.low, share.high))
        series.append(Series(wanted, points))
    return Figure("hits", "Hits of either tier", "exponent of Zipf's distribution", "% of answers", series)
