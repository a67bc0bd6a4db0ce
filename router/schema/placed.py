"""Comparing a map with what lies on its shards: who the nodes are, and every row's place. Changes nothing.

Rows are compared on the shards themselves, by the expression that also says where `load` puts them, in one
read-only snapshot for each shard and table; a role that may SELECT can do it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import msgspec

from router.policy.foreign import Servers, judge
from router.policy.selection import Health, NodeState, Role
from router.postgres.connection import NodeError
from router.postgres.identity import read_identity
from router.postgres.wal import STATE_COLUMNS, STATE_SOURCE
from router.schema.duplicates import ids_in_order, repeated
from router.schema.primary import on_each, primary_of
from router.schema.session import Connection, connect, node_errors
from router.terminal import Display
from shard_config.identity import Identity, disagreements, identities
from shard_config.model import Collection, Node, ShardMap
from shard_config.partition import sql_predicate

__all__ = ["Finding", "check"]

_NAME = "pgscatter map check"
_ASK_TIMEOUT = 10.0
_READ_TIMEOUT = 24 * 3600.0
_EXAMPLES = 5
_PAGE = 8192
# Of a table that are read by one statement, so that progress can be shown: 512 MiB.
_PAGES = 1 << 16

_WHO = f"""
SELECT {STATE_COLUMNS}, (SELECT system_identifier FROM pg_control_system()) AS system,
       extract(epoch FROM pg_postmaster_start_time())::float8 AS started, current_database()::text AS database
FROM {STATE_SOURCE}
"""
_TABLE = """
SELECT c.relkind = 'r' AS plain, pg_relation_size(c.oid) AS bytes
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')
"""


class Finding(msgspec.Struct):
    """What was found on one shard; `errors` empty means that all is where the map says."""

    shard: str
    lines: list[str] = []
    errors: list[str] = []


async def check(shard_map: ShardMap, display: Display) -> list[Finding]:
    """One finding for each shard: its nodes, the map that it was given, and its rows."""
    findings = {shard: Finding(shard) for shard in shard_map.shards}
    await _identify(shard_map, findings)

    async def rows(shard: str) -> None:
        primary = await primary_of(shard_map.shards[shard], _NAME)
        try:
            for collection in shard_map.collections.values():
                await _rows(shard_map, collection, shard, primary.connection, findings[shard], display)
        finally:
            primary.close()

    _, failed = await on_each(shard_map.shards, rows, _READ_TIMEOUT)
    for shard, error in failed.items():
        findings[shard].errors.append(f"rows not compared: {error}")
    for collection in shard_map.collections.values():
        # Where the id says the shard, an id on two of them is a row in the wrong place.
        if not collection.sharded_by_id:
            await _ids(shard_map, collection, findings)
    return list(findings.values())


async def _identify(shard_map: ShardMap, findings: dict[str, Finding]) -> None:
    """See of every node that answers whether it is of its shard, and whether that was given this map."""
    listed = [(shard, node) for shard, one in shard_map.shards.items() for node in one.nodes]
    states, failed = await on_each(range(len(listed)), lambda at: _ask(listed[at][1]), _ASK_TIMEOUT)
    for at, error in failed.items():
        shard, node = listed[at]
        findings[shard].errors.append(f"{node.name} cannot be asked: {error}")
    expected = identities(shard_map)
    servers: Servers[int] = Servers()
    for at, state in states.items():
        shard, node = listed[at]
        servers.saw(at, at, node.name, shard, state)
    for shard in shard_map.shards:
        places = [at for at, (owner, _) in enumerate(listed) if owner == shard and at in states]
        twice = {i: why for i, at in enumerate(places) if (why := servers.twice(at)) is not None}
        verdict = judge(shard, [states[at] for at in places], twice=twice)
        for i, why in verdict.foreign.items():
            findings[shard].errors.append(f"{listed[places[i]][1].name} is none of this shard: {why}")
        own = [states[at] for i, at in enumerate(places) if i not in verdict.foreign]
        _compare(shard_map, findings[shard], expected[shard], own)


def _compare(shard_map: ShardMap, finding: Finding, mine: Identity, states: Sequence[NodeState]) -> None:
    words = [state.identity for state in states if state.identity is not None]
    if not words:
        if states:
            finding.lines.append("does not say which shard it is; `pgscatter schema apply` lets it")
        return
    word = max(words, key=lambda one: one.version)
    finding.lines.append(f"is {word.shard} of version {word.version} of the map")
    points = disagreements(shard_map, mine, word)
    finding.errors += [point.text for point in points]


async def _ask(node: Node) -> NodeState:
    connection = await connect(node, _NAME)
    try:
        with node_errors():
            row = await connection.fetchrow(_WHO)
            assert row is not None, "it selects from one row"
            return NodeState(
                Health.UP,
                Role.REPLICA if row["standby"] else Role.PRIMARY,
                row["lsn"] or 0,
                timeline=row["timeline"] or 0,
                started=row["started"],
                system=row["system"],
                database=row["database"],
                identity=await read_identity(connection),
            )
    finally:
        connection.terminate()


async def _rows(
    shard_map: ShardMap,
    collection: Collection,
    shard: str,
    connection: Connection,
    finding: Finding,
    display: Display,
) -> None:
    """Count the rows of one table, and those that the map does not place there."""
    table = collection.table
    placed = shard in shard_map.shards_of(collection)
    found = await connection.fetchrow(_TABLE, table.schema, table.name)
    if found is None:
        if placed:
            finding.errors.append(f"{collection.name}: no table {table}")
        return
    wrong = f"({sql_predicate(collection.sharding, shard)}) IS NOT TRUE"
    pages = -(-found["bytes"] // _PAGE) if found["plain"] else 0
    meter = display.meter(f"{shard} {collection.name}", max(pages, 1), "pages")
    count = rows = 0
    # One snapshot for all statements: a row that is updated in between would be seen twice, or never.
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        for first in range(0, max(pages, 1), _PAGES):
            stretch = _stretch(first, pages) if found["plain"] else ""
            counted = await connection.fetchrow(
                f"SELECT count(*) FILTER (WHERE {wrong}) AS wrong, count(*) AS rows FROM {table}{stretch}"
            )
            assert counted is not None
            count, rows = count + counted["wrong"], rows + counted["rows"]
            meter.reach(min(first + _PAGES, pages))
        meter.end()
        finding.lines.append(f"{collection.name}: {rows:,} rows")
        if count:
            finding.errors += await _misplaced(shard_map, collection, connection, wrong, count, rows)


def _stretch(first: int, pages: int) -> str:
    """Rows of some of the table's pages; with the last ones come those of pages that are new since."""
    last = first + _PAGES
    end = "" if last >= pages else f" AND ctid < '({last},0)'"
    return f" WHERE ctid >= '({first},0)'{end}"


async def _misplaced(
    shard_map: ShardMap, collection: Collection, connection: Connection, wrong: str, count: int, rows: int
) -> list[str]:
    """Where the rows belong that lie wrong, and the first of them."""
    whens = " ".join(
        f"WHEN {sql_predicate(collection.sharding, name)} THEN '{name}'"
        for name in shard_map.shards_of(collection)
    )
    owner = f"coalesce(CASE {whens} END, 'no shard')"
    table, id_ = collection.table, collection.id.column
    shares = await connection.fetch(
        f"SELECT {owner} AS owner, count(*) AS rows FROM {table} WHERE {wrong} GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    examples = await connection.fetch(
        f"SELECT {id_}::text AS id, {owner} AS owner FROM {table}"
        f" WHERE {wrong} ORDER BY {id_} LIMIT {_EXAMPLES}"
    )
    owners = ", ".join(f"{share['rows']:,} on {share['owner']}" for share in shares)
    shown = ", ".join(f"{example['id']!r} ({example['owner']})" for example in examples)
    what = f"{count:,} of {rows:,} rows of {table} belong elsewhere by this map"
    return [f"{collection.name}: {what}: {owners}; the first are {id_} {shown}"]


async def _ids(shard_map: ShardMap, collection: Collection, findings: dict[str, Finding]) -> None:
    """Name the first ids that stand on several shards."""
    shards = shard_map.shards_of(collection)
    found = 0
    try:
        async with AsyncExitStack() as stack, asyncio.timeout(_READ_TIMEOUT):
            streams = {}
            for shard in shards:
                primary = await primary_of(shard_map.shards[shard], _NAME)
                stack.callback(primary.close)
                streams[shard] = ids_in_order(primary.connection, collection)
            with node_errors():
                async for id_, holders in repeated(streams):
                    where = " and ".join(holders)
                    findings[holders[0]].errors.append(
                        f"{collection.name}: the {collection.id.column} {str(id_)!r} stands on {where}"
                    )
                    found += 1
                    if found == _EXAMPLES:
                        return
    except NodeError as exc:
        findings[shards[0]].errors.append(f"{collection.name}: ids not compared between shards: {exc}")
