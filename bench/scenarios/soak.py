"""Hours at a fixed rate: percentiles, memory, tasks and connections over time, and what grows.

Searches arrive whatever becomes of them, half as many as the router can answer unless `--open-loop` says
otherwise, by Zipf's distribution over more queries than L1 holds at first, with both caches. Growth is
from the second quarter of the run to the last, when caches and pools have what they need. With `--faults`
it is another run, see `bench.soak`.
"""

from __future__ import annotations

from operator import itemgetter

from bench.context import Context
from bench.errors import BenchError
from bench.generators import Open, Slice
from bench.interleave import spread
from bench.results import Cell, Figure, Metric, Outcome, Series, Table
from bench.sample import Sample
from bench.scrape import UNITS, state
from bench.soak.course import soak
from bench.summary import quarters, samples_table
from bench.targets import HttpSpec
from bench.world import Router, World

__all__ = ["run"]

_DURATION = 600.0
_QUICK_DURATION = 12.0
_QUERIES = 20_000
_ZIPF = 1.0
_CLIENTS = 16
_LOAD_SHARE = 0.5
_EF_SEARCH = 40
# Readings of a run; each costs the router a scrape, and a run of hours a minute or so between two.
_READINGS = 120
_SHORTEST_SLICE = 0.5
_ROWS = 24

# What a leak makes larger. L1 may still be filling, so its growth stands beside that of the memory; it
# is by the cache's own account, which is generous, and so cannot be subtracted.
_LEAKS = ("router's memory", "of it L1", "tasks", "connections to nodes", "sockets", "open files", "threads")


# What is read at the end of each slice of the load: of the slice, and of the router and its servers.
_UNITS = {**UNITS, "p50": "ms", "p99": "ms", "p99.9": "ms"}
_Reading = dict[str, float]


def run(context: Context) -> Outcome:
    options = context.options
    if options.faults:
        return soak(context)
    duration = options.duration or (_QUICK_DURATION if options.quick else _DURATION)
    with context.world() as world, world.serve(redis=True) as router:
        spec = world.http(router, queries=world.distinct(_QUERIES), cache=True, ef_search=_EF_SEARCH)
        rate = options.open_loop[0] if options.open_loop else _half(context, world, spec)
        readings, sample = _watched(context, world, spec, router, rate, duration)
    return Outcome(
        metrics=[
            Metric.of("searches/s that arrive", rate, "/s"),
            Metric.of("failed or shed", float(sample.lost), better="lower"),
            *_growth(readings, duration),
        ],
        tables=[
            _growth_table(readings),
            _over_time(readings),
            samples_table("The whole run", {"soak": [sample]}),
        ],
        figures=_figures(readings),
        notes=[
            f"{duration:,.0f} s at {rate:,.0f} searches/s of Poisson's arrivals; {_QUERIES:,} queries, Zipf"
            f" {_ZIPF:g}, ef_search {_EF_SEARCH}; generator late by {sample.lag99 * 1e3:.3g} ms at p99",
            *([f"failures: {sample.reasons}"] if sample.reasons else []),
        ],
        samples={"soak": [sample]},
    )


def _half(context: Context, world: World, spec: HttpSpec) -> float:
    """Half of what the router answers when clients wait for it, its caches as warm as this makes them."""
    sample = context.sample(world, spec, context.closed(_CLIENTS, zipf=_ZIPF, seed=1), judged=False)
    context.say(f"capacity {sample.rate:,.0f} searches/s; {_LOAD_SHARE:.0%} of it arrive")
    if not sample.searches:
        raise BenchError(f"no search of {sample.failed} was answered: {sample.reasons}")
    return _LOAD_SHARE * sample.rate


def _watched(
    context: Context, world: World, spec: HttpSpec, router: Router, rate: float, duration: float
) -> tuple[list[_Reading], Sample]:
    every = max(_SHORTEST_SLICE, duration / _READINGS)
    load = Open(rate, duration, context.options.warmup, zipf=_ZIPF, slice=every)
    readings: list[_Reading] = []

    def tick(part: Slice) -> None:
        times = {"p50": part.p50 * 1e3, "p99": part.p99 * 1e3, "p99.9": part.p999 * 1e3}
        counts = {"at": part.at, "rate": part.rate, "most": part.most * 1e3, "lost": part.failed + part.shed}
        readings.append(state(world, router) | times | counts)
        meter.reach(int(part.at + part.seconds))

    with context.display.meter("soaking", int(duration), "s") as meter:
        sample = context.sample(world, spec, load, judged=False, tick=tick)
    if readings:
        readings.pop()  # while it was read, the load had ended and its connections were being closed
    if len(readings) < 4:
        raise BenchError(f"{len(readings)} readings in {duration:g} s; a soak needs 4 at least")
    return readings, sample


def _growth(readings: list[_Reading], duration: float) -> list[Metric]:
    """From the second quarter to the last, between whose middles lies half of the run."""
    made = []
    for name in _LEAKS:
        early, late = quarters([one[name] for one in readings])
        hourly = (late - early) / (duration / 2 / 3600)
        made.append(Metric.of(f"growth of {name}", hourly, f"{_UNITS[name]}/h", "lower"))
    for name in ("p50", "p99"):
        early, late = quarters([one[name] for one in readings])
        ratio = late / early if early else None
        made.append(Metric.of(f"{name} at the end against the second quarter", ratio, "x", "lower"))
    return made


def _growth_table(readings: list[_Reading]) -> Table:
    rows: list[list[Cell]] = []
    for name, unit in _UNITS.items():
        found = [one[name] for one in readings]
        early, late = quarters(found)
        rows.append([f"{name}, {unit}" if unit else name, found[0], early, late, max(found), late - early])
    columns = ["", "first", "second quarter", "last quarter", "most", "growth"]
    return Table("What grows", columns, rows)


def _over_time(readings: list[_Reading]) -> Table:
    names = {
        **{"s": "at", "answers/s": "rate", "p50 ms": "p50", "p99 ms": "p99", "most ms": "most"},
        **{"router MiB": "router's memory", "L1 MiB": "of it L1", "tasks": "tasks"},
        "connections to nodes": "connections to nodes",
    }
    columns = {column: itemgetter(name) for column, name in names.items()}
    some = readings[:: -(-len(readings) // _ROWS)]
    return Table.of("Over time", {**columns, "failed": lambda one: str(one["lost"])}, some)


def _figures(readings: list[_Reading]) -> list[Figure]:
    def series(*names: str) -> list[Series]:
        return [Series.of(name, {one["at"]: spread([one[name]]) for one in readings}) for name in names]

    held = series("tasks", "sockets", "connections to nodes", "threads")
    latencies = series("p50", "p99", "p99.9")
    return [
        Figure("latency", "Latency from the intended start", "s", "ms", latencies, log_y=True),
        Figure("memory", "Memory", "s", "MiB", series("router's memory", "of it L1")),
        Figure("held", "What the router holds", "s", "", held),
    ]
