"""What a run of `schema apply` reads of each shard's identity, and writes there at its end.

Invariant: a shard is told that it holds rows of a table only after its table was read through and no row was
found that the map places elsewhere; and it is never told an older version, or that it is another shard.
"""

from __future__ import annotations

import asyncpg

from router.postgres.connection import ErrorKind, NodeError
from router.postgres.identity import create, read_identity, write_identity
from router.schema.primary import Primary
from shard_config.identity import Identity, disagreements
from shard_config.model import Collection, ShardMap

__all__ = ["record", "refusals", "require_placement"]

_THERE = """
SELECT name AS table FROM unnest($1::text[]) name
WHERE EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE concat(n.nspname, '.', c.relname) = name AND c.relkind IN ('r', 'p'))
"""
_RAISE = "give the changed map a higher version"


async def refusals(
    shard_map: ShardMap,
    collections: list[Collection],
    primary: Primary,
    mine: Identity,
    found: Identity | None,
) -> list[str]:
    """Why the map, which expects `mine`, must not be applied to a shard, by its own word `found`.

    A changed placement is none as long as no row lies otherwise, which is seen where the collection's rows
    are read; here only rows are counted that nobody else looks at.
    """
    if found is None:
        return []
    names = {collection.name for collection in collections}
    errors: list[str] = []
    for point in disagreements(shard_map, mine, found):
        if point.kind == "shard":
            errors.append(f"{primary.node.name} {point.text}; list it there, or see docs/operations.md")
        elif point.kind == "older":
            errors.append(f"it {point.text}; apply the newest map, or {_RAISE}")
        elif point.kind == "content":
            errors.append(f"it {point.text}; {_RAISE}")
        elif point.collection not in names:
            errors.append(f"it {point.text}; apply that collection too")
        elif point.collection is not None:
            collection = shard_map.collections[point.collection]
            if primary.shard not in shard_map.shards_of(collection):
                errors += await _left(primary, collection)
    return errors


async def _left(primary: Primary, collection: Collection) -> list[str]:
    """Of a collection that the map has taken away from the shard: whether rows are left."""
    try:
        rows = await primary.connection.fetchval(f"SELECT count(*) FROM {collection.table}")
    except asyncpg.UndefinedTableError:
        return []
    if not rows:
        return []
    what = f"{rows:,} rows of {collection.table} are there, and the map places none there"
    return [f"{collection.name}: {what}; move them, or change the map"]


async def require_placement(
    shard_map: ShardMap, collection: Collection, primary: Primary, mine: Identity
) -> None:
    """
    Raises:
        NodeError: by its own word, rows that the map places on the shard do not belong there.
    """
    found = await read_identity(primary.connection)
    if found is None:
        return
    for point in disagreements(shard_map, mine, found):
        if point.kind == "shard" or point.collection == collection.name:
            raise NodeError(
                ErrorKind.FATAL,
                f"{primary.node.name} {point.text}: rows would be misplaced; see `pgscatter map check`",
            )


async def record(
    collections: list[Collection], primary: Primary, mine: Identity, found: Identity | None
) -> str | None:
    """Let the shard say what it is by this map; returns what was done in a few words, None if nothing.

    Raises:
        asyncpg.InsufficientPrivilegeError: the role may not.
    """
    applied = {str(collection.table) for collection in collections}
    known = {} if found is None else found.holds
    mapped = {one["table"] for one in mine.content.values()}
    # A table that the map has forgotten is not empty for that.
    rows = await primary.connection.fetch(_THERE, list(known.keys() - mapped))
    holds = {row["table"]: known[row["table"]] for row in rows}
    # Of the other tables nobody has looked at the rows now.
    holds |= {table: held for table, held in mine.holds.items() if table in applied or table in known}
    now = Identity(mine.shard, mine.version, mine.digest, holds, mine.content)
    if now == found:
        return None
    async with primary.connection.transaction():
        await create(primary.connection)
        await write_identity(primary.connection, now)
    return f"recorded that this is {mine.shard} of version {mine.version} of the map"
