"""The shard map as one frozen value: nodes, shards, collections and where each row lives.

Everything here is immutable and already validated: `shard_config.file.codec` turns a file into these
types and is the only place that builds them from outside input, so whoever holds a `ShardMap` may
trust every name, type and placement in it.
"""

from __future__ import annotations

from collections import Counter
from datetime import date
from enum import StrEnum
from functools import cached_property
from typing import TypeAlias

import msgspec

from shard_config.dsn import redact
from shard_config.values import ValueType

__all__ = [
    "Cache",
    "Collection",
    "Column",
    "EmbeddingService",
    "Fulltext",
    "HashSharding",
    "Index",
    "IndexType",
    "LanguageColumn",
    "ListSharding",
    "MetadataType",
    "Metric",
    "Node",
    "Quantization",
    "RangePart",
    "RangeSharding",
    "RerankingApi",
    "RerankingService",
    "SearchDefaults",
    "Shard",
    "ShardMap",
    "Sharding",
    "Table",
    "Tuned",
    "Vector",
    "VectorType",
]


class Metric(StrEnum):
    """How far two vectors are apart; smaller is nearer for each of them."""

    L2 = "l2"
    COSINE = "cosine"
    INNER_PRODUCT = "inner_product"
    L1 = "l1"


class VectorType(StrEnum):
    VECTOR = "vector"
    HALFVEC = "halfvec"


class IndexType(StrEnum):
    HNSW = "hnsw"


class Quantization(StrEnum):
    """What the index stores instead of the full vector; candidates are re-ranked on the full one."""

    NONE = "none"
    HALFVEC = "halfvec"
    BINARY = "binary"


class MetadataType(StrEnum):
    """Which values of a metadata path an index serves; conditions on others are answered without it."""

    TEXT = "text"
    NUMBER = "number"
    ARRAY = "array"


class RerankingApi(StrEnum):
    """How a re-ranking service is spoken to: as Cohere's, Jina's and pgscatter's own are, or as TEI's."""

    COHERE = "cohere"
    TEI = "tei"


class EmbeddingService(msgspec.Struct, frozen=True):
    """An HTTP service that turns texts into vectors, as OpenAI's `POST /embeddings` does.

    Attributes:
        url: what `/embeddings` is appended to.
        model: what the service calls it.
        api_version: where it is Azure's, which also takes the key in a header of its own.
        batch: how many texts one request may hold.
        timeout: of one request, in seconds.
        send_dimensions: whether requests name `dimensions`, which not every model can choose.
        query_prefix: put before a text that is searched for, `document_prefix` before one that is stored.
    """

    name: str
    url: str
    model: str
    dimensions: int
    api_key: str | None = None
    api_version: str | None = None
    batch: int = 64
    timeout: float = 1.0
    query_prefix: str = ""
    document_prefix: str = ""
    send_dimensions: bool = False

    def __repr__(self) -> str:
        return f"EmbeddingService(name={self.name!r}, url={redact(self.url)!r}, model={self.model!r})"


class RerankingService(msgspec.Struct, frozen=True):
    """An HTTP service that scores texts against a query; `timeout` is of one request, in seconds."""

    name: str
    url: str
    model: str
    api: RerankingApi = RerankingApi.COHERE
    api_key: str | None = None
    timeout: float = 1.0

    def __repr__(self) -> str:
        return f"RerankingService(name={self.name!r}, url={redact(self.url)!r}, model={self.model!r})"


class LanguageColumn(msgspec.Struct, frozen=True):
    """A text column that says which of `values`, names of text search configurations, a row is in.

    A row that holds another value, or none, is taken apart by the configuration `simple`.
    """

    column: str
    values: tuple[str, ...]


class Fulltext(msgspec.Struct, frozen=True):
    """The columns of the table that are searched by their words, the weightiest first.

    `stored` is the table's generated column that keeps each row's words; None where the index is on the
    columns themselves, so that ranking takes the texts apart anew.
    """

    columns: tuple[str, ...]
    language: str | LanguageColumn = "english"
    stored: str | None = None


class Node(msgspec.Struct, frozen=True):
    """One PostgreSQL server; its role is discovered, never configured. `patroni` is its REST API's URL."""

    name: str
    dsn: str
    zone: str | None = None
    patroni: str | None = None

    def __repr__(self) -> str:
        dsn = redact(self.dsn)
        return f"Node(name={self.name!r}, {dsn=!r}, zone={self.zone!r}, patroni={self.patroni!r})"


class Shard(msgspec.Struct, frozen=True):
    """A disjoint part of every collection, served by one replica set."""

    name: str
    nodes: tuple[Node, ...]


class Table(msgspec.Struct, frozen=True):
    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


class Column(msgspec.Struct, frozen=True):
    """A typed column: `name` is what requests call it, `column` what PostgreSQL calls it.

    `index`: every shard is to have an index on it, and filters' conditions are written so that it serves
    them.
    """

    name: str
    column: str
    type: ValueType
    index: bool = False


class Vector(msgspec.Struct, frozen=True):
    column: str
    type: VectorType
    dimensions: int
    metric: Metric


class HashSharding(msgspec.Struct, frozen=True):
    """Bucket = remainder of PostgreSQL's hash of the key; `placement[bucket]` is the shard's name."""

    key: Column
    placement: tuple[str, ...]

    @property
    def buckets(self) -> int:
        return len(self.placement)


class ListSharding(msgspec.Struct, frozen=True):
    """Each key value has its shard; `default` takes the rest, or the rest is refused if it is None."""

    key: Column
    values: dict[object, str]
    default: str | None


class RangePart(msgspec.Struct, frozen=True):
    """Keys in [lower, upper); None is unbounded on that side."""

    lower: object | None
    upper: object | None
    shard: str


class RangeSharding(msgspec.Struct, frozen=True):
    """Contiguous, disjoint parts in ascending order; a key below the first or above the last is refused."""

    key: Column
    parts: tuple[RangePart, ...]


Sharding: TypeAlias = HashSharding | ListSharding | RangeSharding


class Index(msgspec.Struct, frozen=True):
    m: int
    ef_construction: int
    quantization: Quantization
    type: IndexType = IndexType.HNSW


class Tuned(msgspec.Struct, frozen=True):
    """What `pgscatter tune` measured when it chose `ef_search`.

    `recall` at `k` is the mean over `queries`, and at least `lower_bound` with 95 % confidence; both are
    those of the worst of the searches without a filter and with each of `filters` filters.
    """

    target_recall: float
    recall: float
    lower_bound: float
    k: int
    queries: int
    filters: int
    shards: int
    at: date


class SearchDefaults(msgspec.Struct, frozen=True):
    """What a search gets when it does not say: `timeout` in seconds, `overfetch` as a factor on k.

    `target_recall` is what `ef_search` is tuned for, None where nobody has said.
    """

    ef_search: int
    overfetch: float
    timeout: float
    max_k: int
    target_recall: float | None = None
    tuned: Tuned | None = None


class Cache(msgspec.Struct, frozen=True):
    """`ttl` in seconds; 0 turns caching off for the collection."""

    ttl: float


class Collection(msgspec.Struct, frozen=True):
    """A logical table of documents, mapped onto one table of the same name on every shard."""

    name: str
    table: Table
    id: Column
    vector: Vector
    content: str | None
    metadata: str | None
    columns: dict[str, Column]
    sharding: Sharding
    index: Index
    search: SearchDefaults
    cache: Cache
    metadata_indexes: dict[tuple[str, ...], MetadataType] = {}  # by the steps of the path
    embedder: EmbeddingService | None = None  # turns texts into vectors of this collection
    template: str | None = None  # what is embedded of a document; its content, if None
    fulltext: Fulltext | None = None

    @property
    def sharded_by_id(self) -> bool:
        """Whether the id alone says where a document lives."""
        return self.sharding.key.column == self.id.column


class ShardMap(msgspec.Struct, frozen=True, dict=True):
    """All shards and collections; a change is a new map with a higher `version`."""

    version: int
    shards: dict[str, Shard]
    collections: dict[str, Collection]
    models: dict[str, EmbeddingService] = {}
    rerankers: dict[str, RerankingService] = {}

    def shards_of(self, collection: Collection) -> tuple[str, ...]:
        """Names of the shards that hold part of `collection`, in the map's order."""
        if self.collections.get(collection.name) is collection:
            return self._shards_by_collection[collection.name]
        return self._used(collection.sharding)

    @cached_property
    def _shards_by_collection(self) -> dict[str, tuple[str, ...]]:
        # Asked for by every search, and a placement may have thousands of buckets.
        return {name: self._used(collection.sharding) for name, collection in self.collections.items()}

    def largest_share(self, collection: Collection) -> float:
        """Of rows chosen without regard to their shard, the share that the largest shard is to have.

        It is 1, for no promise, unless a hash of the id spreads the rows.
        """
        if self.collections.get(collection.name) is collection:
            return self._largest_shares[collection.name]
        return _largest_share(collection)

    @cached_property
    def _largest_shares(self) -> dict[str, float]:
        return {name: _largest_share(collection) for name, collection in self.collections.items()}

    def _used(self, sharding: Sharding) -> tuple[str, ...]:
        match sharding:
            case HashSharding():
                used = set(sharding.placement)
            case ListSharding():
                used = set(sharding.values.values())
                if sharding.default is not None:
                    used.add(sharding.default)
            case RangeSharding():
                used = {part.shard for part in sharding.parts}
        return tuple(name for name in self.shards if name in used)


def _largest_share(collection: Collection) -> float:
    sharding = collection.sharding
    if not isinstance(sharding, HashSharding) or sharding.key != collection.id:
        return 1.0
    return max(Counter(sharding.placement).values()) / sharding.buckets
