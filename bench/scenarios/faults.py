"""Servers killed, frozen, slowed, cut off and promoted under searches and writes, and what callers saw.

One router serves all faults, one after the other, on shards with a replica each. Each node is reached
through a proxy of this bench, so that it can be slowed or closed without being touched, and over a link of
its own, where the machine allows that, which can be cut. Requirements
hold for faults of a node with a live partner: no failed search, nothing partial once the fault is known,
p99 within twice the healthy one plus a hedge's delay, and full coverage within two seconds of the end.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain
from time import perf_counter

import msgspec
import uvloop

from bench.context import Context
from bench.errors import BenchError
from bench.faults.broken import Broken, breakable
from bench.faults.caller import FIRST_ID
from bench.faults.growth import break_connections
from bench.faults.health import WELL_SECONDS, Health, Seen
from bench.faults.kinds import MEASURED, Fault
from bench.faults.load import SEARCHES, WRITES, Record, running
from bench.faults.promotion import write_across_promotion
from bench.faults.verdict import DETECTION, Window, percentile, quiet, searched, slices, written
from bench.results import Cell, Metric, Outcome, Table, Timeline
from bench.scrape import by_label, scrape
from bench.world import Router
from router.settings import Settings

__all__ = ["run"]

_QUICK = ("kill-replica", "freeze-replica", "slow-100ms", "cut", "shard-gone")
_QUICK_SECONDS = 1.5
_SHARD = "s1"
_SLICE = 0.25
_RECOVERY = 2.0
_TIMES_P99, _TIMES_P99_SLOWED = 2.0, 1.5
# Of a router with its defaults: its hedges' share, and how many it may save up.
_HEDGES, _HEDGES_SAVED = Settings().hedge_budget, 10.0
_WRITES, _BREAKS = 10_000, 1000
_QUICK_WRITES, _QUICK_BREAKS = 300, 40
_MAX_LAG = 1.0
_IDS_EACH = 1_000_000
_REASONS = 5

_Figures = dict[str, float | None]


class _Course(msgspec.Struct, frozen=True):
    """One fault's load from beginning to end.

    `searches`, `writes` and `asked` are its figures by the names of the report's columns; `asked` is of what
    nodes were asked beyond once for each part of a search.
    """

    fault: Fault
    load: Record
    window: Window
    seen: list[Seen]
    searches: _Figures
    writes: _Figures
    asked: dict[str, int]

    @property
    def hedged(self) -> int:
        return self.asked["hedges won"] + self.asked["lost"]


def run(context: Context) -> Outcome:
    options = context.options
    quick = options.quick
    faults = [fault for fault in MEASURED if not quick or fault.name in _QUICK]
    breaks, count = (_QUICK_BREAKS, _QUICK_WRITES) if quick else (_BREAKS, _WRITES)
    with context.world(replicas=1) as world, breakable(world, max_lag=_MAX_LAG) as broken:
        courses = uvloop.run(
            _break_all(context, broken, faults, _QUICK_SECONDS if quick else options.seconds)
        )
        with context.display.meter("breaking", breaks, "") as meter:
            growth = uvloop.run(break_connections(broken, breaks, meter))
        with context.display.meter("writes across a promotion", count, "documents") as meter:
            writes = uvloop.run(write_across_promotion(broken, count, meter))
    return Outcome(
        metrics=[*_metrics(courses), *writes, *_growth_metrics(breaks, growth)],
        tables=[
            _table("Searches, from the fault's beginning", courses, lambda one: one.searches),
            _table("Writes", courses, lambda one: one.writes),
            _table("What nodes were asked beyond once per part of a search", courses, _asked_cells),
            _growth_table(breaks, growth),
        ],
        timelines=[_timeline(course) for course in courses],
        notes=[
            f"{SEARCHES} searches/s and {WRITES} writes/s arrive whatever becomes of them"
            " (open loop), each search for another vector; deadline 2 s",
            "bounds of p99 rest on the quiet phases of all faults together",
            f"late: {DETECTION:g} s after the fault began, or later",
            "a primary is promoted only after its replica was made synchronous",
            broken.network,
            *(f"{one.fault.title}: {found}" for one in courses if (found := _reasons(one))),
        ],
    )


async def _break_all(context: Context, broken: Broken, faults: list[Fault], seconds: float) -> list[_Course]:
    courses = []
    with context.display.meter("faults", len(faults), "faults") as meter:
        for number, fault in enumerate(faults):
            context.say(fault.title)
            courses.append(await _course(broken, fault, FIRST_ID + number * _IDS_EACH, seconds))
            meter.add(1)
    return courses


async def _course(broken: Broken, fault: Fault, first_id: int, seconds: float) -> _Course:
    broken.look(_SHARD)
    health = Health(broken)
    before = await asyncio.to_thread(_asked, broken.router)
    async with running(broken, first_id) as load, health.watched():
        await asyncio.sleep(1 + seconds)
        window = fault.window([_SHARD])
        await fault.happen(broken, window, 1.5 * seconds)
        window.well = await health.well()
        if window.well is None:
            raise BenchError(f"not well {WELL_SECONDS:g} s after {fault.title}: {health.seen[-1].ill}")
        await asyncio.sleep(max(window.healed + seconds - perf_counter(), 0.0))
    after = await asyncio.to_thread(_asked, broken.router)
    held = await asyncio.to_thread(broken.world.holding, FIRST_ID)
    lost = sum(id_ not in held for id_ in load.acknowledged)
    return _Course(
        fault,
        load,
        window,
        list(health.seen),
        searched(load.events, load.began, window),
        {**written(load.events, window), "acknowledged and lost": lost},
        {name: after[name] - before[name] for name in after},
    )


def _asked(router: Router) -> dict[str, int]:
    """What nodes have been asked until now."""
    said = scrape(router)
    hedges = by_label(router, "pgscatter_shard_hedges_total", "outcome")
    found = {
        "parts": said.get("pgscatter_shard_results_total"),
        "hedges won": hedges.get("won"),
        "lost": hedges.get("lost"),
        "denied": hedges.get("denied"),
        "retries": said.get("pgscatter_shard_retries_total"),
        "ejections": said.get("pgscatter_node_ejections_total"),
    }
    return {name: int(count or 0) for name, count in found.items()}


def _metrics(courses: list[_Course]) -> list[Metric]:
    made = []
    # A few hundred searches of one course tell little of the slowest hundredth.
    quiets = (quiet(one.load.events, one.load.began, one.window.injected) for one in courses)
    healthy = list(chain.from_iterable(quiets))
    p95, p99 = (percentile(healthy, of) or 0.0 for of in (95, 99))
    for course in courses:
        found = course.searches
        slowed = course.fault.name == "slow-100ms"
        bound = _TIMES_P99_SLOWED * p99 if slowed else _TIMES_P99 * p99 + p95
        figures = [
            ("to full coverage", found["to full coverage s"], "s", _RECOVERY),
            ("acknowledged writes lost", course.writes["acknowledged and lost"], "", 0.0),
        ]
        if course.fault.partner:
            figures = [
                ("failed searches", found["failed"], "", 0.0),
                ("partial or failed, late", found["late"], "", 0.0),
                ("p99 against its bound", (found["p99 ms"] or 0.0) / bound, "x", 1.0),
                *figures,
            ]
        made += [
            Metric.of(f"{course.fault.title}: {what}", value, unit, "lower", target)
            for what, value, unit, target in figures
        ]
    sent, parts = sum(one.hedged for one in courses), sum(one.asked["parts"] for one in courses)
    budget = _HEDGES + _HEDGES_SAVED / parts
    return [*made, Metric.of("hedges sent, of all parts", sent / parts, better="lower", target=budget)]


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


def _table(title: str, courses: list[_Course], read: Callable[[_Course], Mapping[str, Cell]]) -> Table:
    """A row per fault, of what `read` finds by the names of the columns; counts have all their digits."""
    rows = [
        [one.fault.title, *(str(cell) if isinstance(cell, int) else cell for cell in read(one).values())]
        for one in courses
    ]
    return Table(title, ["fault", *read(courses[0])], rows)


def _asked_cells(course: _Course) -> dict[str, Cell]:
    return {**course.asked, "hedged": f"{course.hedged / course.asked['parts']:.1%}"}


def _reasons(course: _Course) -> dict[str, int]:
    """The most frequent ones for which requests failed."""
    failed = (one for one in course.load.events if one.what not in ("full", "stale", "partial"))
    return dict(Counter(f"{one.name}: {one.said.detail}" for one in failed).most_common(_REASONS))


def _timeline(course: _Course) -> Timeline:
    began, seen = course.load.began, course.seen
    names = {name for one in seen for name in one.states}
    odd = sorted(name for name in names if any(one.states.get(name) != "up" for one in seen))
    return Timeline(
        name=course.fault.name,
        title=course.fault.title,
        points=slices(course.load.events, began, _SLICE),
        states={name: [(one.at - began, one.states.get(name, "unknown")) for one in seen] for name in odd},
        marks=[(course.window.injected - began, "fault"), (course.window.healed - began, "healed")],
    )
