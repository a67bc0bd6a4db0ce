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
# Of a ranking that nobody has kept.
_CURSOR = "AQABAgMEBQYHCAkKCwwNDg8AAAABhPh34Q"
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
        "pages": (
            "The first page of a ranking that is kept.",
            {"vector": [0.1, 0.2, 0.3], "k": 1, "cursor": "*"},
        ),
        "next_page": (
            "The page that follows one whose answer had this cursor.",
            {"cursor": _CURSOR, "k": 1, "include": ["content"]},
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
        ),
        "text": (
            "Two texts, of which the collection's embedder makes vectors.",
            {"documents": [{"id": 1, "content": "A text."}, {"id": 2, "content": "Another."}]},
        ),
    },
    "patch_document": {
        "set": (
            "A new price and language; the category is taken away.",
            {"set": {"price": 8.5, "metadata.lang": "de"}, "unset": ["category"]},
        ),
    },
    "patch_documents": {
        "ids": ("By ids.", {"ids": [1, 2, 3], "set": {"metadata.reviewed": {"by": "Eva"}}}),
        "filter": ("By a filter.", {"filter": {"category": "old"}, "unset": ["metadata.draft"]}),
    },
    "get_documents": {
        "ids": ("Two documents, with their content.", {"ids": [42, 43], "include": ["content"]}),
    },
    "count_facets": {
        "field": ("By one column.", {"field": "category"}),
        "fields": (
            "By a column and a path, of the documents that a filter lets through.",
            {"fields": ["category", "metadata.lang"], "filter": {"price": {"$lt": 10}}, "limit": 10},
        ),
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
    "patch_document": {
        "matched": 1,
        "patched": 1,
        "shards": {"s1": {"ok": True, "rows": 1, "error": None}},
    },
    "patch_documents": {
        "matched": 3,
        "patched": 2,
        "shards": {
            "s0": {"ok": True, "rows": 2, "error": None},
            "s1": {"ok": True, "rows": 0, "error": None},
        },
    },
    "get_documents": {
        "documents": [{"id": 42, "shard": "s1", "content": "A short text."}],
        "missing": [43],
        "coverage": _COVERAGE,
    },
    "list_documents": {
        "documents": [{"id": 42, "shard": "s1", "content": "A short text.", "price": 9.5}],
        "cursor": None,
        "coverage": _COVERAGE,
    },
    "count_facets": {
        "facets": [
            {
                "field": "category",
                "values": [{"value": "tech", "count": 17}, {"value": "old", "count": 3}],
                "missing": 1,
                "exact": True,
                "more": 0,
            }
        ],
        "coverage": _COVERAGE,
    },
    "count_documents": {"count": 1234, "coverage": _COVERAGE},
    "locate": {"collection": "documents", "key": 42, "shard": "s1", "bucket": 17},
    "livez": {"status": "ok"},
    "readyz": {"ready": True, "shards": {"s0": True, "s1": True}},
}

PATH: Mapping[str, str] = {"collection": "documents", "id": "42"}
