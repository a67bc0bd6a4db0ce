"""Several workers with one map: what their shards say stops a start once, and never a router that serves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from deploy.local import Cluster
from deploy.local.router import serve_arguments, serving
from router.app import compare
from router.query.errors import StartRefusedError
from router.serve_config import ServeConfig
from shard_config import load
from tests.http.running import COMMAND
from tests.integration.apps import collection, pgscatter, write_map
from tests.integration.test_identity import changed, hashed, opened


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    with Cluster.temporary(shards=2, replicas=0, fsync=False) as running:
        yield running


@pytest.fixture
def path(pair: Cluster, tmp_path: Path) -> Path:
    made = write_map(pair, tmp_path / "map.yaml", {"docs": collection(sharding=hashed())})
    pgscatter("schema", "apply", "--map", made)
    return made


async def test_a_map_that_disagrees_is_refused_once_however_many_workers_there_are(
    path: Path, tmp_path: Path
) -> None:
    older = changed(path, version=-1)
    command = [*COMMAND, "serve", "--map", str(older), "--port", "0", "--workers", "2"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE, env=env)
    _, said = await asyncio.wait_for(process.communicate(), 60)
    text = said.decode()
    assert process.returncode == 1
    assert text.count(f"{older} is not served, because it disagrees with its shards:") == 1
    assert "pgscatter serves" not in text and "Traceback" not in text
    # Standard error has ended, so that no worker is left; nor is what they had in common.
    assert not list(tmp_path.glob("pgscatter-*"))


async def test_a_worker_that_replaces_another_serves_what_the_others_serve(pair: Cluster, path: Path) -> None:
    pgscatter("schema", "apply", "--map", changed(path, search={"timeout": "20s", "ef_search": 77}))
    async with opened(pair, load(path)) as w:
        config = ServeConfig(str(path))
        with pytest.raises(StartRefusedError):
            compare(w.router, config)
        compare(w.router, msgspec.structs.replace(config, replaces=True))


@pytest.mark.full
def test_workers_that_die_are_replaced_although_a_newer_map_was_applied(path: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(serve_arguments(path, workers=2), log) as router:
        pgscatter("schema", "apply", "--map", changed(path, search={"timeout": "20s", "ef_search": 77}))
        for pid in _workers(log):
            os.kill(pid, signal.SIGKILL)
        # Nobody is left to answer but those that came after them.
        kinds = {point["kind"] for point in _health(router.url)["disagreements"]}
        assert kinds == {"older"}
    assert router.watcher.returncode == 0
    assert len(_workers(log)) == 4


def _workers(log: Path) -> set[int]:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return {line["pid"] for line in lines if line["event"] == "nodes probed"}


def _health(url: str) -> dict[str, Any]:
    end = time.monotonic() + 20
    while True:
        try:
            answer: dict[str, Any] = httpx.get(f"{url}/health", timeout=20).json()
        except httpx.TransportError:  # it was with one that died
            assert time.monotonic() < end
        else:
            return answer
