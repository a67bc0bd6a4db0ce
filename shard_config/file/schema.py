"""JSON Schema of the shard map, for editors that complete and check as one types.

It says of the shape what the reader demands, from the same bounds. What spans several fields (buckets
placed once, ranges that meet, names used twice, values of the key's type) only the reader can say.
"""

from __future__ import annotations

from collections.abc import Iterable

from shard_config import limits
from shard_config.file import fields
from shard_config.file.collection import ID_TYPES, IndexType
from shard_config.file.fields import Schema, choice_of, integer_of, object_of, ref, text_of
from shard_config.file.identifiers import RESERVED, SYSTEM_COLUMNS
from shard_config.model import MetadataType
from shard_config.values import TYPE_NAMES, parse_type

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_FREE = rf"(?!(?:{'|'.join(sorted(RESERVED))})(?:\.|$)){limits.IDENTIFIER}"
_COLUMN = rf"(?!(?:{'|'.join(sorted(SYSTEM_COLUMNS))})$){_FREE}"


def json_schema() -> Schema:
    """The schema as JSON values, in draft 2020-12."""
    shards = _named(ref("shard"))
    return {
        "$schema": DIALECT,
        "title": "pgscatter shard map",
        **object_of(
            {
                "version": integer_of(limits.VERSION, "Raise it with every change of the map."),
                "shards": {**shards, "minProperties": 1, "maxProperties": limits.SHARDS},
                "collections": _named(ref("collection")),
            },
            required=("version", "shards"),
        ),
        "$defs": {
            "shard": object_of({"nodes": {"type": "array", "items": _node(), "minItems": 1}}, ("nodes",)),
            "collection": _collection(),
            "column": text_of(_COLUMN, "A column of the table."),
            "key_value": {"type": ["string", "number", "boolean"]},
            "buckets": {"anyOf": [{"type": "integer", "minimum": 0}, text_of(limits.BUCKET_RUN)]},
            "range": object_of({"from": ref("key_value"), "to": ref("key_value")}),
        },
    }


def _node() -> Schema:
    properties = {
        "name": text_of(limits.NAME, "Unique over the whole map."),
        "dsn": text_of(r"postgres(?:ql)?://.+", "postgresql://USER:${PASSWORD}@HOST:PORT/DATABASE"),
        "zone": text_of(limits.ZONE, "Where the node runs; readers prefer their own zone."),
        "patroni": text_of(limits.PATRONI, "The REST API of the node's Patroni: a second word on who leads."),
    }
    return object_of(properties, ("name", "dsn"))


def _collection() -> Schema:
    properties = {
        "table": text_of(rf"(?:{_FREE}\.)?{_FREE}", "NAME or SCHEMA.NAME, the same on every shard."),
        "id": object_of({"column": ref("column"), "type": _types(ID_TYPES)}, ("type",)),
        "vector": fields.schema_of(fields.VECTOR),
        "content": ref("column"),
        "metadata": {"anyOf": [ref("column"), _metadata()]},
        "columns": _columns(),
        "sharding": {
            "oneOf": [
                _sharding("hash", ref("buckets"), {"buckets": integer_of(limits.BUCKETS)}, ("buckets",)),
                _sharding("list", ref("key_value"), {"default": text_of(limits.NAME)}),
                _sharding("range", ref("range"), {}),
            ]
        },
        "index": _index(),
        "search": fields.schema_of(fields.SEARCH),
        "cache": fields.schema_of(fields.CACHE),
        "text_model": text_of(
            r"[^\u0000]+", "The model that turns text into a vector, from this file's folder."
        ),
    }
    return object_of(properties, ("table", "id", "vector", "sharding"))


def _columns() -> Schema:
    index = {"type": "boolean", "default": False, "description": "Made by `pgscatter schema apply`."}
    mapped = object_of({"column": ref("column"), "type": _types(), "index": index}, ("type",))
    return {
        "type": "object",
        "propertyNames": {"pattern": _whole(limits.IDENTIFIER), "not": {"enum": list(limits.TAKEN_NAMES)}},
        "additionalProperties": {"anyOf": [_types(), mapped]},
    }


def _metadata() -> Schema:
    indexes = {
        "type": "object",
        "additionalProperties": choice_of(MetadataType),
        "maxProperties": limits.METADATA_INDEXES,
        "description": "Paths, as filters name them after `metadata.`, and the type of their values.",
    }
    return object_of({"column": {**ref("column"), "default": "metadata"}, "indexes": indexes})


def _index() -> Schema:
    kind = {**choice_of(IndexType), "default": str(IndexType.HNSW)}
    return object_of({"type": kind, **fields.schema_of(fields.INDEX)["properties"]})


def _sharding(strategy: str, placed: Schema, more: Schema, required: Iterable[str] = ()) -> Schema:
    properties = {
        "strategy": {"const": strategy},
        "key": text_of(limits.IDENTIFIER, "`id` or a column of the collection."),
        "placement": _named({"anyOf": [placed, {"type": "array", "items": placed}]}),
        **more,
    }
    return object_of(properties, ("strategy", "key", "placement", *required))


def _named(value: Schema) -> Schema:
    names = {"pattern": _whole(limits.NAME)}
    return {"type": "object", "propertyNames": names, "additionalProperties": value}


def _whole(pattern: str) -> str:
    return f"^(?:{pattern})$"


def _types(meaning: Iterable[str] | None = None) -> Schema:
    wanted = None if meaning is None else set(meaning)
    return {"enum": [str(name) for name in TYPE_NAMES if wanted is None or parse_type(name) in wanted]}
