"""A generator in a process of its own, so that its work is not charged to what it measures.

The parent writes one line, the job, and reads events, a line each; the job's process ends when its
standard input does, and so never outlives its parent, however that ends.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec
import uvloop

from bench.errors import BenchError
from bench.generators import Load, Measured, Slice, generate
from bench.targets import TargetSpec, make

__all__ = ["Job", "main", "measure"]

# Beside warm-up and measured time: starting Python, encoding the queries, connecting, waiting for the rest.
_ALLOWANCE = 120.0


class Job(msgspec.Struct, frozen=True):
    """`queries` is how many of the target's queries are asked, in a shuffled circle."""

    target: TargetSpec
    load: Load
    queries: int
    k: int = 10


class _Began(msgspec.Struct, frozen=True, tag="began"):
    pass


class _Sliced(msgspec.Struct, frozen=True, tag="sliced"):
    slice: Slice


class _Ended(msgspec.Struct, frozen=True, tag="ended"):
    pass


class _Failed(msgspec.Struct, frozen=True, tag="failed"):
    reason: str


class _Done(msgspec.Struct, frozen=True, tag="done"):
    measured: Measured


_Event: TypeAlias = _Began | _Sliced | _Ended | _Failed | _Done


def measure(
    job: Job,
    *,
    begin: Callable[[], Any] = int,
    end: Callable[[], Any] = int,
    tick: Callable[[Slice], Any] = bool,
) -> Measured:
    """Run `job` in a new process; `begin` and `end` are called here as its measured time begins and ends.

    `tick` gets each slice as it ends, where the load has any.

    Raises:
        BenchError: it failed, or did not end.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        limit = job.load.warmup + job.load.seconds + _ALLOWANCE
        timer = threading.Timer(limit, process.kill)
        timer.start()
        try:
            measured = _follow(process, job, begin, end, tick)
        finally:
            timer.cancel()
            timer.join()
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        if measured is None:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()[-1000:]
            raise BenchError(
                f"the generator ended without a result within {limit:g} s: {said or 'it was killed'}"
            )
    return measured


def _follow(
    process: subprocess.Popen[bytes],
    job: Job,
    begin: Callable[[], Any],
    end: Callable[[], Any],
    tick: Callable[[Slice], Any],
) -> Measured | None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(msgspec.json.encode(job) + b"\n")
    process.stdin.flush()
    decoder: msgspec.json.Decoder[_Event] = msgspec.json.Decoder(_Event)
    for line in process.stdout:
        if not line.endswith(b"\n"):
            break  # it ended while it wrote
        match decoder.decode(line):
            case _Began():
                begin()
            case _Sliced(part):
                tick(part)
            case _Ended():
                end()
            case _Failed(reason):
                raise BenchError(f"the generator failed: {reason}")
            case _Done(measured):
                return measured
    return None


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        event: _Event = _Done(uvloop.run(_run(job)))
    except Exception as exc:
        event = _Failed(f"{type(exc).__name__}: {exc}")
    _tell(event)


async def _run(job: Job) -> Measured:
    target = make(job.target)
    try:
        await target.open()
        return await generate(
            target,
            job.load,
            queries=job.queries,
            k=job.k,
            begin=lambda: _tell(_Began()),
            end=lambda: _tell(_Ended()),
            tick=lambda part: _tell(_Sliced(part)),
        )
    finally:
        await asyncio.wait_for(target.close(), 10)


def _tell(event: _Event) -> None:
    # Piece by piece: after uvloop has run, a write that finds the pipe full ends short, and the buffered
    # writer takes that for all of it.
    data = memoryview(msgspec.json.encode(event) + b"\n")
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


def _end_with_parent() -> None:
    # Not by the buffered reader, whose lock the main thread would want at its end.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
