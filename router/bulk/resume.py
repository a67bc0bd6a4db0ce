"""What has been loaded, written down on each shard in the transaction that loads it.

    pgscatter.load         a file being loaded into a table: which one, how it is cut, which index it owes
    pgscatter.load_chunk   a stretch of the file whose rows of this shard are in the table

Invariant: a chunk's mark is committed with its rows or not at all, so whatever is killed, and whenever,
no row is loaded twice or left out. Marks are of the table's oid: they die with the table, and with its
rows when it has been emptied. `router.schema.load_tables` creates them.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from router.schema.session import Connection
from shard_config.model import Collection

__all__ = [
    "Job",
    "Load",
    "Mark",
    "begin",
    "defer",
    "existing",
    "finish",
    "forget",
    "mark",
    "options_digest",
    "owed_index",
    "set_mark",
]

# Marks of tables that are gone, and of rows that are gone from a table that is empty now.
_PRUNE = """
DELETE FROM pgscatter.load l
WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = l.relation)
   OR (l.relation = $1 AND $2
       AND EXISTS (SELECT FROM pgscatter.load_chunk m WHERE m.load = l.id AND m.rows > 0))
"""
_SAME = "relation = $1 AND source = $2 AND options = $3"


class Job(msgspec.Struct, frozen=True):
    """One way of loading one file: with other options its chunks hold other rows for a shard."""

    source: str
    options: str


class Mark(msgspec.Struct, frozen=True):
    """What became of a chunk on one shard.

    Attributes:
        rows: stored on this shard.
        refused: by checks of the file, of all the chunk's rows.
        rejected: by this shard's server, of the rows that are this shard's.
    """

    rows: int
    refused: int
    rejected: int = 0


class Load(msgspec.Struct, frozen=True):
    """A job that has begun on one shard.

    Attributes:
        chunk_rows: how it is cut, which must not change on the way.
        deferred_index: the statement that builds the index which waits for the rows; None: none does.
        chunks: what is loaded, by number of the chunk.
    """

    id: int
    finished: bool
    chunk_rows: int
    deferred_index: str | None
    chunks: dict[int, Mark]

    @property
    def rows(self) -> int:
        return sum(mark.rows for mark in self.chunks.values())


def options_digest(collection: Collection, dataset: str, limit: int | None) -> str:
    """What of the command and the map decides which rows of a chunk belong to which shard, and how."""
    decisive: tuple[object, ...] = (
        dataset,
        limit,
        collection.table,
        collection.id,
        collection.vector,
        collection.content,
        collection.metadata,
        # Not whether they have an index: that may change on the way.
        [(column.name, column.column, column.type) for column in collection.columns.values()],
        msgspec.structs.replace(
            collection.sharding, key=msgspec.structs.replace(collection.sharding.key, index=False)
        ),
    )
    service = collection.embedder
    if service is not None:
        # Rows that another model, or another template, has made would lie among the others unseen.
        decisive += (service.model, service.document_prefix, collection.template)
    return blake2b(repr(decisive).encode(), digest_size=16).hexdigest()


async def existing(connection: Connection, relation: int, empty: bool, job: Job) -> Load | None:
    """The job on this shard as far as it has come; marks that mean nothing any more are removed."""
    await connection.execute(_PRUNE, relation, empty)
    row = await connection.fetchrow(
        "SELECT id, finished_at IS NOT NULL AS finished, chunk_rows, deferred_index"
        f" FROM pgscatter.load WHERE {_SAME}",
        relation,
        job.source,
        job.options,
    )
    if row is None:
        return None
    marks = await connection.fetch(
        "SELECT chunk, rows, refused, rejected FROM pgscatter.load_chunk WHERE load = $1", row["id"]
    )
    chunks = {chunk: Mark(*counts) for chunk, *counts in marks}
    return Load(**row, chunks=chunks)


async def begin(
    connection: Connection, relation: int, job: Job, chunk_rows: int, deferred_index: str | None
) -> Load:
    """Write the job down; the caller drops the index that it defers in the same transaction."""
    id_: int = await connection.fetchval(
        "INSERT INTO pgscatter.load (relation, source, options, chunk_rows, deferred_index)"
        " VALUES ($1, $2, $3, $4, $5) RETURNING id",
        relation,
        job.source,
        job.options,
        chunk_rows,
        deferred_index,
    )
    return Load(id_, False, chunk_rows, deferred_index, {})


async def defer(connection: Connection, load: Load, index: str) -> Load:
    """Write down another statement for the index that waits; the caller drops it in the same transaction."""
    await connection.execute("UPDATE pgscatter.load SET deferred_index = $2 WHERE id = $1", load.id, index)
    return msgspec.structs.replace(load, deferred_index=index)


async def forget(connection: Connection, relation: int, source: str) -> None:
    """Remove all marks of this file on this table, however it was cut."""
    await connection.execute(
        "DELETE FROM pgscatter.load WHERE relation = $1 AND source = $2", relation, source
    )


async def mark(connection: Connection, load: int, chunk: int, counts: Mark) -> bool:
    """Mark a chunk within the transaction that loads it; False if it is marked already.

    Waits for a predecessor whose commit is still under way, and so decides for one of the two.
    """
    marked = await connection.fetchval(
        "INSERT INTO pgscatter.load_chunk (load, chunk, rows, refused, rejected)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING RETURNING true",
        load,
        chunk,
        *msgspec.structs.astuple(counts),
    )
    return marked is True


async def set_mark(connection: Connection, load: int, chunk: int, counts: Mark) -> None:
    """Correct the mark that the same transaction has made."""
    await connection.execute(
        "UPDATE pgscatter.load_chunk SET rows = $3, refused = $4, rejected = $5"
        " WHERE load = $1 AND chunk = $2",
        load,
        chunk,
        *msgspec.structs.astuple(counts),
    )


async def owed_index(connection: Connection, relation: int) -> str | None:
    """The statement of an index that an unfinished load of this table, of whatever file, has deferred."""
    statement: str | None = await connection.fetchval(
        "SELECT deferred_index FROM pgscatter.load"
        " WHERE relation = $1 AND finished_at IS NULL AND deferred_index IS NOT NULL ORDER BY id LIMIT 1",
        relation,
    )
    return statement


async def finish(connection: Connection, load: int) -> None:
    await connection.execute("UPDATE pgscatter.load SET finished_at = now() WHERE id = $1", load)
