"""In what the tables of one collection differ between shards, where the map leaves it open. Pure.

What the map asks for is compared with each shard alone. Beside that a table may have more: indexes, which
make searches fast on some shards and slow on others; defaults, constraints and triggers, by which a document
is stored otherwise, or refused, on some; policies that hide rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from router.schema import ddl
from router.schema.findings import Finding, NodeFacts, Severity
from router.schema.inspect import Found, FoundIndex
from router.schema.shape import expected, fits
from shard_config.model import Collection

__all__ = ["Traits", "shard_differences", "traits_of"]

# By collection, what its table has beside the map, in words that are the same on every shard.
Traits = Mapping[str, frozenset[str]]

_NAMED = 3


def traits_of(collections: Iterable[Collection], facts: Iterable[NodeFacts]) -> Traits:
    """By what one node of a shard says, its primary if that was asked; a table that is not there has none."""
    nodes = sorted(facts, key=lambda one: one.standby)
    tables = nodes[0].tables if nodes else {}
    return {
        one.name: frozenset(_traits(one, found))
        for one in collections
        if (found := tables.get(one.name)) is not None and found.kind in ("r", "p")
    }


def shard_differences(traits: Mapping[str, Traits]) -> list[Finding]:
    """What a shard has and others lack, or the other way round, said of the fewer."""
    found = []
    for collection in dict.fromkeys(name for one in traits.values() for name in one):
        tables = {shard: one[collection] for shard, one in traits.items() if collection in one}
        if len(set(tables.values())) == 1:
            continue
        counts = Counter(trait for table in tables.values() for trait in table)
        for trait in sorted(trait for trait, count in counts.items() if count < len(tables)):
            having = [shard for shard, table in tables.items() if trait in table]
            lacking = [shard for shard, table in tables.items() if trait not in table]
            if len(having) < len(lacking):
                message, told = f"has {trait}, which {_listed(lacking, 'lack')}", having
            else:
                message, told = f"lacks {trait}, which {_listed(having, 'have')}", lacking
            found += [Finding(shard, Severity.WARNING, message, collection) for shard in told]
    return found


def _traits(collection: Collection, found: Found) -> Iterable[str]:
    given = {collection.id.column, collection.vector.column, collection.sharding.key.column}
    for name, type_ in ddl.stored_types(collection).items():
        column = found.columns.get(name)
        if column is None:
            continue
        if column.type != type_ and fits(collection, column, type_):
            yield f"the type {column.type} of column {name}"
        if name not in given:
            if column.not_null:
                yield f"NOT NULL on column {name}"
            if column.default is not None:
                yield f"the default {column.default} of column {name}"
    yield from (_index(one) for one in found.indexes if one.valid and not expected(collection, one))
    yield from (f"the constraint {one}" for one in found.constraints)
    yield from (f"the trigger {one}" for one in found.triggers)
    if collection.fulltext is not None:
        yield f"the locale {found.locale}, by which the database tells words apart"
    if found.policed:
        yield "policies that may hide rows from the role"


def _index(index: FoundIndex) -> str:
    _, _, over = index.definition.partition(" USING ")
    return f"the {'unique ' if index.unique else ''}index {over}"


def _listed(shards: list[str], verb: str) -> str:
    if len(shards) == 1:
        return f"{shards[0]} {'has' if verb == 'have' else f'{verb}s'}"
    more = len(shards) - _NAMED
    named = shards if more <= 0 else [*shards[:_NAMED], f"{more} more"]
    return f"{', '.join(named[:-1])} and {named[-1]} {verb}"
