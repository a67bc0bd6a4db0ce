"""Which reader a file needs, by the ending of its name."""

from __future__ import annotations

from pathlib import Path

from router.bulk.arrays import open_hdf5, open_npy
from router.bulk.batch import Source
from router.bulk.errors import SourceError
from router.bulk.lines import open_lines
from router.bulk.parquet import open_parquet
from shard_config.model import Collection

__all__ = ["is_hdf5", "open_source"]

_HDF5 = (".hdf5", ".h5")


def is_hdf5(path: Path) -> bool:
    """Whether the file would be read as one with data sets."""
    return path.suffix.lower() in _HDF5


def open_source(path: Path, collection: Collection, dataset: str, limit: int | None) -> Source:
    """The file at `path` as rows of `collection`, the first `limit` of them if there is one.

    Raises:
        SourceError
    """
    if not path.is_file():
        raise SourceError(f"{path}: {_no_file(path)}")
    if is_hdf5(path):
        return open_hdf5(path, dataset, collection, limit)
    match path.suffix.lower():
        case ".npy":
            return open_npy(path, collection, limit)
        case ".jsonl" | ".ndjson":
            return open_lines(path, collection, limit)
        case ".parquet":
            return open_parquet(path, collection, limit)
    raise SourceError(f"{path}: expected a file that ends in .npy, .hdf5, .h5, .jsonl, .ndjson or .parquet")


def _no_file(path: Path) -> str:
    if path.is_dir():
        return "a directory; a load takes one file"
    if path.exists():
        return "a pipe or a device; a load takes a file, which it can read again after an interruption"
    return "no such file"
