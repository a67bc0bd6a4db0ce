"""Whether a table that exists can serve a collection, and what is missing. Pure.

Invariant: after the changes returned by `changes`, `mismatches` is empty and `changes` as well, which
makes a second run idle. A mismatch is never repaired here: it is somebody's data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Collection as Names
from functools import partial
from typing import Literal

import msgspec

from router.postgres.filter_indexes import IndexDefinition, filter_indexes, same_expression
from router.postgres.fulltext_index import fulltext_index
from router.schema import ddl, fulltext
from router.schema.inspect import Found, FoundColumn, FoundIndex
from router.schema.minima import LEAST_PGVECTOR, numbers, shown
from shard_config.model import Collection
from shard_config.values import ValueType

__all__ = [
    "Change",
    "changes",
    "differences",
    "expected",
    "filter_index",
    "fits",
    "mismatches",
    "notes",
    "remarks",
    "unsearchable",
    "vector_index",
]

# Without an encoding, the bytes are those that were sent, which are UTF-8.
_BY_CODE_POINT = frozenset({"UTF8", "SQL_ASCII"})
_VECTOR = re.compile(r"(?:vector|halfvec)(?:\((?P<dimensions>\d+)\))?")
_ROUNDING = ("numeric", "timestamp without time zone", "timestamp with time zone")
_KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "i": "an index",
    "S": "a sequence",
}


class Change(msgspec.Struct, frozen=True):
    """Statements that run together, and what they do in a few words.

    `kind`: what they create, or `statistics` that they gather.
    `index`: builds an index over rows that exist, outside of a transaction and for as long as it takes.
    `hnsw`: that index takes the memory of a graph; `words`, of texts.
    """

    what: str
    statements: tuple[str, ...]
    kind: Literal["schema", "extension", "table", "column", "index", "statistics"]
    index: bool = False
    hnsw: bool = False
    words: bool = False

    @property
    def lacking(self) -> str:
        """What is not there before them."""
        return self.what.partition(" ")[2]


def mismatches(collection: Collection, found: Found, *, replicated: bool) -> list[str]:
    """Everything that keeps the table from serving the collection, each with what would be right."""
    problems = (
        _extension(found) + _encoding(collection, found) + fulltext.language_mismatches(collection, found)
    )
    if found.kind is None:
        return problems
    if found.kind not in ("r", "p"):
        kind = _KINDS.get(found.kind, "no table")
        return [*problems, f"{collection.table} is {kind}; right would be a table"]
    if replicated and not found.permanent:
        problems.append(
            f"{collection.table} is unlogged, so replicas have no rows; right would be:"
            f" ALTER TABLE {collection.table} SET LOGGED"
        )
    for name, type_ in ddl.stored_types(collection).items():
        problems += _column(collection, found, name, type_)
    problems += fulltext.column_mismatches(collection, found)
    problems += _unmapped(collection, found)
    if collection.id.column in found.columns and not _unique_id(collection, found):
        problems.append(
            f"column {collection.id.column} has no unique index of its own, which upserts need; right would"
            f" be: ALTER TABLE {collection.table} ADD UNIQUE ({collection.id.column})"
        )
    return problems


def unsearchable(collection: Collection, found: Found) -> list[str]:
    """Those of `mismatches` with which every search of the table fails.

    Not a vector column of the sister type, or without its dimensions: the server converts, or looks at rows.
    """
    if found.kind is None:
        return []
    id_, vector = collection.id.column, collection.vector.column
    types = ddl.stored_types(collection)
    failing = [name for name in (id_, vector) if name not in found.columns]
    if vector not in failing:
        type_ = _VECTOR.fullmatch(found.columns[vector].type)
        if type_ is None or type_["dimensions"] not in (None, str(collection.vector.dimensions)):
            failing.append(vector)
    return [_column(collection, found, name, types[name])[0] for name in failing]


def differences(collection: Collection, found: Found) -> list[str]:
    """Indexes that work, but not as the map says, or not at all; a search may be slower or find less."""
    said = []
    index = vector_index(collection, found)
    if index is not None:
        wanted = {"m": collection.index.m, "ef_construction": collection.index.ef_construction}
        defaults = {"m": 16, "ef_construction": 64}
        actual = {name: int(index.options.get(name, defaults[name])) for name in wanted}
        if actual != wanted:
            other = [name for name in wanted if actual[name] != wanted[name]]
            list_ = " and ".join(f"{name} {actual[name]} instead of {wanted[name]}" for name in other)
            said.append(f"index {index.name} has {list_}; it is kept, drop it to have it built anew")
    for index in found.indexes:
        if not index.valid and not index.building:
            said.append(f"index {index.name} is left over from a build that failed; drop it")
        elif index.method in ("hnsw", "ivfflat") and not _is_vector_index(collection, index):
            said += _of_other_vectors(collection, index)
    said += [
        f"the collation {name} has changed since indexes of texts were built, from version {built} to {now},"
        f" so that rows may not be found; right would be: REINDEX TABLE {collection.table}"
        for name, built, now in found.outdated
    ]
    return said


def remarks(collection: Collection, found: Found) -> list[str]:
    """What may be as it is, but is worth knowing."""
    said = [
        f"index {index.name} is being built by another session" for index in found.indexes if index.building
    ]
    said += _unwanted(collection, found)
    said += fulltext.remarks(collection, found)
    if found.policed:
        said.append(f"policies may hide rows of {collection.table} from the role, which are not found then")
    bytewise = {index.key for index in filter_indexes(collection)}
    for name, type_ in ddl.stored_types(collection).items():
        column = found.columns.get(name)
        if column is not None and _rounds(column, type_):
            said.append(f"column {name} is {column.type}: values are rounded to that")
        if column is not None and not column.deterministic and name not in bytewise:
            said.append(
                f"column {name} has a nondeterministic collation: equality in filters takes different texts"
                " for equal, unlike every other operator"
            )
    return said


def notes(collection: Collection, found: Found) -> list[str]:
    """What works, but not quite as the map says."""
    return differences(collection, found) + remarks(collection, found)


def changes(collection: Collection, found: Found, *, vector_index: bool) -> list[Change]:
    """What is missing, in the order in which it can be made."""
    missing: list[Change] = []
    if not found.schema:
        name = collection.table.schema
        missing.append(Change(f"created schema {name}", (ddl.create_schema(name),), "schema"))
    if found.vector is None:
        statement = ddl.create_extension(found.vector_home)
        missing.append(Change("created extension vector", (statement,), "extension"))
    if found.kind is None:
        statements = tuple(ddl.create_table(collection))
        missing.append(Change(f"created table {collection.table}", statements, "table"))
    elif (stored := fulltext.missing_column(collection, found)) is not None:
        what = f"created column {stored.stored} of {collection.table}"
        missing.append(Change(what, (ddl.add_words(collection, stored),), "column"))
    missing += _missing_indexes(collection, found, vector_index)
    return missing


def fits(collection: Collection, column: FoundColumn, type_: str) -> bool:
    """Whether values of `type_` can be stored in the column and found there again."""
    if column.type == type_:
        return True
    if type_ == ValueType.TEXT:
        return column.type.startswith("character varying")
    # Rounding a sharding key after it was located would put the row on the wrong shard.
    return _rounds(column, type_) and column.name != collection.sharding.key.column


def expected(collection: Collection, index: FoundIndex) -> bool:
    """Whether the map asks for it, or has its own word on it: what is on ids and vectors."""
    on_vector = index.method in ("hnsw", "ivfflat") and _of_vectors(collection, index)
    unique_id = index.unique and index.keys == (collection.id.column,)
    return on_vector or unique_id or any(one.serves(index) for one in _wanted_indexes(collection, True))


def vector_index(collection: Collection, found: Found) -> FoundIndex | None:
    """An index that serves the collection's searches, under whatever name."""
    return _serving(found, lambda index: _is_vector_index(collection, index))


def filter_index(wanted: IndexDefinition, found: Found) -> FoundIndex | None:
    """An index that serves the conditions that `wanted` is for, under whatever name."""
    return _serving(found, lambda index: _is_filter_index(wanted, index))


def _serving(found: Found, fits: Callable[[FoundIndex], bool]) -> FoundIndex | None:
    return next((index for index in found.indexes if index.valid and fits(index)), None)


def _is_vector_index(collection: Collection, index: FoundIndex) -> bool:
    key = ddl.vector_key(collection)
    if index.method != "hnsw" or not index.total or len(index.keys) != 1:
        return False
    return index.opclass == key.opclass and same_expression(index.keys[0], key.expression)


def _of_vectors(collection: Collection, index: FoundIndex) -> bool:
    return any(re.search(rf"\b{collection.vector.column}\b", one) for one in index.keys)


def _of_other_vectors(collection: Collection, index: FoundIndex) -> list[str]:
    """What an index on the vector column does that is not the one of the map."""
    key = ddl.vector_key(collection)
    if not _of_vectors(collection, index):
        return []
    name = f"index {index.name} ({index.method}, {index.opclass})"
    if index.method != "hnsw" and index.opclass == key.opclass:
        return [f"{name} may be scanned instead of the map's, and ef_search does not say how far; drop it"]
    return [
        f"{name} serves no search, for which it would be over {key.expression} {key.opclass}; drop it, or"
        " change the map"
    ]


def _is_filter_index(wanted: IndexDefinition, index: FoundIndex) -> bool:
    """Further keys do no harm."""
    if index.method != wanted.method or not index.total or not index.keys:
        return False
    opclass = index.default_opclass if wanted.opclass is None else index.opclass == wanted.opclass
    ordered = not wanted.code_point or index.collation == "C"
    return opclass and ordered and same_expression(index.keys[0], wanted.key)


class _WantedIndex(msgspec.Struct, frozen=True):
    """`serves` says whether an index will do, `create` how to make one of a name (and concurrently)."""

    serves: Callable[[FoundIndex], bool]
    named: Callable[[Names[str]], str]
    create: Callable[..., str]
    hnsw: bool = False
    words: bool = False


def _wanted_indexes(collection: Collection, vector_index: bool) -> list[_WantedIndex]:
    table, key = collection.table.name, collection.sharding.key.column
    filters = filter_indexes(collection)
    wanted = []
    # What the map wants on the key serves all that an index on it is for.
    if not collection.sharded_by_id and not any(index.key == key for index in filters):
        named = partial(ddl.free_name, (table, key), "idx")
        wanted.append(_WantedIndex(partial(_leads, key), named, partial(ddl.create_key_index, collection)))
    if vector_index:
        serves = partial(_is_vector_index, collection)
        named = partial(ddl.free_name, (table, collection.vector.column), "hnsw")
        create = partial(ddl.create_vector_index, collection)
        wanted.append(_WantedIndex(serves, named, create, hnsw=True))
    for index in filters:
        named = partial(ddl.filter_index_name, collection, index)
        create = partial(ddl.create_filter_index, collection, index)
        wanted.append(_WantedIndex(partial(_is_filter_index, index), named, create))
    if (words := fulltext_index(collection)) is not None:
        named = partial(ddl.free_name, (table,), "fulltext")
        create = partial(ddl.create_fulltext_index, collection, words)
        wanted.append(_WantedIndex(partial(fulltext.serves, words), named, create, words=True))
    return wanted


def _missing_indexes(collection: Collection, found: Found, vector_index: bool) -> list[Change]:
    # Writers go on while an index is built over rows that exist; an empty table has nobody waiting.
    live = found.kind == "r" and not found.empty
    taken = set(found.relations)
    missing: list[Change] = []
    for wanted in _wanted_indexes(collection, vector_index):
        alike = [index for index in found.indexes if wanted.serves(index)]
        if any(index.valid or index.building for index in alike):
            continue
        # A concurrent build that was interrupted leaves an index that is kept up to date and never read.
        dropped = [ddl.drop_index(collection, index.name, concurrently=live) for index in alike]
        taken -= {index.name for index in alike}
        name = wanted.named(taken)
        taken.add(name)
        what = f"created index {name}{' in place of one whose build had failed' if alike else ''}"
        statements = (*dropped, wanted.create(name, concurrently=live))
        missing.append(
            Change(what, statements, "index", not found.empty, hnsw=wanted.hnsw, words=wanted.words)
        )
    return missing + _statistics(collection, found, missing)


def _statistics(collection: Collection, found: Found, missing: list[Change]) -> list[Change]:
    """Gathering those of new indexes, and of one whose run ended before it came to them."""
    there = [filter_index(index, found) for index in filter_indexes(collection)]
    if fulltext_index(collection) is not None:
        there.append(fulltext.found_index(collection, found))
    made = any(change.index and not change.hnsw for change in missing)
    if found.empty or not there or not (made or any(index and not index.analyzed for index in there)):
        return []
    what = f"gathered statistics of {collection.table}"
    return [Change(what, (ddl.analyze(collection),), "statistics", index=True)]


def _unwanted(collection: Collection, found: Found) -> list[str]:
    """Indexes that an earlier map wanted; they are no reason to drop anything."""
    wanted, words = filter_indexes(collection), fulltext_index(collection)

    def unwanted(index: FoundIndex) -> bool:
        if ddl.FULLTEXT_INDEX_NAME.fullmatch(index.name):
            return words is None or not fulltext.serves(words, index)
        named = ddl.FILTER_INDEX_NAME.fullmatch(index.name)
        return bool(named) and not any(_is_filter_index(one, index) for one in wanted)

    return [
        f"index {index.name} is kept, though the map has no index on what it is for{_unused(index)}: drop it,"
        " or put it into the map"
        for index in found.indexes
        if index.valid and unwanted(index)
    ]


def _unused(index: FoundIndex) -> str:
    """Without an index in the map, equality is asked under the column's own collation."""
    return ", and equality does not use it" if index.collation == "C" else ""


def _encoding(collection: Collection, found: Found) -> list[str]:
    """Under the collation "C" a database compares its own bytes, which only in UTF-8 go by code point."""
    if found.encoding in _BY_CODE_POINT or not any(one.code_point for one in filter_indexes(collection)):
        return []
    return [
        f"the database is in {found.encoding}, and an index on texts needs UTF8: right would be a database"
        " with ENCODING 'UTF8', or no index on texts in the map"
    ]


def _extension(found: Found) -> list[str]:
    version, least = found.vector or found.vector_offered, shown(LEAST_PGVECTOR)
    if version is None:
        return [f"the server has no extension vector; right would be pgvector {least} or newer"]
    if numbers(version) < LEAST_PGVECTOR:
        return [f"the extension vector is of version {version}; right would be {least} or newer"]
    return []


def _column(collection: Collection, found: Found, name: str, type_: str) -> list[str]:
    column = found.columns.get(name)
    alter = f"ALTER TABLE {collection.table} ALTER COLUMN {name}"
    if column is None:
        missing = f"column {name} is missing; right would be {name} {type_}"
        if name == collection.vector.column and found.vector is None:
            missing += (
                ". So is the extension vector: dropped with CASCADE, it took the column and all vectors"
                " with it; restore the table from a backup, or drop it and load it again"
            )
        return [missing]
    problems = []
    required = {collection.id.column, collection.vector.column, collection.sharding.key.column}
    if not fits(collection, column, type_):
        problems.append(f"column {name} is {column.type}; right would be: {alter} TYPE {type_}")
    if name in required and not column.not_null:
        problems.append(f"column {name} may be NULL; right would be: {alter} SET NOT NULL")
    if column.generated:
        problems.append(
            f"column {name} is always generated, so it cannot be written; right would be a plain one"
        )
    if not column.deterministic and name in (collection.id.column, collection.sharding.key.column):
        problems.append(
            f"column {name} has a nondeterministic collation, under which different texts are equal;"
            f' right would be: {alter} TYPE text COLLATE "C"'
        )
    return problems


def _rounds(column: FoundColumn, type_: str) -> bool:
    """Whether the column is `type_` with a precision: `numeric(10,2)`, `timestamp(3) with time zone`."""
    plain = re.sub(r"\(.*?\)", "", column.type)
    return type_ in _ROUNDING and column.type != type_ and plain == type_


def _unmapped(collection: Collection, found: Found) -> list[str]:
    mapped = ddl.stored_types(collection)
    return [
        f"column {column.name} is NOT NULL without a default, and the map does not fill it; right would be a"
        " default, or the column in the map"
        for column in found.columns.values()
        if column.name not in mapped and column.not_null and not column.filled and not column.generated
    ]


def _unique_id(collection: Collection, found: Found) -> bool:
    return any(
        index.unique and index.total and index.valid and index.keys == (collection.id.column,)
        for index in found.indexes
    )


def _leads(column: str, index: FoundIndex) -> bool:
    return index.method == "btree" and index.total and index.keys[:1] == (column,)
