"""Every key has one place, found alike for one and for many, and a range reaches all that it must."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shard_config.model import RangeSharding, Sharding
from shard_config.partition import (
    NoPlaceError,
    locate,
    locate_many,
    shard_names,
    shards_for_range,
    shards_for_values,
)
from shard_config.values import ValueType, coerce
from tests.unit.shard_config_maps import by_hash, by_list, by_range

SHARDS = ["s0", "s1", "s2", "s3"]

# Small domains beside the large ones, so that keys meet the bounds of the parts.
KEYS: dict[ValueType, st.SearchStrategy[Any]] = {
    ValueType.BIGINT: st.integers(-5, 5) | st.integers(-(2**63), 2**63 - 1),
    ValueType.INTEGER: st.integers(-5, 5) | st.integers(-(2**31), 2**31 - 1),
    ValueType.SMALLINT: st.integers(-5, 5),
    ValueType.TEXT: st.text("abAB é日😀", max_size=3),
    ValueType.UUID: st.integers(0, 5).map(lambda n: uuid.UUID(int=n)) | st.uuids(),
    ValueType.FLOAT8: st.floats(-2, 2, allow_nan=False) | st.sampled_from([0.0, -0.0, 1e308]),
    ValueType.FLOAT4: st.floats(-2, 2).map(lambda x: coerce(ValueType.FLOAT4, x)),
    ValueType.NUMERIC: st.decimals(-2, 2, places=1) | st.just(Decimal("1.00")),
    ValueType.DATE: st.dates(date(2026, 1, 1), date(2026, 1, 9)),
    ValueType.TIMESTAMP: st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 9)),
    ValueType.TIMESTAMPTZ: st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 9), timezones=st.just(UTC)),
}
HASHED = [ValueType.BIGINT, ValueType.INTEGER, ValueType.SMALLINT, ValueType.TEXT, ValueType.UUID]


@st.composite
def hash_sharded(draw: st.DrawFn) -> Sharding:
    placement = draw(st.lists(st.sampled_from(SHARDS), min_size=1, max_size=20))
    return by_hash(draw(st.sampled_from(HASHED)), tuple(placement))


@st.composite
def list_sharded(draw: st.DrawFn) -> Sharding:
    type_ = draw(st.sampled_from(list(KEYS)))
    values = draw(st.dictionaries(KEYS[type_], st.sampled_from(SHARDS), min_size=1, max_size=6))
    return by_list(type_, values, draw(st.none() | st.sampled_from(SHARDS)))


@st.composite
def range_sharded(draw: st.DrawFn) -> RangeSharding:
    type_ = draw(st.sampled_from(list(KEYS)))
    bounds = sorted(draw(st.sets(KEYS[type_], min_size=2, max_size=6)))
    ends = [None] * draw(st.booleans()), [None] * draw(st.booleans())
    return by_range(type_, [*ends[0], *bounds, *ends[1]], SHARDS)


def keys_of(sharding: Sharding) -> st.SearchStrategy[Any]:
    return KEYS[sharding.key.type]


any_sharded = hash_sharded() | list_sharded() | range_sharded()


def place(sharding: Sharding, key: object) -> str | None:
    try:
        return locate(sharding, key)
    except NoPlaceError:
        return None


@given(range_sharded(), st.data())
def test_a_key_is_in_the_one_part_that_holds_it(sharding: RangeSharding, data: st.DataObject) -> None:
    key = data.draw(keys_of(sharding))
    holding = [
        part.shard
        for part in sharding.parts
        if (part.lower is None or not key < part.lower) and (part.upper is None or key < part.upper)
    ]
    assert len(holding) <= 1
    assert place(sharding, key) == (holding[0] if holding else None)


@given(any_sharded, st.data())
def test_many_keys_are_placed_as_each_is(sharding: Sharding, data: st.DataObject) -> None:
    keys = data.draw(st.lists(keys_of(sharding), max_size=30))
    expected = [place(sharding, key) for key in keys]
    names = shard_names(sharding)
    for values in _forms(sharding, keys):
        if None in expected:
            try:
                locate_many(sharding, values)
            except NoPlaceError as exc:
                assert exc.position == expected.index(None)
                assert exc.value == keys[exc.position]
            else:
                raise AssertionError("a key without a place was placed")
        else:
            assert [names[at] for at in locate_many(sharding, values)] == expected


def _forms(sharding: Sharding, keys: list[Any]) -> list[Any]:
    """The keys in every form that a bulk load may have them in."""
    forms: list[Any] = [keys]
    if sharding.key.type in (ValueType.BIGINT, ValueType.INTEGER, ValueType.SMALLINT):
        forms.append(np.array(keys, dtype=np.int64))
    if sharding.key.type is ValueType.UUID:
        forms.append(np.frombuffer(b"".join(key.bytes for key in keys), np.uint8).reshape(-1, 16))
    return forms


@given(any_sharded, st.data())
def test_values_lead_to_their_shards_and_no_others(sharding: Sharding, data: st.DataObject) -> None:
    keys = data.draw(st.lists(keys_of(sharding), max_size=5))
    assert shards_for_values(sharding, [*keys, None]) == {place(sharding, key) for key in keys} - {None}


@given(any_sharded, st.data())
def test_a_range_reaches_every_shard_with_a_key_in_it(sharding: Sharding, data: st.DataObject) -> None:
    low, high = data.draw(st.none() | keys_of(sharding)), data.draw(st.none() | keys_of(sharding))
    low_in, high_in = data.draw(st.booleans()), data.draw(st.booleans())
    found = shards_for_range(sharding, low, low_in, high, high_in)
    inside = _inside(low, low_in, high, high_in)
    for key in data.draw(st.lists(keys_of(sharding), max_size=20)):
        if inside(key):
            shard = place(sharding, key)
            assert shard is None or shard in found
    assert found <= set(shard_names(sharding))


@given(st.lists(st.integers(-6, 6), min_size=2, max_size=6, unique=True), st.data())
def test_a_range_of_integers_reaches_no_other_shard(bounds: list[int], data: st.DataObject) -> None:
    sharding = by_range(ValueType.INTEGER, sorted(bounds), SHARDS)
    low, high = data.draw(st.integers(-8, 8)), data.draw(st.integers(-8, 8))
    low_in, high_in = data.draw(st.booleans()), data.draw(st.booleans())
    inside = _inside(low, low_in, high, high_in)
    needed = {place(sharding, key) for key in range(-10, 10) if inside(key)} - {None}
    assert shards_for_range(sharding, low, low_in, high, high_in) == needed


def _inside(low: Any, low_in: bool, high: Any, high_in: bool) -> Callable[[Any], bool]:
    def inside(key: Any) -> bool:
        above = low is None or key > low or (low_in and key == low)
        below = high is None or key < high or (high_in and key == high)
        return bool(above and below)

    return inside
