"""Collections and files for tests of loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from router.bulk.batch import Batch, Source
from shard_config.model import Collection
from tests.unit.shard_config_maps import document, parse

__all__ = ["batches", "collection", "write_lines"]

SHARDING = {"strategy": "hash", "key": "id", "buckets": 4, "placement": {"s0": [0, 1], "s1": [2, 3]}}
BY_TENANT = {"strategy": "list", "key": "tenant", "placement": {"s0": ["a"], "s1": ["b"]}}


def collection(*, dimensions: int = 2, sharding: dict[str, Any] | None = None, **changes: Any) -> Collection:
    """`documents` with short vectors; `changes` are by field of the collection."""
    fields = {f"collections.documents.{name}": value for name, value in changes.items()}
    fields["collections.documents.vector.dimensions"] = dimensions
    fields.setdefault("collections.documents.vector.metric", "cosine")
    fields["models"] = {"m": {"url": "http://127.0.0.1:8200/v1", "dimensions": dimensions, "batch": 4}}
    tree = document(fields, **(sharding or SHARDING))
    return parse(tree).collections["documents"]


def write_lines(path: Path, *documents: Any) -> Path:
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in documents]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def batches(source: Source, rows: int) -> list[Batch]:
    found = []
    for number, chunk in enumerate(source.chunks(rows, lambda _: True)):
        assert chunk.number == number
        assert isinstance(chunk.batch, Batch)
        found.append(chunk.batch)
    return found
