"""The `sharding` part of a collection; its reader keeps that every key has one shard, or none on purpose."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum

from shard_config import limits
from shard_config.file.fields import Schema, integer, later, named_of, object_of, ref, text_of
from shard_config.file.problems import quoted, suggestion
from shard_config.file.reader import Cursor
from shard_config.file.view import as_runs, sharding_view
from shard_config.hashing import HASHABLE
from shard_config.model import Column, HashSharding, ListSharding, RangePart, RangeSharding, Sharding
from shard_config.ordering import below, rank
from shard_config.values import ValueType

_RUN = re.compile(limits.BUCKET_RUN)
_RUNS_SHOWN = 12
# In place of a sharding that could not be read; a finding says why, and a map with findings is not handed
# out.
_UNREADABLE = HashSharding(Column(name="", column="", type=ValueType.TEXT), ())


class Strategy(StrEnum):
    HASH = "hash"
    LIST = "list"
    RANGE = "range"


def read_sharding(cursor: Cursor, keys: Mapping[str, Column], shards: Collection[str]) -> Sharding:
    """The sharding under `cursor`.

    Args:
        keys: what may be the key, by every name that the map may call it.
        shards: names of the map's shards.
    """
    cursor.check_fields(("strategy", "key", "buckets", "placement", "default"))
    strategy = _strategy(cursor.required("strategy", "hash"))
    if strategy is None:
        return _UNREADABLE
    key = _key(cursor.required("key", "id"), keys, strategy)
    placement = cursor.required("placement", "{s0: [...]}")
    if strategy is not Strategy.HASH and cursor["buckets"].present:
        cursor["buckets"].fail("only the strategy hash has buckets")
    if strategy is not Strategy.LIST and cursor["default"].present:
        cursor["default"].fail("only the strategy list has a default")
    owned = _by_shard(placement, shards)
    match strategy:
        case Strategy.HASH:
            count = cursor.required("buckets", "64").integer(limits.BUCKETS, 0)
            return HashSharding(key or _UNREADABLE.key, _hash(placement, count, owned))
        case Strategy.LIST if key is not None:
            return _list(placement, key, owned, cursor["default"], shards)
        case Strategy.RANGE if key is not None:
            return RangeSharding(key, _range(placement, key, owned))
    return _UNREADABLE


def _schema(strategy: str, placed: Schema, more: Schema, required: Iterable[str] = ()) -> Schema:
    properties = {
        "strategy": {"const": strategy},
        "key": {**text_of(limits.IDENTIFIER), "description": "`id` or a column of the collection."},
        "placement": named_of({"anyOf": [placed, {"type": "array", "items": placed}]}),
        **more,
    }
    return object_of(properties, ("strategy", "key", "placement", *required))


SHARDING = later(
    {
        "oneOf": [
            _schema("hash", ref("buckets"), {"buckets": integer(limits.BUCKETS).schema}, ("buckets",)),
            _schema("list", ref("key_value"), {"default": text_of(limits.NAME)}),
            _schema("range", ref("range"), {}),
        ]
    },
    show=sharding_view,
).required("{strategy: hash, key: id, buckets: 64, placement: {s0: [0-63]}}")


def _strategy(cursor: Cursor) -> Strategy | None:
    if cursor.shown() == quoted("centroid"):
        cursor.fail("this version of pgscatter does not have the strategy centroid; use hash, list or range")
        return None
    return cursor.choice(Strategy, None)


def _key(cursor: Cursor, keys: Mapping[str, Column], strategy: Strategy) -> Column | None:
    name = cursor.string()
    if name is None:
        return None
    key = keys.get(name)
    if key is None:
        cursor.fail(f"no column {cursor.shown()} in this collection{suggestion(name, keys)}")
        return None
    if strategy is Strategy.HASH and key.type not in HASHABLE:
        names = ", ".join(sorted(HASHABLE))
        cursor.fail(f"the strategy hash needs a key of type {names}; {name} is {key.type}")
    if strategy is Strategy.RANGE and key.type is ValueType.BOOLEAN:
        cursor.fail(f"the strategy range needs a key with an order worth splitting; {name} is boolean")
    return key


def _by_shard(placement: Cursor, shards: Collection[str]) -> list[tuple[str, Cursor]]:
    """What each shard gets. A shard that the map lacks is a finding, and keeps what it was given."""
    entries = placement.entries()
    for name, entry in entries:
        if name not in shards:
            entry.fail(f"no shard {quoted(name)} in this map{suggestion(name, shards)}")
    return entries


# hash: every bucket on one shard.


def _hash(placement: Cursor, count: int, owned: list[tuple[str, Cursor]]) -> tuple[str, ...]:
    owner: list[str | None] = [None] * count
    readable = count > 0
    for shard, runs in owned:
        for item in runs.items():
            run = _run(item, count)
            if run is None:
                readable = False
            else:
                _claim(owner, run, shard, item)
    missing = [at for at, shard in enumerate(owner) if shard is None]
    # Where an item could not be read, it may be the missing one: the fault would be reported twice.
    if missing and readable and placement.is_mapping:
        placement.fail(f"no shard has {_buckets(missing)} of {count}; each must be placed once")
    return tuple(shard or "" for shard in owner)


def _run(item: Cursor, count: int) -> range | None:
    """The buckets that one item means: `5`, `"5"` or `0-31`, both ends included."""
    text = item.text
    found = _RUN.fullmatch(text or "")
    if found is None:
        item.fail(f"expected a bucket such as 5, or a run of them such as 0-31, got {item.shown()}")
        return None
    first, last = int(found[1]), int(found[2] or found[1])
    if count and not first <= last < count:
        item.fail(f"expected buckets from 0 to {count - 1} in ascending order, got {item.shown()}")
        return None
    return range(first, last + 1)


def _claim(owner: list[str | None], run: range, shard: str, item: Cursor) -> None:
    taken: dict[str, list[int]] = {}
    for at in run:
        if at >= len(owner):
            return
        first = owner[at]
        if first is None:
            owner[at] = shard
        else:
            taken.setdefault(first, []).append(at)
    for first, numbers in taken.items():
        item.fail(f"{first} has {_buckets(numbers)} already; each must be placed once")


def _buckets(numbers: list[int]) -> str:
    runs = as_runs(numbers)
    more = f" and {len(runs) - _RUNS_SHOWN} more runs" if len(runs) > _RUNS_SHOWN else ""
    return f"bucket{'s' if len(numbers) > 1 else ''} {', '.join(runs[:_RUNS_SHOWN])}{more}"


# list: every value on one shard, the others on the default.


def _list(
    placement: Cursor,
    key: Column,
    owned: list[tuple[str, Cursor]],
    default_at: Cursor,
    shards: Collection[str],
) -> ListSharding:
    values: dict[object, str] = {}
    for shard, listed in owned:
        for item in listed.items():
            value = item.typed(key.type)
            if value is None:
                continue
            if value in values:
                item.fail(f"the value {item.shown()} is on {values[value]} already; a value has one shard")
            values.setdefault(value, shard)
    default = _default(default_at, shards)
    if default is None and not values and placement.is_mapping and not default_at.present:
        placement.fail("no value and no default: no document could be stored")
    return ListSharding(key, values, default)


def _default(cursor: Cursor, shards: Collection[str]) -> str | None:
    name = cursor.string()
    if name is not None and name not in shards:
        cursor.fail(f"no shard {cursor.shown()} in this map{suggestion(name, shards)}")
    return name


# range: parts that meet, each on one shard.


def _range(placement: Cursor, key: Column, owned: list[tuple[str, Cursor]]) -> tuple[RangePart, ...]:
    parts: list[tuple[RangePart, Cursor]] = []
    readable = True
    for shard, listed in owned:
        for item in listed.items():
            part = _part(item, key, shard)
            if part is None:
                readable = False
            else:
                parts.append((part, item))
    if readable and placement.is_mapping:
        if not parts:
            placement.fail("no range: no document could be stored")
        parts.sort(key=lambda found: _lower_end(found[0]))
        _check_meeting(parts)
    return tuple(part for part, _ in parts)


def _part(item: Cursor, key: Column, shard: str) -> RangePart | None:
    item.check_fields(("from", "to"))
    if not item.is_mapping:
        return None
    ends = [(at, at.typed(key.type)) for at in (item["from"], item["to"])]
    if any(at.present and end is None for at, end in ends):
        return None
    part = RangePart(ends[0][1], ends[1][1], shard)
    if part.lower is not None and part.upper is not None and not below(part.lower, part.upper):
        item.fail("an empty range; `from` must be below `to`, which itself is not in the range")
        return None
    return part


def _lower_end(part: RangePart) -> tuple[object, ...]:
    # An empty tuple sorts below every other.
    return () if part.lower is None else rank(part.lower)


def _check_meeting(parts: list[tuple[RangePart, Cursor]]) -> None:
    """Find every gap and every overlap among parts in ascending order of their lower ends."""
    if not parts:
        return
    reach = parts[0][0]  # the part that goes furthest so far
    for part, item in parts[1:]:
        if part.lower is None or reach.upper is None or below(part.lower, reach.upper):
            item.fail(f"overlaps a range of {reach.shard}; a key has one shard")
        elif below(reach.upper, part.lower):
            item.fail(f"leaves a gap: the range below it, on {reach.shard}, ends before this one begins")
        if reach.upper is not None and (part.upper is None or below(reach.upper, part.upper)):
            reach = part
