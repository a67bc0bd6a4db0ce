"""How many bytes an answer's rows take: which columns may come with the search, and which are fetched after.

A search asks every shard for more rows than the answer will have, and nobody knows before how long a text or
a metadata object is. So a shard sends along only what takes few bytes; what is wide is fetched by id, for the
rows that the merged answer keeps, piece by piece. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from router.query.types import VectorFormat
from shard_config.model import Collection, VectorType
from shard_config.values import ValueType

__all__ = [
    "Layout",
    "expected_bytes",
    "fixed_bytes",
    "layout_for",
    "least_bytes",
    "runs",
    "variable_columns",
    "vector_bytes",
]

# What all shards together may send along with the rows of one search: 64 searches of a batch, 64 MiB.
_INLINE_BYTES = 1 << 20
_VECTOR_BYTES = {VectorType.VECTOR: 4, VectorType.HALFVEC: 2}
# Nothing that a fixed type holds is longer in JSON.
_FIXED_COLUMN_BYTES = 40
_VARIABLE = frozenset({ValueType.TEXT, ValueType.NUMERIC})
# id, distance, shard, and their names.
_HIT_BYTES = 80


class Layout(msgspec.Struct, frozen=True):
    """What a search's statement returns of each row beside id and distance.

    Attributes:
        inline: the columns that come with the row.
        row_bytes: for rows whose columns of variable length take more, they do not come.
        guarded: whether that can happen; then whether its columns have come stands behind them in each row.
        fixed_bytes: what its columns of fixed length take.
    """

    inline: frozenset[str]
    row_bytes: int = 0
    guarded: bool = False
    fixed_bytes: int = 0

    @property
    def fits_at(self) -> int | None:
        """Where a row says whether its columns have come; None if they always have."""
        return 2 + len(self.inline) if self.guarded else None


_NOTHING = Layout(frozenset())


def layout_for(collection: Collection, include: frozenset[str], rows: int, shards: int) -> Layout:
    """For `rows` rows from each of `shards` shards."""
    if not include:
        return _NOTHING
    row_bytes = _INLINE_BYTES // max(1, rows * shards)
    fixed = fixed_bytes(collection, include)
    if fixed > row_bytes:
        return _NOTHING
    return Layout(include, row_bytes - fixed, bool(variable_columns(collection, include)), fixed)


def fixed_bytes(collection: Collection, include: frozenset[str]) -> int:
    """A row's columns of fixed length."""
    size = _FIXED_COLUMN_BYTES * len(include)
    if "vector" in include:
        size += vector_bytes(collection)
    return size


def vector_bytes(collection: Collection) -> int:
    """The components of one vector."""
    return collection.vector.dimensions * _VECTOR_BYTES[collection.vector.type]


def variable_columns(collection: Collection, include: frozenset[str]) -> list[str]:
    """The table's columns, of those included, whose values can have any length."""
    columns = []
    if collection.content is not None and "content" in include:
        columns.append(collection.content)
    if collection.metadata is not None and "metadata" in include:
        columns.append(collection.metadata)
    for name, column in collection.columns.items():
        if name in include and column.type in _VARIABLE:
            columns.append(column.column)
    return columns


def least_bytes(
    collection: Collection, include: frozenset[str], sizes: Sequence[int], format: VectorFormat
) -> int:
    """What hits take as JSON at least; `sizes` are the bytes of each one's columns of variable length."""
    return sum(sizes) + len(sizes) * _vector_text(collection, include, format, 2.0)


def expected_bytes(
    collection: Collection, include: frozenset[str], sizes: Sequence[int], format: VectorFormat
) -> int:
    """The same as it usually is: 12.5 characters a component, and a tenth of text that must be escaped."""
    each = _HIT_BYTES + _FIXED_COLUMN_BYTES * len(include) + _vector_text(collection, include, format, 12.5)
    return int(sum(sizes) * 1.1) + len(sizes) * each


def _vector_text(
    collection: Collection, include: frozenset[str], format: VectorFormat, characters: float
) -> int:
    if "vector" not in include:
        return 0
    dimensions = collection.vector.dimensions
    return int(dimensions * characters) if format == "float" else (4 * dimensions + 2) // 3 * 4


def runs(sizes: Sequence[int], first: int, most: int) -> Iterator[range]:
    """Consecutive places whose sizes add up to at most `most`, of the first run `first`.

    A larger one is a run of its own.
    """
    start, total, limit = 0, 0, first
    for i, size in enumerate(sizes):
        if total + size > limit and i > start:
            yield range(start, i)
            start, total, limit = i, 0, most
        total += size
    if start < len(sizes):
        yield range(start, len(sizes))
