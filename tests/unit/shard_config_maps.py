"""Shard maps for tests, as values that become YAML."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import yaml

from shard_config import ShardMap
from shard_config.file import codec
from shard_config.model import Column, HashSharding, ListSharding, RangePart, RangeSharding
from shard_config.values import ValueType

__all__ = ["by_hash", "by_list", "by_range", "document", "parse", "problems"]

ENV = {"PGPASSWORD": "s3cret"}
TUNED = {
    "target_recall": 0.99,
    "recall": 0.9951,
    "lower_bound": 0.991,
    "k": 10,
    "queries": 500,
    "filters": 3,
    "shards": 4,
    "at": "2026-01-31",
}

# Changes that let it search in words.
WORDS: dict[str, Any] = {
    "models": {
        "m": {
            "url": "https://10.0.0.5:8200/v1",
            "model": "all-MiniLM",
            "dimensions": 384,
            "api_key": "k3y",
            "api_version": "2024-02-01",
            "batch": 10,
            "timeout": "500ms",
            "query_prefix": "query: $",
            "document_prefix": "passage: ",
            "send_dimensions": True,
        }
    },
    "rerankers": {"r": {"url": "http://[::1]:8200", "api": "tei"}},
    "collections.documents.embedder": "m",
    "collections.documents.template": "{tenant}\n{content}: {metadata.a.b} {{$$}}",
    "collections.documents.fulltext": {
        "columns": ["tenant", "content"],
        "language": {"column": "tenant", "values": ["english", "german"]},
        "stored": "words",
    },
}

_DOCUMENT: dict[str, Any] = {
    "version": 12,
    "shards": {
        "s0": {
            "nodes": [
                {
                    "name": "s0-a",
                    "dsn": "postgresql://router:${PGPASSWORD}@10.0.0.11:5432/search",
                    "zone": "a",
                },
                {"name": "s0-b", "dsn": "postgresql://router:${PGPASSWORD}@10.0.0.12:5432/search"},
            ]
        },
        "s1": {"nodes": [{"name": "s1-a", "dsn": "postgres://router@[::1]/search"}]},
    },
    "collections": {
        "documents": {
            "table": "public.documents",
            "id": {"column": "doc_id", "type": "bigint"},
            "vector": {"column": "embedding", "type": "vector", "dimensions": 384, "metric": "cosine"},
            "content": "body",
            "metadata": "meta",
            "columns": {"tenant": {"column": "tenant_id", "type": "text"}, "price": "float8", "day": "date"},
            "sharding": {
                "strategy": "hash",
                "key": "id",
                "buckets": 8,
                "placement": {"s0": ["0-3", 7], "s1": "4-6"},
            },
            "index": {"type": "hnsw", "m": 16, "ef_construction": 64, "quantization": "none"},
            "search": {"ef_search": 40, "overfetch": 2, "timeout": "2s", "max_k": 1000},
            "cache": {"ttl": "60s"},
        }
    },
}


def document(changes: dict[str, Any] | None = None, /, **sharding: Any) -> dict[str, Any]:
    """A valid map with `changes` by dotted path (`REMOVED` takes a field out), and a new sharding."""
    tree = copy.deepcopy(_DOCUMENT)
    if sharding:
        tree["collections"]["documents"]["sharding"] = sharding
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        at = tree
        for name in parents:
            at = at[name]
        if value is REMOVED:
            del at[last]
        else:
            at[last] = copy.deepcopy(value)
    return tree


REMOVED = object()


def parse(tree: Any, **options: Any) -> ShardMap:
    text = tree if isinstance(tree, str) else yaml.safe_dump(tree, sort_keys=False)
    return codec.parse(text, "map.yaml", options.pop("env", ENV), **options)


def problems(tree: Any, **options: Any) -> dict[str, str]:
    """The messages of a map that is refused, by the path in the document."""
    found: dict[str, str] = {}
    try:
        parse(tree, **options)
    except codec.MapError as exc:
        for problem in exc.problems:
            first = f"{found[problem.path]}\n" if problem.path in found else ""
            found[problem.path] = first + problem.message
    return found


def by_hash(type_: ValueType, placement: tuple[str, ...]) -> HashSharding:
    return HashSharding(Column("k", "k", type_), placement)


def by_list(type_: ValueType, values: dict[object, str], default: str | None = None) -> ListSharding:
    return ListSharding(Column("k", "k", type_), values, default)


def by_range(type_: ValueType, bounds: list[Any], shards: list[str]) -> RangeSharding:
    """Parts between consecutive `bounds`, on `shards` in turn."""
    ends = enumerate(pairwise(bounds))
    parts = [RangePart(low, high, shards[at % len(shards)]) for at, (low, high) in ends]
    return RangeSharding(Column("k", "k", type_), tuple(parts))
