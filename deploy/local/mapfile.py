"""The shard map that matches a local cluster: its nodes, and collections from a file or from before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

__all__ = ["CollectionsError", "read_collections", "write_map"]

_BUCKETS = 64


class CollectionsError(Exception):
    pass


def read_collections(path: Path) -> dict[str, Any]:
    """The `collections` part of `path`, or all of it if it has no such key.

    Raises:
        CollectionsError: no mapping of collections.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise CollectionsError(f"{path}: {exc}") from exc
    part = tree.get("collections", tree) if isinstance(tree, dict) else tree
    if not isinstance(part, dict) or not all(isinstance(one, dict) for one in part.values()):
        raise CollectionsError(f"{path}: expected a mapping of collections, each a mapping itself")
    for collection in part.values():
        # Meant from this file, and soon to stand in another.
        if isinstance(model := collection.get("text_model"), str) and not model.startswith("$"):
            collection["text_model"] = str(path.absolute().parent / model)
    return part


def write_map(
    path: Path, shards: Mapping[str, Sequence[Mapping[str, str]]], collections: Mapping[str, Any] | None
) -> None:
    """Write the map; a new version only if something is new.

    `shards` has each shard's nodes as {name, dsn}. Where a collection does not say how it is sharded,
    its hash buckets are spread evenly over all shards. `None` keeps the collections of the present map.
    """
    old: dict[str, Any] = yaml.safe_load(path.read_text()) if path.exists() else {}
    if collections is None:
        kept = old.get("collections", {})
    else:
        kept = {name: _placed(collection, list(shards)) for name, collection in collections.items()}
    body = {"shards": {name: {"nodes": list(nodes)} for name, nodes in shards.items()}, "collections": kept}
    if {key: old.get(key) for key in body} == body:
        return
    text = yaml.safe_dump({"version": old.get("version", 0) + 1, **body}, sort_keys=False, allow_unicode=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def _placed(collection: Mapping[str, Any], shards: Sequence[str]) -> dict[str, Any]:
    sharding = collection.get("sharding") or {}
    if not isinstance(sharding, dict):
        return dict(collection)
    sharding = {"strategy": "hash", **sharding}
    if sharding["strategy"] != "hash" or "placement" in sharding:
        return dict(collection)
    buckets = sharding.get("buckets", _BUCKETS)
    if not isinstance(buckets, int):
        return dict(collection)
    sharding = {"key": "id", "buckets": buckets, **sharding}
    edges = [i * buckets // len(shards) for i in range(len(shards) + 1)]
    runs = {
        shard: [f"{low}-{high - 1}"]
        for shard, low, high in zip(shards, edges, edges[1:], strict=False)
        if low < high
    }
    return {**collection, "sharding": {**sharding, "placement": runs}}
