"""A map file for the cluster with collections of a test's own, and the commands as a user runs them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from deploy.local import Cluster

__all__ = ["applied_map", "collection", "pgscatter", "write_map"]

_numbers = itertools.count()


def collection(**changes: Any) -> dict[str, Any]:
    """A collection as it stands in a map, on a table that nobody else uses."""
    base: dict[str, Any] = {
        "table": f"public.served_{next(_numbers)}",
        "id": {"column": "id", "type": "bigint"},
        "vector": {"column": "embedding", "type": "vector", "dimensions": 4, "metric": "l2"},
        "content": "content",
        "metadata": "metadata",
        "columns": {"category": "text", "price": "float8"},
        "sharding": {
            "strategy": "hash",
            "key": "id",
            "buckets": 16,
            "placement": {"s0": ["0-3"], "s1": ["4-7"], "s2": ["8-11"], "s3": ["12-15"]},
        },
    }
    return {**base, **changes}


def write_map(cluster: Cluster, path: Path, collections: dict[str, Any], version: int = 1) -> Path:
    shards: dict[str, dict[str, list[dict[str, str]]]] = {}
    for node in cluster.nodes:
        shards.setdefault(node.shard, {"nodes": []})["nodes"].append({"name": node.name, "dsn": node.dsn})
    path.write_text(
        yaml.safe_dump({"version": version, "shards": shards, "collections": collections}, sort_keys=False)
    )
    return path


def pgscatter(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "router.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert not check or done.returncode == 0, done.stderr
    return done


def applied_map(cluster: Cluster, folder: Path, **collections: dict[str, Any]) -> Path:
    """A map file whose collections exist on every shard."""
    path = write_map(cluster, folder / "map.yaml", collections)
    pgscatter("schema", "apply", "--map", path)
    return path
