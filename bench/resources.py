"""Processor time and memory of other processes: routers, and PostgreSQL servers with all their backends.

Invariant: the time of a process that ended between two readings is not lost, as long as its parent is
one of those that are read; the parent's account of ended children has it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from time import perf_counter

import msgspec
import psutil

__all__ = ["Others", "Usage", "family", "usage"]


class Usage(msgspec.Struct, frozen=True):
    """`cpu_seconds` since the processes began, `rss_bytes` now (shared pages count in each process)."""

    cpu_seconds: float
    rss_bytes: int

    def since(self, earlier: Usage) -> float:
        """Processor seconds between two readings."""
        return self.cpu_seconds - earlier.cpu_seconds


def family(pids: Iterable[int]) -> list[psutil.Process]:
    """The processes and all their descendants, those that live."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                found[one.pid] = one
    return list(found.values())


def usage(pids: Iterable[int]) -> Usage:
    """Of the families of `pids` together."""
    cpu, rss = 0.0, 0
    for process in family(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info()
            cpu += times.user + times.system + times.children_user + times.children_system
            rss += memory.rss
    return Usage(cpu, rss)


class Others:
    """How many processors others take than this process and its descendants, those that there are now."""

    def __init__(self) -> None:
        self._ours = family([os.getpid()])
        self._before = self._read()
        self.found: list[float] = []

    def __repr__(self) -> str:
        return f"<Others than {len(self._ours)} processes: {self.found[-1:]}>"

    def note(self) -> None:
        """Add to `found` what they took since the last time."""
        now = self._read()
        self.found.append(max(now[1] - self._before[1], 0.0) / (now[0] - self._before[0]))
        self._before = now

    def _read(self) -> tuple[float, float]:
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
        for process in self._ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                own = process.cpu_times()
                busy -= own.user + own.system
        return perf_counter(), busy
