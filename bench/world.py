"""The system under test: a cluster of its own on this machine, the data in it, and routers.

Tables, rows and routers come to be as by the commands that a user has. Invariant: whatever ends the bench,
nothing that it started goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import redis
import yaml

from bench.datasets import Dataset
from bench.errors import BenchError
from bench.sql import execute, fetch
from bench.targets import GatherSpec, HttpSpec
from deploy.local import Cluster, NodeInfo
from deploy.local.router import Router, serve_arguments, serving
from router.bulk.errors import LoadError
from router.bulk.load import Options, Summary, load
from router.client import Client, ClientError
from router.postgres.search import SearchStatement, SearchStatements
from router.postgres.sql import distance_operator
from router.query.plan import Plan, plan_search
from router.query.sizes import Layout
from router.query.types import SearchQuery
from router.query.wire import to_wire
from router.schema.apply import apply
from router.terminal import Display
from shard_config import load as load_map
from shard_config.model import Metric

__all__ = ["COLLECTION", "COPIED", "SINGLE", "Router", "World", "map_entry", "open_world", "server_record"]

# Sharded over all nodes, a name for a table on one of them, and sharded but empty and without an index.
COLLECTION = "items"
SINGLE = "single"
COPIED = "copied"

# What decides how fast a search is, and what a load costs.
_SETTINGS = (
    *("shared_buffers", "effective_cache_size", "work_mem", "maintenance_work_mem", "max_connections", "jit"),
    *("max_worker_processes", "max_parallel_workers", "max_parallel_maintenance_workers", "io_method"),
    *("fsync", "synchronous_commit", "wal_level", "max_wal_size", "huge_pages", "random_page_cost"),
    *("hnsw.ef_search", "hnsw.iterative_scan", "hnsw.max_scan_tuples", "hnsw.scan_mem_multiplier"),
)
# To compute with a vector loads its library, and its settings with it.
_SERVER_RECORD = f"""
SELECT current_setting('server_version') AS postgresql, extversion AS pgvector,
    (SELECT json_object_agg(name, current_setting(name) ORDER BY place)
     FROM unnest(ARRAY{[*_SETTINGS]}) WITH ORDINALITY AS wanted (name, place)
     JOIN pg_settings USING (name)) AS settings
FROM pg_extension, (SELECT '[1]'::vector) AS loaded WHERE extname = 'vector'
"""
_ASK_SECONDS = 60.0


class World:
    """A cluster that holds `dataset`; made by `open_world`."""

    def __init__(
        self,
        cluster: Cluster,
        dataset: Dataset,
        folder: Path,
        display: Display,
        spread: Mapping[str, int],
        k: int,
    ) -> None:
        self.cluster = cluster
        self.dataset = dataset
        self.folder = folder
        self.map_path = cluster.map_path
        self.base_path, self.queries_path = folder / "base.npy", folder / "queries.npy"
        self.k = k
        self.flags: list[str] = []
        self._display = display
        self._spread = spread
        self._routers = itertools.count(1)

    def __repr__(self) -> str:
        return f"<World {self.dataset!r} in {self.cluster!r}>"

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
        url = f"{router.url}{search_path(collection)}"
        return HttpSpec(url=url, pid=router.pid, k=self.k, **{"queries": str(self.queries_path), **options})

    def gather(self, collection: str = COLLECTION, **options: Any) -> GatherSpec:
        """The same searches by an application of its own."""
        return GatherSpec(
            dsns=[node.dsn for node in self.primaries[: self._spread.get(collection)]],
            queries=str(self.queries_path),
            table=f"public.{collection}",
            operator=distance_operator(self.dataset.metric),
            k=self.k,
            **options,
        )

    def distinct(self, count: int, seed: int = 0) -> str:
        """The file of as many different queries as wanted."""
        rng = np.random.default_rng(seed)
        rows = np.resize(self.dataset.queries, (count, self.dataset.dimensions)).astype(np.float32)
        # Near enough to the queries to cost the same, far enough to be none of them.
        rows *= 1 + 1e-4 * rng.standard_normal((count, 1), dtype=np.float32)
        path = self.folder / "distinct.npy"
        np.save(path, rows)
        return str(path)

    def effective(self, ef_search: int, collection: str = COLLECTION) -> int:
        """The width that the router scans with: it raises what would cut k short."""
        return self._planned(ef_search, collection)[1].ef_search

    def statements(self, ef_search: int) -> list[SearchStatement]:
        """What the router sends to a shard for each of the queries; `effective` is how wide it scans."""
        searched, plan = self._planned(ef_search, COLLECTION)
        collection, made = searched.collection, SearchStatements()
        return [
            made.search(
                collection,
                to_wire(query.tobytes(), collection.vector.type),
                limit=plan.limit,
                candidates=plan.candidates,
                ef_search=plan.ef_search,
                scan=plan.scan,
                filter=None,
                layout=Layout(frozenset()),
            )
            for query in self.dataset.queries
        ]

    def _planned(self, ef_search: int, collection: str) -> tuple[SearchQuery, Plan]:
        shard_map = load_map(self.map_path)
        vector = self.dataset.queries[0].tobytes()
        query = SearchQuery(shard_map.collections[collection], vector, self.k, ef_search=ef_search)
        return query, plan_search(query, shard_map)

    def sql(self, statement: str) -> None:
        """Run it on every primary."""
        asyncio.run(execute(statement, *(node.dsn for node in self.primaries)))

    def holding(self, first: int) -> Counter[int]:
        """How many primaries hold each id from `first` on."""
        self.cluster.status()
        statement = f"SELECT id FROM public.{COLLECTION} WHERE id >= {first}"
        return Counter(row["id"] for row in asyncio.run(fetch(statement, *(n.dsn for n in self.primaries))))

    def ask(
        self, router: Router, query: int, *, collection: str = COLLECTION, **fields: Any
    ) -> tuple[bytes, dict[str, Any]]:
        """One search by JSON: the answer as it came, and decoded."""
        body = {"vector": self.dataset.queries[query].tolist(), "k": self.k, **fields}
        try:
            data = Client(router.url, timeout=_ASK_SECONDS).call("POST", search_path(collection), body)
        except ClientError as exc:
            raise BenchError(f"a search by the router failed: {exc}") from exc
        return data, msgspec.json.decode(data)

    def apply_schema(self, collection: str, map_path: Path | None = None, *, with_index: bool = True) -> None:
        """What `pgscatter schema apply` does."""
        shard_map = load_map(map_path or self.map_path)
        wanted = [shard_map.collections[collection]]
        results = asyncio.run(apply(shard_map, wanted, self._display, with_index=with_index))
        if errors := [f"{result.shard}: {error}" for result in results for error in result.errors]:
            raise BenchError("; ".join(errors))

    def load(
        self, collection: str, path: Path | None = None, *, quiet: bool = False, **options: Any
    ) -> Summary:
        """What `pgscatter load` does, of the data set's base vectors or of `path`; `options` are its own."""
        shard_map = load_map(self.map_path)
        loaded = shard_map.collections[collection]
        # Where it is measured, its bars would stand between ours.
        display = Display(StringIO()) if quiet else self._display
        display.say(f"loading {len(self.dataset.base):,} rows into {collection}, and building its index")
        try:
            work = load(shard_map, loaded, path or self.base_path, Options(**options), display)
            summary = asyncio.run(work)
        except LoadError as exc:
            raise BenchError("; ".join(exc.lines)) from exc
        if late := [f"{lag.shard}: {lag.reason}" for lag in summary.late if lag.reachable]:
            raise BenchError("; ".join(late))
        return summary

    @contextmanager
    def serve(
        self, *, redis: bool = False, map_path: Path | None = None, **settings: object
    ) -> Iterator[Router]:
        """`pgscatter serve` while the block runs; `settings` are its flags.

        Raises:
            RouterError: it does not become ready.
        """
        if redis:
            settings["redis"] = self.cluster.redis_url
        arguments = serve_arguments(map_path or self.map_path, **settings)
        # Where the map is and the port say nothing of how it was set.
        self.flags.append(" ".join(arguments[5:]))
        # Its log of requests costs what it costs: that is what is shipped, and what is measured.
        log = self.folder / f"serve-{next(self._routers)}.log"
        with serving(arguments, log) as router:
            yield router


@contextmanager
def open_world(
    dataset: Dataset,
    shards: int,
    *,
    replicas: int = 0,
    copied: bool = False,
    fields: Mapping[str, Any] | None = None,
    filled: bool = True,
    spread: Mapping[str, int] | None = None,
    k: int = 10,
    display: Display | None = None,
) -> Iterator[World]:
    """A temporary cluster with `dataset` in the collection `items`, ids being row numbers.

    `spread` names further collections with the same rows on the first so many of the shards; with `copied`,
    there is an empty one without a vector index. Without `filled` all of them stay empty. `fields` are what
    the map says of a collection beyond that. Searches are for `k` rows.
    """
    display = display or Display(StringIO())
    with tempfile.TemporaryDirectory(prefix="pgscatter-bench-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # PostgreSQL may have to run as another user
        loaded = {COLLECTION: shards, **(spread or {})}
        placed = loaded | ({COPIED: shards} if copied else {})
        made = {
            name: map_entry(name, dataset.dimensions, dataset.metric, count) | dict(fields or {})
            for name, count in placed.items()
        }
        collections = folder / "collections.yaml"
        collections.write_text(yaml.safe_dump({"collections": made}, sort_keys=False))
        display.say(f"starting {shards} shards with {replicas} replicas each")
        with Cluster.temporary(shards, replicas, collections, folder / "cluster") as cluster:
            world = World(cluster, dataset, folder, display, placed, k)
            np.save(world.base_path, dataset.base)
            np.save(world.queries_path, dataset.queries)
            for name in placed:
                world.apply_schema(name, with_index=name != COPIED)
            for name in loaded if filled else ():
                world.load(name)
            yield world


def server_record(cluster: Cluster) -> dict[str, str]:
    """Versions of the servers and the settings that matter, of one node, since all are made alike."""
    (found,) = asyncio.run(fetch(_SERVER_RECORD, cluster.nodes[0].dsn))
    record = {"PostgreSQL": found["postgresql"], "pgvector": found["pgvector"]}
    record |= json.loads(found["settings"])
    if cluster.redis_url:
        with redis.Redis.from_url(cluster.redis_url) as client:
            record["Redis"] = str(client.info("server")["redis_version"])
    return record


def map_entry(name: str, dimensions: int, metric: Metric, shards: int) -> dict[str, Any]:
    """What a shard map says of a collection whose rows are spread over the first so many shards."""
    return {
        "table": f"public.{name}",
        "id": {"column": "id", "type": "bigint"},
        "vector": {"dimensions": dimensions, "metric": str(metric)},
        "sharding": {
            "strategy": "hash",
            "key": "id",
            "buckets": shards,
            "placement": {f"s{i}": [i] for i in range(shards)},
        },
        # Longer than any run: what is cached stays so while hits are measured.
        "cache": {"ttl": "24h"},
    }


def search_path(collection: str) -> str:
    return f"/v1/collections/{collection}/search"
