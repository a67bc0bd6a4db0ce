from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

from hypothesis import given
from hypothesis import strategies as st

from router.schema.duplicates import repeated


async def streamed(ids: set[int]) -> AsyncIterator[int]:
    for id_ in sorted(ids):
        yield id_


@given(st.dictionaries(st.sampled_from("abcd"), st.sets(st.integers(0, 30))))
async def test_ids_on_several_shards_are_found_with_all_their_shards(shards: dict[str, set[int]]) -> None:
    found = [pair async for pair in repeated({name: streamed(ids) for name, ids in shards.items()})]
    counts = Counter(id_ for ids in shards.values() for id_ in ids)
    expected = [
        (id_, sorted(name for name in shards if id_ in shards[name]))
        for id_, count in sorted(counts.items())
        if count > 1
    ]
    assert found == expected
