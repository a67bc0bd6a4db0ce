"""A shard map in the form of its file, with passwords taken out: what `show` and the API give away."""

from __future__ import annotations

import math
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

from shard_config.dsn import redact
from shard_config.file import fields
from shard_config.file.placement import as_runs
from shard_config.metadata_path import spelled
from shard_config.model import (
    Collection,
    HashSharding,
    ListSharding,
    Node,
    RangePart,
    RangeSharding,
    Sharding,
    ShardMap,
)
from shard_config.times import DistantTime


def to_json(shard_map: ShardMap) -> dict[str, Any]:
    """The map as JSON values under the names of the file, every default written out.

    But for `***` in place of passwords, reading it back gives an equal map.
    """
    return {
        "version": shard_map.version,
        "shards": {
            name: {"nodes": [_node(node) for node in shard.nodes]} for name, shard in shard_map.shards.items()
        },
        "collections": {name: _collection(collection) for name, collection in shard_map.collections.items()},
    }


def _node(node: Node) -> dict[str, Any]:
    optional = {"zone": node.zone, "patroni": node.patroni}
    given = {name: value for name, value in optional.items() if value is not None}
    return {"name": node.name, "dsn": _escaped(redact(node.dsn)), **given}


def _collection(collection: Collection) -> dict[str, Any]:
    optional = {
        "content": collection.content,
        "metadata": _metadata(collection),
        "text_model": collection.text_model and _escaped(collection.text_model),
    }
    return {
        "table": str(collection.table),
        "id": {"column": collection.id.column, "type": str(collection.id.type)},
        "vector": fields.shown(collection.vector, fields.VECTOR),
        **{name: value for name, value in optional.items() if value is not None},
        "columns": {
            name: {"column": column.column, "type": str(column.type), "index": column.index}
            for name, column in collection.columns.items()
        },
        "sharding": _sharding(collection.sharding),
        "index": {"type": "hnsw", **fields.shown(collection.index, fields.INDEX)},
        "search": fields.shown(collection.search, fields.SEARCH),
        "cache": fields.shown(collection.cache, fields.CACHE),
    }


def _metadata(collection: Collection) -> Any:
    if not collection.metadata_indexes:
        return collection.metadata
    indexes = {spelled(path): str(type_) for path, type_ in collection.metadata_indexes.items()}
    return {"column": collection.metadata, "indexes": indexes}


def _sharding(sharding: Sharding) -> dict[str, Any]:
    match sharding:
        case HashSharding():
            return {
                "strategy": "hash",
                "key": sharding.key.name,
                "buckets": sharding.buckets,
                "placement": _hash(sharding),
            }
        case ListSharding():
            default = {} if sharding.default is None else {"default": sharding.default}
            placement = _list(sharding)
            return {"strategy": "list", "key": sharding.key.name, "placement": placement, **default}
        case RangeSharding():
            return {"strategy": "range", "key": sharding.key.name, "placement": _ranges(sharding)}


def _hash(sharding: HashSharding) -> dict[str, list[str]]:
    owned: dict[str, list[int]] = {}
    for bucket, shard in enumerate(sharding.placement):
        owned.setdefault(shard, []).append(bucket)
    return {shard: as_runs(numbers) for shard, numbers in owned.items()}


def _list(sharding: ListSharding) -> dict[str, list[Any]]:
    placement: dict[str, list[Any]] = {}
    for value, shard in sharding.values.items():
        placement.setdefault(shard, []).append(_value(value))
    return placement


def _ranges(sharding: RangeSharding) -> dict[str, list[dict[str, Any]]]:
    placement: dict[str, list[dict[str, Any]]] = {}
    for part in sharding.parts:
        placement.setdefault(part.shard, []).append(_range(part))
    return placement


def _range(part: RangePart) -> dict[str, Any]:
    ends = {"from": part.lower, "to": part.upper}
    return {name: _value(end) for name, end in ends.items() if end is not None}


def _value(value: object) -> Any:
    match value:
        case str():
            return _escaped(value)
        case date():
            return value.isoformat()
        case float() if not math.isfinite(value):
            return str(Decimal(value))
        case UUID() | Decimal() | DistantTime():
            return str(value)
    return value


def _escaped(text: str) -> str:
    # A lone dollar is itself, but ${ in the map's language would be a variable.
    return text.replace("$", "$$")
