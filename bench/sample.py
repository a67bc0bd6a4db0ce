"""One measurement: a load on one target, with the recall of its answers and what it cost whom."""

from __future__ import annotations

from typing import TypeAlias

from bench.generators import Counted, Measured
from bench.resources import Usage

__all__ = ["Sample"]

_PERCENTILES = (50, 90, 99, 99.9)
# What a sample has of what the generator measured.
_SAME = (*Counted.__struct_fields__, "rate", "lag99", "returned")

# Of routers and of servers.
Costs: TypeAlias = tuple[Usage, Usage]


class Sample(Counted, frozen=True, kw_only=True):
    """Times in seconds; `recall` is None where no answer had ids to judge.

    Attributes:
        returned: rows of an answer on average.
        lag99: how late the generator itself was, in an open loop.
        router_cpu, server_cpu, generator_cpu: processor seconds within `seconds`.
    """

    rate: float
    p50: float
    p90: float
    p99: float
    p999: float
    recall: float | None
    lag99: float
    router_cpu: float
    server_cpu: float
    generator_cpu: float
    router_rss_bytes: int
    returned: float | None = None

    @classmethod
    def of(cls, measured: Measured, recall: float | None, before: Costs, after: Costs) -> Sample:
        """What a generator measured, and what routers and servers had used before and after."""
        p50, p90, p99, p999 = (measured.at(percentile) for percentile in _PERCENTILES)
        return cls(
            **{name: getattr(measured, name) for name in _SAME},
            p50=p50,
            p90=p90,
            p99=p99,
            p999=p999,
            recall=recall,
            router_cpu=after[0].since(before[0]),
            server_cpu=after[1].since(before[1]),
            generator_cpu=measured.cpu_seconds,
            router_rss_bytes=after[0].rss_bytes,
        )

    @property
    def lost(self) -> int:
        return self.failed + self.shed

    @property
    def router_cpu_per_search(self) -> float:
        return self.router_cpu / max(self.searches, 1)

    @property
    def server_cpu_per_search(self) -> float:
        return self.server_cpu / max(self.searches, 1)
