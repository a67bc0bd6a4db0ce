"""Servers killed, frozen, slowed, cut off and promoted under searches and writes, and what callers saw.

One router serves all faults, one after the other, on shards with a replica each. Each node is reached
through a proxy of this bench, so that it can be slowed or closed without being touched, and over a link of
its own, where the machine allows that, which can be cut. Requirements
hold for faults of a node with a live partner: no failed search, nothing partial once the fault is known,
p99 within twice the healthy one plus a hedge's delay, and full coverage within two seconds of the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import numpy as np
import uvloop

from bench.context import Context
from bench.faults.growth import break_connections
from bench.faults.kinds import FAULTS, Broken, Fault
from bench.faults.load import FIRST_ID, SEARCHES, WRITES, Event, States, running
from bench.faults.promotion import Writes, write_across_promotion
from bench.faults.proxies import Proxies, open_ways
from bench.faults.verdict import DETECTION, Verdict, judge, quiet, slices
from bench.results import Cell, Metric, Outcome, Table, Timeline
from bench.scrape import by_label, scrape
from bench.world import Router, World
from router.settings import Settings

__all__ = ["run"]

_QUICK = ("kill-replica", "freeze-replica", "slow-100ms", "cut", "shard-gone")
_QUICK_SECONDS = 1.5
_SLICE = 0.25
_RECOVERY = 2.0
_TIMES_P99, _TIMES_P99_SLOWED = 2.0, 1.5
# Of a router with its defaults: its hedges' share, and how many it may save up.
_HEDGES, _HEDGES_SAVED = Settings().hedge_budget, 10.0
_WRITES, _BREAKS = 10_000, 1000
_QUICK_WRITES, _QUICK_BREAKS = 300, 40
_MAX_LAG = 1.0
_IDS_EACH = 1_000_000


class _Course(msgspec.Struct, frozen=True):
    """One fault's load from beginning to end; times in seconds from its beginning.

    `extra` is what nodes were asked beyond once for each part of a search, see `_asked`.
    """

    fault: Fault
    events: list[Event]
    states: States
    injected: float
    healed: float
    verdict: Verdict
    lost: int
    extra: dict[str, float]

    @property
    def hedged(self) -> float:
        return self.extra["hedges won"] + self.extra["lost"]


def run(context: Context) -> Outcome:
    options = context.options
    faults = [fault for fault in FAULTS if not options.quick or fault.name in _QUICK]
    seconds = _QUICK_SECONDS if options.quick else options.seconds
    with context.world(replicas=1) as world:
        with (
            open_ways(world) as (proxies, map_path, without),
            world.serve(redis=True, map_path=map_path, max_lag=_MAX_LAG) as router,
        ):
            courses = uvloop.run(_break_all(context, world, proxies, router, faults, seconds))
            breaks = _QUICK_BREAKS if options.quick else _BREAKS
            with context.display.meter("breaking", breaks, "") as meter:
                growth = uvloop.run(break_connections(world, router, proxies, breaks, meter))
        count = _QUICK_WRITES if options.quick else _WRITES
        writes = uvloop.run(write_across_promotion(context, world, count))
    return Outcome(
        metrics=[*_metrics(courses), *_write_metrics(writes), *_growth_metrics(breaks, growth)],
        tables=[*_tables(courses), _growth_table(breaks, growth)],
        timelines=[_timeline(course) for course in courses],
        notes=[
            f"{SEARCHES} searches/s and {WRITES} writes/s arrive whatever becomes of them"
            " (open loop), each search for another vector; deadline 2 s",
            "bounds of p99 rest on the quiet phases of all faults together",
            f"late: {DETECTION:g} s after the fault began, or later",
            "each node is reached over a link of its own to a network namespace; it was cut at the far end"
            if without is None
            else f"the network was cut by the bench's own proxy, which drops what it gets: {without}",
            *(f"{c.fault.title}: {c.verdict.reasons}" for c in courses if c.verdict.reasons),
        ],
    )


async def _break_all(
    context: Context, world: World, proxies: Proxies, router: Router, faults: list[Fault], seconds: float
) -> list[_Course]:
    broken = Broken(world, proxies)
    courses = []
    with context.display.meter("faults", len(faults), "faults") as meter:
        for number, fault in enumerate(faults):
            context.say(fault.title)
            courses.append(await _course(world, router, broken, fault, number, seconds))
            meter.add(1)
    return courses


async def _course(
    world: World, router: Router, broken: Broken, fault: Fault, number: int, seconds: float
) -> _Course:
    broken.look()
    lasts = min(fault.seconds, 1.5 * seconds)
    before = await asyncio.to_thread(_asked, router)
    async with running(world, router, FIRST_ID + number * _IDS_EACH) as load:
        await asyncio.sleep(1 + seconds)
        injected = load.now
        await fault.inject(broken)
        try:
            await asyncio.sleep(lasts)
        finally:
            await fault.heal(broken)
        healed = load.now
        await asyncio.sleep(seconds)
        hits = broken.names[fault.hits]
        await load.until_up(hits)
        await asyncio.sleep(0.5)
    found = load.found
    after = await asyncio.to_thread(_asked, router)
    extra = {name: after[name] - before[name] for name in after}
    verdict = judge(found.events, found.states, hits, injected, healed)
    held = await asyncio.to_thread(world.holding, FIRST_ID)
    lost = sum(id_ not in held for id_ in found.acknowledged)
    return _Course(fault, found.events, found.states, injected, healed, verdict, lost, extra)


def _asked(router: Router) -> dict[str, float]:
    """What nodes have been asked until now."""
    said = scrape(router)
    hedges = by_label(router, "pgscatter_shard_hedges_total", "outcome")
    return {
        "parts": said.get("pgscatter_shard_results_total", 0.0),
        "hedges won": hedges.get("won", 0.0),
        "lost": hedges.get("lost", 0.0),
        "denied": hedges.get("denied", 0.0),
        "retries": said.get("pgscatter_shard_retries_total", 0.0),
        "ejections": said.get("pgscatter_node_ejections_total", 0.0),
    }


def _metrics(courses: list[_Course]) -> list[Metric]:
    made = []
    # A few hundred searches of one course tell little of the slowest hundredth.
    healthy = [seconds for course in courses for seconds in quiet(course.events, course.injected)]
    p95, p99 = (float(value) for value in np.percentile(healthy, (95, 99)))
    for course in courses:
        fault, v = course.fault, course.verdict
        slowed = fault.name == "slow-100ms"
        bound = _TIMES_P99_SLOWED * p99 if slowed else _TIMES_P99 * p99 + p95
        figures = [
            ("to full coverage", v.recovered, "s", _RECOVERY),
            ("acknowledged writes lost", float(course.lost), "", 0.0),
        ]
        if fault.partner:
            figures = [
                ("failed searches", float(v.failed), "", 0.0),
                ("partial or failed, late", float(v.late), "", 0.0),
                ("p99 against its bound", v.fault_p99 / bound, "x", 1.0),
                *figures,
            ]
        made += [
            Metric.of(f"{fault.title}: {what}", value, unit, "lower", target)
            for what, value, unit, target in figures
        ]
    sent, parts = sum(c.hedged for c in courses), sum(c.extra["parts"] for c in courses)
    budget = _HEDGES + _HEDGES_SAVED / parts
    return [*made, Metric.of("hedges sent, of all parts", sent / parts, better="lower", target=budget)]


def _write_metrics(writes: Writes) -> list[Metric]:
    named = f"{writes.acknowledged:,} writes across a promotion: lost"
    doubled, first = "writes across a promotion: doubled", "from the promotion to the first write after it"
    return [
        Metric.of(named, float(writes.lost), "", "lower", 0.0),
        Metric.of(doubled, float(writes.doubled), "", "lower", 0.0),
        Metric.of(first, writes.first_after, "s", "lower", 1.0),
    ]


def _growth_metrics(breaks: int, growth: dict[str, tuple[float, str]]) -> list[Metric]:
    return [
        Metric.of(f"{breaks:,} faults: growth of {name}", value, unit, "lower")
        for name, (value, unit) in growth.items()
    ]


def _growth_table(breaks: int, growth: dict[str, tuple[float, str]]) -> Table:
    rows: list[list[Cell]] = [
        [f"{name}, {unit}" if unit else name, value] for name, (value, unit) in growth.items()
    ]
    return Table(f"What the router holds more after {breaks:,} broken connections", ["", "more"], rows)


def _tables(courses: list[_Course]) -> list[Table]:
    return [
        Table.of(title, {"fault": lambda course: course.fault.title, **columns}, courses)
        for title, columns in _COLUMNS.items()
    ]


def _count(of: str) -> Callable[[_Course], Cell]:
    return lambda course: str(getattr(course.verdict, of))


def _ms(of: str) -> Callable[[_Course], Cell]:
    return lambda course: float(getattr(course.verdict, of) * 1e3)


def _beyond(of: str) -> Callable[[_Course], Cell]:
    return lambda course: f"{course.extra[of]:g}"


_COLUMNS: dict[str, dict[str, Callable[[_Course], Cell]]] = {
    "Searches, from the fault's beginning": {
        **{name: _count(name) for name in ("searches", "failed", "partial", "late", "stale")},
        "healthy p50 ms": _ms("healthy_p50"),
        "healthy p99 ms": _ms("healthy_p99"),
        "p50 ms": _ms("fault_p50"),
        "p99 ms": _ms("fault_p99"),
        "slowest ms": _ms("slowest"),
        "to full coverage s": lambda course: course.verdict.recovered,
        "node up after s": lambda course: course.verdict.back,
    },
    "Writes": {
        "writes": _count("writes"),
        "failed": _count("writes_failed"),
        "slowest s": lambda course: course.verdict.slowest_write,
        "acknowledged and lost": lambda course: str(course.lost),
    },
    "What nodes were asked beyond once per part of a search": {
        **{name: _beyond(name) for name in ("parts", "hedges won", "lost", "denied", "retries", "ejections")},
        "hedged": lambda course: f"{course.hedged / course.extra['parts']:.1%}",
    },
}


def _timeline(course: _Course) -> Timeline:
    names = sorted({name for _, known in course.states for name in known})
    odd = [name for name in names if any(known.get(name) != "up" for _, known in course.states)]
    return Timeline(
        name=course.fault.name,
        title=course.fault.title,
        points=slices(course.events, _SLICE),
        states={name: [(at, known.get(name, "unknown")) for at, known in course.states] for name in odd},
        marks=[(course.injected, "fault"), (course.healed, "healed")],
    )
