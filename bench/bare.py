"""The least that Starlette on uvicorn can do for a search: read the body, return bytes made beforehand.

    python -m bench.bare FILE

It is what a router's cache hit is measured against, with the loop and the parser that the router has.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench import tuning
from bench.targets import TargetSpec
from bench.world import COLLECTION, World, search_path
from deploy.local.router import Router, listening

__all__ = ["BARE", "L1_HITS", "L2_HITS", "app", "hits_and_bare", "main"]

L1_HITS, L2_HITS, BARE = "L1 hits", "L2 hits", "bare endpoint"


def app(answer: bytes) -> Starlette:
    async def search(request: Request) -> Response:
        await request.body()
        return Response(answer, media_type="application/json")

    return Starlette(routes=[Route(search_path(COLLECTION), search, methods=["POST"])])


@contextlib.contextmanager
def hits_and_bare(
    world: World, l1: Router, l2: Router, ef_search: int
) -> Iterator[tuple[dict[str, TargetSpec], int]]:
    """Searches that L1 answers, that L2 answers, and this endpoint in a process of its own during the block.

    Beside them, the size of an answer in bytes.
    """
    cached: dict[str, Any] = {"cache": True, "ef_search": ef_search}
    specs: dict[str, TargetSpec] = {
        name: world.http(router, **cached) for name, router in ((L1_HITS, l1), (L2_HITS, l2))
    }
    for spec in specs.values():
        tuning.ask(spec, len(world.dataset.queries))
    answer, _ = world.ask(l1, 0, **cached)
    path = world.folder / "bare.json"
    path.write_bytes(answer)
    with listening([sys.executable, "-m", __name__, str(path)], world.folder / "bare.log") as endpoint:
        yield {**specs, BARE: world.http(endpoint)}, len(answer)


def main() -> None:
    answer = Path(sys.argv[1]).read_bytes()
    # It says itself where it listens.
    uvicorn.run(app(answer), port=0, loop="uvloop", http="httptools", lifespan="off", access_log=False)


if __name__ == "__main__":
    main()
