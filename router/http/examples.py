"""Examples of requests and answers, for OpenAPI, by operation; a test checks each, and sends the requests.

They are of a collection `documents` with vectors of three dimensions and the columns `category` and `price`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["ANSWERS", "PATH", "REQUESTS"]

_COUNTS = {"total": 2, "queried": 2, "ok": 2, "skipped": 0, "timed_out": 0, "failed": 0}
_COVERAGE = {"full": True, "shards": _COUNTS, "failures": []}
_HIT = {"id": 42, "distance": 0.0713, "shard": "s1", "content": "A short text."}
_FOUND = {"hits": [_HIT], "took_ms": 3.1, "cache": "miss", "coverage": _COVERAGE, "map_version": 12}

# Of each, a name and what it shows; the first is the usual one.
REQUESTS: Mapping[str, Mapping[str, tuple[str, Any]]] = {
    "search": {
        "vector": (
            "The nearest documents to a vector, with their content.",
            {"vector": [0.1, 0.2, 0.3], "k": 1, "include": ["content"]},
        ),
        "filter": (
            "The nearest of those that a filter lets through, and no further than a distance.",
            {
                "vector": [0.1, 0.2, 0.3],
                "filter": {"category": "tech", "price": {"$gte": 3, "$lt": 10}},
                "max_distance": 0.4,
            },
        ),
        "base64": (
            "A vector in base64, and the vectors found likewise.",
            {"vector": "zczMPc3MTD6amZk+", "include": ["vector"], "vector_format": "base64"},
        ),
        "hybrid": (
            "By a vector and by words; the best are re-ranked by a model.",
            {
                "mode": "hybrid",
                "vector": [0.1, 0.2, 0.3],
                "text": "replica falls behind",
                "fusion": {"weights": {"vector": 2, "fulltext": 1}},
                "rerank": {"model": "ce", "candidates": 50},
            },
        ),
        "queries": (
            "Several ranked lists, fused into one.",
            {
                "queries": [
                    {"vector": [0.3, 0.2, 0.1]},
                    {"text": "standby or lag", "mode": "fulltext", "weight": 0.5},
                    {"vector": [0.1, 0.2, 0.3], "filter": {"category": "tech"}, "name": "tech"},
                ]
            },
        ),
        "groups": (
            "Two groups of documents that share a category, chosen to differ from each other.",
            {
                "vector": [0.1, 0.2, 0.3],
                "k": 2,
                "group_by": {"field": "category", "size": 3},
                "diversity": {"lambda": 0.5},
            },
        ),
    },
    "search_batch": {
        "two": (
            "Two searches, answered each on its own.",
            {"searches": [{"vector": [0.1, 0.2, 0.3], "k": 1}, {"vector": [0.3, 0.2, 0.1], "k": 5}]},
        )
    },
    "upsert_documents": {
        "one": (
            "A document with content, metadata and columns.",
            {
                "documents": [
                    {
                        "id": 42,
                        "vector": [0.1, 0.2, 0.3],
                        "content": "A short text.",
                        "metadata": {"lang": "en"},
                        "category": "tech",
                        "price": 9.5,
                    }
                ]
            },
        )
    },
    "delete_documents": {
        "ids": ("By ids.", {"ids": [1, 2, 3]}),
        "filter": ("By a filter.", {"filter": {"category": "old"}}),
    },
}

ANSWERS: Mapping[str, Any] = {
    "search": _FOUND,
    "search_batch": {"results": [_FOUND]},
    "upsert_documents": {
        "stored": 1,
        "failed": 0,
        "unlisted": 0,
        "shards": {"s1": {"ok": True, "rows": 1, "error": None}},
        "failures": [],
    },
    "delete_documents": {"deleted": 3, "shards": {"s0": {"ok": True, "rows": 3, "error": None}}},
    "delete_document": {"deleted": 1, "shards": {"s1": {"ok": True, "rows": 1, "error": None}}},
    "get_document": {"id": 42, "shard": "s1", "content": "A short text.", "price": 9.5},
    "count_documents": {"count": 1234, "coverage": _COVERAGE},
    "locate": {"collection": "documents", "key": 42, "shard": "s1", "bucket": 17},
    "livez": {"status": "ok"},
    "readyz": {"ready": True, "shards": {"s0": True, "s1": True}},
}

PATH: Mapping[str, str] = {"collection": "documents", "id": "42"}
