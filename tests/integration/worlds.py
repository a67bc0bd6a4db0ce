"""A router over the cluster's shards and a table of its own, beside one plain table to compare with."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import msgspec
import numpy as np
from numpy.typing import NDArray

from deploy.local import Cluster
from router.documents.types import Document
from router.models.embedding import Embedded
from router.query.filter import parse
from router.query.types import Found, SearchQuery
from router.settings import Settings
from router.topology import Parts, Topology
from shard_config import model
from shard_config.values import ValueType
from tests.http.fake import application

__all__ = [
    *("VERSIONS", "Vectors", "World", "column", "execute", "hits"),
    *("patient", "replayed", "shard_map", "until", "world"),
]

Vectors = NDArray[np.float32]

_numbers = itertools.count()
# Of maps: tests share shards, which refuse older ones. Not by one, since some commands raise a version.
VERSIONS = itertools.count(10, 10)
# Beside other tests a server, or this process, may not run for seconds, which must change no answer.
_PATIENCE: dict[str, Any] = {
    "probe_timeout": 15.0,
    "connect_timeout": 15.0,
    "node_queue_wait": 15.0,
    "l2_timeout": 10.0,
    # A search repeated by chance would be one that a test did not count on.
    "recall_sample_rate": 0.0,
}
_OPCLASSES = {
    model.Metric.L2: "l2_ops",
    model.Metric.COSINE: "cosine_ops",
    model.Metric.INNER_PRODUCT: "ip_ops",
    model.Metric.L1: "l1_ops",
}


def column(name: str, type_: ValueType) -> model.Column:
    return model.Column(name, name, type_)


def shard_map(cluster: Cluster, *, version: int | None = None, **changes: Any) -> model.ShardMap:
    """The cluster's nodes and one collection `docs` in a table that nobody else uses."""
    shards: dict[str, model.Shard] = {}
    for node in cluster.nodes:
        nodes = shards[node.shard].nodes if node.shard in shards else ()
        shards[node.shard] = model.Shard(node.shard, (*nodes, model.Node(node.name, node.dsn)))
    id_ = column("id", ValueType.BIGINT)
    names = list(shards)
    base = model.Collection(
        name="docs",
        table=model.Table("public", f"docs_{next(_numbers)}"),
        id=id_,
        vector=model.Vector("embedding", model.VectorType.VECTOR, 8, model.Metric.L2),
        content="content",
        metadata="metadata",
        columns={"category": column("category", ValueType.TEXT), "price": column("price", ValueType.FLOAT8)},
        sharding=model.HashSharding(id_, tuple(names[b * len(names) // 16] for b in range(16))),
        index=model.Index(16, 64, model.Quantization.NONE),
        search=model.SearchDefaults(40, 2.0, 20.0, 1000),
        cache=model.Cache(60.0),
    )
    return model.ShardMap(
        version or next(VERSIONS), shards, {"docs": msgspec.structs.replace(base, **changes)}
    )


class World:
    """One collection behind a router, and shorthands to use it."""

    def __init__(self, cluster: Cluster, topology: Topology) -> None:
        self.cluster = cluster
        self.topology = topology
        self.router = topology.snapshot
        self.collection = self.router.shard_map.collections["docs"]

    def soon(self, seconds: float = 10.0) -> float:
        return asyncio.get_running_loop().time() + seconds

    def document(self, id_: object, vector: Sequence[float] | Vectors, **fields: Any) -> Document:
        columns = {name: fields.pop(name) for name in self.collection.columns if name in fields}
        data = np.asarray(vector, dtype="<f4").tobytes()
        content, metadata = fields.pop("content", None), fields.pop("metadata", None)
        assert not fields
        encoded = None if metadata is None else msgspec.json.encode(metadata).decode()
        return Document(0, id_, data, content, encoded, columns)

    async def put(self, *documents: Document) -> None:
        numbered = [msgspec.structs.replace(d, index=i) for i, d in enumerate(documents)]
        outcome = await self.router.upsert(self.collection, numbered, self.soon(30))
        assert outcome.stored == len(documents), outcome

    async def search(
        self,
        vector: Sequence[float] | Vectors,
        k: int = 10,
        *,
        filter: dict[str, Any] | None = None,
        within: float = 10.0,
        **options: Any,
    ) -> Found:
        tree = None if filter is None else parse(self.collection, filter, self.topology.parts.settings)
        query = SearchQuery(
            self.collection, np.asarray(vector, dtype="<f4").tobytes(), k, filter=tree, **options
        )
        return await self.router.search(query, self.soon(within))

    async def ids(self, vector: Sequence[float] | Vectors, k: int = 10, **options: Any) -> list[Any]:
        return [hit["id"] for hit in hits(await self.search(vector, k, **options))]

    def over_http(self) -> httpx.AsyncClient:
        """A client whose paths continue that of the collection; texts are embedded by the map's services."""
        embeddings = self.topology.parts.embeddings

        async def embed(collection: model.Collection, text: str, deadline: float) -> Embedded:
            assert collection.embedder is not None
            return await embeddings.embed(collection.embedder, text, deadline)

        settings = self.topology.parts.settings
        app = application(self.router, settings, embed=embed, embed_texts=embeddings.documents)
        transport = httpx.ASGITransport(app)
        return httpx.AsyncClient(
            transport=transport, base_url="http://router/v1/collections/docs", timeout=None
        )

    async def on_primaries(self, statement: str) -> None:
        nodes = [node for node in self.cluster.nodes if node.role == "primary"]
        await asyncio.gather(*(execute(node.dsn, statement) for node in nodes))

    async def build_index(self) -> None:
        """The HNSW index, with no other plan allowed to be cheaper on these small tables."""
        c = self.collection
        opclass = f"{c.vector.type}_{_OPCLASSES[c.vector.metric]}"
        expression = c.vector.column
        if c.index.quantization is model.Quantization.HALFVEC:
            expression = f"({c.vector.column}::halfvec({c.vector.dimensions}))"
            opclass = f"halfvec_{_OPCLASSES[c.vector.metric]}"
        elif c.index.quantization is model.Quantization.BINARY:
            expression = f"(binary_quantize({c.vector.column})::bit({c.vector.dimensions}))"
            opclass = "bit_hamming_ops"
        await self.on_primaries(f"CREATE INDEX ON {c.table} USING hnsw ({expression} {opclass})")
        await self.on_primaries(f"ANALYZE {c.table}")


def hits(found: Found) -> list[dict[str, Any]]:
    decoded: list[dict[str, Any]] = msgspec.json.decode(found.answer.whole)
    return decoded


def patient(**changes: Any) -> Settings:
    """Settings for tests that are about something else than how long a router waits."""
    return Settings(**{**_PATIENCE, **changes})


async def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for what happens in the background."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


async def replayed(cluster: Cluster) -> None:
    """Return when every replica has what its primary has written by now."""
    async with asyncio.timeout(30):
        for replica in [node for node in cluster.nodes if node.role == "replica"]:
            primary = next(n for n in cluster.nodes if (n.shard, n.role) == (replica.shard, "primary"))
            ours, theirs = await asyncpg.connect(primary.dsn), await asyncpg.connect(replica.dsn)
            try:
                written = await ours.fetchval("SELECT pg_current_wal_flush_lsn()")
                while not await theirs.fetchval("SELECT pg_last_wal_replay_lsn() >= $1", written):
                    await asyncio.sleep(0.01)
            finally:
                await ours.close()
                await theirs.close()


async def execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def world(
    cluster: Cluster, settings: Settings | None = None, *, redis: bool = False, **changes: Any
) -> AsyncIterator[World]:
    """`settings` are `patient()` if there are none."""
    settings = settings or patient()
    if settings.recall_sample_rate == Settings().recall_sample_rate:
        # A search repeated by chance would be one that a test did not count on.
        settings = msgspec.structs.replace(settings, recall_sample_rate=0.0)
    if settings.schema_check_interval == Settings().schema_check_interval:
        # Most of these tables have no index, for which all shards would be looked at every few seconds.
        settings = msgspec.structs.replace(settings, schema_check_interval=0.0)
    shards = shard_map(cluster, **changes)
    parts = Parts(shards, settings, redis_url=cluster.redis_url if redis else None)
    topology = Topology(shards, parts)
    made = World(cluster, topology)
    c = made.collection
    columns = [f"{c.id.column} {c.id.type} PRIMARY KEY", "content text", "metadata jsonb"]
    columns.append(f"{c.vector.column} {c.vector.type}({c.vector.dimensions}) NOT NULL")
    columns += [f"{one.column} {one.type}" for one in c.columns.values()]
    await made.on_primaries(
        "SELECT pg_advisory_xact_lock(1); CREATE EXTENSION IF NOT EXISTS vector;"
        f" CREATE TABLE {c.table} ({', '.join(columns)})"
    )
    await topology.open()
    try:
        yield made
    finally:
        await topology.close()
        await made.on_primaries(f"DROP TABLE {c.table}")
