"""Many shards at once, and a report of each by the deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from router.query.types import Probe, ShardReport, ShardRows, ShardState
from router.stages.replicas import Ask, ReplicaSet

__all__ = ["Fanout"]


class Fanout:
    """Asks replica sets at once; what has not answered in time is left and reported as late."""

    def __init__(self, sets: Mapping[str, ReplicaSet]) -> None:
        self._sets = sets

    def __repr__(self) -> str:
        return f"<Fanout over {list(self._sets.values())}>"

    async def fetch(self, probes: Mapping[str, Probe], deadline: float) -> dict[str, ShardRows]:
        """Rows and report per shard, in the order of `probes`.

        Raises:
            OverloadedError: a shard's queues are full.
        """
        parts = await self.fetch_all(list(probes.items()), deadline)
        return dict(zip(probes, parts, strict=True))

    async def fetch_all(self, probes: Sequence[tuple[str, Probe]], deadline: float) -> list[ShardRows]:
        """Rows and report per probe; a shard may have several.

        Raises:
            OverloadedError: a shard's queues are full.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        parts: dict[int, ShardRows] = {}
        complete: asyncio.Future[None] = loop.create_future()

        def came(number: int, _: str, outcome: ShardRows | Exception) -> None:
            if complete.done():
                return
            if isinstance(outcome, Exception):
                complete.set_exception(outcome)
                return
            parts[number] = outcome
            if len(parts) == len(probes):
                complete.set_result(None)

        def expire() -> None:
            if not complete.done():
                complete.set_result(None)

        asks: list[Ask] = []
        late: dict[int, ShardReport] = {}
        timer = None
        try:
            if probes and started < deadline:
                timer = loop.call_at(deadline, expire)
                for number, (name, probe) in enumerate(probes):
                    asks.append(self._sets[name].ask(probe, deadline, partial(came, number)))
                await complete
        finally:
            if timer is not None:
                timer.cancel()
            # Nobody waits here for what is left: its node cancels it, and mends the connection.
            if len(parts) < len(probes):
                for number, ask in enumerate(asks):
                    if number not in parts:
                        late[number] = ask.leave()
        return [
            parts.get(number)
            or _late(late.get(number) or ShardReport(name, ShardState.TIMED_OUT, asked=probe.asked))
            for number, (name, probe) in enumerate(probes)
        ]


def _late(report: ShardReport) -> ShardRows:
    error = f"no answer within {report.total_ms:.0f} ms"
    return ShardRows([], msgspec.structs.replace(report, error=error))
