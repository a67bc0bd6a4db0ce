"""Processors on a virtual clock: what runs at the same time shares them.

Invariant: a job of w seconds of work is done when it has been given w seconds, neither sooner nor later;
jobs of equal remaining work finish in the order they came.
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from itertools import count

__all__ = ["Host", "Process"]


class Host:
    """Egalitarian processor sharing over `cores` cores, none of which a job can use more than one of.

    The jobs' progress is one number: how much work each job that was here all along has been given
    (Kleinrock, Queueing Systems II, 1976, 4.4). So an arrival or a departure costs O(log n), however many
    jobs there are.

    Args:
        cores: how many; a fraction where others use the rest.
        crowded: the speed of a job while all cores are busy, relative to one that is alone; below 1 where
            cores share caches and execution units.

    Attributes:
        running: jobs now.
    """

    def __init__(self, cores: float, *, crowded: float = 1.0) -> None:
        self.running = 0
        self._cores = cores
        self._crowded = crowded
        self._loop = asyncio.get_running_loop()
        self._given = 0.0
        self._changed = self._loop.time()
        self._jobs: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Host of {self._cores:g} cores, {self.running} jobs>"

    async def run(self, work: float) -> None:
        """Return after `work` seconds of processor time; a cancelled job leaves at once."""
        self._advance()
        finished = self._loop.create_future()
        heappush(self._jobs, (self._given + work, next(self._numbers), finished))
        self.running += 1
        self._schedule()
        try:
            await finished
        finally:
            # Whoever is cancelled after the job's end has left the host already.
            if finished.cancelled():
                self._advance()
                self.running -= 1
                self._schedule()

    @property
    def _rate(self) -> float:
        """Work per second of each job; one that is alone on its core is as fast as the core."""
        running, cores = self.running, self._cores
        if running < cores or running <= 1:
            return min(1.0, cores)
        return cores / running * self._crowded

    def _advance(self) -> None:
        now = self._loop.time()
        self._given += (now - self._changed) * self._rate
        self._changed = now

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._jobs and self._jobs[0][2].cancelled():
            heappop(self._jobs)
        if self._jobs:
            left = max(self._jobs[0][0] - self._given, 0.0)
            self._timer = self._loop.call_at(self._changed + left / self._rate, self._finish)

    def _finish(self) -> None:
        """The job with the least work left is done: the timer was set for it."""
        self._advance()
        target, _, finished = heappop(self._jobs)
        self._given = max(self._given, target)  # rounding must not leave a rest for another timer
        # One that is cancelled at this very moment leaves by itself.
        if not finished.cancelled():
            finished.set_result(None)
            self.running -= 1
        self._schedule()


class Process:
    """Does one thing after another, in the order they are asked for, as an event loop does; on no host it
    has a processor to itself."""

    def __init__(self, host: Host | None = None) -> None:
        self.busy_seconds = 0.0
        self._host = host or Host(1)
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Process on {self._host!r}, {'busy' if self._turn.locked() else 'idle'}>"

    async def work(self, seconds: float) -> None:
        """Return when this much has been done, after all that was asked for before."""
        if seconds <= 0:
            return
        async with self._turn:
            self.busy_seconds += seconds
            await self._host.run(seconds)
