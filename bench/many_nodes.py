"""A thousand nodes in front of one router: when all are up, what they cost, and what a blip leaves.

    python -m bench.many_nodes --nodes 1000

Four PostgreSQL servers, which ask for scram, answer under a thousand addresses: the bench's proxies forward a
port for each node, and refuse, cut and restore all of them at once. They put a shard's own number into
`system_identifier`, as far as it passes, since a thousand nodes are no copies of two servers. The router,
the proxies and the servers share the machine, so that all figures are upper bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import yaml

from bench.faults.proxies import Proxies, open_proxies
from bench.resources import usage
from bench.sql import execute, fetch
from bench.world import COLLECTION, map_entry
from deploy.local import Cluster
from deploy.local.router import listening, serve_arguments
from router.client import Client
from shard_config.model import Metric

_FORWARDED = "127.83.0.1"  # nobody else's ports
_FIRST_PORT = 12_000  # below what the system gives to outgoing connections
_PASSWORD = "measured"
_LEAST = 100  # connections of a server, which is what it had
_BLIP_SECONDS = 2.5
_PATIENCE = 60.0
# After the start, statistics and tables of all shards are read for the first time, in the background.
_SETTLED_SECONDS = 45.0


def _prepare(cluster: Cluster, connections: int) -> None:
    """Room for all connections, and passwords, on every server."""
    primaries = [node for node in cluster.nodes if node.role == "primary"]
    statement = (
        f"ALTER ROLE postgres PASSWORD '{_PASSWORD}'; CREATE EXTENSION vector;"
        f" CREATE TABLE {COLLECTION} (id bigint PRIMARY KEY, embedding vector(3))"
    )
    asyncio.run(execute(statement, *(node.dsn for node in primaries)))
    for node in cluster.nodes:
        data = cluster.directory / "nodes" / node.name / "data"
        with (data / "postgresql.conf").open("a") as conf:
            # A replica refuses to start with fewer than its primary had.
            conf.write(f"max_connections = {max(connections, _LEAST)}\nshared_buffers = 64MB\n")
        access = data / "pg_hba.conf"
        asking = re.sub(r"(?m)^(host +all\b.*)\btrust\b", r"\1scram-sha-256", access.read_text())
        access.write_text(asking)
    for node in sorted(cluster.nodes, key=lambda node: node.role):  # primaries first
        cluster.stop(node.name)
        cluster.start(node.name)


def _names(nodes: int) -> list[str]:
    return [f"s{node // 2}-{'ab'[node % 2]}" for node in range(nodes)]


def _map(path: Path, names: list[str]) -> None:
    server = f"postgresql://postgres:{_PASSWORD}@{_FORWARDED}"
    shards: dict[str, dict[str, list[dict[str, str]]]] = {}
    for number, name in enumerate(names):
        node = {"name": name, "dsn": f"{server}:{_FIRST_PORT + number}/postgres"}
        shards.setdefault(name.partition("-")[0], {"nodes": []})["nodes"].append(node)
    collections = {COLLECTION: map_entry(COLLECTION, 3, Metric.L2, len(shards))}
    path.write_text(yaml.safe_dump({"version": 1, "shards": shards, "collections": collections}))


@contextlib.contextmanager
def _proxies(cluster: Cluster, names: list[str]) -> Iterator[Proxies]:
    """A way for each name, to the servers in turns."""
    servers = sorted(cluster.nodes, key=lambda node: node.name)
    dsns = [server.dsn.replace("@", f":{_PASSWORD}@") for server in servers]
    systems = asyncio.run(fetch("SELECT system_identifier FROM pg_control_system()", *dsns))
    shown: dict[str, tuple[bytes, bytes]] = {}
    for number, name in enumerate(names):
        real: int = systems[number % len(servers)][0]
        shown[name] = real.to_bytes(8, "big"), (real ^ number // 2).to_bytes(8, "big")
    with open_proxies(
        {name: servers[number % len(servers)].port for number, name in enumerate(names)},
        addresses={name: (_FORWARDED, _FIRST_PORT + number) for number, name in enumerate(names)},
        passing=lambda name, data: data.replace(*shown[name]),
    ) as proxies:
        yield proxies


class _Router:
    def __init__(self, url: str, pid: int) -> None:
        self.ask = partial(Client(url).call, "GET")
        self.pid = pid

    def cpu(self) -> float:
        return usage([self.pid]).cpu_seconds

    def nodes(self) -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = msgspec.json.decode(self.ask("/v1/nodes"))["nodes"]
        return nodes

    def up(self) -> int:
        return sum(node["state"] == "up" for node in self.nodes())

    def warm(self) -> int:
        """Nodes that have the connection that is opened ahead."""
        return sum(node["connections"] > 0 for node in self.nodes())

    def until(self, count: Callable[[], int], wanted: int) -> tuple[float, int]:
        """When so many are, and how many are then."""
        began = time.monotonic()
        while (found := count()) < wanted and time.monotonic() - began < _PATIENCE:
            time.sleep(0.1)
        return time.monotonic() - began, found

    def share(self, seconds: float) -> float:
        """Of one core, over `seconds`."""
        before, began = self.cpu(), time.monotonic()
        time.sleep(seconds)
        return (self.cpu() - before) / (time.monotonic() - began)


def measure(nodes: int, seconds: float) -> None:
    names = _names(nodes)
    with (
        tempfile.TemporaryDirectory(prefix="pgscatter-", ignore_cleanup_errors=True) as folder,
        Cluster.temporary(shards=2, replicas=1, fsync=False) as cluster,
    ):
        map_path = Path(folder, "map.yaml")
        _map(map_path, names)
        _prepare(cluster, nodes)
        with _proxies(cluster, names) as proxies:
            began = time.monotonic()
            command = [sys.executable, "-m", "router.cli", *serve_arguments(map_path)]
            with listening(command, Path(folder, "log")) as running:
                _measure(_Router(running.url, running.pid), proxies, names, began, seconds)


def _measure(router: _Router, proxies: Proxies, names: list[str], began: float, seconds: float) -> None:
    nodes = len(names)
    _say(f"serves after {time.monotonic() - began:.1f} s, {router.cpu():.1f} s of a core")
    _, up = router.until(router.up, nodes)
    _say(f"{up} of {nodes} up {time.monotonic() - began:.1f} s after the start")
    router.until(router.warm, nodes)
    _say(f"{router.warm()} warm {time.monotonic() - began:.1f} s after the start")
    time.sleep(_SETTLED_SECONDS)
    _say(f"idle: {router.share(seconds):.1%} of a core, {usage([router.pid]).rss_bytes >> 20} MiB")
    for _ in range(2):
        asked = time.monotonic()
        size = len(router.ask("/metrics"))
        _say(f"/metrics: {size} bytes in {time.monotonic() - asked:.3f} s")
    blips = (("refused", proxies.refuse, proxies.restore), ("cut", proxies.cut, proxies.mend))
    for name, begin, end in blips:
        begin(*names)
        time.sleep(_BLIP_SECONDS)
        before = router.cpu()
        end(*names)
        took, up = router.until(router.up, nodes)
        spent = router.cpu() - before
        _say(f"{name} for {_BLIP_SECONDS} s: {up} up after {took:.1f} s more, {spent:.1f} s of a core")
        time.sleep(3)
    refusing = min(512, nodes // 2)
    proxies.refuse(*names[-refusing:])
    time.sleep(15)
    _say(f"{refusing} refuse, {router.up()} are up: {router.share(seconds):.1%} of a core")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measured share of a core")
    args = parser.parse_args()
    _say(f"{args.nodes} nodes, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    measure(args.nodes, args.seconds)


if __name__ == "__main__":
    main()
