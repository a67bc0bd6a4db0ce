"""Documents, one by one, become a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from router.bulk.batch import Batch, Ids, Refused, placed
from router.documents.types import Document
from shard_config.model import Collection
from shard_config.values import ValueType

__all__ = ["as_ids", "batch_of"]


def batch_of(collection: Collection, documents: Sequence[Document], refused: Sequence[Refused]) -> Batch:
    """A batch of checked documents, whose `index` is their place in the file."""
    vectors = np.frombuffer(b"".join([d.vector for d in documents]), dtype="<f4")
    columns: dict[str, list[object]] = {}
    if collection.content is not None:
        columns[collection.content] = [d.content for d in documents]
    if collection.metadata is not None:
        columns[collection.metadata] = [d.metadata for d in documents]
    for name, column in collection.columns.items():
        columns[column.column] = [d.columns.get(name) for d in documents]
    return placed(
        collection,
        np.fromiter((d.index for d in documents), dtype=np.int64, count=len(documents)),
        as_ids(collection, [d.id for d in documents]),
        vectors.reshape(-1, collection.vector.dimensions),
        columns,
        refused,
    )


def as_ids(collection: Collection, ids: Sequence[object]) -> Ids:
    if collection.id.type is ValueType.BIGINT:
        return np.array(ids, dtype=np.int64)
    return ids
