"""What each field of the bodies means, for OpenAPI; bodies that requests bring say it beside their types.

Many of these types are the router's own values, which know nothing of HTTP. A test keeps this complete.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["FIELDS", "TYPES"]

_UPSERT = {
    "stored": "Documents stored.",
    "failed": "Documents that were not stored, or perhaps not.",
    "shards": "What each shard's transactions did, by shard.",
    "failures": "The documents that failed, up to a bound for streams.",
    "unlisted": "Failed documents beyond that bound.",
}
_PROBLEM = {
    "type": "A URN that names the kind of problem, such as `urn:pgscatter:problem:invalid`.",
    "title": "The kind of problem, to read.",
    "status": "The HTTP status.",
    "detail": "What went wrong, and with what.",
    "errors": "Every fault that was found, up to 1000.",
    "request_id": "The id under which the router's log has the request.",
}

TYPES: Mapping[str, str] = {
    "CollectionList": "The collections of the shard map.",
    "Failure": "A shard that is missing from the answer.",
    "Hedge": "What came of asking a second node.",
    "Live": "The process runs.",
    "NodeList": "The nodes of the shard map.",
    "ShardCounts": "Shards by what became of them.",
    "ShardState": "How a shard's part ended.",
}

FIELDS: Mapping[str, Mapping[str, str]] = {
    "BatchAnswer": {"results": "One for each search, in the order of the searches."},
    "BatchBody": {"searches": "The searches."},
    "BatchError": {"error": "Why this search has no answer."},
    "CollectionList": {"collections": "In the map's order."},
    "CollectionView": {
        "name": "The name that paths take.",
        "table": "The table on every shard.",
        "id": "The id's column and type.",
        "vector": "The vector's column, type, dimensions and metric.",
        "content": "Whether documents have content.",
        "metadata": "Whether documents have metadata.",
        "columns": "Types of the further columns, by name.",
        "sharding": "How documents are placed on shards.",
        "index": "The index's kind and parameters.",
        "search": "Defaults and limits of searches.",
        "cache": "For how long answers are cached.",
        "text": "Whether it can be searched by text.",
        "recall": "Recall as measured lately, if it has been.",
    },
    "CountView": {"count": "Documents that match.", "coverage": "Which shards the count rests on."},
    "CoverageView": {
        "full": "Whether no shard is missing.",
        "shards": "How many shards were asked, and answered.",
        "failures": "The shards that are missing.",
        "stale": "Shards that were read from a node that may be behind.",
    },
    "DeleteAnswer": {
        "deleted": "Documents known to be deleted.",
        "shards": "What each shard's transaction did, by shard.",
    },
    "DeleteBody": {"ids": "Ids of the documents to delete.", "filter": "What to delete, as a filter."},
    "DocumentFailure": {
        "index": "The document's place in the request, from 0.",
        "id": "The document's id, if it could be read.",
        "reason": "Why it was not stored; `unknown` if it may have been.",
        "message": "What was wrong.",
        "shard": "The shard that it belongs to, if that is known.",
    },
    "DocumentShape": {
        "content": "A text.",
        "metadata": "A JSON object of at most 32 levels.",
    },
    "DocumentsBody": {"documents": "The documents."},
    "Explanation": {
        "shards": "What happened on each shard.",
        "nodes": "Nodes of these shards that are not up.",
    },
    "Failure": {"shard": "The shard's name.", "state": "How its part ended.", "error": "Why."},
    "Fields": {"id": "The document's id, of the collection's id type."},
    "Health": {
        "status": "`ok`, `degraded` or `unavailable`.",
        "version": "The router's version.",
        "map_version": "The shard map's version.",
        "uptime_s": "Seconds since this worker started.",
        "shards": "Whether each shard can be read.",
        "nodes": "Every node and its state.",
        "caches": "Figures of the caches.",
    },
    "Hit": {
        "id": "The document's id, of the collection's id type.",
        "distance": "Its distance; smaller is nearer for every metric.",
        "shard": "The shard that it was found on.",
    },
    "Live": {"status": "Always `ok`."},
    "Location": {
        "collection": "The collection's name.",
        "key": "The value of the sharding key.",
        "shard": "The shard that holds it.",
        "bucket": "Its bucket, where documents are placed by hash.",
    },
    "NodeList": {"nodes": "In the map's order."},
    "NodeStatus": {
        "name": "The node's name.",
        "shard": "Its shard.",
        "zone": "Its zone, if the map says one.",
        "role": "`primary` or `replica`; null while unknown.",
        "state": "Whether it is asked.",
        "reason": "Why it is not up.",
        "since": "Since when it is in that state, as Unix time.",
        "ejections": "Times that it was left out.",
        "role_changes": "Promotions and demotions seen.",
        "in_flight": "Statements running there.",
        "waiting": "Statements waiting for it.",
        "connections": "Open connections.",
        "replay_lag_bytes": "How far a replica is behind its primary.",
        "replay_lag_s": "For how many seconds it has been.",
        "timeline": "PostgreSQL's timeline.",
    },
    "Problem": {
        "path": "Where in the request, or which shard; empty for the whole.",
        "message": "What is wrong there.",
    },
    "ProblemBody": _PROBLEM,
    "Ready": {
        "ready": "Whether any shard can be read.",
        "shards": "Whether each shard can be read.",
    },
    "RecallView": {
        "at_k": "Mean recall at the searches' own k, 0 to 1.",
        "samples": "Searches that it is the mean of.",
    },
    "SearchAnswer": {
        "hits": "Nearest first, equal distances by id.",
        "took_ms": "Milliseconds that the search took.",
        "cache": "What answered: a cache, or the shards.",
        "coverage": "Which shards the answer rests on.",
        "map_version": "The shard map's version.",
        "short": "Why there are fewer than k hits.",
        "unsettled": "Shards whose rows may not be the right ones.",
        "explain": "What happened on each shard.",
    },
    "SearchBody": {"text": "What to search for, in words."},
    "ShardCounts": {
        "total": "Shards of the collection.",
        "queried": "Shards asked.",
        "ok": "Shards that answered.",
        "skipped": "Shards that cannot hold a match.",
        "timed_out": "Shards that had no time left.",
        "failed": "Shards that failed.",
    },
    "ShardOutcome": {
        "ok": "Whether all transactions were committed.",
        "rows": "Rows changed.",
        "error": "The first error.",
        "unknown": "Whether it is not known if one was committed.",
    },
    "ShardReport": {
        "shard": "The shard's name.",
        "state": "How its part ended.",
        "node": "The node that answered, or was asked last.",
        "role": "That node's role.",
        "fault": "Whose fault a lasting failure is; null where another try may succeed.",
        "attempts": "Nodes asked, one after the other.",
        "hedged": "Whether a second node was asked meanwhile.",
        "hedge": "What came of that.",
        "stale": "Whether the node may be behind.",
        "lsn": "A position of the write-ahead log up to which the rows are complete.",
        "queue_ms": "Milliseconds in the queue.",
        "execute_ms": "Milliseconds executing.",
        "total_ms": "Milliseconds in all.",
        "together": "Searches that its statement answered.",
        "asked": "Candidates wanted of the index.",
        "returned": "Rows returned.",
        "kept": "Rows of the answer.",
        "error": "Why it failed.",
        "plan": "PostgreSQL's plan of the statement.",
    },
    "Shortfall": {
        "asked": "Hits wanted.",
        "returned": "Hits found.",
        "reason": "Why there are no more.",
    },
    "Unsettled": {
        "shard": "The shard's name.",
        "reason": "What was left to find out there: rows as near as the last hit, or nearer ones.",
    },
    "UpsertAnswer": _UPSERT,
    "UpsertProblem": _PROBLEM | _UPSERT,
}
