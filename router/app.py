"""The application that `pgscatter serve` runs: reads its configuration, opens the router, serves it."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.types import ASGIApp

from router.http.app import create
from router.http.keys_file import load as load_keys
from router.http.metrics import Metrics
from router.logs import AccessLog, configure
from router.serve_config import from_env
from router.text import TextModels
from router.topology import Topology
from shard_config import load

__all__ = ["create_app"]


def create_app() -> ASGIApp:
    """One worker's application, configured by the environment that `pgscatter serve` prepared.

    Raises:
        MapError, KeysError: the files have changed for the worse since the command checked them.
    """
    config = from_env(os.environ)
    configure(config.log_level, sys.stderr)
    topology = Topology(
        load(config.map_path),
        config.settings,
        redis_url=config.redis_url,
        shared_path=None if config.shared_path is None else Path(config.shared_path),
    )

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await topology.open()
        try:
            yield
        finally:
            await topology.close()

    return create(
        lambda: topology.snapshot,
        config.settings,
        None if config.api_keys_path is None else load_keys(Path(config.api_keys_path), os.environ),
        Metrics(),
        embed=TextModels().embed,
        lifespan=lifespan,
        access_log=AccessLog(sys.stderr, level=config.log_level),
    )
