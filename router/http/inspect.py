"""What an operator or a client asks of the router itself: maps, nodes, health, the place of a key."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from msgspec import UNSET

from router.http.answers import (
    CollectionList,
    CollectionView,
    Health,
    Live,
    Location,
    NodeList,
    Ready,
    RecallView,
    schema_view,
)
from router.http.backend import Backend
from router.http.message import Reply, Request
from router.query.errors import InvalidError, NotFoundError
from router.recall.sampling import RecallSeen
from shard_config import partition, to_json
from shard_config.file.collection import INDEX, SEARCH
from shard_config.file.fields import shown
from shard_config.model import (
    Collection,
    HashSharding,
    ListSharding,
    RangeSharding,
    SearchDefaults,
    ShardMap,
)
from shard_config.values import from_text, json_form

__all__ = ["Inspection", "collection_view"]

_RETRY_SOON = [(b"retry-after", b"1")]


class Inspection:
    """The handlers of everything that only looks."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._started = time.monotonic()
        self._encoder = msgspec.json.Encoder(decimal_format="number")

    async def collections(self, request: Request) -> Reply:
        shard_map = request.backend.shard_map
        views = [
            collection_view(collection, shard_map, request.backend.recall(collection.name))
            for collection in shard_map.collections.values()
        ]
        return self._reply(CollectionList(views))

    async def collection(self, request: Request) -> Reply:
        backend, collection = request.backend, request.collection
        seen = backend.recall(collection.name)
        return self._reply(collection_view(collection, backend.shard_map, seen))

    async def locate(self, request: Request) -> Reply:
        collection = request.collection
        sharding = collection.sharding
        try:
            value = from_text(sharding.key.type, request.query["key"])
        except ValueError as exc:
            raise InvalidError.at("key", str(exc)) from exc
        try:
            shard = partition.locate(sharding, value)
        except partition.NoPlaceError as exc:
            raise NotFoundError(str(exc)) from exc
        bucket = partition.bucket(sharding, value) if isinstance(sharding, HashSharding) else None
        form = json_form(sharding.key.type)
        return self._reply(Location(collection.name, value if form is None else form(value), shard, bucket))

    async def shard_map(self, request: Request) -> Reply:
        return Reply(self._encoder.encode(to_json(request.backend.shard_map)))

    async def nodes(self, request: Request) -> Reply:
        return self._reply(NodeList(request.backend.nodes()))

    async def live(self, request: Request) -> Reply:
        return self._reply(Live())

    async def ready(self, request: Request) -> Reply:
        ready, shards = request.backend.ready()
        reply = self._reply(Ready(ready, shards))
        if not ready:
            reply.status, reply.headers = 503, _RETRY_SOON
        return reply

    async def health(self, request: Request) -> Reply:
        backend = request.backend
        ready, shards = backend.ready()
        return self._reply(
            Health(
                status=_status(backend, ready, shards),
                version=self._version,
                map_version=backend.shard_map.version,
                uptime_s=round(time.monotonic() - self._started, 3),
                shards=shards,
                nodes=backend.nodes(),
                caches=dict(backend.cache_stats()),
                schema=schema_view(backend.schema().findings),
            )
        )

    def _reply(self, body: msgspec.Struct) -> Reply:
        return Reply(self._encoder.encode(body))


def collection_view(
    collection: Collection, shard_map: ShardMap, seen: RecallSeen | None = None
) -> CollectionView:
    vector = collection.vector
    return CollectionView(
        name=collection.name,
        table=str(collection.table),
        id={"column": collection.id.column, "type": collection.id.type},
        vector={"type": vector.type, "dimensions": vector.dimensions, "metric": vector.metric},
        content=collection.content is not None,
        metadata=collection.metadata is not None,
        columns={name: column.type for name, column in collection.columns.items()},
        sharding=_sharding_view(collection, shard_map),
        index=shown(collection.index, INDEX),
        search=_search_view(collection.search),
        cache={"ttl_s": collection.cache.ttl},
        text=collection.text_model is not None,
        recall=UNSET if seen is None else RecallView(round(seen.recall, 4), seen.samples),
    )


def _search_view(search: SearchDefaults) -> dict[str, Any]:
    view = shown(search, SEARCH)
    return {"timeout_ms": view.pop("timeout") * 1000, **view}


def _sharding_view(collection: Collection, shard_map: ShardMap) -> dict[str, Any]:
    sharding = collection.sharding
    view: dict[str, Any] = {"key": sharding.key.name, "shards": shard_map.shards_of(collection)}
    match sharding:
        case HashSharding():
            return {"strategy": "hash", "buckets": sharding.buckets, **view}
        case ListSharding():
            return {"strategy": "list", **view}
        case RangeSharding():
            return {"strategy": "range", **view}


def _status(backend: Backend, ready: bool, shards: dict[str, bool]) -> str:
    if not ready:
        return "unavailable"
    whole = all(shards.values()) and all(node.state == "up" for node in backend.nodes())
    return "ok" if whole and not backend.schema().wrong else "degraded"
