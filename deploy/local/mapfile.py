"""The shard map that matches a local cluster: its nodes, and collections from a file or from before.

Invariant: what is written is a map that `pgscatter map validate` takes, which is known before any
server is started.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from deploy.local.kept import keep_node_fields, keep_tuned
from shard_config import MapError, limits, parse
from shard_config.file.document import resolve
from shard_config.file.fragment import Fragment, fragment
from shard_config.file.replace import replace_file

__all__ = ["checked_collections", "write_map"]

_BUCKETS = 64
_COLLECTIONS = "collections"
_SERVICES = ("models", "rerankers")

Part: TypeAlias = "dict[str, dict[str, Any]]"  # keys of a map and what stands under them
Shards = Mapping[str, Sequence[Mapping[str, str]]]


def checked_collections(
    file: Path | None, map_path: Path, shards: Sequence[str], report: Callable[[str], None] = lambda _: None
) -> Part:
    """`collections`, `models` and `rerankers` of the file, or of the present map if it is None.

    The file has them under these keys, as a whole map does, or is the collections alone. Where a collection
    does not say how it is sharded, its hash buckets are spread evenly over all shards. What `pgscatter tune`
    wrote into the present map stays where the file does not speak of it, and so do the present map's services
    where the file has no key for them; `report` is told of what does not stay.

    Raises:
        MapError: the map with them would be none; what is wrong has its place in the file.
    """
    present = fragment(map_path) if map_path.exists() else None
    source = present if file is None else fragment(file)
    if source is None:
        return {}
    under, part = _part(source, alone=file is not None)
    own = (_COLLECTIONS, *part)
    before = present.value if present is not None and isinstance(present.value, dict) else {}
    if file is not None:
        collections = {name: _placed(one, shards) for name, one in part[_COLLECTIONS].items()}
        old = before.get(_COLLECTIONS)
        for line in keep_tuned(collections, old if isinstance(old, dict) else {}):
            report(f"{line} ({file})")
        kept: Part = {key: before[key] for key in _SERVICES if key in before}  # type: ignore[misc]
        part = {**kept, **part, _COLLECTIONS: collections}
    # Ports are not known yet; any servers will do, if no two are the same.
    nodes = {
        name: [{"name": f"{name}-a", "dsn": f"postgresql://127.0.0.1:{port}/postgres"}]
        for port, name in enumerate(shards, 1)
    }
    try:
        parse(_text(_version(present), nodes, part))
    except MapError as exc:
        owner = present if present is not None else source
        raise MapError(
            source.problem(found.path, found.message, under=under)
            if found.path.startswith(own)
            else owner.problem(found.path, found.message)
            for found in exc.problems
        ) from None
    return part


def write_map(path: Path, shards: Shards, part: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the map; a new version only if something is new. `shards` has nodes as {name, dsn}."""
    before = path.read_bytes() if path.exists() else b""
    present = fragment(path) if before else None
    if present is not None and isinstance(present.value, dict):
        shards = keep_node_fields(shards, present.value.get("shards"))
        nodes = {name: {"nodes": nodes} for name, nodes in shards.items()}
        keys = (_COLLECTIONS, *_SERVICES)
        old = (present.value.get("shards"), *(present.value.get(key) or {} for key in keys))
        if old == (nodes, *(part.get(key) or {} for key in keys)):
            return
    replace_file(path, _text(_version(present), shards, part).encode(), expected=before)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that the reader of maps would take for numbers and the like, not those that PyYAML
    would.
    """


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if isinstance(resolve(text), str) else "'"
    ),
)


def _text(version: object, shards: Shards, part: Mapping[str, Any]) -> str:
    nodes = {name: {"nodes": list(nodes)} for name, nodes in shards.items()}
    services = {key: part[key] for key in _SERVICES if key in part}
    tree = {"version": version, "shards": nodes, **services, _COLLECTIONS: part.get(_COLLECTIONS) or {}}
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _version(present: Fragment | None) -> object:
    """The next version; one that is no number is kept as it is, and the check of the map reports it."""
    if present is None:
        return 1
    old = present.value.get("version") if isinstance(present.value, dict) else None
    return old + 1 if isinstance(old, int) and not isinstance(old, bool) else old


def _part(source: Fragment, *, alone: bool) -> tuple[str, Part]:
    """What a file has for a map, and under which key of one its collections stand, if not under their own.

    Raises:
        MapError: there are none, or, if they should be `alone`, something stands beside them.
    """
    tree = source.value
    if not isinstance(tree, dict):
        raise MapError([source.problem("", "expected a mapping of collections")])
    if _COLLECTIONS not in tree and alone:
        return _COLLECTIONS, {_COLLECTIONS: tree}
    known = (_COLLECTIONS, *_SERVICES, "version", "shards")
    others = [key for key in tree if key not in known and alone]
    if others:
        raise MapError(source.problem(key, "unknown field") for key in others)
    collections = tree.get(_COLLECTIONS)
    if collections is not None and not isinstance(collections, dict):
        raise MapError([source.problem(_COLLECTIONS, "expected a mapping of collections")])
    services = {key: tree[key] for key in _SERVICES if key in tree}
    return "", {**services, _COLLECTIONS: collections or {}}  # type: ignore[dict-item]


def _placed(collection: Any, shards: Sequence[str]) -> Any:
    if not isinstance(collection, dict):
        return collection
    sharding = collection.get("sharding") or {}
    if not isinstance(sharding, dict):
        return collection
    sharding = {"strategy": "hash", **sharding}
    if sharding["strategy"] != "hash" or "placement" in sharding:
        return collection
    buckets = sharding.get("buckets", _BUCKETS)
    if not isinstance(buckets, int) or isinstance(buckets, bool) or not 1 <= buckets <= limits.BUCKETS[1]:
        return collection
    sharding = {"key": "id", "buckets": buckets, **sharding}
    edges = [i * buckets // len(shards) for i in range(len(shards) + 1)]
    runs = {
        shard: [f"{low}-{high - 1}"]
        for shard, low, high in zip(shards, edges, edges[1:], strict=False)
        if low < high
    }
    return {**collection, "sharding": {**sharding, "placement": runs}}
