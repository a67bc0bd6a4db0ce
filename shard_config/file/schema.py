"""JSON Schema of the shard map, for editors that complete and check as one types.

It says of the shape what the reader demands, from the same tables. What spans several fields (buckets
placed once, ranges that meet, names used twice, values of the key's type) only the reader can say.
"""

from __future__ import annotations

from shard_config import limits
from shard_config.file.codec import MAP
from shard_config.file.collection import COLLECTION
from shard_config.file.fields import Schema, object_of, ref, schema_of, text_of
from shard_config.file.identifiers import COLUMN_NAME
from shard_config.file.nodes import SHARD
from shard_config.file.services import EMBEDDING, RERANKING

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> Schema:
    """The schema as JSON values, in draft 2020-12."""
    return {
        "$schema": DIALECT,
        "title": "pgscatter shard map",
        **schema_of(MAP),
        "$defs": {
            "shard": schema_of(SHARD),
            "model": schema_of(EMBEDDING),
            "reranker": schema_of(RERANKING),
            "collection": schema_of(COLLECTION),
            "column": {**text_of(COLUMN_NAME), "description": "A column of the table."},
            "key_value": {"type": ["string", "number", "boolean"]},
            "buckets": {"anyOf": [{"type": "integer", "minimum": 0}, text_of(limits.BUCKET_RUN)]},
            "range": object_of({"from": ref("key_value"), "to": ref("key_value")}),
        },
    }
