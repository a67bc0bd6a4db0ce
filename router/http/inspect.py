"""What an operator or a client asks of the router itself: maps, nodes, health, the place of a key."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from router.http.answers import (
    CollectionList,
    CollectionView,
    DisagreementView,
    Health,
    Live,
    Location,
    NodeList,
    Ready,
    RecallView,
    node_faults,
    schema_view,
)
from router.http.backend import Backend, NodeStatus, ServiceStatus
from router.http.keys import Keys
from router.http.life import Life
from router.http.message import Reply, Request
from router.query.errors import InvalidError, NotFoundError
from router.recall.sampling import RecallSeen
from router.schema.findings import redacted
from shard_config import partition, to_json
from shard_config.file.collection import INDEX, SEARCH
from shard_config.file.fields import shown
from shard_config.file.words import FULLTEXT, named_fulltext
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
# Of the caches' figures, what Redis or its client says.
_INSIDE = ("l2_reason",)


class Inspection:
    """The handlers of everything that only looks."""

    def __init__(self, version: str, life: Life, keys: Keys | None) -> None:
        self._version = version
        self._life = life
        self._keys = keys
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
        ready &= not self._life.ending
        reply = self._reply(Ready(ready, shards if request.inside else UNSET, self._life.ending or UNSET))
        if not ready:
            reply.status, reply.headers = 503, _RETRY_SOON
        return reply

    async def health(self, request: Request) -> Reply:
        backend = request.backend
        ready, shards = backend.ready()
        nodes, caches = backend.nodes(), backend.cache_stats()
        found = backend.schema().findings
        hidden = () if request.inside else _INSIDE
        return self._reply(
            Health(
                status=_status(backend, nodes, ready, shards),
                version=self._version,
                map_version=backend.shard_map.version,
                uptime_s=round(time.monotonic() - self._started, 3),
                shards=shards,
                faults=node_faults(nodes),
                caches={name: figure for name, figure in caches.items() if name not in hidden},
                nodes=nodes if request.inside else UNSET,
                schema=schema_view(found if request.inside else redacted(found)),
                keys=UNSET if self._keys is None else "outdated" if self._keys.outdated else "current",
                disagreements=[
                    DisagreementView(
                        shard, point.kind, point.text if request.inside else UNSET, point.collection
                    )
                    for shard, point in backend.disagreements()
                ],
                unidentified=backend.unidentified(),
                lost_bytes={node.shard: node.lost_bytes for node in nodes if node.lost_bytes},
                services=[one if request.inside else _outside(one) for one in backend.services()],
            )
        )

    def _reply(self, body: msgspec.Struct) -> Reply:
        return Reply(self._encoder.encode(body))


def collection_view(
    collection: Collection, shard_map: ShardMap, seen: RecallSeen | None = None
) -> CollectionView:
    vector = collection.vector
    fulltext = named_fulltext(collection)
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
        text=collection.embedder is not None,
        embedder=UNSET if collection.embedder is None else collection.embedder.name,
        template=UNSET if collection.template is None else collection.template,
        fulltext=UNSET if fulltext is None else shown(fulltext, FULLTEXT),
        rerankers=list(shard_map.rerankers) or UNSET,
        recall=UNSET if seen is None else RecallView(round(seen.recall, 4), seen.samples),
    )


def _outside(service: ServiceStatus) -> ServiceStatus:
    return msgspec.structs.replace(service, url=UNSET, reason=UNSET)


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


def _status(backend: Backend, nodes: Sequence[NodeStatus], ready: bool, shards: dict[str, bool]) -> str:
    if not ready:
        return "unavailable"
    wrong = node_faults(nodes) or backend.schema().wrong or backend.disagreements()
    failing = any(service.circuit != "closed" for service in backend.services())
    whole = all(shards.values()) and not wrong and not any(node.lost_bytes for node in nodes)
    return "ok" if whole and not failing else "degraded"
