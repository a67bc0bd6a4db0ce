"""Reads one collection of a map: its table, columns, index and defaults."""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from shard_config import limits, metadata_path
from shard_config.file import fields
from shard_config.file.identifiers import column_complaint, complaint
from shard_config.file.nodes import check_name
from shard_config.file.placement import EXAMPLE, read_sharding
from shard_config.file.problems import suggestion
from shard_config.file.reader import Cursor
from shard_config.model import (
    Cache,
    Collection,
    Column,
    Index,
    MetadataType,
    Quantization,
    SearchDefaults,
    Table,
    Vector,
)
from shard_config.values import TYPE_NAMES, ValueType, parse_type

ID_TYPES = (ValueType.BIGINT, ValueType.UUID, ValueType.TEXT)
_ID_TYPE_NAMES = tuple(name for name in TYPE_NAMES if parse_type(name) in ID_TYPES)


class IndexType(StrEnum):
    HNSW = "hnsw"


_FIELDS = (
    "table",
    "id",
    "vector",
    "content",
    "metadata",
    "columns",
    "sharding",
    "index",
    "search",
    "cache",
    "text_model",
)


def read_collections(cursor: Cursor, shards: Names[str]) -> dict[str, Collection]:
    """All collections under `cursor`, in a map that has these shards."""
    collections: dict[str, Collection] = {}
    owners: dict[Table, str] = {}
    for name, entry in cursor.entries():
        check_name(name, entry)
        collection = collections[name] = _collection(name, entry, shards)
        # Two owners of one table would each answer from a cache that the other's writes do not reach.
        owner = owners.setdefault(collection.table, name)
        if owner != name and collection.table.name:
            entry.fail(f"the table {collection.table} belongs to the collection {owner} already")
    return collections


def _collection(name: str, cursor: Cursor, shards: Names[str]) -> Collection:
    section = cursor.section(_FIELDS)
    physical = _PhysicalNames()
    table = _table(section.required("table", f"public.{name}"))
    index = _index(section["index"])
    id_ = _id(section.required("id", "{column: id, type: bigint}"), physical)
    vector_at = section.required("vector", "{dimensions: 384, metric: cosine}")
    vector = _vector(vector_at, index.quantization, physical)
    content = physical.read(section["content"])
    metadata, metadata_indexes = _metadata(section["metadata"], physical)
    columns = {name: _column(name, entry, physical) for name, entry in section["columns"].entries()}
    keys = {id_.column: id_, "id": id_, **columns}
    return Collection(
        name=name,
        table=table,
        id=id_,
        vector=vector,
        content=content,
        metadata=metadata,
        columns=columns,
        sharding=read_sharding(section.required("sharding", EXAMPLE), keys, shards),
        index=index,
        search=SearchDefaults(**_plain(section["search"], fields.SEARCH)),
        cache=Cache(**_plain(section["cache"], fields.CACHE)),
        text_model=section["text_model"].file(),
        metadata_indexes=metadata_indexes,
    )


def _plain(cursor: Cursor, table: Mapping[str, fields.Field]) -> dict[str, Any]:
    return fields.values(cursor.section(table), table)


class _PhysicalNames:
    """Which column of the table is mapped by what; each may be mapped once."""

    def __init__(self) -> None:
        self._taken: dict[str, str] = {}

    def read(self, cursor: Cursor) -> str | None:
        """The column that the field names, or None where the field is missing."""
        name = cursor.string()
        if name is not None:
            self.take(name, cursor)
        return name

    def read_or(self, default: str, cursor: Cursor) -> str:
        name = self.read(cursor)
        if name is None:
            self.take(default, cursor)
        return name or default

    def take(self, name: str, cursor: Cursor) -> None:
        first = self._taken.setdefault(name, cursor.path)
        wrong = column_complaint(name)
        if wrong:
            cursor.fail(wrong)
        elif first != cursor.path:
            cursor.fail(f"the table's column {name!r} is mapped by {first} already")


def _table(cursor: Cursor) -> Table:
    text = cursor.string()
    if text is None:
        return Table(schema="", name="")
    schema, dot, name = text.rpartition(".")
    table = Table(schema=schema if dot else "public", name=name)
    wrong = complaint(table.schema) or complaint(table.name)
    if wrong:
        cursor.fail(f"{wrong}; a table is NAME or SCHEMA.NAME")
    return table


def _id(cursor: Cursor, physical: _PhysicalNames) -> Column:
    section = cursor.section(("column", "type"))
    at = section.required("type", "bigint")
    type_ = _type(at, _ID_TYPE_NAMES)
    if type_ is not None and type_ not in ID_TYPES:
        at.fail(f"expected one of {', '.join(ID_TYPES)}, got {at.shown()}")
    column = physical.read_or("id", section["column"])
    return Column(name="id", column=column, type=type_ or ValueType.BIGINT)


def _type(cursor: Cursor, names: Sequence[str] = TYPE_NAMES) -> ValueType | None:
    """The type; for one that is unknown, the nearest of `names`, those that the field can have, is named."""
    name = cursor.string()
    if name is None:
        return None
    try:
        return parse_type(name)
    except ValueError:
        near = suggestion(name, names) or f"; known are {', '.join(ValueType)}, and their aliases"
        cursor.fail(f"unknown type {cursor.shown()}{near}")
        return None


def _column(name: str, cursor: Cursor, physical: _PhysicalNames) -> Column:
    if name in limits.TAKEN_NAMES:
        cursor.fail(f"searches and documents use the name {name} for something else; choose another name")
    if not cursor.is_mapping:
        physical.take(name, cursor)
        return Column(name=name, column=name, type=_type(cursor) or ValueType.TEXT)
    section = cursor.section(("column", "type", "index"))
    wrong = complaint(name) if section["column"].present else None
    if wrong:
        cursor.fail(wrong)
    column = physical.read_or(name, section["column"])
    return Column(
        name=name,
        column=column,
        type=_type(section.required("type", "text")) or ValueType.TEXT,
        index=section["index"].boolean(False),
    )


def _metadata(
    cursor: Cursor, physical: _PhysicalNames
) -> tuple[str | None, dict[tuple[str, ...], MetadataType]]:
    """The column, and which of its paths are indexed for values of which type."""
    if not cursor.is_mapping:
        return physical.read(cursor), {}
    section = cursor.section(("column", "indexes"))
    column = physical.read_or("metadata", section["column"])
    entries = section["indexes"].entries()
    if len(entries) > limits.METADATA_INDEXES:
        section["indexes"].fail(f"{len(entries)} indexes exceed {limits.METADATA_INDEXES}")
    indexes: dict[tuple[str, ...], MetadataType] = {}
    for text, entry in entries:
        try:
            path = metadata_path.steps(text)
        except ValueError as exc:
            entry.fail(str(exc))
            continue
        if path in indexes:
            entry.fail(f"the path {metadata_path.spelled(path)} stands here twice")
        indexes[path] = entry.choice(MetadataType, MetadataType.TEXT)
    return column, indexes


def _vector(cursor: Cursor, quantization: Quantization, physical: _PhysicalNames) -> Vector:
    section = cursor.section(fields.VECTOR)
    vector = Vector(**fields.values(section, fields.VECTOR))
    physical.take(vector.column, section["column"])
    most = limits.indexable_dimensions(vector.type, quantization)
    if vector.dimensions > most:
        section["dimensions"].fail(
            f"{vector.dimensions} dimensions exceed {most}, the most that an HNSW index takes here; "
            "with index.quantization halfvec it takes 4000, with binary all"
        )
    return vector


def _index(cursor: Cursor) -> Index:
    section = cursor.section(("type", *fields.INDEX))
    section["type"].choice(IndexType, IndexType.HNSW)
    index = Index(**fields.values(section, fields.INDEX))
    least = 2 * index.m
    if index.ef_construction < least:
        where = section["ef_construction"] if section["ef_construction"].present else section["m"]
        wrong = f"ef_construction {index.ef_construction} must be at least twice m"
        where.fail(f"{wrong}, so {least} for m {index.m}")
    return index
