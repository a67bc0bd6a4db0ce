"""SQL text of a collection's table and indexes. Pure: identifiers come from the validated map.

Nothing here is `IF NOT EXISTS`: what exists is looked at first (`inspect`), so that a table of another
shape is refused instead of being taken for the right one.
"""

from __future__ import annotations

import re
from collections.abc import Collection as Names

import msgspec

from router.postgres.collations import CODE_POINT
from router.postgres.filter_indexes import IndexDefinition
from router.postgres.fulltext_index import FulltextIndex, words_of
from shard_config.model import Collection, Fulltext, Metric, Quantization, VectorType
from shard_config.values import ValueType

__all__ = [
    "FILTER_INDEX_NAME",
    "FULLTEXT_INDEX_NAME",
    "VectorKey",
    "add_words",
    "analyze",
    "create_extension",
    "create_filter_index",
    "create_fulltext_index",
    "create_key_index",
    "create_schema",
    "create_table",
    "create_vector_index",
    "drop_index",
    "filter_index_name",
    "free_name",
    "stored_types",
    "vector_key",
    "words_column",
]

_NAME_BYTES = 63
FILTER_INDEX_NAME = re.compile(r".*_filter[0-9]*")
FULLTEXT_INDEX_NAME = re.compile(r".*_fulltext[0-9]*")
_METRICS = {
    Metric.L2: "l2_ops",
    Metric.COSINE: "cosine_ops",
    Metric.INNER_PRODUCT: "ip_ops",
    Metric.L1: "l1_ops",
}
# Pages of 8192 bytes hold at most 8160 of one tuple; 2040 is where PostgreSQL begins to move values of a
# row out of it (TOAST_TUPLE_THRESHOLD in src/include/access/heaptoast.h).
_PAGE = 8192
_MOST_TUPLE = 8160
_TOAST_THRESHOLD = 2040
_TUPLE_OVERHEAD = 64
_LEAST_PAGE_USE = 0.65


class VectorKey(msgspec.Struct, frozen=True):
    """What an HNSW index is over: `expression` as `CREATE INDEX` takes it, and its operator class."""

    expression: str
    opclass: str


def create_extension(schema: str) -> str:
    return f"CREATE EXTENSION vector SCHEMA {schema}"


def create_schema(name: str) -> str:
    return f"CREATE SCHEMA {name}"


def stored_types(collection: Collection) -> dict[str, str]:
    """Every column that the map names, with its type as `format_type` writes it, in the table's order."""
    vector = collection.vector
    columns = {
        collection.id.column: str(collection.id.type),
        vector.column: f"{vector.type}({vector.dimensions})",
    }
    if collection.content is not None:
        columns[collection.content] = "text"
    if collection.metadata is not None:
        columns[collection.metadata] = "jsonb"
    return columns | {column.column: str(column.type) for column in collection.columns.values()}


def create_table(collection: Collection) -> list[str]:
    """Statements for the table alone."""
    needed = {collection.vector.column, collection.sharding.key.column} - {collection.id.column}
    columns = []
    for name, type_ in stored_types(collection).items():
        suffix = " PRIMARY KEY" if name == collection.id.column else " NOT NULL" if name in needed else ""
        columns.append(f"{name} {type_}{_collation(collection, name)}{suffix}")
    if collection.fulltext is not None and collection.fulltext.stored is not None:
        columns.append(words_column(collection.fulltext))
    table = f"CREATE TABLE {collection.table} ({', '.join(columns)})"
    if not _inline(collection):
        return [table]
    target = min(_vector_bytes(collection) + _TOAST_THRESHOLD, _MOST_TUPLE)
    return [
        f"{table} WITH (toast_tuple_target = {target})",
        f"ALTER TABLE {collection.table} ALTER COLUMN {collection.vector.column} SET STORAGE PLAIN",
    ]


def words_column(fulltext: Fulltext) -> str:
    """The definition of the column that keeps each row's words."""
    return f"{fulltext.stored} tsvector GENERATED ALWAYS AS ({words_of(fulltext)}) STORED"


def add_words(collection: Collection, fulltext: Fulltext) -> str:
    """Rewrites the table and all of its indexes, behind a lock that keeps everybody out."""
    return f"ALTER TABLE {collection.table} ADD COLUMN {words_column(fulltext)}"


def vector_key(collection: Collection) -> VectorKey:
    """The expression and operator class that make the router's searches use the index."""
    vector = collection.vector
    metric = _METRICS[vector.metric]
    match collection.index.quantization:
        case Quantization.NONE:
            return VectorKey(vector.column, f"{vector.type}_{metric}")
        case Quantization.HALFVEC:
            cast = f"({vector.column}::halfvec({vector.dimensions}))"
            # A cast to the type that the column has already is dropped by the server.
            return VectorKey(
                vector.column if vector.type is VectorType.HALFVEC else cast, f"halfvec_{metric}"
            )
        case Quantization.BINARY:
            cast = f"(binary_quantize({vector.column})::bit({vector.dimensions}))"
            return VectorKey(cast, "bit_hamming_ops")


def create_vector_index(collection: Collection, name: str, *, concurrently: bool = False) -> str:
    key = vector_key(collection)
    index = collection.index
    return (
        f"CREATE INDEX{_concurrently(concurrently)} {name} ON {collection.table}"
        f" USING hnsw ({key.expression} {key.opclass})"
        f" WITH (m = {index.m}, ef_construction = {index.ef_construction})"
    )


def create_key_index(collection: Collection, name: str, *, concurrently: bool = False) -> str:
    """For filters on the sharding key, and for moving rows between shards."""
    key = collection.sharding.key.column
    return f"CREATE INDEX{_concurrently(concurrently)} {name} ON {collection.table} ({key})"


def create_filter_index(
    collection: Collection, index: IndexDefinition, name: str, *, concurrently: bool = False
) -> str:
    collate = f" COLLATE {CODE_POINT}" if index.code_point else ""
    opclass = f" {index.opclass}" if index.opclass else ""
    return (
        f"CREATE INDEX{_concurrently(concurrently)} {name} ON {collection.table}"
        f" USING {index.method} ({index.key}{collate}{opclass})"
    )


def create_fulltext_index(
    collection: Collection, index: FulltextIndex, name: str, *, concurrently: bool = False
) -> str:
    """Without GIN's list of pending entries, which every search reads through.

    Of 67,681 documents of 1.1 kB, 4,000 of them new, a search for rare words took 0.2 ms instead of 0.7, and
    an insert 0.5 ms instead of 0.3, but at most 23 ms instead of the 180 ms of whoever empties the list.
    """
    return (
        f"CREATE INDEX{_concurrently(concurrently)} {name} ON {collection.table}"
        f" USING gin ({index.key}) WITH (fastupdate = off)"
    )


def filter_index_name(collection: Collection, index: IndexDefinition, taken: Names[str]) -> str:
    """A free name that says what the index is on; `FILTER_INDEX_NAME` matches it."""
    steps = (re.sub(r"[^a-z0-9]+", "_", step.lower()).strip("_") for step in index.path)
    parts = (collection.table.name, index.column, *(step for step in steps if step))
    return free_name(parts, "filter", taken)


def drop_index(collection: Collection, name: str, *, concurrently: bool = False) -> str:
    return f"DROP INDEX{_concurrently(concurrently)} {collection.table.schema}.{name}"


def analyze(collection: Collection) -> str:
    """Statistics of an index's expression exist only once they were gathered with the index there."""
    return f"ANALYZE {collection.table}"


def free_name(parts: tuple[str, ...], suffix: str, taken: Names[str]) -> str:
    """A name that no relation of the schema has yet, cut to PostgreSQL's limit."""
    for number in range(len(taken) + 1):
        ending = f"_{suffix}" if number == 0 else f"_{suffix}{number}"
        name = "_".join(parts)[: _NAME_BYTES - len(ending)] + ending
        if name not in taken:
            return name
    raise AssertionError("one more name than there are names")


def _concurrently(wanted: bool) -> str:
    return " CONCURRENTLY" if wanted else ""


def _collation(collection: Collection, column: str) -> str:
    """Text keys are compared by code point everywhere: in routing, in merging, and so in the index too."""
    keys = (collection.id, collection.sharding.key)
    text = any(key.column == column and key.type is ValueType.TEXT for key in keys)
    return ' COLLATE "C"' if text else ""


def _vector_bytes(collection: Collection) -> int:
    width = 4 if collection.vector.type is VectorType.VECTOR else 2
    return 8 + width * collection.vector.dimensions


def _inline(collection: Collection) -> bool:
    """Whether vectors are kept in the table's own pages instead of beside them.

    By default a row longer than 2 kB has its longest value, the vector, moved out. The planner counts the
    table's own pages, so for 12,000 vectors of 784 dimensions it preferred reading all of them (25 ms) to
    the index (1.3 ms), and gave the build of the index fewer workers. Kept in, the index was used, built 1.5
    times as fast (1536 dimensions: 1.6), and an exact scan was 2.4 times as fast (1536: 1.5; 384 with 1.5 kB
    of content: 1.3). A scan that reads other columns alone got 1.4 to 3.8 times as slow. Measured on
    PostgreSQL 18.4 with pgvector 0.8.5.

    The row's other values keep their usual allowance, so that metadata and short texts stay in the row too.
    Not where vectors would leave much of every page empty, as those of 1024 dimensions do.
    """
    size = _vector_bytes(collection)
    rows = _MOST_TUPLE // (size + _TUPLE_OVERHEAD)
    room = _MOST_TUPLE - size if rows == 1 else _TOAST_THRESHOLD
    return rows * (size + _TUPLE_OVERHEAD) / _PAGE >= _LEAST_PAGE_USE and room >= 0.9 * _TOAST_THRESHOLD
