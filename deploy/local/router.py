"""Starts a router in a process of its own and waits for it, as the demo, the tests and the benches do.

Invariant: it ends with the block that it was started for, and with its owner, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deploy.local import processes
from deploy.tied_to_parent import tied_to_parent
from router.client import Client, ClientError

__all__ = ["Router", "RouterError", "listening", "serve_arguments", "serving"]

_READY_SECONDS = 60.0
_POLL = 0.02
_ASK_SECONDS = 5.0
_LAST_LINES = 5


class RouterError(Exception):
    """A router did not become ready; the message ends with the last lines of its log."""


class Router:
    """A running server of HTTP.

    Attributes:
        pid: of the command; the processes of its workers descend from it.
        watcher: ends when the command does, with the same status.
    """

    def __init__(self, url: str, pid: int, log: Path, watcher: subprocess.Popen[bytes]) -> None:
        self.url = url
        self.pid = pid
        self.log = log
        self.watcher = watcher

    def __repr__(self) -> str:
        return f"<Router {self.url}, pid {self.pid}>"

    def last_words(self) -> str:
        return _last_words(self.log)


def serve_arguments(map_path: Path, *, port: object = 0, **settings: object) -> list[str]:
    """The arguments of `pgscatter` that start a router with these settings; port 0 is any."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return ["serve", "--map", str(map_path), "--port", f"{port}", *flags]


@contextlib.contextmanager
def serving(arguments: Sequence[str], log: Path, *, ready: bool = True) -> Iterator[Router]:
    """Run `pgscatter ARGUMENTS`, see `serve_arguments`, during the block; its output goes to `log`.

    Without `ready` it only has to listen: its nodes may all be down.

    It is stopped without the delay that load balancers need, unless the arguments say so.

    Raises:
        RouterError
    """
    env = {"PGSCATTER_DRAIN_DELAY": "0", **os.environ}
    with listening([sys.executable, "-m", "router.cli", *arguments], log, ready=ready, env=env) as router:
        yield router


@contextlib.contextmanager
def listening(
    command: Sequence[str], log: Path, *, ready: bool = False, env: Mapping[str, str] | None = None
) -> Iterator[Router]:
    """Run a server that prints on which http://HOST:PORT it listens, during the block.

    Raises:
        RouterError
    """
    log.write_bytes(b"")
    with tied_to_parent(command, log, env) as watcher:
        deadline = time.monotonic() + _READY_SECONDS
        while not (url := _address(log)) or (ready and not _is_ready(url)):
            if watcher.poll() is not None or time.monotonic() > deadline:
                how = "is not ready" if watcher.poll() is None else f"ended with status {watcher.returncode}"
                raise RouterError(f"the router {how}; it said last:\n{_last_words(log)}")
            time.sleep(_POLL)
        pid = (*processes.family(watcher.pid)[1:], watcher.pid)[0]
        yield Router(url, pid, log, watcher)


def _address(log: Path) -> str | None:
    said = re.search(r" on (http://\S+)\s", log.read_text(errors="replace"))
    return said[1] if said else None


def _is_ready(url: str) -> bool:
    try:
        Client(url, timeout=_ASK_SECONDS).call("GET", "/readyz")
    except ClientError:
        return False
    return True


def _last_words(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
