"""JSON Schema of the shard map, for editors that complete and check as one types.

It says of the shape what the reader demands, from the same bounds. What spans several fields (buckets
placed once, ranges that meet, names used twice, values of the key's type) only the reader can say.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, TypeAlias

from shard_config import limits
from shard_config.file.collection import CACHE, ID_TYPES, INDEX, SEARCH, IndexType
from shard_config.file.identifiers import RESERVED, SYSTEM_COLUMNS
from shard_config.model import MetadataType, Metric, Quantization, VectorType
from shard_config.values import TYPE_NAMES, parse_type

Schema: TypeAlias = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_FREE = rf"(?!(?:{'|'.join(sorted(RESERVED))})(?:\.|$)){limits.IDENTIFIER}"
_COLUMN = rf"(?!(?:{'|'.join(sorted(SYSTEM_COLUMNS))})$){_FREE}"


def json_schema() -> Schema:
    """The schema as JSON values, in draft 2020-12."""
    shards = _named(_ref("shard"))
    return {
        "$schema": DIALECT,
        "title": "pgscatter shard map",
        **_object(
            {
                "version": _integer(limits.VERSION, "Raise it with every change of the map."),
                "shards": {**shards, "minProperties": 1, "maxProperties": limits.SHARDS},
                "collections": _named(_ref("collection")),
            },
            required=("version", "shards"),
        ),
        "$defs": {
            "shard": _object({"nodes": {"type": "array", "items": _node(), "minItems": 1}}, ("nodes",)),
            "collection": _collection(),
            "column": _text(_COLUMN, "A column of the table."),
            "key_value": {"type": ["string", "number", "boolean"]},
            "buckets": {"anyOf": [{"type": "integer", "minimum": 0}, _text(limits.BUCKET_RUN)]},
            "range": _object({"from": _ref("key_value"), "to": _ref("key_value")}),
        },
    }


def _node() -> Schema:
    fields = {
        "name": _text(limits.NAME, "Unique over the whole map."),
        "dsn": _text(r"postgres(?:ql)?://.+", "postgresql://USER:${PASSWORD}@HOST:PORT/DATABASE"),
        "zone": _text(limits.ZONE, "Where the node runs; readers prefer their own zone."),
        "patroni": _text(limits.PATRONI, "The REST API of the node's Patroni: a second word on who leads."),
    }
    return _object(fields, ("name", "dsn"))


def _collection() -> Schema:
    fields = {
        "table": _text(rf"(?:{_FREE}\.)?{_FREE}", "NAME or SCHEMA.NAME, the same on every shard."),
        "id": _object({"column": _ref("column"), "type": _types(ID_TYPES)}, ("type",)),
        "vector": _vector(),
        "content": _ref("column"),
        "metadata": {"anyOf": [_ref("column"), _metadata()]},
        "columns": _columns(),
        "sharding": {
            "oneOf": [
                _sharding("hash", _ref("buckets"), {"buckets": _integer(limits.BUCKETS)}, ("buckets",)),
                _sharding("list", _ref("key_value"), {"default": _text(limits.NAME)}),
                _sharding("range", _ref("range"), {}),
            ]
        },
        "index": _index(),
        "search": _search(),
        "cache": _object({"ttl": _duration(limits.TTL, CACHE.ttl)}),
        "text_model": _text(
            r"[^\u0000]+", "The model that turns text into a vector, from this file's folder."
        ),
    }
    return _object(fields, ("table", "id", "vector", "sharding"))


def _vector() -> Schema:
    fields = {
        "column": {**_ref("column"), "default": "embedding"},
        "type": _choice(VectorType, VectorType.VECTOR),
        "dimensions": _integer(limits.DIMENSIONS),
        "metric": _choice(Metric),
    }
    return _object(fields, ("dimensions", "metric"))


def _columns() -> Schema:
    index = {"type": "boolean", "default": False, "description": "Made by `pgscatter schema apply`."}
    mapped = _object({"column": _ref("column"), "type": _types(), "index": index}, ("type",))
    return {
        "type": "object",
        "propertyNames": {"pattern": _whole(limits.IDENTIFIER), "not": {"enum": list(limits.TAKEN_NAMES)}},
        "additionalProperties": {"anyOf": [_types(), mapped]},
    }


def _metadata() -> Schema:
    indexes = {
        "type": "object",
        "additionalProperties": _choice(MetadataType),
        "maxProperties": limits.METADATA_INDEXES,
        "description": "Paths, as filters name them after `metadata.`, and the type of their values.",
    }
    return _object({"column": {**_ref("column"), "default": "metadata"}, "indexes": indexes})


def _sharding(strategy: str, placed: Schema, more: Schema, required: Iterable[str] = ()) -> Schema:
    fields = {
        "strategy": {"const": strategy},
        "key": _text(limits.IDENTIFIER, "`id` or a column of the collection."),
        "placement": _named({"anyOf": [placed, {"type": "array", "items": placed}]}),
        **more,
    }
    return _object(fields, ("strategy", "key", "placement", *required))


def _index() -> Schema:
    return _object(
        {
            "type": _choice(IndexType, IndexType.HNSW),
            "m": {**_integer(limits.M), "default": INDEX.m},
            "ef_construction": {**_integer(limits.EF_CONSTRUCTION), "default": INDEX.ef_construction},
            "quantization": _choice(Quantization, INDEX.quantization),
        }
    )


def _search() -> Schema:
    return _object(
        {
            "ef_search": {**_integer(limits.EF_SEARCH), "default": SEARCH.ef_search},
            "overfetch": {**_number(limits.OVERFETCH), "default": SEARCH.overfetch},
            "timeout": _duration(limits.TIMEOUT, SEARCH.timeout),
            "max_k": {**_integer(limits.MAX_K), "default": SEARCH.max_k},
            "target_recall": _number(limits.TARGET_RECALL, "What `pgscatter tune` chooses ef_search for."),
            "tuned": _tuned(),
        }
    )


def _tuned() -> Schema:
    fields = {
        "target_recall": _number(limits.TARGET_RECALL),
        "recall": _number(limits.SHARE, "Mean of the queries' recall at k, in the worst case measured."),
        "lower_bound": _number(limits.SHARE, "What that is at least, with 95 % confidence."),
        "k": _integer(limits.MAX_K),
        "queries": _integer(limits.TUNE_QUERIES),
        "filters": _integer(limits.TUNE_FILTERS, "How many filters were measured beside no filter."),
        "shards": _integer((1, limits.SHARDS), "How many shards the collection had."),
        "at": _text(limits.DAY),
    }
    return {**_object(fields, fields), "description": "Written by `pgscatter tune`."}


# Pieces.


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _object(fields: Schema, required: Iterable[str] = ()) -> Schema:
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def _named(value: Schema) -> Schema:
    names = {"pattern": _whole(limits.NAME)}
    return {"type": "object", "propertyNames": names, "additionalProperties": value}


def _integer(bounds: tuple[int, int], description: str | None = None) -> Schema:
    said = {} if description is None else {"description": description}
    return {"type": "integer", "minimum": bounds[0], "maximum": bounds[1], **said}


def _number(bounds: tuple[float, float], description: str | None = None) -> Schema:
    said = {} if description is None else {"description": description}
    return {"type": "number", "minimum": bounds[0], "maximum": bounds[1], **said}


def _whole(pattern: str) -> str:
    return f"^(?:{pattern})$"


def _text(pattern: str, description: str | None = None) -> Schema:
    said = {} if description is None else {"description": description}
    # What a variable will hold is not known to an editor.
    return {"type": "string", "pattern": rf"{_whole(pattern)}|\$\{{", **said}


def _choice(options: type[StrEnum], default: StrEnum | None = None) -> Schema:
    said = {} if default is None else {"default": str(default)}
    return {"enum": [str(option) for option in options], **said}


def _types(meaning: Iterable[str] | None = None) -> Schema:
    wanted = None if meaning is None else set(meaning)
    return {"enum": [str(name) for name in TYPE_NAMES if wanted is None or parse_type(name) in wanted]}


def _duration(bounds: tuple[float, float], default: float) -> Schema:
    number = {"type": "number", "minimum": bounds[0], "maximum": bounds[1]}
    return {
        "anyOf": [number, _text(limits.DURATION)],
        "default": default,
        "description": "Seconds, or text such as 500ms, 2s, 1m, 1h.",
    }
