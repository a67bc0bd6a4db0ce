"""Which reader a file needs, by the ending of its name."""

from __future__ import annotations

from pathlib import Path

from router.bulk.arrays import open_hdf5, open_npy
from router.bulk.batch import Source
from router.bulk.errors import SourceError
from router.bulk.lines import open_lines
from router.bulk.parquet import open_parquet
from shard_config.model import Collection

__all__ = ["open_source"]


def open_source(path: Path, collection: Collection, dataset: str, limit: int | None) -> Source:
    """The file at `path` as rows of `collection`, the first `limit` of them if there is one.

    Raises:
        SourceError
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    match path.suffix.lower():
        case ".npy":
            return open_npy(path, collection, limit)
        case ".hdf5" | ".h5":
            return open_hdf5(path, dataset, collection, limit)
        case ".jsonl" | ".ndjson":
            return open_lines(path, collection, limit)
        case ".parquet":
            return open_parquet(path, collection, limit)
    raise SourceError(f"{path}: expected a file that ends in .npy, .hdf5, .h5, .jsonl, .ndjson or .parquet")
