"""A soak from the first request to the verdict: faults one after the other, quiet in between.

Before each fault, while all is well, exact searches are compared with all rows, and it is read what the
router holds. At the end every tracked document is compared with what the shards store. Whatever is found
makes the run fail: an error that no fault explains, a wrong answer, an acknowledged write that is lost, a
state that does not become well again, an error in the log, growth.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import uvloop

from bench.context import Context
from bench.faults.broken import Broken, breakable
from bench.faults.caller import FIRST_ID, Caller
from bench.faults.health import WELL_SECONDS, Health
from bench.faults.kinds import EARLY, SOAKED, Fault
from bench.faults.outcomes import Event
from bench.faults.steps import TABLE
from bench.faults.verdict import RECOVERY, Window, grown, percentile, unexplained
from bench.results import Cell, Metric, Outcome, Table
from bench.scrape import state
from bench.soak.clients import ANSWER_SECONDS, COLUMNS, Clients, version_of
from bench.soak.ledger import Ledger
from bench.sql import fetch
from router.settings import Settings

__all__ = ["soak"]

QUICK = ("kill-worker", "promotion", "freeze-replica", "terminate", "lock", "kill-redis")
_DURATION, _QUICK_DURATION = 1200.0, 40.0
_EVERY = 60.0
_SHARDS = 2
_SEED = 12
_WORKERS = 2
# So small that they are full long before growth counts.
_CACHES = {"l1_bytes": 4 << 20, "body_cache_bytes": 1 << 20}
_SHOWN, _MOST = 5, 20
_FEWEST_READINGS = 12
# In a line of the log; what Python itself writes is no JSON.
_ERRORS = ('"traceback":', '"level":"error"', "Traceback (most", "Fatal Python error", "never awaited")
# A share more, and beside that so much.
_GROWTH = {
    "router's memory": (0.15, 16.0),
    **dict.fromkeys(("tasks", "sockets", "open files"), (0.2, 20.0)),
    "connections to nodes": (0.5, 16.0),
    "threads": (0.0, 4.0),
}


def soak(context: Context) -> Outcome:
    shards = context.options.shards or _SHARDS
    with (
        context.world(shards=shards, replicas=1, fields=COLUMNS) as world,
        breakable(world, workers=_WORKERS, **_CACHES) as broken,
    ):
        run = _Soak(context, broken)
        uvloop.run(run.run())
        return run.outcome()


class _Soak:
    def __init__(self, context: Context, broken: Broken) -> None:
        quick = context.options.quick
        self._context, self._broken = context, broken
        self._duration = context.options.duration or (_QUICK_DURATION if quick else _DURATION)
        self._rng = random.Random(_SEED)
        self._faults = _drawn(self._rng, self._duration, quick)
        self._ledger = Ledger(Settings().max_lag)
        self._caller = Caller(broken.router.url, ANSWER_SECONDS)
        self._clients = Clients(self._caller, self._ledger, context.dataset, _SEED)
        self._health = Health(broken)
        self._windows: list[Window] = []
        self._readings: list[dict[str, float]] = []
        self._found: list[str] = []
        self._began = perf_counter()

    async def run(self) -> None:
        self._clients.start()
        slot = self._duration / len(self._faults)
        try:
            async with self._health.watched():
                with self._context.display.meter("soaking", len(self._faults), "faults") as meter:
                    for number, fault in enumerate(self._faults):
                        await self._course(fault, self._began + (number + 1) * slot, slot)
                        meter.add(1)
                with self._noted("the end"):
                    await self._compare_with_shards()
        finally:
            await self._clients.stop()
        self._found += _few(self._clients.wrong)
        self._found += _errors(self._broken.world.folder)
        if self._judges_growth:
            self._found += grown(self._readings, _GROWTH)

    async def _course(self, fault: Fault, end: float, slot: float) -> None:
        """One fault, and quiet until `end`; all must be well again by then, or `WELL_SECONDS` later."""
        with self._noted(f"before {fault.name}"):
            await self._clients.pause()
            await self._clients.compare_with_all_rows()
        self._clients.resume()
        with self._noted("reading the router's metrics"):
            reading = await asyncio.to_thread(state, self._broken.world, self._broken.router)
            self._readings.append(reading)
        await asyncio.sleep(min(slot / 8, 2.0))
        names = sorted({node.shard for node in self._broken.cluster.nodes})
        shard = self._rng.choice(names)
        self._broken.look(shard)
        window = fault.window(names if fault.everywhere else [shard])
        self._windows.append(window)
        known = len(self._clients.wrong)
        if fault.name == "restart":
            self._ledger.restarted(window.injected)
        with self._noted(f"{fault.name} could not be done"):
            await fault.happen(self._broken, window, slot / 3)
        if fault.name == "restart":
            self._ledger.restarted(window.healed)  # at the latest
        window.well = await self._health.well()
        if window.well is None:
            ill = (await self._health.look()).ill
            self._found.append(f"not well {WELL_SECONDS:g} s after {fault.title}: {ill}")
        await asyncio.sleep(max(end - perf_counter(), 1.0))
        events = [one for one in self._caller.events if one.at + one.seconds >= window.injected]
        errors = Counter(one.name for one in unexplained(events, self._windows))
        said = f"{fault.title} on {shard}: well after {_seconds(window)} s"
        if errors:
            said += f"; UNEXPLAINED {dict(errors)}"
        if wrong := self._clients.wrong[known:]:
            said += f"; WRONG {wrong[:_SHOWN]}"
        self._context.say(f"{perf_counter() - self._began:6.0f} s  {said}")

    async def _compare_with_shards(self) -> None:
        """Every tracked document must be on one shard, in a version that it may have."""
        await self._clients.pause()
        await self._clients.compare_with_all_rows()
        await asyncio.to_thread(self._broken.cluster.status)
        primaries = [node.dsn for node in self._broken.world.primaries]
        rows = await fetch(f"SELECT id, content FROM {TABLE} WHERE id >= {FIRST_ID}", *primaries)
        held = ((row["id"], version_of(row["content"])) for row in rows)
        self._found += _few(self._ledger.compare(held))
        counts = await fetch(f"SELECT count(*) FROM {TABLE} WHERE id < {FIRST_ID}", *primaries)
        loaded = sum(row[0] for row in counts)
        if loaded != (rows_loaded := len(self._context.dataset.base)):
            self._found.append(f"{loaded} of {rows_loaded} rows that were loaded are stored")

    @contextlib.contextmanager
    def _noted(self, what: str) -> Iterator[None]:
        """Whatever goes wrong is found, and the soak goes on: drivers have errors of many kinds."""
        try:
            yield
        except Exception as exc:
            self._found.append(f"{what}: {type(exc).__name__}: {exc}"[:1000])
            self._context.say(self._found[-1])

    @property
    def _judges_growth(self) -> bool:
        return len(self._readings) >= _FEWEST_READINGS

    def outcome(self) -> Outcome:
        events, windows = self._caller.events, self._windows
        errors = unexplained(events, windows)
        failures = [*self._found, *self._evidence(errors)]
        counts = self._ledger.counts
        return Outcome(
            metrics=[
                Metric.of("found", float(len(failures)), better="lower", target=0.0),
                Metric.of("unexplained errors", float(len(errors)), better="lower", target=0.0),
                Metric.of("documents tracked", float(len(self._ledger))),
                Metric.of("comparisons with all rows", float(self._clients.compared)),
                *(Metric.of(f"writes {end}", float(count)) for end, count in counts.items()),
            ],
            tables=[
                self._table("Searches, reads and counts", "search", "read", "count"),
                self._table("Writes", "write"),
                self._growth(),
            ],
            notes=[
                f"{len(windows)} faults in {perf_counter() - self._began:,.0f} s; {len(events):,} requests",
                "a primary is promoted only after its replica was made synchronous",
                f"an error counts as explained while its fault lasts and {RECOVERY:g} s longer",
                *([] if self._judges_growth else ["growth was not judged: the run had too few faults"]),
                self._broken.network,
            ],
            failures=failures,
        )

    def _table(self, title: str, *operations: str) -> Table:
        """What became of requests during each fault and its recovery, and afterwards."""
        mine = [one for one in self._caller.events if one.operation in operations]
        ends = [*(window.injected for window in self._windows[1:]), perf_counter()]
        rows: list[list[Cell]] = []
        for window, end in zip(self._windows, ends, strict=True):
            during = [one for one in mine if window.injected <= one.at < window.healed]
            after = [one for one in mine if window.healed <= one.at < end]
            names = Counter(one.name for one in (*during, *after) if one.what != "full")
            others = ", ".join(f"{count} {name}" for name, count in sorted(names.items()))
            latencies = [percentile(during, 50), percentile(during, 99), percentile(after, 99)]
            number = str(len(during) + len(after))
            rows.append([window.name, number, others, *latencies, _seconds(window)])
        columns = ["fault", "requests", "not full", "p50 ms", "p99 ms", "p99 ms after", "all well after s"]
        return Table(title, columns, rows)

    def _evidence(self, errors: list[Event]) -> list[str]:
        """Of each kind of unexplained error the first few: where and when, and what the router said of it."""
        found = []
        for name, number in Counter(one.name for one in errors).items():
            for one in [one for one in errors if one.name == name][:_SHOWN]:
                end = one.at + one.seconds
                near = [window for window in self._windows if window.injected <= end]
                since = f"{one.at - near[-1].healed:+.2f} s from the end of {near[-1].name}" if near else ""
                when = f"at {one.at - self._began:.2f} s for {one.seconds:.3f} s {since}"
                seen = {s.ill for s in self._health.seen if s.ill and one.at - 1 <= s.at <= end + 1}
                lines = _lines(self._broken.world.folder, one.request_id) if one.request_id else ""
                where = f"{' '.join(one.said.shards)} {when}: {one.said.detail}"
                found.append(f"{number} x {name} {where} {sorted(seen) or ''} {lines}")
        return found

    def _growth(self) -> Table:
        made: list[list[Cell]] = [
            [name, *(float(f"{one[name]:.4g}") for one in self._readings[:: len(self._readings) // 4 or 1])]
            for name in _GROWTH
        ]
        return Table("What the router held before faults", ["", *map(str, range(len(made[0]) - 1))], made)


def _drawn(rng: random.Random, duration: float, quick: bool) -> list[Fault]:
    """Each once, and again until there is one a minute; those that must come early first."""
    chosen = [[fault for fault in kinds if not quick or fault.name in QUICK] for kinds in (EARLY, SOAKED)]
    drawn = [fault for kinds in chosen for fault in rng.sample(kinds, len(kinds))]
    more = 0 if quick else int(duration / _EVERY) - len(drawn)
    return drawn + [rng.choice(chosen[1]) for _ in range(more)]


def _few(found: list[str]) -> list[str]:
    more = len(found) - _MOST
    return found[:_MOST] + ([f"and {more} more like these"] if more > 0 else [])


def _seconds(window: Window) -> str:
    return "never" if window.recovery is None else f"{window.recovery:.1f}"


def _lines(folder: Path, *texts: str, most: int = 2) -> list[str]:
    logs = (path.read_text(errors="replace") for path in folder.glob("serve-*.log"))
    lines = (line for log in logs for line in log.splitlines())
    return [line[:600] for line in lines if any(text in line for text in texts)][:most]


def _errors(folder: Path) -> list[str]:
    lines = _lines(folder, *_ERRORS, most=_SHOWN)
    return [f"the router's log has an error: {line}" for line in lines]
