"""Before the first row: primaries found, other loads kept out, tables checked, the job written down.

Invariant: the index of an empty table is dropped in the transaction that writes down how to build it
again, so that no end of this process can leave a table whose index nobody owes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from router.bulk import resume
from router.bulk.errors import ShardError
from router.bulk.resume import Job, Load
from router.bulk.target import Target
from router.postgres.connection import ErrorKind, NodeError
from router.postgres.rights import Held, Use, held_rights, missing_rights
from router.schema import ddl, fulltext
from router.schema.identity import require_placement
from router.schema.inspect import Found, inspect
from router.schema.load_lock import load_lock
from router.schema.load_tables import create_load_tables
from router.schema.primary import Primary, on_each, primary_of
from router.schema.session import node_errors
from router.schema.shape import mismatches, vector_index
from shard_config.identity import identities
from shard_config.model import Collection, ShardMap
from shard_config.partition import shard_names

T = TypeVar("T")

__all__ = ["find_primaries", "shard_error", "start"]

_TIMEOUT = 60.0
# A killed load's sessions end within a second or two of it (client_connection_check_interval).
_LOCK_TIMEOUT = 10.0
_LOCK_POLL = 0.2
_TABLE_LOCK_MS = 30_000
# Per shard and chunk: large enough for a transaction to cost little, small enough to hold a few of them.
_PART_BYTES = 4 << 20
_CHUNK_BYTES = 64 << 20


class _Seen(msgspec.Struct, frozen=True):
    """A shard's table as it is while nobody else loads into it, and the job if it has begun there."""

    primary: Primary
    found: Found
    rights: Held
    load: Load | None

    @property
    def relation(self) -> int:
        assert self.found.oid is not None
        return self.found.oid


async def find_primaries(shard_map: ShardMap, collection: Collection) -> dict[str, Primary]:
    """The primaries of all shards of the collection; the caller closes them.

    Raises:
        ShardError: with a line for each shard that has none, or that rows would be misplaced on.
    """

    expected = identities(shard_map)

    async def one(shard: str) -> Primary:
        settings = {"lock_timeout": str(_TABLE_LOCK_MS)}
        primary = await primary_of(shard_map.shards[shard], "pgscatter load", **settings)
        try:
            await require_placement(shard_map, collection, primary, expected[shard])
        except BaseException:
            primary.close()
            raise
        return primary

    found, failed = await on_each(shard_names(collection.sharding), one, _TIMEOUT)
    if failed:
        for primary in found.values():
            primary.close()
        raise shard_error(failed)
    return found


async def start(
    collection: Collection,
    primaries: Mapping[str, Primary],
    job: Job,
    *,
    chunk_rows: int | None,
    usual_rows: int | None = None,
    restart: bool,
) -> list[Target]:
    """The shards, ready to be loaded, with what they have already; nobody else loads into their tables.

    Args:
        chunk_rows: rows of a chunk, where somebody says.
        usual_rows: the same where nobody does; by the size of a row if None.

    Raises:
        ShardError
    """

    async def check(shard: str) -> int:
        return await _check(primaries[shard], collection)

    async def see(shard: str) -> _Seen:
        return await _see(primaries[shard], collection, job, restart)

    async def begin(shard: str) -> Target:
        return await _begin(seen[shard], collection, job, rows)

    relations = _all(await on_each(primaries, check, _TIMEOUT))
    for shard in sorted(relations):
        await _lock(primaries[shard], relations[shard])
    seen = _all(await on_each(primaries, see, _TIMEOUT))
    begun = [one.load for one in seen.values() if one.load is not None]
    rows = _chunk_rows(collection, begun, chunk_rows, usual_rows)
    return list(_all(await on_each(primaries, begin, _TIMEOUT)).values())


def _all(outcome: tuple[dict[str, T], dict[str, NodeError]]) -> dict[str, T]:
    """
    Raises:
        ShardError: with a line for each shard that failed.
    """
    done, failed = outcome
    if failed:
        raise shard_error(failed)
    return done


def shard_error(failed: Mapping[str, NodeError]) -> ShardError:
    return ShardError(*(f"{shard}: {error}" for shard, error in failed.items()))


async def _check(primary: Primary, collection: Collection) -> int:
    """The table's oid, if it can hold the rows, and the role may bring them."""
    rights = await held_rights(primary.connection, collection)
    if rights is None:
        advice = f"run `pgscatter schema apply --collection {collection.name}` with this map first"
        raise NodeError(ErrorKind.FATAL, f"no table {collection.table}; {advice}")
    missing = missing_rights(collection, rights, Use.LOAD)
    if missing:
        said = f"the role {rights.role} may not load into {collection.table}: {'; '.join(missing)}"
        raise NodeError(ErrorKind.DENIED, said)
    found = await inspect(primary.connection, collection)
    if found.oid is None:
        raise NodeError(ErrorKind.FATAL, f"the table {collection.table} has just been dropped")
    problems = mismatches(collection, found, replicated=False)
    if problems:
        raise NodeError(ErrorKind.FATAL, f"{collection.table} cannot hold the rows: {'; '.join(problems)}")
    return found.oid


async def _lock(primary: Primary, relation: int) -> None:
    """Keep other loads of this table, and builds of its indexes, out until the session ends.

    Raises:
        ShardError: one of them holds it.
    """
    lock = load_lock(relation)
    try:
        with node_errors():
            async with asyncio.timeout(_LOCK_TIMEOUT):
                while True:
                    if await primary.connection.fetchval("SELECT pg_try_advisory_lock($1)", lock):
                        return
                    await asyncio.sleep(_LOCK_POLL)
    except NodeError as exc:
        message = (
            "another load is at work on this table, or `pgscatter schema apply` builds an index of it, or"
            f" {primary.node.name} hangs ({exc}); begin again when that is done"
        )
        raise ShardError(f"{primary.shard}: {message}") from exc


async def _see(primary: Primary, collection: Collection, job: Job, restart: bool) -> _Seen:
    connection = primary.connection
    found = await inspect(connection, collection)
    rights = await held_rights(connection, collection)
    if found.oid is None or rights is None:
        raise NodeError(ErrorKind.FATAL, f"the table {collection.table} has just been dropped")
    await create_load_tables(connection)
    if restart:
        await resume.forget(connection, found.oid, job.source)
    return _Seen(primary, found, rights, await resume.existing(connection, found.oid, found.empty, job))


def _chunk_rows(collection: Collection, begun: Iterable[Load], wanted: int | None, usual: int | None) -> int:
    """
    Raises:
        ShardError: the job has begun with chunks of another size.
    """
    sizes = {load.chunk_rows for load in begun}
    if not sizes:
        width = 4 * collection.vector.dimensions + 64
        shards = len(shard_names(collection.sharding))
        return wanted or usual or max(1, min(_PART_BYTES * shards, _CHUNK_BYTES) // width)
    if len(sizes) > 1 or (wanted is not None and wanted not in sizes):
        shown = " and ".join(map(str, sorted(sizes)))
        raise ShardError(f"this load was begun with --chunk-rows {shown}, which cannot change on the way")
    return sizes.pop()


async def _begin(seen: _Seen, collection: Collection, job: Job, chunk_rows: int) -> Target:
    load = seen.load
    if load is None:
        async with seen.primary.connection.transaction():
            # Whoever does not own the table could not build it again either.
            defers = seen.found.empty and seen.rights.owns
            deferred = await _defer_index(seen, collection) if defers else None
            load = await resume.begin(seen.primary.connection, seen.relation, job, chunk_rows, deferred)
    elif seen.found.empty and seen.rights.owns and load.deferred_index and not load.finished:
        # `schema apply` has built it since this load was killed before its first row.
        if vector_index(collection, seen.found) is not None:
            async with seen.primary.connection.transaction():
                deferred = await _defer_index(seen, collection)
                load = await resume.defer(seen.primary.connection, load, deferred)
    shard = seen.primary.shard
    return Target(
        shard=shard,
        index=shard_names(collection.sharding).index(shard),
        primary=seen.primary,
        relation=seen.relation,
        owns=seen.rights.owns,
        analyzes=seen.rights.analyzes,
        defaulted=frozenset(column.name for column in seen.found.columns.values() if column.filled),
        load=load,
        chunks=set(load.chunks),
        earlier=load.rows,
    )


async def _defer_index(seen: _Seen, collection: Collection) -> str:
    """Drop the index of an empty table; returns the statement that builds it when the rows are in.

    Copying 25,000 rows into an indexed table took 5 times as long as copying them and building after.
    """
    words = fulltext.found_index(collection, seen.found)
    if words is not None:
        # The end of the load makes what is missing: 0.04 ms a document at once, and 0.35 one by one.
        await seen.primary.connection.execute(f"DROP INDEX {collection.table.schema}.{words.name}")
    index = vector_index(collection, seen.found)
    if index is None:
        name = ddl.free_name((collection.table.name, collection.vector.column), "hnsw", seen.found.relations)
        return ddl.create_vector_index(collection, name)
    await seen.primary.connection.execute(f"DROP INDEX {collection.table.schema}.{index.name}")
    return index.definition
