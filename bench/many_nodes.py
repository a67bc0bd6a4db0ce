"""A thousand nodes in front of one router: when all are up, what they cost, and what a blip leaves.

    python -m bench.many_nodes --nodes 1000

Four PostgreSQL servers, which ask for scram, answer under a thousand addresses: a process forwards a port
for each node, and can refuse, cut and restore all of them at once. It puts a shard's own number into
`system_identifier`, as far as it passes, since a thousand nodes are no copies of two servers. The router,
the forwarding and the servers share the machine, so that all figures are upper bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import httpx
import psycopg
import uvloop
import yaml

from bench.resources import usage
from deploy.local import Cluster
from deploy.local.router import listening, serve_arguments

_HOST = "127.0.0.1"
_FORWARDED = "127.83.0.1"  # nobody else's ports
_FIRST_PORT = 12_000  # below what the system gives to outgoing connections
_PASSWORD = "measured"
_BLIP_SECONDS = 2.5
_PATIENCE = 60.0
# After the start, statistics and tables of all shards are read for the first time, in the background.
_SETTLED_SECONDS = 45.0


class _Pipe(asyncio.Protocol):
    """One end of a forwarded connection."""

    def __init__(self, forward: Forward, index: int, other: _Pipe | None = None) -> None:
        self.forward = forward
        self.index = index
        self.other = other
        self.transport: asyncio.Transport | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.forward.pipes.add(self)
        if self.other is None:
            self.other = _Pipe(self.forward, self.index, self)
            self.forward.dial(self.other)
        for data in self.early:
            self.transport.write(data)
        self.early.clear()

    def data_received(self, data: bytes) -> None:
        if self.forward.cut or self.other is None:
            return
        data = self.forward.disguised(self.index, data)
        if self.other.transport is None:
            self.other.early.append(data)
        elif not self.other.transport.is_closing():
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.forward.pipes.discard(self)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.abort()


class Forward:
    """Ports from `first` on, each forwarded to one of `targets`; runs in a process of its own."""

    def __init__(self, first: int, targets: list[int], identities: list[int], shards: list[int]) -> None:
        self.first = first
        self.targets = targets
        self.cut = False
        self.pipes: set[_Pipe] = set()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._real = [identity.to_bytes(8, "big") for identity in identities]
        self._shown = [
            (identity ^ shard).to_bytes(8, "big") for identity, shard in zip(identities, shards, strict=True)
        ]

    def disguised(self, index: int, data: bytes) -> bytes:
        return data.replace(self._real[index], self._shown[index])

    def dial(self, pipe: _Pipe) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._dial(loop, pipe))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dial(self, loop: asyncio.AbstractEventLoop, pipe: _Pipe) -> None:
        try:
            await loop.create_connection(lambda: pipe, _HOST, self.targets[pipe.index])
        except OSError:
            if pipe.other is not None and pipe.other.transport is not None:
                pipe.other.transport.abort()

    async def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for index in range(len(self.targets)):

            def pipe(index: int = index) -> _Pipe:
                return _Pipe(self, index)

            self._servers.append(await loop.create_server(pipe, _FORWARDED, self.first + index, backlog=64))

    async def refuse(self, least: int = 0) -> None:
        for server in self._servers[least:]:
            server.close()
        del self._servers[least:]
        for pipe in [pipe for pipe in self.pipes if pipe.index >= least]:
            if pipe.transport is not None:
                pipe.transport.abort()

    async def run(self, commands: Connection) -> None:
        await self.listen()
        commands.send("listening")
        ready = asyncio.Event()
        asyncio.get_running_loop().add_reader(commands.fileno(), ready.set)
        while True:
            await ready.wait()
            ready.clear()
            while commands.poll():
                command, *arguments = commands.recv()
                if command == "end":
                    return
                if command == "refuse":
                    await self.refuse(*arguments)
                elif command == "listen":
                    await self.listen()
                else:
                    self.cut = command == "cut"
                commands.send("done")


def _forward(commands: Connection, *arguments: Any) -> None:
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        uvloop.run(Forward(*arguments).run(commands))


@contextlib.contextmanager
def _forwarding(*arguments: Any) -> Iterator[Callable[..., None]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_forward, args=(theirs, *arguments), daemon=True)
    process.start()
    ours.recv()

    def tell(*command: Any) -> None:
        ours.send(command)
        ours.recv()

    try:
        yield tell
    finally:
        ours.send(("end",))
        process.join(5)
        process.kill()


def _prepare(cluster: Cluster, connections: int) -> None:
    """Room for all connections, and passwords, on every server."""
    for node in cluster.nodes:
        with psycopg.connect(node.dsn, autocommit=True) as connection:
            if node.role == "primary":
                connection.execute(f"ALTER ROLE postgres PASSWORD '{_PASSWORD}'")
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
                connection.execute("CREATE TABLE IF NOT EXISTS docs (id bigint PRIMARY KEY, v vector(3))")
        data = cluster.directory / "nodes" / node.name / "data"
        with (data / "postgresql.conf").open("a") as conf:
            conf.write(f"max_connections = {connections}\nshared_buffers = 64MB\n")
        access = data / "pg_hba.conf"
        lines = access.read_text().splitlines()
        access.write_text(
            "\n".join(
                line.replace("trust", "scram-sha-256") if line.split()[:2] == ["host", "all"] else line
                for line in lines
            )
            + "\n"
        )
    primaries = [node.name for node in cluster.nodes if node.role == "primary"]
    replicas = [node.name for node in cluster.nodes if node.role != "primary"]
    for name in [*primaries, *replicas]:
        cluster.stop(name)
        cluster.start(name)


def _map(path: Path, nodes: int) -> None:
    server = f"postgresql://postgres:{_PASSWORD}@{_FORWARDED}"
    shards = {
        f"s{shard}": {
            "nodes": [
                {
                    "name": f"s{shard}-{name}",
                    "dsn": f"{server}:{_FIRST_PORT + 2 * shard + at}/postgres",
                }
                for at, name in enumerate("ab")
            ]
        }
        for shard in range(nodes // 2)
    }
    collection = {
        "table": "public.docs",
        "id": {"column": "id", "type": "bigint"},
        "vector": {"column": "v", "type": "vector", "dimensions": 3, "metric": "l2"},
        "sharding": {
            "strategy": "hash",
            "key": "id",
            "buckets": len(shards),
            "placement": {name: [bucket] for bucket, name in enumerate(shards)},
        },
    }
    path.write_text(yaml.safe_dump({"version": 1, "shards": shards, "collections": {"docs": collection}}))


class _Router:
    def __init__(self, url: str, pid: int) -> None:
        self.http = httpx.Client(base_url=url, timeout=30)
        self.pid = pid

    def cpu(self) -> float:
        return usage([self.pid]).cpu_seconds

    def nodes(self) -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = self.http.get("/v1/nodes").json()["nodes"]
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
    say = _say
    folder = Path(tempfile.mkdtemp(prefix="pgscatter-"))
    folder.chmod(0o755)
    try:
        with Cluster.temporary(shards=2, replicas=1, fsync=False) as cluster:
            _prepare(cluster, nodes)
            by_role = sorted(cluster.nodes, key=lambda node: node.name)
            ports, ids = [], []
            for node in by_role:
                with psycopg.connect(node.dsn, password=_PASSWORD) as connection:
                    row = connection.execute("SELECT system_identifier FROM pg_control_system()").fetchone()
                assert row is not None
                ids.append(int(row[0]))
                ports.append(node.port)
            servers = [2 * ((node // 2) % 2) + node % 2 for node in range(nodes)]
            _map(folder / "map.yaml", nodes)
            with _forwarding(
                _FIRST_PORT,
                [ports[server] for server in servers],
                [ids[server] for server in servers],
                [node // 2 for node in range(nodes)],
            ) as tell:
                began = time.monotonic()
                command = [sys.executable, "-m", "router.cli", *serve_arguments(folder / "map.yaml")]
                with listening(command, folder / "log") as running:
                    router = _Router(running.url, running.pid)
                    say(f"serves after {time.monotonic() - began:.1f} s, {router.cpu():.1f} s of a core")
                    _, up = router.until(router.up, nodes)
                    say(f"{up} of {nodes} up {time.monotonic() - began:.1f} s after the start")
                    router.until(router.warm, nodes)
                    say(f"{router.warm()} warm {time.monotonic() - began:.1f} s after the start")
                    time.sleep(_SETTLED_SECONDS)
                    say(
                        f"idle: {router.share(seconds):.1%} of a core,"
                        f" {usage([router.pid]).rss_bytes >> 20} MiB"
                    )
                    for _ in range(2):
                        asked = time.monotonic()
                        size = len(router.http.get("/metrics").content)
                        say(f"/metrics: {size} bytes in {time.monotonic() - asked:.3f} s")
                    for name, begin, end in (("refused", "refuse", "listen"), ("cut", "cut", "restore")):
                        tell(begin)
                        time.sleep(_BLIP_SECONDS)
                        before = router.cpu()
                        tell(end)
                        took, up = router.until(router.up, nodes)
                        say(
                            f"{name} for {_BLIP_SECONDS} s: {up} up after {took:.1f} s more,"
                            f" {router.cpu() - before:.1f} s of a core"
                        )
                        time.sleep(3)
                    refusing = min(512, nodes // 2)
                    tell("refuse", nodes - refusing)
                    time.sleep(15)
                    say(f"{refusing} refuse, {router.up()} are up: {router.share(seconds):.1%} of a core")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measured share of a core")
    args = parser.parse_args()
    if os.cpu_count() is not None:
        _say(f"{args.nodes} nodes, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    measure(args.nodes, args.seconds)


if __name__ == "__main__":
    main()
