"""What a shard keeps about itself: which shard of which map it is, and which rows it was given. Pure.

`schema apply` writes it into the shard's own database once it has seen that the rows there lie as the map
says; routers and commands compare their map with it before they read or write. Nodes, addresses and
passwords are no part of it: another address does not make another shard, and routers may know different ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from shard_config.file.codec import to_json
from shard_config.file.view import as_runs, sharding_view
from shard_config.model import Collection, HashSharding, ListSharding, ShardMap
from shard_config.partition import shard_names
from shard_config.values import ValueType

__all__ = ["Disagreement", "Holding", "Identity", "disagreements", "identities"]

# Of a collection's model, what decides which vector a text has. Addresses, keys and times are each router's
# own, so that a key can be changed one router after the other.
_DECIDES_VECTORS = ("name", "model", "dimensions", "query_prefix", "document_prefix")
# What a collection may lack. That it does is written down, since a key that is not there may be one that an
# earlier release did not know.
_OPTIONAL = ("content", "metadata", "embedder", "template", "fulltext")
# Below these, keys are names that the map gives, which every release knows, as are those of collections.
_NAMED_BY_MAP = re.compile(r"[^.]+\.(columns|metadata\.indexes)")
_SHOWN = 8
_DIFFERENCES = 5
# Of these, equal values have equal hashes.
_INTEGERS = (ValueType.SMALLINT, ValueType.INTEGER, ValueType.BIGINT)


class Holding(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one shard holds of one table.

    Attributes:
        key: the column that places a row.
        parts: runs of buckets, values, or ranges, as a map writes them.
        buckets: the modulus, of the strategy hash.
        others: the shard holds every value but `parts`, which are on other shards.
        type: of the key; empty where an earlier release wrote it.
    """

    collection: str
    strategy: str
    key: str
    parts: tuple[Any, ...] = ()
    buckets: int = 0
    others: bool = False
    type: str = ""

    def __str__(self) -> str:
        shown = [_part(part) for part in self.parts[:_SHOWN]]
        more = f" and {len(self.parts) - _SHOWN} more" if len(self.parts) > _SHOWN else ""
        listed = f"{', '.join(shown)}{more}"
        match self.strategy:
            case "hash":
                return f"buckets {listed} of {self.buckets} by {self.key}"
            case "list":
                rest = f"all {self.key} but {listed}" if listed else f"every {self.key}"
                return rest if self.others else f"{self.key} {listed}"
        return f"{self.key} {listed}"


class Identity(msgspec.Struct, frozen=True):
    """A shard's word about itself, as of the newest map that was applied to it.

    Attributes:
        digest: of `content`, to compare without reading that.
        holds: by table.
        content: the map's collections as JSON values, every default written out.
    """

    shard: str
    version: int
    digest: str
    holds: dict[str, Holding] = {}
    content: dict[str, Any] = {}


class Disagreement(msgspec.Struct, frozen=True):
    """One point in which a map and a shard differ; `text` reads on after the shard's name.

    `shard`: it is another shard. `older`: it has a newer version. `content`: it has another map of the same
    version. `placement`: rows of `collection` lie otherwise than the map says.
    """

    kind: Literal["shard", "older", "content", "placement"]
    text: str
    collection: str | None = None


def identities(shard_map: ShardMap) -> dict[str, Identity]:
    """What each shard is to say of itself under this map; all at once, since they share most of it."""
    said = msgspec.json.decode(msgspec.json.encode(_content(shard_map), order="deterministic"))
    digest = blake2b(msgspec.json.encode(said, order="deterministic"), digest_size=16).hexdigest()
    holds: dict[str, dict[str, Holding]] = {shard: {} for shard in shard_map.shards}
    for collection in shard_map.collections.values():
        for shard, holding in _holdings(collection):
            holds[shard][str(collection.table)] = holding
    return {shard: Identity(shard, shard_map.version, digest, held, said) for shard, held in holds.items()}


def disagreements(shard_map: ShardMap, mine: Identity, found: Identity) -> list[Disagreement]:
    """In what `found`, a shard's word, differs from `mine`, what `shard_map` expects of that shard.

    A map that is newer, or gives the shard a table that it was never told of, differs in nothing: it was not
    applied yet.
    """
    if found.shard != mine.shard:
        return [Disagreement("shard", f"says that it is the shard {found.shard}")]
    points: list[Disagreement] = []
    if mine.version < found.version:
        older = f"has version {found.version} of the map, and this is version {mine.version}"
        points.append(Disagreement("older", older))
    elif mine.version == found.version and mine.digest != found.digest:
        # A later release may know more fields, or none of some: only what both know can differ.
        differing = list(_differing(found.content, mine.content))
        if differing:
            more = f" and {len(differing) - _DIFFERENCES} more" if len(differing) > _DIFFERENCES else ""
            text = f"{'; '.join(differing[:_DIFFERENCES])}{more}"
            points.append(
                Disagreement("content", f"has another map of the same version {mine.version}: {text}")
            )
    return points + [
        Disagreement("placement", text, name) for name, text in _misplaced(shard_map, mine.holds, found.holds)
    ]


def _misplaced(
    shard_map: ShardMap, mine: Mapping[str, Holding], found: Mapping[str, Holding]
) -> Iterator[tuple[str, str]]:
    for collection in shard_map.collections.values():
        table = str(collection.table)
        held, placed = found.get(table), mine.get(table)
        if held is not None and (placed is None or not _same_rows(placed, held)):
            wanted = "nothing" if placed is None else str(placed)
            here = str(held)
            if placed is not None and not _same_type(placed, held):
                wanted, here = f"{wanted} as {placed.type}", f"{here} as {held.type}"
            yield collection.name, f"holds {here} of {collection.name}, and the map places {wanted} there"


def _content(shard_map: ShardMap) -> dict[str, Any]:
    """What every router of the map must agree on: all that it says of collections, and of their models."""
    collections: dict[str, dict[str, Any]] = to_json(shard_map)["collections"]
    for name, collection in shard_map.collections.items():
        if collection.embedder is not None:
            decides = {field: getattr(collection.embedder, field) for field in _DECIDES_VECTORS}
            collections[name]["embedder"] = decides
        for field in _OPTIONAL:
            collections[name].setdefault(field, None)
        if collection.fulltext is not None:
            collections[name]["fulltext"].setdefault("stored", None)
    return collections


def _holdings(collection: Collection) -> Iterator[tuple[str, Holding]]:
    """What each shard holds of it that holds any."""
    sharding = collection.sharding
    view = sharding_view(sharding)
    name, strategy, key, type_ = collection.name, view["strategy"], sharding.key.column, sharding.key.type
    placement: dict[str, Sequence[Any]] = view["placement"]
    for shard in shard_names(sharding):
        if isinstance(sharding, HashSharding):
            parts = tuple(placement[shard])
            yield shard, Holding(name, strategy, key, parts, sharding.buckets, type=type_)
        elif isinstance(sharding, ListSharding) and sharding.default == shard:
            elsewhere = [one for owner, values in placement.items() if owner != shard for one in values]
            yield shard, Holding(name, strategy, key, _sorted(elsewhere), others=True, type=type_)
        else:
            yield shard, Holding(name, strategy, key, _sorted(placement[shard]), type=type_)


def _sorted(parts: Sequence[Any]) -> tuple[Any, ...]:
    # As JSON, since the shard keeps it as that, and in an order that does not depend on the file's.
    encoded = sorted(msgspec.json.encode(part, order="deterministic") for part in parts)
    return tuple(msgspec.json.decode(part) for part in encoded)


def _same_rows(one: Holding, other: Holding) -> bool:
    """Whether both mean the same rows: also with twice the buckets split alike, and ranges cut in two."""
    if (one.strategy, one.key) != (other.strategy, other.key) or not _same_type(one, other):
        return False
    match one.strategy:
        case "hash":
            return _reduced(one) == _reduced(other)
        case "range":
            return _joined(one) == _joined(other)
    return (one.parts, one.others) == (other.parts, other.others)


def _same_type(one: Holding, other: Holding) -> bool:
    known = {holding.type for holding in (one, other) if holding.type}
    return len(known) < 2 or known.issubset(_INTEGERS)


def _joined(holding: Holding) -> set[tuple[Any, Any]]:
    """The ranges, as (from, to), after those that meet are made one; None is no end."""
    ranges = {part.get("from"): part.get("to") for part in holding.parts}
    inner = {start for start in ranges if start is not None} & set(ranges.values())
    joined = set()
    for start in ranges.keys() - inner:
        end = ranges[start]
        while end in inner:
            inner.discard(end)
            end = ranges[end]
        joined.add((start, end))
    return joined


def _reduced(holding: Holding) -> tuple[int, tuple[str, ...]]:
    """The buckets under the smallest modulus that halving reaches: h mod 2N says h mod N."""
    modulus, owned = holding.buckets, set(_numbers(holding.parts))
    while modulus % 2 == 0:
        half = modulus // 2
        lower = {bucket for bucket in owned if bucket < half}
        if {bucket - half for bucket in owned - lower} != lower:
            break
        modulus, owned = half, lower
    return modulus, tuple(as_runs(sorted(owned)))


def _numbers(runs: Sequence[Any]) -> Iterator[int]:
    for run in runs:
        first, _, last = str(run).partition("-")
        yield from range(int(first), int(last or first) + 1)


def _part(part: Any) -> str:
    if not isinstance(part, dict):
        return str(part)
    ends = [f"{word} {part[end]}" for end, word in (("from", "from"), ("to", "below")) if end in part]
    return " ".join(ends) or "everything"


def _differing(found: Any, mine: Any, path: str = "") -> Iterator[str]:
    """Where two JSON values differ that are under the same keys, with both values; and names of one alone."""
    if isinstance(found, dict) and isinstance(mine, dict):
        if not path or _NAMED_BY_MAP.fullmatch(path):
            for name in sorted(found.keys() ^ mine.keys()):
                where = "shard" if name in found else "file"
                yield f"{path}.{name} is only in the {where}".lstrip(".")
        for key in found.keys() & mine.keys():
            yield from _differing(found[key], mine[key], f"{path}.{key}" if path else key)
    elif found != mine:
        yield f"{path} is {_short(found)} there and {_short(mine)} here"


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."
