"""A generator in a process of its own, so that its work is not charged to what it measures.

The parent writes one line, the job, and reads events, a line each. A further line ends the load before its
time. The job's process ends when its standard input does, and so never outlives its parent.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import msgspec
import uvloop

from bench.errors import BenchError
from bench.generators import Event, Load, Measured, Tell, generate
from bench.targets import TargetSpec, opened, read_queries

__all__ = ["Generator", "Job", "generator", "main", "measure"]

# Beside warm-up and measured time: starting Python, encoding the queries, connecting, waiting for the rest.
_ALLOWANCE = 120.0


class Job(msgspec.Struct, frozen=True):
    target: TargetSpec
    load: Load


class _Failed(msgspec.Struct, frozen=True, tag="failed"):
    reason: str


class Generator:
    """One under way; made by `generator`."""

    def __init__(self, job: Job, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self._job = job
        self._process = process
        self._errors = errors
        self._timer = self._killed_after(job.load.warmup + job.load.seconds)

    def __repr__(self) -> str:
        return f"<Generator of {self._job.load}, pid {self._process.pid}>"

    def stop(self) -> None:
        """End the load now; what is under way is still waited for."""
        self._tell(b"stop\n")
        self._timer.cancel()
        self._timer = self._killed_after(0.0)

    def follow(self, tell: Tell = lambda _: None) -> Measured:
        """What it measured; `tell` is called here when `generate` calls its own.

        Raises:
            BenchError: it failed, or did not end.
        """
        self._tell(msgspec.json.encode(self._job) + b"\n")
        assert self._process.stdout is not None
        decoder: msgspec.json.Decoder[Event | Measured | _Failed]
        decoder = msgspec.json.Decoder(Event | Measured | _Failed)
        for line in self._process.stdout:
            if not line.endswith(b"\n"):
                break  # it ended while it wrote
            event = decoder.decode(line)
            if isinstance(event, Measured):
                return event
            if isinstance(event, _Failed):
                raise BenchError(f"the generator failed: {event.reason}")
            tell(event)
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()[-1000:]
        raise BenchError(f"the generator ended without a result: {said or 'it was killed'}")

    def close(self) -> None:
        self._timer.cancel()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _killed_after(self, seconds: float) -> threading.Timer:
        """It gets so long, and an allowance for its beginning and end."""
        timer = threading.Timer(seconds + _ALLOWANCE, self._process.kill)
        timer.daemon = True
        timer.start()
        return timer

    def _tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()


@contextmanager
def generator(job: Job) -> Iterator[Generator]:
    """It in a new process, which is gone with the block."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        made = Generator(job, process, errors)
        try:
            yield made
        finally:
            made.close()


def measure(job: Job, tell: Tell = lambda _: None) -> Measured:
    """Run `job` to its end, see `Generator.follow`."""
    with generator(job) as started:
        return started.follow(tell)


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    try:
        _tell(uvloop.run(_run(job)))
    except Exception as exc:
        _tell(_Failed(f"{type(exc).__name__}: {exc}"))


async def _run(job: Job) -> Measured:
    stop = asyncio.Event()
    arguments = (asyncio.get_running_loop(), stop)
    threading.Thread(target=_listen, args=arguments, daemon=True).start()
    async with opened(job.target) as target:
        return await generate(
            target, job.load, queries=len(read_queries(job.target)), k=job.target.k, tell=_tell, stop=stop
        )


def _tell(event: Event | Measured | _Failed) -> None:
    # Piece by piece: after uvloop has run, a write that finds the pipe full ends short, and the buffered
    # writer takes that for all of it.
    data = memoryview(msgspec.json.encode(event) + b"\n")
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


def _listen(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # Not by the buffered reader, whose lock the main thread would want at its end.
    while os.read(sys.stdin.fileno(), 4096):
        loop.call_soon_threadsafe(stop.set)
    os._exit(1)


if __name__ == "__main__":
    main()
