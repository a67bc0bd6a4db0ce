"""Generators of load: clients that wait for each answer, or arrivals that wait for nothing.

A closed loop slows down with the system it measures, which is what N callers do. An open loop keeps its
rate: a search that should have started during a stall is late by all of it, so latency counts from the
intended start (Tene's coordinated omission). What cannot start because too many are under way is
counted as shed, never left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from time import perf_counter
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.errors import SearchError
from bench.percentiles import Latencies

__all__ = [
    *("INTENDED", "Closed", "Counted", "Event", "Load", "Measured", "Open", "Slice", "Target", "Tell"),
    "generate",
]

# Answers kept for recall; 8 bytes per row of an answer. Beyond it latency is measured, recall is not.
_MOST_ANSWERS = 1_000_000
_MOST_REASONS = 10
# Drawn at a time, so that a long run keeps no list of all its queries.
_DRAWN = 4096
# A failing system is asked again after this, not in a circle that takes its processor away.
_PAUSE_AFTER_FAILURE = 0.005
# What is under way at the end gets this long; then it has failed.
_GRACE = 60.0

# When the search of this task was to start, by `perf_counter`; for targets that keep times themselves.
INTENDED: ContextVar[float] = ContextVar("INTENDED")


class Target:
    """What is measured: it answers queries by their number."""

    async def open(self) -> None:
        """Connect, before anything is measured."""

    async def search(self, query: int) -> Sequence[int]:
        """Ids, nearest first. It must wait for something, be it `asyncio.sleep(0)`.

        Raises:
            SearchError
        """
        raise NotImplementedError

    def account(self) -> dict[str, int]:
        """What it counted itself, such as hits of caches."""
        return {}

    def tiers(self) -> dict[str, Latencies]:
        """Latencies by what answered, where it knows."""
        return {}

    def record(self) -> bytes:
        """What else it has to tell, for whoever knows what is in it."""
        return b""

    async def close(self) -> None:
        """Give up all connections."""


class Closed(msgspec.Struct, frozen=True):
    """`clients` callers, each with one search at a time, for `seconds` after `warmup`.

    Attributes:
        zipf: the exponent with which some queries are more popular than others; at 0 each is asked as
            often as any other, in a shuffled circle.
        slice: tell of every so many seconds while it runs; 0 does not.
    """

    clients: int
    seconds: float
    warmup: float = 1.0
    seed: int = 0
    zipf: float = 0.0
    slice: float = 0.0


class Open(msgspec.Struct, frozen=True):
    """`rate` searches a second, evenly or by Poisson, whatever becomes of them; see `Closed`."""

    rate: float
    seconds: float
    warmup: float = 1.0
    seed: int = 0
    zipf: float = 0.0
    slice: float = 0.0
    poisson: bool = True
    outstanding: int = 1024


Load: TypeAlias = Closed | Open


class Slice(msgspec.Struct, frozen=True):
    """A part of a run: what ended within `seconds`, `at` seconds after the measured time began."""

    at: float
    seconds: float
    searches: int
    failed: int
    shed: int
    p50: float
    p99: float
    p999: float
    most: float

    @property
    def rate(self) -> float:
        return self.searches / self.seconds


# What a generator tells while it runs.
Event: TypeAlias = Literal["began", "ended"] | Slice
Tell: TypeAlias = Callable[[Event], object]


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the searches of one run of a generator, without its warm-up.

    Attributes:
        searches: completed within `seconds`; `failed` and `shed` are beside them.
        latencies: of those, and in an open loop of all that were to start within `seconds`: the whole
            HdrHistogram, in its V2 encoding; `tiers` are those of each cache.
        account, tiers: of the target, see `bench.targets`; the warm-up's are among them.
    """

    seconds: float
    searches: int
    failed: int
    shed: int
    reasons: dict[str, int]
    latencies: bytes
    account: dict[str, int]
    tiers: dict[str, bytes] = {}


class Measured(Counted, frozen=True, kw_only=True, eq=False):
    """One run of a generator.

    Attributes:
        lag: how late the generator itself started searches; empty in a closed loop.
        cpu_seconds: of the generator's process.
        asked, answers: queries' numbers (m,) and k ids each (m, k), -1 for none.
        record: of the target; the warm-up's is in it.
    """

    lag: bytes
    cpu_seconds: float
    asked: NDArray[np.int64]
    answers: NDArray[np.int64]
    record: bytes = b""

    @property
    def rate(self) -> float:
        return self.searches / self.seconds

    @property
    def lag99(self) -> float:
        return Latencies.decode(self.lag).at(99)

    def at(self, percentile: float) -> float:
        return Latencies.decode(self.latencies).at(percentile)

    @property
    def returned(self) -> float | None:
        """Rows of an answer on average; None if no answer was kept."""
        return float((self.answers >= 0).sum(axis=1).mean()) if len(self.answers) else None


class _Recorder:
    """Counts while it is `open`; changed by the generators' searches only."""

    def __init__(self, target: Target, k: int, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.open = False
        self.latencies = Latencies()
        self._recent = Latencies()
        self._before = (0, 0, 0)
        self.lag = Latencies()
        self.searches = self.failed = self.shed = 0
        self.reasons: dict[str, int] = {}
        self._target = target
        self._k = k
        self._asked = array("i")
        self._answers = array("q")

    async def search(self, query: int, started: float, counted: Callable[[], bool]) -> bool:
        """One search, and whether it had an answer; `counted` is asked when it has ended."""
        try:
            ids = await self._target.search(query)
        except SearchError as exc:
            if counted():
                self.fail(str(exc))
            return False
        self.searches += self.open
        if counted():
            self._recent.record(self.clock() - started)
            self._keep(query, ids)
        return True

    def fail(self, reason: str) -> None:
        self.failed += 1
        if reason in self.reasons or len(self.reasons) < _MOST_REASONS:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def _keep(self, query: int, ids: Sequence[int]) -> None:
        if len(self._asked) < _MOST_ANSWERS:
            self._asked.append(query)
            self._answers.extend(ids[: self._k])
            self._answers.extend([-1] * (self._k - len(ids)))

    def cut(self, at: float, seconds: float) -> Slice:
        """What came since the last cut."""
        now = (self.searches, self.failed, self.shed)
        searches, failed, shed = (new - old for new, old in zip(now, self._before, strict=True))
        recent, self._recent, self._before = self._recent, Latencies(), now
        self.latencies.merge([recent])
        p50, p99, p999, most = (recent.at(percentile) for percentile in (50, 99, 99.9, 100))
        return Slice(at, seconds, searches, failed, shed, p50, p99, p999, most)

    def measured(self, seconds: float, cpu_seconds: float) -> Measured:
        self.latencies.merge([self._recent])
        return Measured(
            seconds=seconds,
            searches=self.searches,
            failed=self.failed,
            shed=self.shed,
            reasons=self.reasons,
            latencies=self.latencies.encode(),
            lag=self.lag.encode(),
            cpu_seconds=cpu_seconds,
            asked=np.array(self._asked, np.int64),
            answers=np.array(self._answers, np.int64).reshape(len(self._asked), self._k),
            account=self._target.account(),
            tiers={name: found.encode() for name, found in self._target.tiers().items()},
            record=self._target.record(),
        )


async def _window(recorder: _Recorder, load: Load, stop: asyncio.Event, tell: Tell) -> tuple[float, float]:
    """Open the recorder after the warm-up, and close it after the time; returns both clocks' seconds."""
    await asyncio.sleep(load.warmup)
    tell("began")
    last = started = recorder.clock()
    cpu = time.process_time()
    recorder.open = True
    while (left := started + load.seconds - recorder.clock()) > 0 and not stop.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left, load.slice or left)):
                await stop.wait()
        if load.slice:
            now = recorder.clock()
            tell(recorder.cut(last - started, now - last))
            last = now
    recorder.open = False
    spent = recorder.clock() - started, time.process_time() - cpu
    tell("ended")
    return spent


async def generate(
    target: Target,
    load: Load,
    *,
    queries: int,
    k: int,
    tell: Tell = lambda _: None,
    stop: asyncio.Event | None = None,
    clock: Callable[[], float] = perf_counter,
) -> Measured:
    """Run `load` over a target that is open.

    `tell` hears when the measured time begins and ends, and of each slice of it, where the load has any;
    `stop` ends it before its time. `clock` is that of the loop where time is simulated.

    Raises:
        Exception: whatever the target raises that is no `SearchError`.
    """
    recorder = _Recorder(target, k, clock)
    order = _order(load, queries)
    try:
        # A search that fails in an unexpected way ends all others.
        async with asyncio.TaskGroup() as tasks:
            measuring = tasks.create_task(_window(recorder, load, stop or asyncio.Event(), tell))
            if isinstance(load, Closed):
                clients = (_client(recorder, order, measuring) for _ in range(load.clients))
                under_way = {tasks.create_task(client) for client in clients}
            else:
                under_way = await _arrivals(recorder, load, order, measuring, tasks)
            await measuring
            _, late = await asyncio.wait(under_way, timeout=_GRACE) if under_way else (None, set())
            for task in late:
                recorder.fail(f"no answer {_GRACE:g} s after the end")
                task.cancel()
    except ExceptionGroup as exc:
        raise exc.exceptions[0] from None
    return recorder.measured(*measuring.result())


def _order(load: Load, queries: int) -> Iterator[int]:
    """Numbers of queries without end: a shuffled circle, or by popularity of 1/rank**zipf."""
    rng = np.random.default_rng(load.seed)
    shuffled = rng.permutation(queries)
    if not load.zipf:
        return itertools.cycle(shuffled.tolist())
    weights = np.arange(1.0, queries + 1) ** -load.zipf
    weights /= weights.sum()
    blocks = (rng.choice(shuffled, _DRAWN, p=weights).tolist() for _ in itertools.count())
    return itertools.chain.from_iterable(blocks)


async def _client(recorder: _Recorder, order: Iterator[int], measuring: asyncio.Task[Any]) -> None:
    while not measuring.done():
        if not await recorder.search(next(order), recorder.clock(), lambda: recorder.open):
            await asyncio.sleep(_PAUSE_AFTER_FAILURE)


async def _arrivals(
    recorder: _Recorder,
    load: Open,
    order: Iterator[int],
    measuring: asyncio.Task[Any],
    tasks: asyncio.TaskGroup,
) -> set[asyncio.Task[None]]:
    """Start searches until the load is over; returns those that are still under way."""
    rng = np.random.default_rng(load.seed)
    due = recorder.clock()
    first = due + load.warmup
    last = first + load.seconds
    under_way: set[asyncio.Task[None]] = set()

    async def one(query: int, intended: float) -> None:
        INTENDED.set(intended)
        await recorder.search(query, intended, lambda: intended >= first)

    while due < last and not measuring.done():
        # Late by whatever kept the loop busy; what is due by now starts now, in one go.
        await asyncio.sleep(max(0.0, due - recorder.clock()))
        while due < last and due <= recorder.clock():
            if due >= first:
                recorder.lag.record(recorder.clock() - due)
            if len(under_way) < load.outstanding:
                task = tasks.create_task(one(next(order), due))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            elif due >= first:
                recorder.shed += 1
            due += rng.exponential(1 / load.rate) if load.poisson else 1 / load.rate
    return under_way
