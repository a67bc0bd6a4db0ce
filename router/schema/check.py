"""Looking at every node of a map, primaries and replicas, and changing nothing.

Invariant: only catalogs are read, so that a check needs no right on a table, and takes milliseconds however
large it is. A table that is locked against everybody, which keeps its indexes from being told, is a finding
after a second, and a node that cannot be asked after a few.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import asyncpg
import msgspec

from router.postgres.rights import Held, held_rights
from router.schema.alike import Traits, shard_differences, traits_of
from router.schema.findings import (
    Finding,
    NodeFacts,
    Severity,
    Versions,
    shard_findings,
    version_findings,
)
from router.schema.inspect import Found, inspect
from router.schema.primary import on_each
from router.schema.session import connect
from shard_config.model import Collection, ShardMap

if TYPE_CHECKING:
    from router.terminal import Display  # a running router, which checks as well, shows no progress

__all__ = ["CheckedNode", "Report", "check", "collections_by_shard", "read_facts"]

# Of one node, from connecting to its last answer.
_NODE_SECONDS = 10.0
# Nodes, of which those that do not answer keep the others waiting for 5 s each.
_AT_ONCE = 64
# `pg_get_indexdef` waits for whoever alters the table, or drops it.
_LOCK_MS = 1000

_SERVER = """
SELECT current_setting('server_version_num')::int AS postgresql, pg_is_in_recovery() AS standby,
       (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS pgvector,
       (SELECT default_version FROM pg_available_extensions WHERE name = 'vector') AS library
"""


class CheckedNode(msgspec.Struct, frozen=True):
    """`role`, `postgresql` and `pgvector` are None where it could not be asked, and `error` says why."""

    shard: str
    name: str
    role: str | None = None
    postgresql: str | None = None
    pgvector: str | None = None
    error: str | None = None


class Report(msgspec.Struct, frozen=True):
    """What a check has found; `wrong` if any of it is more than a note."""

    nodes: tuple[CheckedNode, ...]
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> bool:
        return any(finding.severity is not Severity.NOTE for finding in self.findings)


async def read_facts(
    connection: asyncpg.Connection, node: str, collections: Sequence[Collection], *, lock_ms: int = _LOCK_MS
) -> NodeFacts:
    """What the catalogs say of the tables of `collections`; one that is locked for `lock_ms` is left out.

    Raises:
        one of POSTGRES_ERRORS
    """
    server = await connection.fetchrow(_SERVER)
    assert server is not None
    tables: dict[str, Found] = {}
    rights: dict[str, Held] = {}
    for one in collections:
        # A session waits for a lock on all that it is asked for, so each table has a transaction of its own.
        with suppress(asyncpg.LockNotAvailableError):
            async with connection.transaction(readonly=True):
                await connection.execute(f"SET LOCAL lock_timeout = {lock_ms:d}")
                tables[one.name] = await inspect(connection, one, read_rows=False)
                held = await held_rights(connection, one)
            if held is not None:
                rights[one.name] = held
    versions = Versions(server["postgresql"], server["pgvector"], server["library"])
    return NodeFacts(node, server["standby"], versions, tables, rights)


def collections_by_shard(
    shard_map: ShardMap, collections: Sequence[Collection]
) -> dict[str, list[Collection]]:
    """Those of `collections` that each shard holds; only shards that hold one."""
    held = {
        name: [one for one in collections if name in shard_map.shards_of(one)] for name in shard_map.shards
    }
    return {name: some for name, some in held.items() if some}


async def check(shard_map: ShardMap, collections: Sequence[Collection], display: Display) -> Report:
    """Look at every node of the shards that hold `collections`, some at a time."""
    held = collections_by_shard(shard_map, collections)
    nodes = {(shard, node.name): node for shard in held for node in shard_map.shards[shard].nodes}
    meter = display.meter("schema", len(nodes), "nodes")

    async def one(key: tuple[str, str]) -> NodeFacts:
        shard, name = key
        connection = await connect(nodes[key], "pgscatter schema check", default_transaction_read_only="on")
        try:
            return await read_facts(connection, name, held[shard])
        finally:
            connection.terminate()
            meter.add(1)

    facts, failed = await on_each(nodes, one, _NODE_SECONDS, at_once=_AT_ONCE)
    meter.end()
    findings: list[Finding] = []
    traits: dict[str, Traits] = {}
    for shard, some in held.items():
        asked = [facts[key] for key in nodes if key[0] == shard and key in facts]
        traits[shard] = traits_of(some, asked)
        findings += [
            Finding(shard, Severity.ERROR, f"cannot be asked: {error}", nodes=(name,))
            for (where, name), error in failed.items()
            if where == shard
        ]
        findings += _of_primaries(shard, asked)
        findings += shard_findings(shard, some, asked, nodes=len(shard_map.shards[shard].nodes))
    findings += shard_differences(traits)
    findings += version_findings({key: one.versions for key, one in facts.items()})
    order = list(held)
    findings.sort(key=lambda finding: (order.index(finding.shard), list(Severity).index(finding.severity)))
    told = [_told(key, facts.get(key), str(failed.get(key, ""))) for key in nodes]
    return Report(tuple(told), tuple(findings))


def _of_primaries(shard: str, asked: Sequence[NodeFacts]) -> list[Finding]:
    """A node that was deposed goes on saying that it is the primary; who is right is found out elsewhere."""
    primaries = [one.node for one in asked if not one.standby]
    if len(primaries) > 1:
        message = "more than one node says that it is the primary"
        return [Finding(shard, Severity.ERROR, message, nodes=tuple(primaries))]
    if asked and not primaries:
        return [Finding(shard, Severity.ERROR, "no primary among the nodes that could be asked")]
    return []


def _told(key: tuple[str, str], facts: NodeFacts | None, error: str) -> CheckedNode:
    if facts is None:
        return CheckedNode(*key, error=error)
    role = "replica" if facts.standby else "primary"
    return CheckedNode(*key, role, facts.versions.shown, facts.versions.pgvector)
