"""One caller in a process of its own, so that what a test does meanwhile does not slow it down."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.http_client import Connections, request_bytes

__all__ = ["calling"]

_PAUSE = 0.005


@contextmanager
def calling(url: str, method: str, path: str, bodies: Sequence[dict[str, Any]] = ()) -> Iterator[list[float]]:
    """Asks again and again until the block ends; then the list has each answer's seconds, all of them 200."""
    command = [sys.executable, "-m", "tests.integration.caller", url, method, path]
    seconds: list[float] = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(list(bodies)) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "begun\n"
        try:
            yield seconds
        finally:
            process.stdin.close()
            seconds += json.loads(process.stdout.readline() or "[]")
    assert process.returncode == 0 and seconds


async def main(url: str, method: str, path: str) -> None:
    bodies = [json.dumps(body).encode() for body in json.loads(sys.stdin.readline())] or [b""]
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    requests = [request_bytes(f"{url}{path}", body, method) for body in bodies]
    connections = Connections(url, answer_seconds=60)
    seconds: list[float] = []
    while not ended.is_set():
        started = time.perf_counter()
        status, _ = await connections.send(requests[len(seconds) % len(requests)])
        assert status == 200, status
        seconds.append(time.perf_counter() - started)
        if len(seconds) == 1:
            sys.stdout.write("begun\n")
            sys.stdout.flush()
        await asyncio.sleep(_PAUSE)
    connections.close()
    sys.stdout.write(json.dumps(seconds) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
