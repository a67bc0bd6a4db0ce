"""Between documents and rows: statements of an upsert, and what a shard's outcome means for each document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from router.documents.primary import Outcome
from router.documents.types import Document, DocumentFailure, ShardWrite, UpsertOutcome, WriteFailure
from router.postgres import sql
from router.postgres.connection import Connection, ErrorKind
from router.postgres.write import Patched, Upsert, store
from router.query.wire import to_wire
from shard_config.model import Collection

__all__ = ["key_of", "shard_write", "store_documents", "upsert_outcome", "upserts"]


def key_of(collection: Collection, document: Document) -> object:
    """The value that says where a document lives."""
    return document.id if collection.sharded_by_id else document.columns[collection.sharding.key.name]


async def store_documents(
    connection: Connection, collection: Collection, documents: Sequence[Document]
) -> dict[int, str]:
    """Store `documents` in one transaction; what they leave out gets the table's defaults.

    Returns:
        By position among the documents, why PostgreSQL refused one.
    """
    shapes = {_left_out(collection, document) for document in documents}
    if len(shapes) > 1:
        # Only where there is a default does leaving out differ from NULL; mostly one statement will do.
        statement = sql.defaulted_columns(collection)
        defaulted = frozenset(row[0] for row in await connection.fetch(statement.sql, *statement.args))
    else:
        defaulted = frozenset().union(*shapes)
    return await store(connection, upserts(collection, documents, defaulted))


def upserts(collection: Collection, documents: Sequence[Document], defaulted: frozenset[str]) -> list[Upsert]:
    """Statements, each for a run of documents that leave out the same of the columns `defaulted`.

    The order of the documents stays: transactions that lock rows in one order do not wait for each other.
    """
    runs = groupby(documents, key=lambda document: _left_out(collection, document) & defaulted)
    return [
        (sql.upsert(collection, left_out), [_row(collection, document, left_out) for document in run])
        for left_out, run in runs
    ]


def _fields(collection: Collection, document: Document) -> list[tuple[str, object]]:
    """What may be left out: columns of the table, in the order of `sql.upsert`, with their values."""
    fields: list[tuple[str, object]] = []
    if collection.content is not None:
        fields.append((collection.content, document.content))
    if collection.metadata is not None:
        fields.append((collection.metadata, document.metadata))
    columns = collection.columns.items()
    return fields + [(column.column, document.columns.get(name)) for name, column in columns]


def _left_out(collection: Collection, document: Document) -> frozenset[str]:
    return frozenset(name for name, value in _fields(collection, document) if value is None)


def _row(collection: Collection, document: Document, left_out: frozenset[str]) -> tuple[object, ...]:
    given = [value for name, value in _fields(collection, document) if name not in left_out]
    return (document.id, to_wire(document.vector, collection.vector.type), *given)


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


def _reason(outcome: Outcome[dict[int, str]] | Outcome[int] | Outcome[Patched]) -> WriteFailure:
    if outcome.unknown:
        return "unknown"
    if outcome.kind is ErrorKind.DATA:
        return "conflict"
    if outcome.kind is ErrorKind.DENIED:
        return "denied"
    return "misconfigured" if outcome.kind is ErrorKind.FATAL else "unavailable"


def shard_write(
    shard: str, outcome: Outcome[dict[int, str]] | Outcome[int] | Outcome[Patched], rows: int
) -> ShardWrite:
    ok = outcome.error is None
    reason = None if ok else _reason(outcome)
    return ShardWrite(shard, ok, rows if ok else 0, outcome.error, outcome.unknown, reason)
