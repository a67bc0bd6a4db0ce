"""After the last row: indexes, statistics, ids that stand twice, the job's end, and the replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from router.bulk import resume
from router.bulk.errors import ShardError
from router.bulk.start import shard_error
from router.bulk.target import Target
from router.postgres.connection import NodeError
from router.schema import ddl
from router.schema.build import BuildLimits, build_index, graph_bytes, sort_bytes
from router.schema.duplicates import ids_in_order, repeated
from router.schema.inspect import Found, inspect
from router.schema.primary import on_each
from router.schema.replicas import Lag, wait_replayed
from router.schema.session import node_errors
from router.schema.shape import changes, vector_index
from router.terminal import Display
from shard_config.model import Collection, ShardMap

__all__ = ["check_ids", "index", "mark_finished", "replay"]

_INDEX_TIMEOUT = 26 * 3600.0  # the build's own bound, and statistics
_CHECK_TIMEOUT = 4 * 3600.0
_SHORT = 60.0
_LISTED = 10
_MIB = 1 << 20


async def index(
    collection: Collection, targets: Sequence[Target], limits: BuildLimits, display: Display
) -> list[str]:
    """Build what was put off, on all shards at once, and gather statistics; returns what is worth a note.

    Raises:
        ShardError
    """
    by_shard = {target.shard: target for target in targets}

    async def one(shard: str) -> list[str]:
        return await _index(collection, by_shard[shard], limits, display)

    notes, failed = await on_each(by_shard, one, _INDEX_TIMEOUT)
    if failed:
        raise shard_error(failed)
    return [f"{shard}: {note}" for shard, said in notes.items() for note in said]


async def _index(collection: Collection, target: Target, limits: BuildLimits, display: Display) -> list[str]:
    connection = target.primary.connection
    found = await inspect(connection, collection)
    if not target.owns:
        return await _without_owning(collection, target, found)
    notes = []
    if vector_index(collection, found) is None:
        statement = target.load.deferred_index or await resume.owed_index(connection, target.relation)
        if statement is None:
            notes.append(f"{collection.table} has no HNSW index; `pgscatter schema apply` creates it")
        else:
            note = await _build(collection, target, statement, limits, display)
            notes += [note] if note else []
    # Those on what filters compare stay during a load: PostgreSQL keeps one for about what building it later
    # takes, and for a hundredth of what the vectors' takes.
    for change in changes(collection, found, vector_index=False):
        for statement in change.statements:
            note = await _build(collection, target, statement, limits, display, hnsw=False)
            notes += [note] if note else []
    await connection.execute(ddl.analyze(collection))
    return notes


async def _without_owning(collection: Collection, target: Target, found: Found) -> list[str]:
    """What only the table's owner may do is left, and said."""
    lacks = [change.lacking for change in changes(collection, found, vector_index=True)]
    notes = [
        f"{collection.table} lacks {lacking}, which only its owner may build:"
        " run `pgscatter schema apply` as that role"
        for lacking in lacks
    ]
    if target.analyzes:
        await target.primary.connection.execute(ddl.analyze(collection))
    else:
        notes.append(
            f"statistics of {collection.table} were not gathered, which only its owner may, or from"
            f" PostgreSQL 17 on who has MAINTAIN: run {ddl.analyze(collection)}"
        )
    return notes


async def _build(
    collection: Collection,
    target: Target,
    statement: str,
    limits: BuildLimits,
    display: Display,
    *,
    hnsw: bool = True,
) -> str | None:
    node, connection = target.primary.node, target.primary.connection
    rows = await connection.fetchval(f"SELECT count(*) FROM {collection.table}")
    memory = graph_bytes(collection, rows) if hnsw else sort_bytes(rows)
    meter = display.meter(f"{target.shard} index", rows, "rows")
    try:
        return await build_index(node, connection, statement, rows, memory, limits, meter.reach)
    finally:
        meter.end()


async def check_ids(collection: Collection, targets: Sequence[Target]) -> None:
    """See that no id stands on two shards, where nothing else prevents it.

    Raises:
        ShardError: with some of those that do.
    """
    if collection.sharded_by_id or len(targets) < 2:
        return
    lines: list[str] = []
    streams = {t.shard: ids_in_order(t.primary.connection, collection) for t in targets}
    try:
        with node_errors():
            async with asyncio.timeout(_CHECK_TIMEOUT):
                async for id_, shards in repeated(streams):
                    lines.append(f"the {collection.id.column} {str(id_)!r} stands on {' and '.join(shards)}")
                    if len(lines) == _LISTED:
                        break
    except NodeError as exc:
        raise ShardError(f"ids could not be compared between shards: {exc}") from exc
    if lines:
        raise ShardError(*lines, "an id must stand on one shard: delete the others, then load again")


async def mark_finished(targets: Sequence[Target]) -> None:
    """Say on every shard that the job is done, if the rows are where they will stay.

    Raises:
        ShardError
    """
    by_shard = {target.shard: target for target in targets}

    async def one(shard: str) -> None:
        target = by_shard[shard]
        await target.primary.confirm()
        await resume.finish(target.primary.connection, target.load.id)

    _, failed = await on_each(by_shard, one, _SHORT)
    if failed:
        raise shard_error(failed)


async def replay(
    shard_map: ShardMap, targets: Sequence[Target], timeout: float, display: Display
) -> list[Lag]:
    """Wait until replicas have all that was loaded; returns those that have not, or cannot be asked.

    Raises:
        ShardError: a primary does not say how far it is.
    """
    by_shard = {target.shard: target for target in targets}
    behind: dict[str, int] = {}
    meter = display.meter("replicas", 1, "MiB of log")

    def on_lag(node: str, size: int) -> None:
        behind[node] = size
        meter.remain(sum(behind.values()) // _MIB)

    async def one(shard: str) -> list[Lag]:
        return await wait_replayed(shard_map.shards[shard], by_shard[shard].primary, timeout, on_lag)

    late, failed = await on_each(by_shard, one, timeout + _SHORT)
    meter.end()
    if failed:
        raise shard_error(failed)
    return [lag for lags in late.values() for lag in lags]
