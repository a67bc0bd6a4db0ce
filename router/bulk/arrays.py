"""Arrays on disk as rows: `.npy`, and a dataset of an `.hdf5` file. The id is the row's number, from 0."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from router.bulk.batch import Batch, Chunk, Ids, Refused, Wanted, placed
from router.bulk.check import to_float32, wrong_vectors
from router.bulk.errors import SourceError
from router.bulk.fingerprint import fingerprint
from shard_config.model import Collection
from shard_config.values import ValueType

__all__ = ["ArraySource", "open_hdf5", "open_npy"]


class ArraySource:
    """Rows of a two-dimensional array of floats that is read in slices."""

    as_text = False

    def __init__(self, path: Path, array: Any, collection: Collection, limit: int | None) -> None:
        """
        Raises:
            SourceError: the array is none of vectors of this collection, or the collection needs more.
        """
        _check_collection(path, collection)
        _check_array(path, array, collection)
        with path.open("rb") as file:
            self.fingerprint = fingerprint(file)
        self.path = str(path)
        self.extent = len(array) if limit is None else min(limit, len(array))
        self._array = array
        self._collection = collection

    def __repr__(self) -> str:
        return f"<ArraySource {self.path}: {self.extent} rows>"

    def chunks(self, rows: int, wanted: Wanted) -> Iterator[Chunk]:
        for number, first in enumerate(range(0, self.extent, rows)):
            last = min(first + rows, self.extent)
            batch = self._batch(first, last) if wanted(number) else None
            yield Chunk(number, last - first, batch)

    def place(self, row: int) -> str:
        return f"row {row}"

    def _batch(self, first: int, last: int) -> Batch:
        try:
            vectors = to_float32(self._array[first:last])
        except OSError as exc:
            raise SourceError(f"{self.path}: rows {first} to {last - 1} cannot be read: {exc}") from exc
        wrong = wrong_vectors(vectors, self._collection.vector)
        numbers = np.arange(first, last, dtype=np.int64)
        if wrong:
            keep = np.delete(np.arange(len(numbers)), list(wrong))
            vectors, numbers = vectors[keep], numbers[keep]
        refused = [Refused(first + at, reason) for at, reason in wrong.items()]
        ids: Ids = numbers
        if self._collection.id.type is ValueType.TEXT:
            ids = [str(number) for number in numbers.tolist()]
        return placed(self._collection, numbers, ids, vectors, {}, refused)


def open_npy(path: Path, collection: Collection, limit: int | None) -> ArraySource:
    """
    Raises:
        SourceError
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        raise SourceError(f"{path}: not an array that can be read: {exc}") from exc
    if not isinstance(array, np.ndarray):
        array.close()
        raise SourceError(f"{path}: an archive of arrays (.npz); expected one array (.npy)")
    return ArraySource(path, array, collection, limit)


def open_hdf5(path: Path, dataset: str, collection: Collection, limit: int | None) -> ArraySource:
    """
    Raises:
        SourceError
    """
    try:
        import h5py
    except ImportError as exc:
        raise SourceError(f"{path}: HDF5 needs h5py: install pgscatter with its extra 'load'") from exc
    try:
        file = h5py.File(path, "r")
    except OSError as exc:
        raise SourceError(f"{path}: not an HDF5 file that can be read: {exc}") from exc
    found = file.get(dataset)
    if not isinstance(found, h5py.Dataset):
        names = ", ".join(name for name, item in file.items() if isinstance(item, h5py.Dataset))
        file.close()
        raise SourceError(f"{path}: no dataset {dataset!r}; it has {names or 'none'}")
    return ArraySource(path, found, collection, limit)


def _check_collection(path: Path, collection: Collection) -> None:
    if collection.id.type is ValueType.UUID:
        raise SourceError(f"{path}: its rows have numbers, which cannot be ids of type uuid")
    if not collection.sharded_by_id:
        key = collection.sharding.key.name
        raise SourceError(f"{path}: has vectors only, but {collection.name} is sharded by {key}")


def _check_array(path: Path, array: Any, collection: Collection) -> None:
    if array.ndim != 2:
        raise SourceError(f"{path}: has {array.ndim} dimensions; expected 2, a row per vector")
    if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8):
        raise SourceError(f"{path}: is of {array.dtype}; expected float16, float32 or float64")
    width, wanted = array.shape[1], collection.vector.dimensions
    if width != wanted:
        raise SourceError(f"{path}: has vectors of {width} dimensions, but {collection.name} has {wanted}")
