"""Figures of this process under Prometheus's standard names, and what is installed.

prometheus-client's own collector speaks for the process that is scraped alone; here each worker sets its own,
and they add up as the other gauges do. The supervisor of several workers is not among them.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

__all__ = ["ProcessMetrics"]

# An idle loop is late by some 0.1 ms, and a turn of one that is busy takes a few.
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_GAUGES = {
    "process_virtual_memory_bytes": ("Virtual memory.", "livesum"),
    "process_resident_memory_bytes": ("Resident memory.", "livesum"),
    "process_open_fds": ("Open file descriptors.", "livesum"),
    "process_max_fds": ("How many file descriptors a process may have open.", "livemin"),
    "process_start_time_seconds": ("When the first process that lives was started, as Unix time.", "livemin"),
}


class ProcessMetrics:
    """Made once per process; `sample` and `late` change it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._collector = ProcessCollector(registry=None)
        self._cpu = Counter("process_cpu_seconds", "Processor time spent.", registry=registry)
        self._counted = 0.0
        self._gauges = {
            name: Gauge(name, text, registry=registry, multiprocess_mode=mode)  # type: ignore[arg-type]
            for name, (text, mode) in _GAUGES.items()
        }
        self._threads = Gauge("process_threads", "Threads.", registry=registry, multiprocess_mode="livesum")
        self._lag = Histogram(
            "pgscatter_event_loop_lag_seconds",
            "How much later than asked for the event loop has called back, four times a second.",
            registry=registry,
            buckets=_LAG_BUCKETS,
        )
        build = Gauge(
            "pgscatter_build_info",
            "1, with the versions that run.",
            ["version", "python", "asyncpg"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        build.labels(version("pgscatter"), platform.python_version(), version("asyncpg")).set(1)

    def late(self, seconds: float) -> None:
        """The event loop has called back so much later than asked for."""
        self._lag.observe(max(0.0, seconds))

    def sample(self) -> None:
        """Take the process's figures as they are now; those that the system does not tell stay 0."""
        for family in self._collector.collect():
            value = family.samples[0].value
            if family.name == "process_cpu_seconds":
                self._cpu.inc(max(0.0, value - self._counted))
                self._counted = value
            elif family.name in self._gauges:
                self._gauges[family.name].set(value)
        try:
            self._threads.set(len(os.listdir("/proc/self/task")))
        except OSError:
            return
