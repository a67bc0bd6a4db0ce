"""Placement by example; `tests/property` says the same for all keys."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from shard_config.model import Sharding
from shard_config.partition import (
    NoPlaceError,
    bucket,
    locate,
    locate_many,
    shard_names,
    shards_for_range,
    shards_for_values,
    sql_predicate,
)
from shard_config.values import ValueType
from tests.unit.shard_config_maps import by_hash, by_list, by_range

HASH = by_hash(ValueType.BIGINT, ("s0", "s1", "s0", "s1"))
LIST = by_list(ValueType.TEXT, {"acme": "s0", "globex": "s1"})
LIST_WITH_REST = by_list(ValueType.TEXT, {"acme": "s0"}, default="s2")
RANGE = by_range(ValueType.BIGINT, [0, 10, 20, 30], ["s0", "s1", "s0"])


def test_hash_places_by_bucket() -> None:
    assert bucket(HASH, 42) == 0xAFD30D9A116A5A62 % 4 == 2
    assert locate(HASH, 42) == "s0"
    assert shard_names(HASH) == ("s0", "s1")
    assert locate_many(HASH, [42, 0]).tolist() == [0, 0]


NAN = float("nan")
INF = float("inf")


def test_a_range_orders_nan_above_every_other_number_as_postgresql_does() -> None:
    sharding = by_range(ValueType.FLOAT8, [None, 0.0, INF, NAN, None], ["s0", "s1", "s2", "s3"])
    values = [-INF, -0.0, 1e308, INF, NAN]
    assert [locate(sharding, value) for value in values] == ["s0", "s1", "s1", "s2", "s3"]
    assert locate_many(sharding, values).tolist() == [0, 1, 1, 2, 3]
    assert shards_for_range(sharding, INF, False, None, False) == {"s2", "s3"}
    assert shards_for_range(sharding, NAN, True, None, False) == {"s3"}
    assert shards_for_range(sharding, NAN, False, None, False) == {"s3"}
    assert shards_for_range(sharding, None, False, NAN, False) == {"s0", "s1", "s2"}
    assert shards_for_range(sharding, None, False, NAN, True) == {"s0", "s1", "s2", "s3"}
    bounded = by_range(ValueType.FLOAT8, [0.0, NAN], ["s0"])
    assert locate(bounded, INF) == "s0"
    for value in (NAN, -1.0):
        with pytest.raises(NoPlaceError):
            locate(bounded, value)
        with pytest.raises(NoPlaceError):
            locate_many(bounded, [1.0, value])


def test_list_places_by_value_and_the_rest_by_default() -> None:
    assert locate(LIST, "globex") == "s1"
    assert locate(LIST_WITH_REST, "globex") == "s2"
    assert shard_names(LIST_WITH_REST) == ("s0", "s2")


def test_range_places_from_the_lower_end_to_below_the_upper() -> None:
    assert [locate(RANGE, key) for key in (0, 9, 10, 19, 20, 29)] == ["s0", "s0", "s1", "s1", "s0", "s0"]


def test_text_ranges_go_by_code_point() -> None:
    sharding = by_range(ValueType.TEXT, [None, "a", None], ["upper", "lower"])
    assert [locate(sharding, key) for key in ("", "Z", "a", "é", "😀")] == ["upper", "upper", *["lower"] * 3]


@pytest.mark.parametrize(
    ("sharding", "key", "message"),
    [
        (LIST, "initech", "no shard holds the k 'initech'"),
        (RANGE, -1, "no shard holds the k -1"),
        (RANGE, 30, "no shard holds the k 30"),
        (HASH, None, "no shard holds the k null"),
        (LIST_WITH_REST, None, "no shard holds the k null"),
        (RANGE, None, "no shard holds the k null"),
    ],
)
def test_a_key_without_a_place_is_named(sharding: Sharding, key: object, message: str) -> None:
    with pytest.raises(NoPlaceError) as caught:
        locate(sharding, key)
    assert str(caught.value) == message
    assert (caught.value.value, caught.value.position) == (key, None)
    with pytest.raises(NoPlaceError) as caught:
        locate_many(sharding, [*([42, 7] if sharding is HASH else []), key])
    assert caught.value.position == (2 if sharding is HASH else 0)
    assert shards_for_values(sharding, [key]) == frozenset()


def test_a_long_key_is_shortened_in_the_message() -> None:
    with pytest.raises(NoPlaceError) as caught:
        locate(LIST, "x" * 10_000)
    assert len(str(caught.value)) < 100


def test_uuid_bytes_are_placed_by_list() -> None:
    keys = [uuid.UUID(int=1), uuid.UUID(int=2)]
    sharding = by_list(ValueType.UUID, {keys[0]: "s0", keys[1]: "s1"})
    rows = np.frombuffer(keys[1].bytes + keys[0].bytes, np.uint8).reshape(2, 16)
    assert locate_many(sharding, rows).tolist() == [1, 0]


def test_unsigned_and_floating_arrays_are_placed_by_range() -> None:
    assert locate_many(RANGE, np.array([5, 15], np.uint64)).tolist() == [0, 1]
    prices = by_range(ValueType.FLOAT8, [None, 0.5, None], ["s0", "s1"])
    assert locate_many(prices, np.array([0.25, 0.5])).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("interval", "shards"),
    [
        ((None, False, None, False), {"s0", "s1"}),
        ((10, True, 20, False), {"s1"}),
        ((10, True, 20, True), {"s0", "s1"}),
        ((9, False, 20, False), {"s1"}),
        ((19, False, 20, False), set()),
        ((30, True, None, False), set()),
        ((None, False, 0, False), set()),
        ((None, False, 0, True), {"s0"}),
        ((15, True, 15, True), {"s1"}),
        ((15, True, 15, False), set()),
        ((16, True, 14, True), set()),
    ],
)
def test_a_range_of_keys_leads_to_the_parts_it_meets(
    interval: tuple[int | None, bool, int | None, bool], shards: set[str]
) -> None:
    assert shards_for_range(RANGE, *interval) == shards


def test_a_range_of_keys_does_not_narrow_hash_or_list() -> None:
    assert shards_for_range(HASH, 1, True, 1, True) == {"s0", "s1"}
    assert shards_for_range(LIST, "a", True, "b", True) == {"s0", "s1"}


def test_predicates_read_as_sql() -> None:
    assert (
        sql_predicate(LIST, "s1") == '("k" IS NOT NULL AND "k" COLLATE "C" = ANY (ARRAY[\'globex\'::text]))'
    )
    assert sql_predicate(RANGE, "s1") == (
        '("k" IS NOT NULL AND (("k" >= \'10\'::bigint AND "k" < \'20\'::bigint)))'
    )
    assert sql_predicate(LIST, "s9") == sql_predicate(RANGE, "s9") == sql_predicate(HASH, "s9") == "false"
    hostile = by_list(ValueType.TEXT, {"'; DROP TABLE x; --\\": "s0"})
    assert "ARRAY[E'''; DROP TABLE x; --\\\\'::text]" in sql_predicate(hostile, "s0")
