"""A PostgreSQL server that only takes time: what stands in for the statements of a real `Node`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

from bench.simulation.hosts import Host, Process
from bench.simulation.model import Costs, Stragglers
from router.query.types import Probe, Row

__all__ = ["Server"]


# A statement's task starts, then writes; its answer is read, then wakes the task.
_TURNS = 2


class Server:
    """`router.nodes.dispatcher.Execute` over a host's processors; returns as many rows as are wanted.

    Attributes:
        statements, searches: how many it was given.
        running: statements now.
    """

    def __init__(
        self,
        number: int,
        host: Host,
        router: Process,
        costs: Costs,
        rng: Random,
        straggler: Stragglers | None = None,
    ) -> None:
        self.number = number
        self.host = host
        self.statements = self.searches = self.running = 0
        self._router = router
        self._costs = costs
        self._rng = rng
        self._straggler = straggler
        self._pause = (0.0, 0.0)  # from, to
        self._rows: list[Row] = []

    def __repr__(self) -> str:
        return f"<Server {self.number}, {self.running} running, {self.statements} before>"

    async def __call__(self, probes: Sequence[Probe]) -> list[tuple[Sequence[Row], str | None]]:
        costs = self._costs
        self.statements += 1
        self.searches += len(probes)
        self.running += 1
        try:
            await self._hops(costs.router_statement / 2)
            if costs.wire:
                await asyncio.sleep(costs.wire)
            await self._paused()
            await self.host.run(self.work(len(probes)))
            await self._hops(costs.router_statement / 2 + len(probes) * costs.router_shard / 2)
        finally:
            self.running -= 1
        return [(self._found(probe.wanted), None) for probe in probes]

    async def _hops(self, seconds: float) -> None:
        """The router's part, in the turns of its event loop that it takes: others are served in between."""
        for _ in range(_TURNS):
            await self._router.work(seconds / _TURNS)

    def work(self, searches: int) -> float:
        """Seconds of processor time of a statement."""
        drawn = sum(self._rng.choices(self._costs.searches, k=searches))
        factor = 1.0 if self._straggler is None else self._straggler.factor
        return factor * (self._costs.statement + drawn)

    async def _paused(self) -> None:
        straggler = self._straggler
        if straggler is None or not straggler.pause:
            return
        now = asyncio.get_running_loop().time()
        while self._pause[1] <= now:
            begin = self._pause[1] + self._rng.expovariate(1 / straggler.every)
            self._pause = (begin, begin + straggler.pause)
        if self._pause[0] <= now:
            await asyncio.sleep(self._pause[1] - now)

    def _found(self, wanted: int) -> list[Row]:
        """Rows as (id, distance), the same ones every time: what they are changes no time."""
        while len(self._rows) < wanted:
            i = len(self._rows)
            self._rows.append((self.number << 20 | i, float(i)))
        return self._rows[:wanted]
