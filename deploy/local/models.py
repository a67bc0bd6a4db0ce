"""Starts the model service in a process of its own and waits for it, as the demo and the tests do.

Invariant: it ends with the block that it was started for, and with its owner, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deploy.local.router import listening

__all__ = ["ModelService", "model_service"]


class ModelService(str):
    """The base URL of a running service, as a map's `models` take it: with `/v1` at its end.

    Attributes:
        root: the URL without `/v1`, where `/readyz` and `/metrics` are.
        pid: of its process.
        log: the file that it writes its log to.
    """

    root: str
    pid: int
    log: Path


@contextlib.contextmanager
def model_service(
    *flags: str, port: int = 0, log: Path | None = None, python: str = sys.executable
) -> Iterator[ModelService]:
    """Run `pgscatter models serve FLAGS` on 127.0.0.1 during the block; without flags it serves `wordllama`.

    Port 0 is any. It is stopped without the delay that load balancers need, unless a flag says so.

    Raises:
        deploy.local.router.RouterError: it did not become ready; with the last lines of its log.
    """
    command = [python, "-m", "router.cli", "models", "serve", "--port", str(port), *flags]
    env = {"PGSCATTER_MODELS_DRAIN_DELAY": "0", **os.environ}
    with contextlib.ExitStack() as stack:
        if log is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pgscatter-models-"))
            log = Path(folder) / "log"
        running = stack.enter_context(listening(command, log, ready=True, env=env))
        service = ModelService(f"{running.url}/v1")
        service.root, service.pid, service.log = running.url, running.pid, log
        yield service
