"""Between documents and rows: arguments of the upsert, and what a shard's outcome means for each document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.documents.primary import Outcome
from router.documents.types import Document, DocumentFailure, ShardWrite, UpsertOutcome, WriteFailure
from router.postgres.connection import ErrorKind
from router.query.wire import to_wire
from shard_config.model import Collection

__all__ = ["key_of", "rows_of", "shard_write", "upsert_outcome"]


def key_of(collection: Collection, document: Document) -> object:
    """The value that says where a document lives."""
    return document.id if collection.sharded_by_id else document.columns[collection.sharding.key.name]


def rows_of(collection: Collection, documents: Sequence[Document]) -> list[tuple[object, ...]]:
    """Arguments of `sql.upsert`, a tuple per document."""
    rows = []
    for document in documents:
        row = [document.id, to_wire(document.vector, collection.vector.type)]
        if collection.content is not None:
            row.append(document.content)
        if collection.metadata is not None:
            row.append(document.metadata)
        row += [document.columns.get(name) for name in collection.columns]
        rows.append(tuple(row))
    return rows


def upsert_outcome(
    groups: Mapping[str, Sequence[Document]], outcomes: Mapping[str, Outcome[dict[int, str]]]
) -> UpsertOutcome:
    """What each shard's transaction means for each document of its group."""
    failures: list[DocumentFailure] = []
    writes: list[ShardWrite] = []
    for shard, part in groups.items():
        outcome = outcomes[shard]
        if outcome.error is not None:
            reason = _reason(outcome)
            failures += [DocumentFailure(d.index, d.id, reason, outcome.error, shard) for d in part]
        refused = outcome.value or {}
        failures += [
            DocumentFailure(part[position].index, part[position].id, "invalid", message, shard)
            for position, message in refused.items()
        ]
        writes.append(shard_write(shard, outcome, len(part) - len(refused)))
    failures.sort(key=lambda failure: failure.index)
    return UpsertOutcome(sum(write.rows for write in writes), tuple(writes), tuple(failures))


def _reason(outcome: Outcome[dict[int, str]] | Outcome[int]) -> WriteFailure:
    if outcome.unknown:
        return "unknown"
    if outcome.kind is ErrorKind.DATA:
        return "conflict"
    return "misconfigured" if outcome.kind is ErrorKind.FATAL else "unavailable"


def shard_write(shard: str, outcome: Outcome[dict[int, str]] | Outcome[int], rows: int) -> ShardWrite:
    ok = outcome.error is None
    reason = None if ok else _reason(outcome)
    return ShardWrite(shard, ok, rows if ok else 0, outcome.error, outcome.unknown, reason)
