"""One key and many keys hash alike, whatever the keys."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shard_config.hashing import bucket, buckets
from shard_config.values import ValueType

modulus = st.integers(1, 65536) | st.sampled_from([1, 2**32, 2**63 - 1])
int64 = st.integers(-(2**63), 2**63 - 1)
# Lengths cluster, so that both the vectorised path and the one for few keys of a length are taken.
texts = st.lists(
    st.text(st.characters(codec="utf-8"), max_size=60) | st.text("aé日😀", max_size=3), max_size=60
)


@given(st.lists(int64), modulus)
def test_integers(keys: list[int], modulus: int) -> None:
    expected = [bucket(ValueType.BIGINT, key, modulus) for key in keys]
    assert buckets(ValueType.BIGINT, keys, modulus).tolist() == expected
    assert buckets(ValueType.BIGINT, np.array(keys, dtype=np.int64), modulus).tolist() == expected


@given(texts, modulus)
def test_texts(keys: list[str], modulus: int) -> None:
    expected = [bucket(ValueType.TEXT, key, modulus) for key in keys]
    assert buckets(ValueType.TEXT, keys, modulus).tolist() == expected


@given(st.lists(st.uuids()), modulus)
def test_uuids(keys: list[object], modulus: int) -> None:
    expected = [bucket(ValueType.UUID, key, modulus) for key in keys]
    assert buckets(ValueType.UUID, keys, modulus).tolist() == expected


@given(int64, st.integers(1, 32768))
def test_a_bucket_is_below_the_modulus_and_refined_by_doubling(key: int, modulus: int) -> None:
    found = bucket(ValueType.BIGINT, key, modulus)
    assert 0 <= found < modulus
    assert bucket(ValueType.BIGINT, key, 2 * modulus) % modulus == found
