"""Rows between a file and the shards, by column.

Invariant: what stands in a batch passed every check that a document sent to the router passes; what did
not is in `refused`. Which rows those are depends on the file and the collection alone, so that a chunk
read again is the same batch; of rows that came as text it depends on the model as well, which is part of the
collection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.bulk.check import beyond_index
from router.documents.types import Document, TextDocument
from shard_config.model import Collection
from shard_config.partition import NoPlaceError, locate_many

__all__ = ["Batch", "Chunk", "Ids", "Refused", "Source", "Unembedded", "Wanted", "placed"]

Ids: TypeAlias = NDArray[np.int64] | Sequence[object]
Wanted: TypeAlias = Callable[[int], bool]


class Refused(msgspec.Struct, frozen=True):
    """A row that cannot be stored; `row` counts as `Source.place` expects it."""

    row: int
    reason: str


class Batch(msgspec.Struct, frozen=True):
    """Rows of one chunk.

    Attributes:
        rows: their places in the file.
        ids: an array where they are integers.
        vectors: float32, of shape (rows, dimensions).
        columns: values as `coerce` gives them, by the table's column name; metadata is JSON text.
        shards: for each row the index of its shard in `shard_names`.
    """

    rows: NDArray[np.int64]
    ids: Ids
    vectors: NDArray[np.float32]
    columns: Mapping[str, Sequence[object]]
    refused: tuple[Refused, ...]
    shards: NDArray[np.int64]


class Unembedded(msgspec.Struct, frozen=True):
    """Rows of one chunk of which some have a text and no vector yet; `index` is their place in the file."""

    documents: Sequence[Document | TextDocument]
    refused: tuple[Refused, ...]


class Chunk(msgspec.Struct, frozen=True):
    """A stretch of the file. `extent` is its part of `Source.extent`; `batch` is None if not wanted."""

    number: int
    extent: int
    batch: Batch | Unembedded | None


class Source(Protocol):
    """A file of rows.

    Attributes:
        extent: its size, in rows or bytes, whatever can be told without reading it.
        fingerprint: equal for equal files, different for almost all others.
        as_text: whether its rows, as far as can be told, have texts to make vectors of.
    """

    path: str
    extent: int
    fingerprint: str
    as_text: bool

    def chunks(self, rows: int, wanted: Wanted) -> Iterator[Chunk]:
        """The file in stretches of `rows` rows, the last one shorter; reads no more than one at a time.

        Raises:
            SourceError: while iterating.
        """
        ...

    def place(self, row: int) -> str:
        """How to call a row: `row 17`."""
        ...


def placed(
    collection: Collection,
    rows: NDArray[np.int64],
    ids: Ids,
    vectors: NDArray[np.float32],
    columns: Mapping[str, Sequence[object]],
    refused: Sequence[Refused],
) -> Batch:
    """A batch of rows that are fine but for the index and their place: some may fit in neither."""
    found, lost = _locate(collection, ids, columns)
    everyone = np.arange(len(rows))
    located = np.delete(everyone, list(lost))
    lost |= beyond_index(vectors, collection)
    if not lost:
        return Batch(rows, ids, vectors, columns, tuple(refused), found)
    keep = np.delete(everyone, list(lost))
    refused = [*refused, *(Refused(int(rows[at]), reason) for at, reason in lost.items())]
    refused.sort(key=lambda row: row.row)
    kept = {name: [values[at] for at in keep.tolist()] for name, values in columns.items()}
    shards = found[np.isin(located, keep)]
    return Batch(rows[keep], _take(ids, keep), vectors[keep], kept, tuple(refused), shards)


def _locate(
    collection: Collection, ids: Ids, columns: Mapping[str, Sequence[object]]
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """The shards of all rows that have one, and why the others, by position, have none."""
    sharding = collection.sharding
    keys = ids if collection.sharded_by_id else columns.get(sharding.key.column)
    if keys is None:
        keys = [None] * len(ids)
    lost: dict[int, str] = {}
    left = np.arange(len(ids))
    while True:
        try:
            return locate_many(sharding, _take(keys, left) if lost else keys), lost
        except NoPlaceError as exc:
            assert exc.position is not None
            lost[int(left[exc.position])] = f"{sharding.key.name}: {exc}"
            left = np.delete(left, exc.position)


def _take(values: Ids, positions: NDArray[np.int64]) -> Ids:
    if isinstance(values, np.ndarray):
        return values[positions]
    return [values[at] for at in positions.tolist()]
