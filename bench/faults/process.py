"""The load in a process of its own, so that what breaks and mends servers does not hold it up.

The parent writes one line, the job, and reads one when the load has begun. When the parent closes the
job's standard input, the load ends, and its result is the last line; so it never outlives its parent.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

import msgspec
import numpy as np
import uvloop

from bench.errors import BenchError
from bench.faults.load import Event, Rates, States, nodes_of, traffic
from bench.http_client import Connections

__all__ = ["Job", "Running", "main", "running"]

_BEGIN_SECONDS = 60.0
_END_SECONDS = 60.0
_UP_SECONDS = 60.0
_POLL_SECONDS = 0.1
# A result is one line.
_MOST_BYTES = 1 << 28


class Job(msgspec.Struct, frozen=True):
    """`url` is the router's; documents are numbered from `first_id` on."""

    url: str
    collection: str
    queries: str
    rates: Rates
    first_id: int


class _Began(msgspec.Struct, frozen=True):
    """By the machine's monotonic clock, which is the same for all processes."""

    at: float


class Result(msgspec.Struct, frozen=True):
    """What `bench.faults.load.Traffic` has found."""

    events: list[Event]
    states: States
    acknowledged: list[int]


class Running:
    """A load under way; `result` is there when it has ended."""

    def __init__(self, job: Job, began: float) -> None:
        self.result = Result([], [], [])
        self._url = job.url
        self._began = began

    def __repr__(self) -> str:
        return f"<Running load on {self._url} for {self.now:.1f} s>"

    @property
    def now(self) -> float:
        """Seconds since the load began, on its own clock."""
        return perf_counter() - self._began

    async def until_up(self, node: str) -> None:
        """Wait until the router says so.

        Raises:
            TimeoutError: it has not for a minute.
        """
        parts = urlsplit(self._url)
        connections = Connections(parts.hostname or "", parts.port or 0)
        try:
            async with asyncio.timeout(_UP_SECONDS):
                while True:
                    if (await nodes_of(connections, parts.netloc)).get(node) == "up":
                        return
                    await asyncio.sleep(_POLL_SECONDS)
        finally:
            connections.close()


@asynccontextmanager
async def running(job: Job) -> AsyncIterator[Running]:
    """Load while the block runs; at its end everything has been answered.

    Raises:
        BenchError: the generator failed.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_MOST_BYTES,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        line = await asyncio.wait_for(process.stdout.readline(), _BEGIN_SECONDS)
        if not line:
            raise BenchError("the load did not begin")
        load = Running(job, msgspec.json.decode(line, type=_Began).at)
        yield load
        process.stdin.close()
        line = await asyncio.wait_for(process.stdout.readline(), _END_SECONDS)
        if not line:
            raise BenchError("the load ended without a result")
        load.result = msgspec.json.decode(line, type=Result)
    finally:
        process.stdin.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    result = uvloop.run(_run(job))
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
    sys.stdout.buffer.flush()


async def _run(job: Job) -> Result:
    queries = np.load(Path(job.queries))
    async with traffic(job.url, job.collection, queries, job.rates, job.first_id) as load:
        sys.stdout.buffer.write(msgspec.json.encode(_Began(load.began)) + b"\n")
        sys.stdout.buffer.flush()
        # Until the parent closes it.
        await asyncio.to_thread(sys.stdin.buffer.read)
    return Result(load.events, load.states, load.acknowledged)


if __name__ == "__main__":
    main()
