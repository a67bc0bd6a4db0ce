"""The values of a map as its file writes them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

from shard_config.model import HashSharding, ListSharding, RangePart, RangeSharding, Sharding
from shard_config.times import DistantTime

__all__ = ["as_runs", "escaped", "sharding_view"]


def as_runs(numbers: Iterable[int]) -> list[str]:
    """Ascending numbers in the map's own notation: `["0-3", "7"]`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [str(first) if first == last else f"{first}-{last}" for first, last in runs]


def escaped(text: str) -> str:
    """`text` as a string of the file, in which `${` would begin a variable."""
    return text.replace("$", "$$")


def sharding_view(sharding: Sharding) -> dict[str, Any]:
    key = sharding.key.name
    match sharding:
        case HashSharding():
            owned = _by_shard((shard, bucket) for bucket, shard in enumerate(sharding.placement))
            placement: dict[str, Any] = {shard: as_runs(buckets) for shard, buckets in owned.items()}
            return {"strategy": "hash", "key": key, "buckets": sharding.buckets, "placement": placement}
        case ListSharding():
            placement = _by_shard((shard, _value(value)) for value, shard in sharding.values.items())
            default = {} if sharding.default is None else {"default": sharding.default}
            return {"strategy": "list", "key": key, "placement": placement, **default}
        case RangeSharding():
            placement = _by_shard((part.shard, _range(part)) for part in sharding.parts)
            return {"strategy": "range", "key": key, "placement": placement}


def _by_shard(placed: Iterable[tuple[str, Any]]) -> dict[str, list[Any]]:
    owned: dict[str, list[Any]] = {}
    for shard, what in placed:
        owned.setdefault(shard, []).append(what)
    return owned


def _range(part: RangePart) -> dict[str, Any]:
    ends = {"from": part.lower, "to": part.upper}
    return {name: _value(end) for name, end in ends.items() if end is not None}


def _value(value: object) -> Any:
    match value:
        case str():
            return escaped(value)
        case date():
            return value.isoformat()
        case float() if not math.isfinite(value):
            return str(Decimal(value))
        case UUID() | Decimal() | DistantTime():
            return str(value)
    return value
