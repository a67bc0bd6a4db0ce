"""One collection of a map: the tables of its fields, and what must hold between them."""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Mapping
from datetime import date
from functools import partial
from typing import Any

import msgspec

from shard_config import limits, metadata_path
from shard_config.file import fields
from shard_config.file.fields import Field, ref, schema_of, shown, text_of, values
from shard_config.file.identifiers import PLAIN_NAME, column_complaint, complaint
from shard_config.file.nodes import check_name
from shard_config.file.placement import SHARDING, read_sharding
from shard_config.file.reader import Cursor, repeated
from shard_config.file.words import (
    FULLTEXT,
    WORDS,
    check_template,
    embedder_of,
    fulltext_of,
    named_fulltext,
)
from shard_config.model import (
    Cache,
    Collection,
    Column,
    EmbeddingService,
    Index,
    IndexType,
    MetadataType,
    Metric,
    Quantization,
    SearchDefaults,
    Table,
    Tuned,
    Vector,
    VectorType,
)
from shard_config.values import ValueType

# Values that have a form of their own.


def _read_table(cursor: Cursor) -> Table | None:
    text = cursor.string()
    if text is None:
        return None
    schema, dot, name = text.rpartition(".")
    table = Table(schema=schema if dot else "public", name=name)
    wrong = complaint(table.schema) or complaint(table.name)
    if wrong:
        cursor.fail(f"{wrong}; a table is NAME or SCHEMA.NAME")
    return table


def _read_day(cursor: Cursor) -> date:
    text = cursor.matching(limits.DAY, "a date such as 2026-01-31")
    try:
        return date.min if text is None else date.fromisoformat(text)
    except ValueError:
        cursor.fail(f"expected a day of the calendar, got {cursor.shown()}")
        return date.min


def _read_columns(cursor: Cursor) -> dict[str, Column]:
    return {name: _read_column(name, entry) for name, entry in cursor.entries()}


def _read_column(name: str, cursor: Cursor) -> Column:
    """A section, or its type alone."""
    if name in limits.TAKEN_NAMES:
        cursor.fail(f"searches and documents use the name {name} for something else; choose another name")
    wrong = complaint(name) if cursor["column"].present else column_complaint(name)
    if wrong:
        cursor.fail(wrong)
    found = values(cursor, COLUMN) if cursor.is_mapping else {"type": COLUMN["type"].read(cursor)}
    return Column(name, found.pop("column", None) or name, **found)


class _Metadata(msgspec.Struct):
    column: str | None
    indexes: dict[tuple[str, ...], MetadataType]


def _read_metadata(cursor: Cursor) -> _Metadata:
    """A section, or its column alone."""
    if cursor.is_mapping:
        return _Metadata(**values(cursor, METADATA))
    return _Metadata(fields.column().read(cursor), {})


def _read_indexes(cursor: Cursor) -> dict[tuple[str, ...], MetadataType]:
    entries = cursor.entries()
    if len(entries) > limits.METADATA_INDEXES:
        cursor.fail(f"{len(entries)} indexes exceed {limits.METADATA_INDEXES}")
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
    return indexes


# The tables.

ID = {
    "column": fields.column("id"),
    "type": fields.value_type((ValueType.BIGINT, ValueType.UUID, ValueType.TEXT), ValueType.BIGINT),
}
VECTOR = {
    "column": fields.column("embedding"),
    "type": fields.choice(VectorType, VectorType.VECTOR),
    "dimensions": fields.integer(limits.DIMENSIONS).required("384"),
    "metric": fields.choice(Metric).required("cosine"),
}
COLUMN = {
    "column": fields.column(),
    "type": fields.value_type(ValueType, ValueType.TEXT),
    "index": fields.boolean(False, "Made by `pgscatter schema apply`."),
}
METADATA = {
    "column": fields.column("metadata"),
    "indexes": Field(
        _read_indexes,
        {
            "type": "object",
            "additionalProperties": fields.choice(MetadataType).schema,
            "maxProperties": limits.METADATA_INDEXES,
        },
        help="Paths, as filters name them after `metadata.`, and the type of their values.",
        show=lambda indexes: {metadata_path.spelled(path): str(type_) for path, type_ in indexes.items()},
    ),
}
INDEX = {
    "m": fields.integer(limits.M, 16),
    "ef_construction": fields.integer(limits.EF_CONSTRUCTION, 64),
    "quantization": fields.choice(Quantization, Quantization.NONE),
    "type": fields.choice(IndexType, IndexType.HNSW),
}
TUNED = {
    "target_recall": fields.number(limits.TARGET_RECALL).required("0.99"),
    "recall": fields.number(
        limits.SHARE, help="Mean of the queries' recall at k, in the worst case measured."
    ).required("0.995"),
    "lower_bound": fields.number(limits.SHARE, help="What that is at least, with 95 % confidence.").required(
        "0.99"
    ),
    "k": fields.integer(limits.MAX_K).required("10"),
    "queries": fields.integer(limits.TUNE_QUERIES).required("500"),
    "filters": fields.integer(
        limits.TUNE_FILTERS, help="How many filters were measured beside no filter."
    ).required("0"),
    "shards": fields.integer((1, limits.SHARDS), help="How many shards the collection had.").required("4"),
    "at": Field(_read_day, text_of(limits.DAY), show=date.isoformat).required("2026-01-31"),
}
SEARCH = {
    "ef_search": fields.integer(limits.EF_SEARCH, 40),
    "overfetch": fields.number(limits.OVERFETCH, 2.0),
    "timeout": fields.duration(limits.TIMEOUT, 2.0),
    "max_k": fields.integer(limits.MAX_K, 1000),
    "target_recall": fields.number(limits.TARGET_RECALL, help="What `pgscatter tune` chooses ef_search for."),
    "tuned": fields.optional_section(TUNED, Tuned, "Written by `pgscatter tune`."),
}
CACHE = {"ttl": fields.duration(limits.TTL, 60.0)}
COLLECTION = {
    "table": Field(
        _read_table,
        text_of(rf"(?:{PLAIN_NAME}\.)?{PLAIN_NAME}"),
        help="NAME or SCHEMA.NAME, the same on every shard.",
        show=str,
    ).required("public.documents"),
    "id": fields.section(ID, partial(Column, "id")).required("{column: id, type: bigint}"),
    "vector": fields.section(VECTOR, Vector).required("{dimensions: 384, metric: cosine}"),
    "content": fields.column(),
    "metadata": Field(_read_metadata, {"anyOf": [ref("column"), schema_of(METADATA)]}),
    "columns": Field(
        _read_columns,
        {
            "type": "object",
            "propertyNames": {
                "pattern": f"^(?:{limits.IDENTIFIER})$",
                "not": {"enum": list(limits.TAKEN_NAMES)},
            },
            "additionalProperties": {"anyOf": [COLUMN["type"].schema, schema_of(COLUMN)]},
        },
        show=lambda columns: {name: shown(column, COLUMN) for name, column in columns.items()},
    ),
    "sharding": SHARDING,
    "index": fields.section(INDEX, Index),
    "search": fields.section(SEARCH, SearchDefaults),
    "cache": fields.section(CACHE, Cache),
    **WORDS,
}


def read_collections(
    cursor: Cursor, shards: Names[str], models: Mapping[str, EmbeddingService]
) -> dict[str, Collection]:
    """All collections under `cursor`, in a map that has these shards and models."""
    entries = cursor.entries()
    collections = {name: _read(name, entry, shards, models) for name, entry in entries}
    # Two owners of one table would each answer from a cache that the other's writes do not reach.
    for table, entry, owner in repeated((collections[name].table, entry) for name, entry in entries):
        entry.fail(f"the table {table} belongs to {owner} already")
    return collections


def show_collections(collections: Mapping[str, Collection]) -> dict[str, Any]:
    """As the file has them."""
    return {name: _shown(collection) for name, collection in collections.items()}


def _read(
    name: str, cursor: Cursor, shards: Names[str], models: Mapping[str, EmbeddingService]
) -> Collection:
    check_name(name, cursor)
    found = values(cursor, COLLECTION)
    id_, metadata = found["id"], found.pop("metadata")
    keys = {id_.column: id_, "id": id_, **found["columns"]}
    sharding = read_sharding(found.pop("sharding"), keys, shards)
    embedder, named = found.pop("embedder"), found.pop("fulltext")
    collection = Collection(
        name=name,
        metadata=metadata.column,
        metadata_indexes=metadata.indexes,
        sharding=sharding,
        embedder=embedder_of(embedder, cursor["embedder"], models, found["vector"].dimensions),
        fulltext=fulltext_of(named, cursor["fulltext"], found["content"], found["columns"]),
        **found,
    )
    check_template(collection, cursor)
    _check_mapped_once(collection, cursor)
    _check_dimensions(collection, cursor["vector"]["dimensions"])
    _check_index(collection.index, cursor["index"])
    return collection


def _shown(collection: Collection) -> dict[str, Any]:
    view = shown(collection, {name: field for name, field in COLLECTION.items() if name != "fulltext"})
    named = named_fulltext(collection)
    if named is not None:
        view["fulltext"] = shown(named, FULLTEXT)
    if collection.metadata_indexes:
        view["metadata"] = shown(_Metadata(collection.metadata, collection.metadata_indexes), METADATA)
    return view


def _check_mapped_once(collection: Collection, cursor: Cursor) -> None:
    columns = cursor["columns"]
    mapped = [
        (collection.id.column, cursor["id"]),
        (collection.vector.column, cursor["vector"]),
        (collection.content, cursor["content"]),
        (collection.metadata, cursor["metadata"]),
        *((column.column, columns[name]) for name, column in collection.columns.items()),
    ]
    if collection.fulltext is not None:
        mapped.append((collection.fulltext.stored, cursor["fulltext"]["stored"]))
    named = [(name, at["column"] if at["column"].present else at) for name, at in mapped]
    for name, at, first in repeated(named):
        at.fail(f"the table's column {name!r} is mapped by {first} already")


def _check_dimensions(collection: Collection, cursor: Cursor) -> None:
    vector = collection.vector
    most = limits.indexable_dimensions(vector.type, collection.index.quantization)
    if vector.dimensions > most:
        cursor.fail(
            f"{vector.dimensions} dimensions exceed {most}, the most that an HNSW index takes here; "
            "with index.quantization halfvec it takes 4000, with binary all"
        )


def _check_index(index: Index, cursor: Cursor) -> None:
    least = 2 * index.m
    if index.ef_construction < least:
        where = cursor["ef_construction"] if cursor["ef_construction"].present else cursor["m"]
        wrong = f"ef_construction {index.ef_construction} must be at least twice m"
        where.fail(f"{wrong}, so {least} for m {index.m}")
