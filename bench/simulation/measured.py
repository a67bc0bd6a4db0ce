"""A real cluster of four shards on this machine, to measure what a simulation is told.

Everything is started by the commands that a user has. Invariant: whatever ends a calibration, nothing that
it started goes on.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np
import yaml

from bench.simulation.generator import Taken, Wanted
from deploy.local import Cluster
from deploy.tied_to_parent import tied_to_parent

__all__ = ["SHARDS", "Data", "MeasuringError", "Real", "real"]

SHARDS = 4
# The same router, fewer shards: what a search costs it by their number.
NARROW = {f"narrow{n}": n for n in (1, 2)}

_READY_SECONDS = 60.0
_COMMAND_SECONDS = 600.0
_POLL = 0.05


class MeasuringError(Exception):
    """A server or a command failed."""


class Data(msgspec.Struct, frozen=True):
    """Vectors around `centres` centres, as real embeddings are; uniform ones are no data to an HNSW index."""

    rows: int = 40_000
    dimensions: int = 128
    queries: int = 2_000
    centres: int = 100
    seed: int = 1


class Real:
    """A running cluster with a router; made by `real`."""

    def __init__(self, cluster: Cluster, folder: Path, url: str, router: int) -> None:
        self.cluster = cluster
        self._folder = folder
        self._address = urlsplit(url)
        self._router = router

    def __repr__(self) -> str:
        return f"<Real {self.cluster!r} behind {self._address.netloc}>"

    @property
    def dsns(self) -> list[str]:
        return [node.dsn for node in self.cluster.nodes]

    def closed_loop(
        self,
        collection: str,
        clients: int,
        *,
        seconds: float,
        warm: float,
        k: int,
        ef_search: int,
    ) -> Taken:
        """
        Raises:
            MeasuringError
        """
        wanted = Wanted(
            str(self._address.hostname),
            int(self._address.port or 80),
            collection,
            str(self._folder / "queries.npy"),
            clients,
            seconds,
            warm,
            k,
            ef_search,
            [self._router],
            [node.pid for node in self.cluster.nodes if node.pid is not None],
        )
        try:
            done = subprocess.run(
                [sys.executable, "-m", "bench.simulation.generator"],
                input=msgspec.json.encode(wanted),
                capture_output=True,
                timeout=warm + seconds + _READY_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise MeasuringError(
                f"the load generator did not end {_READY_SECONDS:g} s after its time"
            ) from exc
        if done.returncode:
            raise MeasuringError(f"the load generator failed: {done.stderr.decode()[-1000:]}")
        return msgspec.json.decode(done.stdout, type=Taken)


@contextmanager
def real(data: Data, say: Callable[[str], object]) -> Iterator[Real]:
    """Four shards with `data` in the collection `items`, a part of it in `narrow1` and `narrow2`, a router.

    Raises:
        MeasuringError: servers or commands failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="pgscatter-simulation-"))
    try:
        folder.chmod(0o755)  # PostgreSQL may have to run as another user
        base, queries = vectors(data)
        np.save(folder / "base.npy", base)
        np.save(folder / "few.npy", base[: len(base) // 20])
        np.save(folder / "queries.npy", queries)
        collections = folder / "collections.yaml"
        made = {"items": _collection("items", data, SHARDS)}
        made |= {name: _collection(name, data, shards) for name, shards in NARROW.items()}
        collections.write_text(yaml.safe_dump({"collections": made}))
        say(f"starting {SHARDS} shards")
        with Cluster.temporary(SHARDS, 0, collections) as cluster:
            where = ("--map", str(cluster.map_path))
            for name in made:
                say(f"loading {name}")
                _command(folder, "schema", "apply", *where, "--collection", name)
                source = folder / ("base.npy" if name == "items" else "few.npy")
                _command(folder, "load", str(source), *where, "--collection", name)
            with _serving(folder, cluster) as (url, pid):
                yield Real(cluster, folder, url, pid)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


Vectors = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def vectors(data: Data) -> tuple[Vectors, Vectors]:
    """Base and queries."""
    rng = np.random.default_rng(data.seed)
    centres = rng.standard_normal((data.centres, data.dimensions), dtype=np.float32)

    def around(count: int) -> Vectors:
        noise = 0.5 * rng.standard_normal((count, data.dimensions), dtype=np.float32)
        made: Vectors = centres[rng.integers(0, data.centres, count)] + noise
        return made

    return around(data.rows), around(data.queries)


def _collection(name: str, data: Data, shards: int) -> dict[str, object]:
    names = [f"s{i}" for i in range(shards)]
    placement = {shard: [f"{64 * i // shards}-{64 * (i + 1) // shards - 1}"] for i, shard in enumerate(names)}
    return {
        "table": f"public.{name}",
        "id": {"column": "id", "type": "bigint"},
        "vector": {"column": "embedding", "type": "vector", "dimensions": data.dimensions, "metric": "l2"},
        "sharding": {"strategy": "hash", "key": "id", "buckets": 64, "placement": placement},
    }


def _command(folder: Path, *arguments: str) -> None:
    log = folder / "command.log"
    log.write_bytes(b"")
    with tied_to_parent([sys.executable, "-m", "router.cli", *arguments], log) as process:
        try:
            status = process.wait(_COMMAND_SECONDS)
        except subprocess.TimeoutExpired as exc:
            raise MeasuringError(f"pgscatter {arguments[0]} took more than {_COMMAND_SECONDS:g} s") from exc
    if status:
        raise MeasuringError(f"pgscatter {arguments[0]} ended with {status}: {log.read_text()[-1000:]}")


@contextmanager
def _serving(folder: Path, cluster: Cluster) -> Iterator[tuple[str, int]]:
    log = folder / "serve.log"
    log.write_bytes(b"")
    arguments = ["serve", "--map", str(cluster.map_path), "--port", "0"]
    with tied_to_parent([sys.executable, "-m", "router.cli", *arguments], log) as watcher:
        deadline = time.monotonic() + _READY_SECONDS
        while watcher.poll() is None and time.monotonic() < deadline:
            said = re.search(r" on (http://\S+)", log.read_text())
            if said and _is_ready(said[1]):
                yield said[1], watcher.pid
                return
            time.sleep(_POLL)
        raise MeasuringError(f"the router is not ready; it said last: {log.read_text()[-1000:]}")


def _is_ready(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/readyz", timeout=5):
            return True
    except OSError:  # urllib's errors are of it, a 503 included
        return False
