"""`pgscatter serve` as a process, over a map whose nodes do not answer."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.http.fake import MAP

__all__ = ["COMMAND", "Router", "failed", "serving", "until", "workers_of"]

COMMAND = [sys.executable, "-m", "router.cli"]
# Of all waits: a busy machine takes a process off its processor for seconds.
_SECONDS = 30.0


class Router:
    """A running `pgscatter serve`; what it wrote to standard error stands in a file."""

    def __init__(self, folder: Path, *flags: str, **env: str) -> None:
        map_path = folder / "map.yaml"
        map_path.write_text(MAP)
        self._log = folder / "log"
        # The nodes refuse at once; one that seemed to say nothing would be told of otherwise.
        env = {**os.environ, "TMPDIR": str(folder), "PGSCATTER_PROBE_TIMEOUT": "20", **env}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", "--map", str(map_path), "--port", "0", *flags], stderr=log, env=env
            )
        self.url = self._wait_for(r"pgscatter serves map version 12 on (http://\S+)")

    @property
    def log(self) -> str:
        return self._log.read_text()

    def lines(self) -> list[dict[str, Any]]:
        """What it logged, without what it said to whoever started it."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def get(self, path: str, **headers: str) -> httpx.Response:
        """The answer to a request on a connection of its own."""
        return httpx.get(self.url + path, headers=headers, timeout=_SECONDS)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(_SECONDS)

    def _wait_for(self, pattern: str) -> str:
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            found = re.search(pattern, self.log)
            if found:
                return found[1]
            time.sleep(0.02)
        raise AssertionError(f"not ready: {self.log}")


@contextlib.contextmanager
def serving(folder: Path, *flags: str, **env: str) -> Iterator[Router]:
    router = Router(folder, *flags, **env)
    try:
        yield router
    finally:
        if router.process.poll() is None:
            router.process.kill()
            router.process.wait(_SECONDS)


def failed(*argv: str) -> tuple[int, str]:
    done = subprocess.run([*COMMAND, *argv], capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    return done.returncode, done.stderr


def until(true: Callable[[], object], seconds: float = _SECONDS) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


def workers_of(router: Router) -> list[str]:
    children = Path(f"/proc/{router.process.pid}/task/{router.process.pid}/children")
    return [pid for pid in children.read_text().split() if "spawn_main" in cmdline(pid)]


def cmdline(pid: str) -> str:
    """Nothing of a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
