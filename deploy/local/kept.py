"""Which parts of an existing map are taken over when `pgscatter cluster` writes a new one: results of
`pgscatter tune`, and fields of nodes that somebody added.

The existing file may hold anything that YAML can; from one that is no map nothing is taken over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["keep_node_fields", "keep_tuned"]

# What `pgscatter tune` writes into `search`, and what must not have changed since for it to be still true.
_WRITTEN = ("ef_search", "target_recall", "tuned")
_MEASURED_ON = ("table", "vector", "index")
_MEASURED_WITH = ("ef_search", "overfetch", "tuned")


def keep_tuned(new: dict[str, Any], old: Mapping[str, Any]) -> list[str]:
    """Put what tune wrote into the collections `old` into `new`, which is changed.

    What `new` says itself counts. Returns what does not stay, as sentences.
    """
    lost = [f"collection {name} leaves the map; its tables stay" for name in old if name not in new]
    for name in [name for name in old if name in new]:
        measured, given = _search(old[name]), _search(new[name])
        if given is None or not measured or "tuned" not in measured:
            continue
        changed = [part for part in _MEASURED_ON if old[name].get(part) != new[name].get(part)]
        changed += [
            f"search.{part}" for part in _MEASURED_WITH if part in given and given[part] != measured.get(part)
        ]
        if changed:
            lost.append(
                f"collection {name}: `pgscatter tune` measured another {changed[0]}; its result is dropped"
            )
        else:
            kept = {part: measured[part] for part in _WRITTEN if part in measured}
            new[name] = {**new[name], "search": {**kept, **given}}
    return lost


def keep_node_fields(
    shards: Mapping[str, Sequence[Mapping[str, str]]], old: object
) -> dict[str, list[dict[str, Any]]]:
    """The nodes with whatever somebody wrote beside their names and addresses, such as zones."""
    known = {node["name"]: node for node in _nodes(old) if isinstance(node.get("name"), str)}
    return {
        name: [{**known.get(node["name"], {}), **node} for node in nodes] for name, nodes in shards.items()
    }


def _search(collection: Any) -> dict[str, Any] | None:
    found = (collection.get("search") or {}) if isinstance(collection, dict) else None
    return found if isinstance(found, dict) else None


def _nodes(shards: object) -> Iterator[dict[str, Any]]:
    for shard in shards.values() if isinstance(shards, dict) else ():
        nodes = shard.get("nodes") if isinstance(shard, dict) else None
        for node in nodes if isinstance(nodes, list) else ():
            if isinstance(node, dict):
                yield node
