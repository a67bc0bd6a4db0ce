"""The least that Starlette on uvicorn can do for a search: read the body, return bytes made beforehand.

    python -m bench.bare FILE

It is what a router's cache hit is measured against, with the loop and the parser that the router has.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.world import COLLECTION, search_path
from deploy.local.router import Router, listening

__all__ = ["app", "main", "serving"]


def app(answer: bytes) -> Starlette:
    async def search(request: Request) -> Response:
        await request.body()
        return Response(answer, media_type="application/json")

    return Starlette(routes=[Route(search_path(COLLECTION), search, methods=["POST"])])


@contextlib.contextmanager
def serving(answer: bytes, folder: Path) -> Iterator[Router]:
    """It in a process of its own, while the block runs.

    Raises:
        RouterError: it does not start.
    """
    path = folder / "bare.json"
    path.write_bytes(answer)
    with listening([sys.executable, "-m", __name__, str(path)], folder / "bare.log") as endpoint:
        yield endpoint


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


if __name__ == "__main__":
    main()
