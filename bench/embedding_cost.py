"""What a search by text costs the router beside the same search by vector: its own processor time.

    python -m bench.embedding_cost [--rounds N] [--searches N] [--clients N]

Every text and every vector is new, so that no cache answers. The service that turns texts into vectors is a
process that sends the same bytes to all, so that only the router's part of the call is measured. Blocks of
searches of both kinds take turns; the figure is the median of the rounds' differences.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter

import numpy as np
import yaml

from bench.http_client import Connections, request_bytes
from bench.interleave import interleave
from deploy.local import Cluster
from deploy.local.router import serve_arguments, serving

__all__ = ["main"]

_DIMENSIONS = 384
_ROWS = 1000
_SEARCH = "/v1/collections/docs/search"


class _Service(asyncio.Protocol):
    """Answers each request with one vector, without a look at more than where it ends."""

    def __init__(self) -> None:
        vector = np.random.default_rng(1).standard_normal(_DIMENSIONS).astype("<f4")
        item = {"object": "embedding", "index": 0, "embedding": base64.b64encode(vector.tobytes()).decode()}
        body = json.dumps({"object": "list", "data": [item], "model": "m"}).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._answer = head.encode() + body
        self._seen = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._seen += data
        head, end, body = self._seen.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if end and len(body) >= length and self._transport is not None:
            self._seen = b""
            self._transport.write(self._answer)


def _serve(port: Connection) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(_Service, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def _service() -> Iterator[int]:
    """The port of one in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def _cpu_seconds(pid: int) -> float:
    """Of all its threads; Linux counts it in nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def _searches(url: str, bodies: list[bytes], clients: int) -> list[float]:
    """Sends all, so many at a time; the seconds that each took."""
    connections, waiting, took = Connections(url), iter(bodies), list[float]()

    async def send() -> None:
        for body in waiting:
            began = perf_counter()
            status, answer = await connections.send(request_bytes(url, body))
            took.append(perf_counter() - began)
            if status != 200:
                raise RuntimeError(f"{status}: {answer[:200]!r}")

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(send())
    connections.close()
    return took


def _block(
    url: str, pid: int, make: Callable[[int], dict[str, object]], count: int, clients: int
) -> tuple[float, float]:
    """Milliseconds of the router's time for a search, and until a client had its answer (median)."""
    bodies = [json.dumps({**make(n), "k": 10, "timeout_ms": 20_000}).encode() for n in range(count)]
    before = _cpu_seconds(pid)
    took = asyncio.run(_searches(url, bodies, clients))
    return (_cpu_seconds(pid) - before) / count * 1000, statistics.median(took) * 1000


def _write_map(cluster: Cluster, port: int, path: Path) -> None:
    nodes = [{"name": node.name, "dsn": node.dsn} for node in cluster.nodes]
    docs = {
        "table": "public.docs",
        "id": {"column": "id", "type": "bigint"},
        "vector": {"dimensions": _DIMENSIONS, "metric": "cosine"},
        "embedder": "m",
        "sharding": {"strategy": "hash", "key": "id", "buckets": 1, "placement": {"s0": [0]}},
    }
    models = {"m": {"url": f"http://127.0.0.1:{port}/v1", "dimensions": _DIMENSIONS, "timeout": "20s"}}
    tree = {"version": 1, "shards": {"s0": {"nodes": nodes}}, "models": models, "collections": {"docs": docs}}
    path.write_text(yaml.safe_dump(tree))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--searches", type=int, default=400, help="of each kind and round")
    parser.add_argument("--clients", type=int, default=1)
    args = parser.parse_args()
    rng = np.random.default_rng(7)
    with (
        _service() as port,
        Cluster.temporary(shards=1, replicas=0, fsync=False) as cluster,
        tempfile.TemporaryDirectory() as folder,
    ):
        path, rows = Path(folder) / "map.yaml", Path(folder) / "rows.npy"
        _write_map(cluster, port, path)
        np.save(rows, rng.standard_normal((_ROWS, _DIMENSIONS)).astype("<f4"))
        of = ["--map", str(path)]
        for arguments in (["schema", "apply", *of], ["load", str(rows), *of, "--collection", "docs"]):
            subprocess.run([sys.executable, "-m", "router.cli", *arguments], check=True, stdout=sys.stderr)
        with serving(serve_arguments(path), Path(folder) / "log") as router:
            url, number = router.url + _SEARCH, iter(range(10**9))

            def by_text(_: int) -> dict[str, object]:
                return {"text": f"a question in some words that nobody asked before, number {next(number)}"}

            def by_vector(_: int) -> dict[str, object]:
                vector = rng.standard_normal(_DIMENSIONS).astype("<f4")
                return {"vector": base64.b64encode(vector.tobytes()).decode()}

            kinds = {"text": by_text, "vector": by_vector}
            measured = {
                name: lambda make=make: _block(url, router.pid, make, args.searches, args.clients)
                for name, make in kinds.items()
            }
            interleave(measured, 1)  # connections are opened, code is warm
            found = interleave(measured, args.rounds)
    for at, what in enumerate(("router's processor time", "time until the answer")):
        texts, others = ([one[at] for one in found[name]] for name in ("text", "vector"))
        extra = [text - other for text, other in zip(texts, others, strict=True)]
        medians = f"{statistics.median(texts):.3f} ms by text, {statistics.median(others):.3f} ms by vector"
        spread = f"difference {statistics.median(extra):.3f} ms ({min(extra):.3f} to {max(extra):.3f})"
        counts = f"{args.rounds} rounds of {args.searches}, {args.clients} clients"
        print(f"{what}: {medians}, {spread}, {counts}")  # noqa: T201 - it is what the command is for


if __name__ == "__main__":
    main()
