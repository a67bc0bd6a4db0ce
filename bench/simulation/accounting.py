"""What processes have cost, as Linux counts it.

Processor time rather than wall time is what a calibration rests on: others use the machine, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["busy_seconds", "cpu_seconds", "family", "ran_seconds"]

_TICK = os.sysconf("SC_CLK_TCK")


def ran_seconds(pid: int) -> float:
    """Processor time of a process of one thread, to the nanosecond where it is not running just now."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of these processes, in ticks of 10 ms; those that are gone count nothing."""
    total = 0
    for pid in pids:
        fields = _stat(pid)
        if fields is not None:
            total += int(fields[11]) + int(fields[12])
    return total / _TICK


def busy_seconds() -> float:
    """What all processors together have been busy for since the machine was started."""
    numbers = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    idle = numbers[3] + numbers[4]
    # guest times are part of user's already
    return (sum(numbers[:8]) - idle) / _TICK


def family(roots: Iterable[int]) -> list[int]:
    """These processes and all that descend from them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    ahead = list(roots)
    while ahead:
        pid = ahead.pop()
        found.append(pid)
        ahead += children.get(pid, [])
    return found


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; the name before it may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
