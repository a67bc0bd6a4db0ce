"""Puts the HTTP edge together over a router that somebody else builds and opens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from time import perf_counter

from starlette.types import ASGIApp

from router.http import docs_page, openapi
from router.http.backend import Backend, Embed
from router.http.edge import Edge
from router.http.inspect import Inspection
from router.http.keys import Keys
from router.http.life import Life
from router.http.metrics import Metrics
from router.http.open_files import OpenFiles
from router.http.operations import operations
from router.http.pages import Pages
from router.http.routes import Routes
from router.logs import AccessLog
from router.models.repeated import EmbedTexts
from router.settings import Settings

__all__ = ["create"]

_logger = logging.getLogger(__name__)

# Scrapes come every few seconds at most, and one that hits another worker reads our last sample. With a
# thousand nodes one takes 50 ms: no more than a hundredth of the time is spent on them.
_SAMPLE_INTERVAL, _SAMPLE_SHARE = 1.0, 0.01
_LAG_INTERVAL = 0.25


def create(
    backend: Callable[[], Backend],
    settings: Settings,
    keys: Keys | None,
    metrics: Metrics,
    *,
    embed: Embed,
    embed_texts: EmbedTexts,
    lifespan: Callable[[], AbstractAsyncContextManager[None]],
    access_log: AccessLog,
    life: Life | None = None,
) -> ASGIApp:
    """The application that serves `backend()`, which is called once per request.

    `embed` is for texts that are searched for, `embed_texts` for those of documents to store. `keys` of None
    leaves everything open. `lifespan` opens the router and closes it; `backend` is not
    called outside it. Once `life` ends, it is not ready any more.
    """
    inspection = Inspection(version("pgscatter"), Life() if life is None else life, keys)
    metrics.keys = keys
    pages = Pages(metrics)
    routes = Routes(operations(settings, embed, embed_texts, inspection, pages))
    description = openapi.document(routes.operations, version("pgscatter"), keys=keys is not None)
    pages.describe(description, docs_page.render(description))

    @asynccontextmanager
    async def lifetime(_: object) -> AsyncIterator[None]:
        async with lifespan(), _sampling(metrics, backend), _watching_the_loop(metrics):
            yield

    return Edge(routes, backend, settings, keys, metrics, access_log, lifetime)


@asynccontextmanager
async def _sampling(metrics: Metrics, backend: Callable[[], Backend]) -> AsyncIterator[None]:
    """Keeps the gauges fresh for scrapes that another worker answers."""

    async def sample() -> None:
        failing = False
        while True:
            began = perf_counter()
            try:
                metrics.sample(backend())
                failing = False
            except Exception:
                # A loop that ended here would leave other workers with our last values, for ever.
                if not failing:
                    _logger.exception("metrics not sampled; that is tried again soon")
                failing = True
            await asyncio.sleep(max(_SAMPLE_INTERVAL, (perf_counter() - began) / _SAMPLE_SHARE))

    task = asyncio.create_task(sample(), name="metrics sampling")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        metrics.write()


@asynccontextmanager
async def _watching_the_loop(metrics: Metrics) -> AsyncIterator[None]:
    """Measures how late the event loop is, which every request waits for, and sees whether files are left."""
    loop = asyncio.get_running_loop()
    files = OpenFiles()

    async def watch() -> None:
        while True:
            expected = loop.time() + _LAG_INTERVAL
            await asyncio.sleep(_LAG_INTERVAL)
            metrics.process.late(loop.time() - expected)
            files.look()

    task = asyncio.create_task(watch(), name="event loop lag")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
