"""PostgreSQL's hash against values that a server gave; `tests/integration` asks a live one."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from shard_config.hashing import bucket, buckets, key_hash, row_hash
from shard_config.values import ValueType

GOLDEN = [
    (ValueType.BIGINT, 0, 0x0C8440B74FD699B0),
    (ValueType.BIGINT, 1, 0x9C7715E2970A8FB8),
    (ValueType.BIGINT, 2, 0xEB7B1343AF5EA17A),
    (ValueType.BIGINT, 42, 0xAFD30D9A116A5A62),
    (ValueType.BIGINT, -1, 0x0400BC251F3BAFA5),
    (ValueType.BIGINT, 10**12, 0x1D73FE31E3640B95),
    (ValueType.TEXT, "hello", 0x250E9012D8862B94),
]


@pytest.mark.parametrize(("type_", "key", "expected"), GOLDEN)
def test_a_row_hashes_as_the_server_says(type_: ValueType, key: object, expected: int) -> None:
    assert row_hash([(type_, key)]) == expected
    assert bucket(type_, key, 2**64) == expected
    assert bucket(type_, key, 1000) == expected % 1000
    assert buckets(type_, [key], 1000).tolist() == [expected % 1000]


def test_the_integer_types_hash_alike() -> None:
    for key in (0, 1, -1, 32767, -32768):
        hashes = {key_hash(type_, key) for type_ in (ValueType.BIGINT, ValueType.INTEGER, ValueType.SMALLINT)}
        assert len(hashes) == 1


def test_a_null_column_counts_for_nothing() -> None:
    assert row_hash([(ValueType.BIGINT, None), (ValueType.TEXT, None)]) == 0
    assert row_hash([(ValueType.BIGINT, None), (ValueType.TEXT, "hello")]) == 0x250E9012D8862B94
    assert row_hash([]) == 0


def test_doubling_the_modulus_splits_each_bucket_in_two() -> None:
    keys = np.arange(10_000)
    assert (buckets(ValueType.BIGINT, keys, 24) % 12 == buckets(ValueType.BIGINT, keys, 12)).all()


def test_keys_spread_evenly() -> None:
    counts = np.bincount(buckets(ValueType.BIGINT, np.arange(64_000), 64), minlength=64)
    assert 850 < counts.min() and counts.max() < 1150


def test_no_keys_have_no_buckets() -> None:
    for type_ in (ValueType.BIGINT, ValueType.TEXT, ValueType.UUID):
        found = buckets(type_, [], 4)
        assert found.shape == (0,)
        assert found.dtype == np.int64


def test_every_integer_array_is_taken() -> None:
    expected = buckets(ValueType.BIGINT, [1, 2, 300], 7).tolist()
    for dtype in (np.int16, np.int32, np.int64, np.uint16, np.uint64):
        assert buckets(ValueType.BIGINT, np.array([1, 2, 300], dtype=dtype), 7).tolist() == expected


@pytest.mark.parametrize(
    ("type_", "keys"),
    [
        (ValueType.BIGINT, [1, 1.5]),
        (ValueType.BIGINT, [True]),
        (ValueType.BIGINT, ["1"]),
        (ValueType.BIGINT, np.array([1.0])),
        (ValueType.TEXT, [b"a"]),
        (ValueType.UUID, ["00000000-0000-0000-0000-000000000000"]),
        (ValueType.NUMERIC, [1]),
    ],
)
def test_a_key_of_another_type_has_no_hash(type_: ValueType, keys: list[object]) -> None:
    with pytest.raises(TypeError):
        buckets(type_, keys, 4)
    for key in keys[-1:]:
        with pytest.raises(TypeError):
            bucket(type_, key, 4)


def test_an_integer_beyond_64_bits_is_refused() -> None:
    with pytest.raises(OverflowError):
        buckets(ValueType.BIGINT, [2**63], 4)
    with pytest.raises(OverflowError):
        buckets(ValueType.BIGINT, np.array([2**63], dtype=np.uint64), 4)


def test_uuids_are_taken_as_objects_and_as_bytes() -> None:
    keys = [uuid.UUID(int=at * 0x0123456789ABCDEF) for at in range(100)]
    as_bytes = np.frombuffer(b"".join(key.bytes for key in keys), dtype=np.uint8).reshape(-1, 16)
    assert buckets(ValueType.UUID, as_bytes, 13).tolist() == buckets(ValueType.UUID, keys, 13).tolist()
