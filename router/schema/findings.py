"""What is wrong with a shard's tables, and how badly, from what its nodes' catalogs say. Pure.

Invariant: what `schema apply` would create or refuse is a finding, and where there is none, it has nothing
to do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import msgspec

from router.postgres.rights import Held, Use, missing_rights
from router.schema.inspect import Found
from router.schema.minima import LEAST_POSTGRESQL, WANTED_POSTGRESQL, numbers
from router.schema.shape import changes, differences, mismatches, remarks, unsearchable
from shard_config.model import Collection
from shard_config.values import ValueType

__all__ = [
    "Finding",
    "NodeFacts",
    "Severity",
    "Versions",
    "redacted",
    "shard_findings",
    "version_findings",
]

_RIGHTS_TO_WRITE = ("INSERT", "UPDATE", "DELETE")


class Severity(StrEnum):
    """`error`: searches or writes are wrong, or fail. `warning`: slower, or other than the map says. `note`:
    may be meant so."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Finding(msgspec.Struct, frozen=True):
    """One thing that is not as the map says, or not as it should be.

    Attributes:
        collection: None if it is about the server.
        nodes: where it was found, if that is not on all nodes of the shard that were asked.
        searchable: False if every search of the collection on this shard fails by it.
    """

    shard: str
    severity: Severity
    message: str
    collection: str | None = None
    nodes: tuple[str, ...] = ()
    searchable: bool = True

    def __str__(self) -> str:
        about = "" if self.collection is None else f"{self.collection}: "
        where = f" (on {', '.join(self.nodes)})" if self.nodes else ""
        return f"{self.severity}: {about}{self.message}{where}"


class Versions(msgspec.Struct, frozen=True):
    """`postgresql` is `server_version_num`; `pgvector` the extension's, None where there is none."""

    postgresql: int
    pgvector: str | None
    library: str | None

    @property
    def major(self) -> int:
        return self.postgresql // 10_000

    @property
    def shown(self) -> str:
        """As people write it: 18.4."""
        return f"{self.major}.{self.postgresql % 10_000}"


class NodeFacts(msgspec.Struct, frozen=True):
    """What one node's catalogs say.

    Attributes:
        tables: by collection; one that is not there is locked against everybody.
        rights: by collection, where there is a table.
    """

    node: str
    standby: bool
    versions: Versions
    tables: Mapping[str, Found]
    rights: Mapping[str, Held]


def shard_findings(
    shard: str, collections: Sequence[Collection], facts: Sequence[NodeFacts], *, nodes: int
) -> list[Finding]:
    """What is wrong with `collections` on a shard of so many `nodes`, by those of them that were asked."""
    seen: dict[Finding, list[str]] = defaultdict(list)
    for one in _with_works(facts):
        found = _of_server(shard, one.versions)
        for collection in collections:
            found += _of_table(shard, collection, one, nodes > 1)
        for finding in dict.fromkeys(found):
            seen[finding].append(one.node)
    return [
        finding if len(where) == len(facts) else msgspec.structs.replace(finding, nodes=tuple(where))
        for finding, where in seen.items()
    ]


def version_findings(versions: Mapping[tuple[str, str], Versions]) -> list[Finding]:
    """Nodes, by shard and name, whose versions are older than those of others."""
    if not versions:
        return []
    newest = max(versions.values(), key=lambda one: one.postgresql)
    extensions = [one.pgvector for one in versions.values() if one.pgvector is not None]
    latest = max(extensions, key=numbers, default=None)
    found = []
    for (shard, node), one in versions.items():
        if one.postgresql != newest.postgresql:
            severity = Severity.WARNING if one.major != newest.major else Severity.NOTE
            message = f"PostgreSQL {one.shown}, where other nodes run {newest.shown}"
            found.append(Finding(shard, severity, message, nodes=(node,)))
        if latest is not None and one.pgvector not in (None, latest):
            message = f"the extension vector is of version {one.pgvector}, where other nodes have {latest}"
            found.append(Finding(shard, Severity.WARNING, message, nodes=(node,)))
    return found


def redacted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The same for who may not know of tables, roles and servers: where, how badly, and what fails by it."""
    told = "told to the scope admin, by the router's log, and by `pgscatter schema check`"
    return tuple(msgspec.structs.replace(finding, message=told, nodes=()) for finding in findings)


def _with_works(facts: Sequence[NodeFacts]) -> list[NodeFacts]:
    """The facts, with what is at work on the primary told of replicas as well, which do not know of it."""
    loading = {name for one in facts for name, found in one.tables.items() if found.loading}
    building = {
        (name, index.name)
        for one in facts
        for name, found in one.tables.items()
        for index in found.indexes
        if index.building
    }
    if not (loading or building):
        return [*facts]

    def told(name: str, found: Found) -> Found:
        indexes = tuple(
            msgspec.structs.replace(index, building=True) if (name, index.name) in building else index
            for index in found.indexes
        )
        return msgspec.structs.replace(found, loading=name in loading, indexes=indexes)

    return [
        msgspec.structs.replace(one, tables={name: told(name, found) for name, found in one.tables.items()})
        for one in facts
    ]


def _of_server(shard: str, versions: Versions) -> list[Finding]:
    found = []
    if versions.major < LEAST_POSTGRESQL:
        message = f"PostgreSQL {versions.shown}; right would be {LEAST_POSTGRESQL} or newer"
        found.append(Finding(shard, Severity.ERROR, message))
    elif versions.major < WANTED_POSTGRESQL:
        message = (
            f"PostgreSQL {versions.shown} goes on with statements of a router that is gone; right would be"
            f" {WANTED_POSTGRESQL} or newer"
        )
        found.append(Finding(shard, Severity.WARNING, message))
    extension, library = versions.pgvector, versions.library
    if extension is not None and library is None:
        message = f"the extension vector is of version {extension}, but the server has no files of it"
        found.append(Finding(shard, Severity.ERROR, f"{message}; install pgvector there"))
    elif extension is not None and library is not None and numbers(extension) != numbers(library):
        message = f"the extension vector is of version {extension}, and the server has the files of {library}"
        found.append(Finding(shard, Severity.WARNING, f"{message}; run: ALTER EXTENSION vector UPDATE"))
    return found


def _of_table(shard: str, collection: Collection, facts: NodeFacts, replicated: bool) -> list[Finding]:
    table = facts.tables.get(collection.name)
    if table is None:
        message = f"{collection.table} is locked by another session, for which searches wait as well"
        return [Finding(shard, Severity.WARNING, message, collection.name)]

    def told(severity: Severity, messages: Iterable[str], *, searchable: bool = True) -> list[Finding]:
        return [
            Finding(shard, severity, message, collection.name, searchable=searchable) for message in messages
        ]

    lethal = unsearchable(collection, table)
    problems = [one for one in mismatches(collection, table, replicated=replicated) if one not in lethal]
    found = told(Severity.ERROR, lethal, searchable=False) + told(Severity.ERROR, problems)
    missing = changes(collection, table, vector_index=True)
    for change in missing:
        what = f"lacks {change.lacking}"
        if change.kind in ("schema", "extension", "table"):
            found += told(Severity.ERROR, [what], searchable=False)
        elif table.kind is None or lethal:
            continue  # it comes with the table, or cannot come before that is mended
        elif change.kind == "column":
            found += told(Severity.ERROR, [f"{what}, without which searches for words fail"])
        elif table.loading and change.kind == "index":
            what += (
                " while a load is at work on the table, or a build of its indexes, which ends with it there"
            )
            found += told(Severity.NOTE, [what])
        else:
            found += told(
                Severity.WARNING,
                [f"{what}, so that searches for words read every row"] if change.words else [what],
            )
    found += told(Severity.WARNING, differences(collection, table))
    found += told(Severity.NOTE, [*remarks(collection, table), *_collations(collection, table)])
    held = facts.rights.get(collection.name)
    return found if held is None else found + _of_rights(shard, collection, held)


def _collations(collection: Collection, found: Found) -> list[str]:
    """Keys that are texts are compared by code point, which their index serves only under "C"."""
    keys = {key.column: key.type for key in (collection.id, collection.sharding.key)}
    return [
        f"column {name} has the collation {column.collation}: comparisons of the key do not use its index,"
        ' which they would under "C"'
        for name, type_ in keys.items()
        if type_ is ValueType.TEXT
        and (column := found.columns.get(name)) is not None
        and column.collation not in (None, "C", "POSIX")
        and column.deterministic
    ]


def _of_rights(shard: str, collection: Collection, held: Held) -> list[Finding]:
    """A role that may not write at all is one that shall not; one that may in part will fail."""
    named = (collection.id.column, collection.vector.column)
    reads = missing_rights(collection, held, Use.READ)
    usable = all(usable for name, usable in held.schemas.items() if name != "pgscatter")
    searchable = usable and all("SELECT" in held.columns.get(name, ("SELECT",)) for name in named)
    found = [
        Finding(
            shard, Severity.ERROR, f"the role lacks a right: {grant}", collection.name, searchable=searchable
        )
        for grant in reads
    ]
    writes = [grant for grant in missing_rights(collection, held, Use.WRITE) if grant not in reads]
    if writes and not _may_write(held):
        message = f"role {held.role} may read, but not write"
        return found or [Finding(shard, Severity.NOTE, message, collection.name)]
    return found + [
        Finding(shard, Severity.ERROR, f"the role lacks a right: {grant}", collection.name)
        for grant in writes
    ]


def _may_write(held: Held) -> bool:
    """At all."""
    rights = held.table.union(*held.columns.values())
    return any(right in rights for right in _RIGHTS_TO_WRITE)
