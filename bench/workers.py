"""A generator in a process of its own, so that its work is not charged to what it measures.

The parent reads events from a pipe. What it sends there ends the load before its time; and the process ends
when the pipe does, and so never outlives its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import msgspec
import uvloop

from bench.errors import BenchError
from bench.generators import Load, Measured, Tell, generate
from bench.targets import TargetSpec, opened, read_queries

__all__ = ["Generator", "Job", "generator", "measure"]

# Beside warm-up and measured time: starting Python, encoding the queries, connecting, waiting for the rest.
_ALLOWANCE = 120.0
_LOOK_SECONDS = 1.0


class Job(msgspec.Struct, frozen=True):
    target: TargetSpec
    load: Load


class Generator:
    """One under way; made by `generator`."""

    def __init__(self, job: Job) -> None:
        # A fork would have the parent's threads' locks, and its memory.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(job, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._end = time.monotonic() + job.load.warmup + job.load.seconds + _ALLOWANCE

    def __repr__(self) -> str:
        return f"<Generator {self._process!r}>"

    def stop(self) -> None:
        """End the load now; what is under way is still waited for."""
        self._pipe.send("stop")
        self._end = time.monotonic() + _ALLOWANCE

    def follow(self, tell: Tell = lambda _: None) -> Measured:
        """What it measured; `tell` is called here when `generate` calls its own.

        Raises:
            BenchError: it failed, or did not end.
        """
        with contextlib.suppress(EOFError, OSError):
            while True:
                while not self._pipe.poll(_LOOK_SECONDS):
                    if time.monotonic() > self._end:
                        raise BenchError(f"the generator did not end within {_ALLOWANCE:g} s of its time")
                event = self._pipe.recv()
                if isinstance(event, Measured):
                    return event
                if isinstance(event, BenchError):
                    raise event
                tell(event)
        raise BenchError("the generator ended without a result")

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


@contextmanager
def generator(job: Job) -> Iterator[Generator]:
    """It in a new process, which is gone with the block."""
    made = Generator(job)
    try:
        yield made
    finally:
        made.close()


def measure(job: Job, tell: Tell = lambda _: None) -> Measured:
    """Run `job` to its end, see `Generator.follow`."""
    with generator(job) as started:
        return started.follow(tell)


def _work(job: Job, pipe: Connection) -> None:
    # Ctrl-C is for the parent, whose end of the pipe goes with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pipe.send(uvloop.run(_run(job, pipe)))
    except Exception as exc:
        pipe.send(BenchError(f"the generator failed: {type(exc).__name__}: {exc}"))


async def _run(job: Job, pipe: Connection) -> Measured:
    stop = asyncio.Event()
    arguments = (pipe, asyncio.get_running_loop(), stop)
    threading.Thread(target=_listen, args=arguments, daemon=True).start()
    async with opened(job.target) as target:
        queries, k = len(read_queries(job.target)), job.target.k
        return await generate(target, job.load, queries=queries, k=k, tell=pipe.send, stop=stop)


def _listen(pipe: Connection, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    with contextlib.suppress(EOFError, OSError):
        while pipe.recv():
            loop.call_soon_threadsafe(stop.set)
    os._exit(1)
