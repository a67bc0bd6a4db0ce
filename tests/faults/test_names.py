"""A router one of whose names gets no answer: neither its other nodes nor its end wait for that."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from deploy.local import Cluster
from deploy.local.processes import until
from deploy.local.router import listening, serve_arguments

# The system's look-ups, but for two kinds of names: those of `.silent` get no answer while the test runs,
# those of `.test` are this machine.
_ROUTER = """
import socket, sys, time
real = socket.getaddrinfo
def getaddrinfo(host, *args, **kwargs):
    if str(host).endswith(".silent"):
        time.sleep(600)
    return real("127.0.0.1" if str(host).endswith(".test") else host, *args, **kwargs)
socket.getaddrinfo = getaddrinfo
from router.cli import main
sys.exit(main())
"""
_SECONDS = 30.0


def _map(path: Path, pair: Cluster, silent: int) -> Path:
    shards = {
        f"s{number}": {"nodes": [{"name": f"s{number}-a", "dsn": f"postgresql://u@s{number}.silent/db"}]}
        for number in range(1, silent + 1)
    }
    shards["s0"] = {
        "nodes": [
            {"name": node.name, "dsn": node.dsn.replace("127.0.0.1", f"{node.name}.test")}
            for node in pair.nodes
        ]
    }
    path.write_text(yaml.safe_dump({"version": 1, "shards": shards, "collections": {}}))
    return path


def _states(url: str) -> dict[str, str]:
    nodes = httpx.get(f"{url}/v1/nodes", timeout=_SECONDS).json()["nodes"]
    return {node["name"]: node["state"] for node in nodes}


@pytest.mark.parametrize("redis", ["cache.silent", pytest.param("cache.test", marks=pytest.mark.full)])
def test_names_without_an_answer_hold_up_neither_other_nodes_nor_redis_nor_the_end(
    pair: Cluster, tmp_path: Path, redis: str
) -> None:
    silent = 8  # more than look-ups that an event loop makes at once
    path = _map(tmp_path / "map.yaml", pair, silent)
    arguments = serve_arguments(path, redis=f"redis://{redis}:{pair.redis_url.rsplit(':', 1)[1]}")
    log = tmp_path / "log"
    with listening([sys.executable, "-c", _ROUTER, *arguments], log) as router:
        assert until(lambda: _states(router.url)["s0-a"] == "up", _SECONDS)
        assert until(lambda: _states(router.url)["s0-b"] == "up", _SECONDS)
        pair.stop("s0-b")
        assert until(lambda: _states(router.url)["s0-b"] == "down", _SECONDS)
        pair.start("s0-b")
        assert until(lambda: _states(router.url)["s0-b"] == "up", _SECONDS)
        assert {_states(router.url)[f"s{number}-a"] for number in range(1, silent + 1)} == {"down"}
        os.kill(router.pid, signal.SIGTERM)
        assert router.watcher.wait(_SECONDS) == 0, router.last_words()
    assert '"name does not resolve"' in log.read_text()
