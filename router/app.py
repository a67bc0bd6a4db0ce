"""The application that `pgscatter serve` runs: reads its configuration, opens the router, serves it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from starlette.types import ASGIApp

from router.http.app import create
from router.http.keys import Keys
from router.http.keys_file import restore
from router.http.keys_watch import KeysWatch, watching
from router.http.life import Life
from router.http.metrics import Metrics
from router.logs import AccessLog, configure
from router.models.embedding import Embedded, Embeddings
from router.nodes.agreement import refusal
from router.query.errors import InvalidError, StartRefusedError
from router.serve_config import ServeConfig, from_env
from router.topology import Parts, Snapshot, Topology
from shard_config import ShardMap
from shard_config.file import codec
from shard_config.model import Collection

__all__ = ["application", "compare", "create_app"]

# More than 64 searches in flight hold; at 700, the default, young collections take 6 % of the router's time.
_ALLOCATIONS = 50_000
# Seconds between two looks at whether a start is wanted no more.
_LOOK = 0.1

_logger = logging.getLogger(__name__)


def create_app(life: Life) -> ASGIApp:
    """The application of one of several workers, by the environment that `pgscatter serve` prepared."""
    config = from_env(os.environ)
    if config.keys_copy is None:
        return application(config, _shard_map(config), None, None, life)
    copy = Path(config.keys_copy)
    watch = KeysWatch(copy, partial(restore, copy), copy=True)
    return application(config, _shard_map(config), watch.load(), watch, life)


def application(
    config: ServeConfig, shard_map: ShardMap, keys: Keys | None, watch: KeysWatch | None, life: Life
) -> ASGIApp:
    """The application that serves `shard_map` to whoever has one of `keys`, or to all if that is None.

    `watch` keeps the keys up to date.
    """
    configure(config.log_level, sys.stderr, pid=config.workers > 1)
    metrics = Metrics()
    parts = Parts(
        shard_map,
        config.settings,
        redis_url=config.redis_url,
        shared_path=None if config.shared_path is None else Path(config.shared_path),
        recall_listener=metrics,
        redis_took=metrics.redis_took,
        service_listener=metrics,
    )
    topology = Topology(shard_map, parts)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        try:
            await _unless_ending(topology.open(), life)
            if not life.ending:
                compare(topology.snapshot, config)
            _relieve_collector()
            with ExitStack() as stack:
                if keys is not None and watch is not None:
                    stack.enter_context(watching(partial(watch.look, keys), life.take_reload))
                yield
        finally:
            await topology.close()

    return create(
        lambda: topology.snapshot,
        config.settings,
        keys,
        metrics,
        embed=partial(_embed, parts.embeddings),
        embed_texts=parts.embeddings.documents,
        lifespan=lifespan,
        access_log=AccessLog(sys.stderr, level=config.log_level),
        life=life,
    )


async def _unless_ending(start: Coroutine[object, object, None], life: Life) -> None:
    """Wait for `start`, or until the process is told to end: names and nodes may take long to answer."""
    task = asyncio.create_task(start)
    try:
        while not task.done() and not life.ending:
            await asyncio.wait((task,), timeout=_LOOK)
    finally:
        if not task.done():
            task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    if isinstance(outcome, Exception):
        raise outcome


def compare(snapshot: Snapshot, config: ServeConfig) -> None:
    """See whether this map may be served.

    Raises:
        StartRefusedError: shards that answer hold something else than the map says. Those that do not are
            compared when they do.
    """
    points = snapshot.disagreements()
    if points and not config.replaces:
        lines = refusal(config.map_path, points)
        if _is_first_to_refuse(config):
            print("\n".join(lines), file=sys.stderr, flush=True)  # noqa: T201 - for whoever started it
        raise StartRefusedError(lines[0])
    silent = snapshot.unidentified()
    if silent:
        _logger.warning(
            "identity of shards unknown",
            extra={
                "shards": silent,
                "reason": "pgscatter.map is missing, empty, not to be read or not to be understood: until"
                " `pgscatter schema apply` has written it, nobody sees that a map places rows wrong",
            },
        )


def _is_first_to_refuse(config: ServeConfig) -> bool:
    """Of several workers one says why; the others see the same."""
    if config.shared_path is None:
        return True
    try:
        Path(config.shared_path).with_name("refused").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _shard_map(config: ServeConfig) -> ShardMap:
    """The map that the command read; what it says of files starts from where its own file is."""
    text = codec.read(config.map_copy or config.map_path)
    return codec.parse(text, config.map_path)


def _relieve_collector() -> None:
    """Take what is here to stay out of the garbage collector's way, and let it come less often.

    A full collection walks through all modules, for 50 ms, while every request waits. The router makes no
    cycles of references, so that what it drops is gone without one.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS, 10, 10)


async def _embed(embeddings: Embeddings, collection: Collection, text: str, deadline: float) -> Embedded:
    """What the edge wants of a text; see `router.http.backend.Embed`."""
    if collection.embedder is None:
        raise InvalidError.at("text", f"collection {collection.name} has no embedder; send a vector")
    return await embeddings.embed(collection.embedder, text, deadline)
