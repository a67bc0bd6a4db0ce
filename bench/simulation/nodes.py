"""A PostgreSQL server that only takes time: what stands in for the statements of a real `Node`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

from bench.simulation.hosts import Host, Process
from bench.simulation.model import Costs
from router.query.types import Probe, Row

__all__ = ["Server"]


# A statement's task starts, then writes; its answer is read, then wakes the task.
_TURNS = 2


class Server:
    """`router.nodes.dispatcher.Execute` over a host's processors; returns as many rows as are wanted.

    Attributes:
        statements, searches: how many it was given.
    """

    def __init__(
        self, number: int, host: Host, router: Process, costs: Costs, rng: Random, factor: float = 1.0
    ) -> None:
        self.number = number
        self.host = host
        self.statements = self.searches = 0
        self._router = router
        self._costs = costs
        self._rng = rng
        self._factor = factor
        self._rows: list[Row] = []

    def __repr__(self) -> str:
        return f"<Server {self.number}, {self.searches} searches in {self.statements} statements>"

    async def __call__(self, probes: Sequence[Probe]) -> list[tuple[Sequence[Row], str | None]]:
        costs = self._costs
        self.statements += 1
        self.searches += len(probes)
        await self._hops(costs.router_statement / 2)
        if costs.wire:
            await asyncio.sleep(costs.wire)
        await self.host.run(self.work(len(probes)))
        await self._hops(costs.router_statement / 2 + len(probes) * costs.router_shard / 2)
        return [(self._found(probe.wanted), None) for probe in probes]

    async def _hops(self, seconds: float) -> None:
        """The router's part, in the turns of its event loop that it takes: others are served in between."""
        for _ in range(_TURNS):
            await self._router.work(seconds / _TURNS)

    def work(self, searches: int) -> float:
        """Seconds of processor time of a statement."""
        drawn = sum(self._rng.choices(self._costs.searches, k=searches))
        return self._factor * (self._costs.statement + drawn)

    def _found(self, wanted: int) -> list[Row]:
        """Rows as (id, distance), the same ones every time: what they are changes no time."""
        while len(self._rows) < wanted:
            i = len(self._rows)
            self._rows.append((self.number << 20 | i, float(i)))
        return self._rows[:wanted]
