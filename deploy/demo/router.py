"""The demo's router: a child process that is ready to answer."""

from __future__ import annotations

import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from deploy.demo.commands import DemoError, command, typed
from deploy.tied_to_parent import tied_to_parent

__all__ = ["Router", "choose_port", "last_words", "serving"]

_USUAL_PORT = 8080
_READY_SECONDS = 60.0
_POLL = 0.1


class Router(NamedTuple):
    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def serving(map_path: Path, redis_url: str, log: Path, port: int) -> Iterator[Router]:
    """It, while the block runs.

    Raises:
        DemoError: it does not become ready.
    """
    arguments = ("serve", "--map", str(map_path), "--redis", redis_url, "--port", str(port))
    print(f"$ {typed(arguments)}", flush=True)
    log.write_bytes(b"")
    with tied_to_parent(command(arguments), log) as process:
        deadline = time.monotonic() + _READY_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            said = re.search(r" on (http://\S+)", log.read_text())
            if said and _is_ready(said[1]):
                yield Router(said[1], process)
                return
            time.sleep(_POLL)
        how = "is not ready" if process.poll() is None else f"ended with status {process.returncode}"
        raise DemoError(f"the router {how}; it said last:\n{last_words(log)}")


def last_words(log: Path) -> str:
    return "\n".join(log.read_text().splitlines()[-5:])


def _is_ready(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/readyz", timeout=5):
            return True
    except OSError:  # urllib's errors are of it, a 503 included
        return False


def choose_port(wanted: int | None) -> int:
    """The port to serve on; 0 is any. Without a wish it is the usual one, unless somebody has it.

    Raises:
        DemoError: the wanted one is taken.
    """
    port = _USUAL_PORT if wanted is None else wanted
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as exc:
            if wanted is None:
                return 0
            raise DemoError(f"cannot listen on port {port}: {exc}") from exc
    return port
