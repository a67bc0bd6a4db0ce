"""One measurement: a load on one target, with the recall of its answers and what it cost whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from bench.datasets import Dataset
from bench.generators import Measured, Slice
from bench.resources import usage
from bench.truth import Truth
from bench.workers import Job, measure

__all__ = ["Sample", "take"]

_PERCENTILES = (50, 90, 99, 99.9)
# What a sample has of what the generator measured.
_SAME = (
    *("seconds", "searches", "rate", "failed", "shed", "reasons", "lag99", "account", "latencies", "tiers"),
    "returned",
)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds; `recall` is None where no answer had ids to judge.

    Attributes:
        latencies: the whole HdrHistogram, in its V2 encoding; `tiers` are those of each cache.
        returned: rows of an answer on average.
        lag99: how late the generator itself was, in an open loop.
        router_cpu, server_cpu, generator_cpu: processor seconds within `seconds`.
        account: what the target counted, see `bench.targets`.
    """

    seconds: float
    searches: int
    rate: float
    p50: float
    p90: float
    p99: float
    p999: float
    failed: int
    shed: int
    reasons: dict[str, int]
    recall: float | None
    lag99: float
    router_cpu: float
    server_cpu: float
    generator_cpu: float
    router_rss_bytes: int
    account: dict[str, int]
    latencies: bytes
    tiers: dict[str, bytes] = {}
    returned: float | None = None

    @property
    def lost(self) -> int:
        return self.failed + self.shed

    @property
    def router_cpu_per_search(self) -> float:
        return self.router_cpu / max(self.searches, 1)

    @property
    def server_cpu_per_search(self) -> float:
        return self.server_cpu / max(self.searches, 1)


def take(
    job: Job,
    dataset: Dataset | None = None,
    truth: Truth | None = None,
    *,
    routers: Sequence[int] = (),
    servers: Sequence[int] = (),
    tick: Callable[[Slice], object] = lambda _: None,
) -> Sample:
    """Run `job`; `routers` and `servers` are pids whose families' processor time is read around it.

    `tick` gets each slice of it, where the load has any.

    Raises:
        BenchError: the generator failed.
    """
    readings = []

    def read() -> None:
        readings.append((usage(routers), usage(servers)))

    measured = measure(job, begin=read, end=read, tick=tick)
    (router0, server0), (router1, server1) = readings
    p50, p90, p99, p999 = (measured.at(percentile) for percentile in _PERCENTILES)
    same = {name: getattr(measured, name) for name in _SAME}
    return Sample(
        **same,
        p50=p50,
        p90=p90,
        p99=p99,
        p999=p999,
        recall=None if dataset is None or truth is None else _recall(measured, dataset, truth),
        router_cpu=router1.since(router0),
        server_cpu=server1.since(server0),
        generator_cpu=measured.cpu_seconds,
        router_rss_bytes=router1.rss_bytes,
    )


def _recall(measured: Measured, dataset: Dataset, truth: Truth) -> float | None:
    asked = np.frombuffer(measured.asked, np.int32).astype(np.int64)
    if not len(asked):
        return None
    answers = np.frombuffer(measured.answers, np.int64).reshape(-1, measured.k)
    return truth.recall(dataset, asked, answers)
