"""Many shards at once, and a report of each by the time to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

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

    def expected(self, probes: Mapping[str, Probe]) -> tuple[float, float]:
        """On the slowest shards: seconds that a single search would wait, and that each of many takes."""
        both = [self._sets[name].expected(probe) for name, probe in probes.items()]
        return max([ahead for ahead, _ in both], default=0.0), max([each for _, each in both], default=0.0)

    async def fetch(self, probes: Mapping[str, Probe], deadline: float) -> dict[str, ShardRows]:
        """Rows and report per shard, in the order of `probes`.

        Raises:
            OverloadedError: a shard's queues are full.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        parts: dict[str, ShardRows] = {}
        failures: list[Exception] = []
        ended: asyncio.Future[None] = loop.create_future()

        def received(shard: str, outcome: ShardRows | Exception) -> None:
            if ended.done():
                return
            if isinstance(outcome, Exception):
                failures.append(outcome)
                ended.set_result(None)
                return
            parts[shard] = outcome
            if len(parts) == len(probes):
                ended.set_result(None)

        def expire() -> None:
            if not ended.done():
                ended.set_result(None)

        asks: dict[str, Ask] = {}
        late: dict[str, ShardReport] = {}
        timer = None
        try:
            if probes and started < deadline:
                timer = loop.call_at(deadline, expire)
                for name, probe in probes.items():
                    asks[name] = self._sets[name].ask(probe, deadline, received)
                await ended
        finally:
            if timer is not None:
                timer.cancel()
            # Nobody waits here for what is left: its node cancels it, and mends the connection.
            if len(parts) < len(probes):
                for name, ask in asks.items():
                    if name not in parts:
                        late[name] = ask.leave()
        if failures:
            # Out of the list: an error holds the frames that it passes, and this one would hold it in turn.
            raise failures.pop()
        if len(parts) < len(probes):
            for name, probe in probes.items():
                if name not in parts:
                    parts[name] = _late(
                        late.get(name) or ShardReport(name, ShardState.TIMED_OUT, asked=probe.asked)
                    )
        return {name: parts[name] for name in probes}


def _late(report: ShardReport) -> ShardRows:
    error = f"no answer within {report.total_ms:.0f} ms"
    return ShardRows([], msgspec.structs.replace(report, error=error, cause="timeout"))
