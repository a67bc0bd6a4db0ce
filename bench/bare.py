"""The least that Starlette on uvicorn can do for a search: read the body, return bytes made beforehand.

    python -m bench.bare FILE

It is what a router's cache hit is measured against, with the loop and the parser that the router has.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.errors import BenchError
from bench.world import COLLECTION, Router
from deploy.tied_to_parent import tied_to_parent

__all__ = ["app", "main", "serving"]

_PATH = f"/v1/collections/{COLLECTION}/search"
_READY_SECONDS = 30.0
_POLL = 0.05


def app(answer: bytes) -> Starlette:
    async def search(request: Request) -> Response:
        await request.body()
        return Response(answer, media_type="application/json")

    return Starlette(routes=[Route(_PATH, search, methods=["POST"])])


@contextlib.contextmanager
def serving(answer: bytes, folder: Path) -> Iterator[Router]:
    """It in a process of its own, while the block runs.

    Raises:
        BenchError: it does not start.
    """
    path, log = folder / "bare.json", folder / "bare.log"
    path.write_bytes(answer)
    log.write_bytes(b"")
    with tied_to_parent([sys.executable, "-m", __name__, str(path)], log) as watcher:
        url = _ready(watcher, log)
        children = psutil.Process(watcher.pid).children(recursive=True)
        yield Router(url, tuple(child.pid for child in children), log)


def main() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        host, port = listener.getsockname()
        sys.stderr.write(f"listening on http://{host}:{port}\n")
        sys.stderr.flush()
        config = uvicorn.Config(
            app(Path(sys.argv[1]).read_bytes()),
            loop="uvloop",
            http="httptools",
            lifespan="off",
            access_log=False,
            log_level="warning",
        )
        uvicorn.Server(config).run([listener])


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    # The kernel accepts connections from the first moment; they wait for uvicorn.
    deadline = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if said := re.search(r" on (http://\S+)\n", log.read_text()):
            return said[1]
        time.sleep(_POLL)
    raise BenchError(f"the bare endpoint does not start: {log.read_text()[-1000:]}")


if __name__ == "__main__":
    main()
