"""Rows of a batch as PostgreSQL's binary COPY stream, in blocks.

Where a row is an integer and a vector it is as long as every other, and a block is one numpy array of
rows; else values are encoded one by one, but for vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from router.bulk.batch import Batch
from router.bulk.scalars import encoder
from router.schema.ddl import stored_types
from shard_config.model import Collection, VectorType

__all__ = ["copy_columns", "copy_stream"]

# Signature, flags and length of the header's extension, as in the documentation of COPY.
_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER = b"\xff\xff"
# Small enough to stay in the processor's cache between encoding and sending.
_BLOCK_BYTES = 256 << 10
_COMPONENTS = {VectorType.VECTOR: ">f4", VectorType.HALFVEC: ">f2"}


def copy_columns(collection: Collection, batch: Batch) -> list[str]:
    """The table's columns that `copy_stream` gives values for, in its order."""
    return [collection.id.column, collection.vector.column, *batch.columns]


def copy_stream(
    collection: Collection, batch: Batch, positions: NDArray[np.int64]
) -> Iterator[bytes | memoryview]:
    """The rows at `positions`; together the blocks are one whole stream."""
    fixed = isinstance(batch.ids, np.ndarray) and not batch.columns
    encode = _fixed_rows if fixed else _Rows(collection, batch).encode
    size = max(1, _BLOCK_BYTES // (_vector_dtype(collection).itemsize + 32))
    yield _HEADER
    for first in range(0, len(positions), size):
        yield encode(collection, batch, positions[first : first + size])
    yield _TRAILER


def _vector_dtype(collection: Collection) -> np.dtype[np.void]:
    """A vector field: its length, then pgvector's format."""
    vector = collection.vector
    components = (_COMPONENTS[vector.type], (vector.dimensions,))
    return np.dtype(
        [("length", ">i4"), ("dimensions", ">i2"), ("unused", ">i2"), ("components", *components)]
    )


def _fill_vectors(
    fields: NDArray[np.void], collection: Collection, batch: Batch, positions: NDArray[np.int64]
) -> None:
    fields["length"] = fields.dtype.itemsize - 4
    fields["dimensions"] = collection.vector.dimensions
    fields["unused"] = 0
    fields["components"] = batch.vectors[positions]


def _fixed_rows(collection: Collection, batch: Batch, positions: NDArray[np.int64]) -> memoryview:
    row = np.dtype(
        [("fields", ">i2"), ("length", ">i4"), ("id", ">i8"), ("vector", _vector_dtype(collection))]
    )
    block = np.empty(len(positions), dtype=row)
    block["fields"] = 2
    block["length"] = 8
    assert isinstance(batch.ids, np.ndarray)
    block["id"] = batch.ids[positions]
    _fill_vectors(block["vector"], collection, batch, positions)
    return block.view(np.uint8).data


class _Rows:
    """Encodes rows of any columns; holds an encoder for each."""

    def __init__(self, collection: Collection, batch: Batch) -> None:
        types = stored_types(collection)
        self._start = np.array(2 + len(batch.columns), dtype=">i2").tobytes()
        self._ids: Sequence[object] = batch.ids.tolist() if isinstance(batch.ids, np.ndarray) else batch.ids
        self._id = encoder(types[collection.id.column])
        self._columns = [(values, encoder(types[name])) for name, values in batch.columns.items()]

    def encode(self, collection: Collection, batch: Batch, positions: NDArray[np.int64]) -> bytes:
        vectors = np.empty(len(positions), dtype=_vector_dtype(collection))
        _fill_vectors(vectors, collection, batch, positions)
        at = positions.tolist()
        size = vectors.dtype.itemsize
        data = vectors.tobytes()
        fields = [
            [self._start] * len(at),
            [self._id(self._ids[i]) for i in at],
            [data[i : i + size] for i in range(0, len(data), size)],
            *([encode(values[i]) for i in at] for values, encode in self._columns),
        ]
        return b"".join(chain.from_iterable(zip(*fields, strict=True)))
