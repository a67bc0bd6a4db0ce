"""The system under test: a cluster of its own on this machine, the data in it, and routers.

Everything is done by the commands that a user has. Invariant: whatever ends the bench, nothing that it
started goes on.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import yaml

from bench.datasets import Dataset
from bench.errors import BenchError
from bench.targets import GatherSpec, HttpSpec
from deploy.leash import leashed
from deploy.local import Cluster, ClusterError, NodeInfo
from router.postgres.sql import distance_operator
from router.query.plan import plan_search
from router.query.types import SearchQuery
from shard_config import load as load_map

__all__ = ["COLLECTION", "COPIED", "SINGLE", "Router", "World", "open_world"]

# Sharded over all nodes, whole on one, and sharded but empty and without a vector index.
COLLECTION = "items"
SINGLE = "single"
COPIED = "copied"

_READY_SECONDS = 60.0
_POLL = 0.05
# A load with its index, of the largest data sets.
_COMMAND_SECONDS = 4 * 3600.0

Say = Callable[[str], object]


class Router(msgspec.Struct, frozen=True):
    """`pids` are those of its processes, its supervisor included."""

    url: str
    pids: tuple[int, ...]
    log: Path

    def search_url(self, collection: str = COLLECTION) -> str:
        return f"{self.url}/v1/collections/{collection}/search"


class World:
    """A cluster that holds `dataset`; made by `open_world`."""

    def __init__(self, cluster: Cluster, dataset: Dataset, folder: Path, say: Say) -> None:
        self.cluster = cluster
        self.dataset = dataset
        self.folder = folder
        self._say = say
        self._routers = itertools.count(1)

    def __repr__(self) -> str:
        return f"<World {self.dataset!r} in {self.cluster!r}>"

    @property
    def map_path(self) -> Path:
        return self.cluster.map_path

    @property
    def base_path(self) -> Path:
        return self.folder / "base.npy"

    @property
    def queries_path(self) -> Path:
        return self.folder / "queries.npy"

    @property
    def primaries(self) -> list[NodeInfo]:
        """Of each shard one, in the shards' order."""
        return [node for node in self.cluster.nodes if node.role == "primary"]

    @property
    def server_pids(self) -> list[int]:
        """The postmasters of all nodes."""
        return [node.pid for node in self.cluster.nodes if node.pid is not None]

    def http(self, router: Router, collection: str = COLLECTION, **options: Any) -> HttpSpec:
        """Searches through `router`, without caches unless `options` say otherwise."""
        return HttpSpec(url=router.search_url(collection), queries=str(self.queries_path), **options)

    def gather(self, collection: str = COLLECTION, **options: Any) -> GatherSpec:
        """The same searches by an application of its own."""
        nodes = self.primaries if collection == COLLECTION else self.primaries[:1]
        return GatherSpec(
            dsns=[node.dsn for node in nodes],
            queries=str(self.queries_path),
            table=f"public.{collection}",
            operator=distance_operator(self.dataset.metric),
            **options,
        )

    def effective(self, ef_search: int, k: int) -> int:
        """The width that the router scans with: it raises what would cut its over-fetching short."""
        shard_map = load_map(self.map_path)
        vector = self.dataset.queries[0].tobytes()
        query = SearchQuery(shard_map.collections[COLLECTION], vector, k, ef_search=ef_search)
        return plan_search(query, shard_map).ef_search

    def command(self, *arguments: object) -> str:
        """Run `pgscatter ARGUMENTS`; returns what it printed.

        Raises:
            BenchError: it failed.
        """
        words = [str(argument) for argument in arguments]
        log = self.folder / "command.log"
        log.write_bytes(b"")
        with leashed([sys.executable, "-m", "router.cli", *words], log) as process:
            try:
                status = process.wait(_COMMAND_SECONDS)
            except subprocess.TimeoutExpired as exc:
                raise BenchError(f"pgscatter {words[0]} took more than {_COMMAND_SECONDS:g} s") from exc
        said = log.read_text()
        if status:
            raise BenchError(f"pgscatter {' '.join(words)} ended with {status}: {said.strip()[-1000:]}")
        return said

    def ask(self, router: Router, query: int, **fields: Any) -> tuple[bytes, dict[str, Any]]:
        """One search by JSON: the answer as it came, and decoded.

        Raises:
            BenchError: it was refused.
        """
        body = json.dumps({"vector": self.dataset.queries[query].tolist(), **fields}).encode()
        request = urllib.request.Request(
            router.search_url(), body, {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with _opener().open(request, timeout=60) as reply:
                data: bytes = reply.read()
        except OSError as exc:  # urllib's errors are of it
            raise BenchError(f"a search by the router failed: {exc}") from exc
        return data, msgspec.json.decode(data)

    def load(self, collection: str, *flags: object) -> str:
        """`pgscatter load` of the data set's base vectors."""
        self._say(f"loading {len(self.dataset.base):,} rows into {collection}, and building its index")
        where = ("--map", self.map_path, "--collection", collection)
        return self.command("load", self.base_path, *where, *flags)

    @contextmanager
    def serve(self, *, redis: bool = False, **settings: object) -> Iterator[Router]:
        """`pgscatter serve` while the block runs; `settings` are its flags.

        Raises:
            BenchError: it does not become ready.
        """
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        if redis:
            flags.append(f"--redis={self.cluster.redis_url}")
        # Its log of requests costs what it costs: that is what is shipped, and what is measured.
        log = self.folder / f"serve-{next(self._routers)}.log"
        log.write_bytes(b"")
        arguments = ["serve", "--map", str(self.map_path), "--port", "0", *flags]
        with leashed([sys.executable, "-m", "router.cli", *arguments], log) as leash:
            url = _ready(leash, log)
            children = psutil.Process(leash.pid).children(recursive=True)
            yield Router(url, tuple(child.pid for child in children), log)


@contextmanager
def open_world(
    dataset: Dataset,
    shards: int,
    *,
    replicas: int = 0,
    single: bool = False,
    copied: bool = False,
    search: Mapping[str, Any] | None = None,
    say: Say = str,
) -> Iterator[World]:
    """A temporary cluster with `dataset` in the collection `items`, ids being row numbers.

    With `single`, the same rows also stand in one unsharded table; with `copied`, there is an empty
    collection without a vector index. `search` goes into the map as it is.

    Raises:
        BenchError: servers or commands failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="pgscatter-bench-"))
    try:
        folder.chmod(0o755)  # PostgreSQL may have to run as another user
        np.save(folder / "base.npy", dataset.base)
        np.save(folder / "queries.npy", dataset.queries)
        loaded = [COLLECTION, SINGLE] if single else [COLLECTION]
        names = [*loaded, COPIED] if copied else loaded
        collections = folder / "collections.yaml"
        made = {name: _collection(name, dataset, search) for name in names}
        collections.write_text(yaml.safe_dump({"collections": made}, sort_keys=False))
        say(f"starting {shards} shards with {replicas} replicas each")
        with _cluster(folder / "cluster", shards, replicas, collections) as cluster:
            world = World(cluster, dataset, folder, say)
            for name in names:
                flags = ["--no-index"] if name == COPIED else []
                world.command("schema", "apply", "--map", world.map_path, "--collection", name, *flags)
            for name in loaded:
                world.load(name)
            yield world
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _cluster(directory: Path, shards: int, replicas: int, collections: Path) -> Iterator[Cluster]:
    cluster = Cluster(directory)
    try:
        cluster.up(shards, replicas, collections, owned=True)
    except ClusterError as exc:
        raise BenchError(str(exc)) from exc
    try:
        yield cluster
    finally:
        cluster.down()


def _collection(name: str, dataset: Dataset, search: Mapping[str, Any] | None) -> dict[str, Any]:
    vector = {
        "column": "embedding",
        "type": "vector",
        "dimensions": dataset.dimensions,
        "metric": str(dataset.metric),
    }
    sharding: dict[str, Any] = {"strategy": "hash", "key": "id", "buckets": 64}
    if name == SINGLE:
        sharding["placement"] = {"s0": ["0-63"]}
    return {
        "table": f"public.{name}",
        "id": {"column": "id", "type": "bigint"},
        "vector": vector,
        "sharding": sharding,
        # Longer than any run: what is cached stays so while hits are measured.
        "cache": {"ttl": "24h"},
        **({} if search is None else {"search": dict(search)}),
    }


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if said := re.search(r" on (http://\S+)", log.read_text()):
            try:
                with _opener().open(f"{said[1]}/readyz", timeout=5):
                    return said[1]
            except OSError:  # urllib's errors are of it, a 503 included
                pass
        time.sleep(_POLL)
    how = "is not ready" if process.poll() is None else f"ended with status {process.returncode}"
    raise BenchError(f"the router {how}; it said last: {log.read_text()[-1000:]}")


def _opener() -> urllib.request.OpenerDirector:
    """Whatever proxy the environment names, the router is on this machine."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
