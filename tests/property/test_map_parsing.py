"""Whatever a file holds, reading it gives a map or a `MapError`, and soon."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from shard_config import MapError, ShardMap, locate, to_json
from shard_config.file import codec
from shard_config.values import ValueType
from tests.unit.shard_config_maps import ENV, document

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.dates()
    | st.datetimes()
    | st.binary(max_size=5)
    | st.sampled_from(
        ["${A}", "${", "$$", "0-3", "a", "id", "hash", "postgresql://u:p@h/d", "1" * 5000, "1e99999"]
    )
)
words = st.sampled_from(
    """
    version shards collections s0 s1 nodes name dsn zone documents table id vector columns tenant type column
    sharding strategy key buckets placement default index m search timeout cache ttl from to <<
    """.split()
)
trees: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(words | scalars.filter(lambda key: key == key), inner, max_size=5)
    ),
    max_leaves=20,
)


def read(text: str) -> ShardMap | None:
    try:
        return codec.parse(text, env=ENV)
    except MapError as exc:
        assert exc.problems
        assert all(problem.message for problem in exc.problems)
        assert str(exc).count("\n") + 1 == len(exc.problems), "a finding takes one line"
        return None


@given(st.text() | st.text("{}[]:,-&*!|>'\"%@`# \n\tab0?~<$"))
def test_any_text(text: str) -> None:
    assert read(text) is None


@given(trees)
def test_any_tree(tree: Any) -> None:
    read(yaml.dump(tree))


def paths(tree: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    match tree:
        case dict():
            inner = [path for key, value in tree.items() for path in paths(value, (*before, key))]
        case list():
            inner = [path for at, value in enumerate(tree) for path in paths(value, (*before, at))]
        case _:
            inner = []
    return [before, *inner] if before else inner


PATHS = paths(document())


@given(st.lists(st.tuples(st.sampled_from(PATHS), trees), min_size=1, max_size=3))
def test_a_valid_map_with_anything_in_the_place_of_parts(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    tree = document()
    for path, value in changes:
        at: Any = tree
        try:
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = value
        except (TypeError, IndexError, KeyError):
            continue  # an earlier change took the place away
    shard_map = read(yaml.dump(tree))
    if shard_map is not None:
        to_json(shard_map)


@given(st.lists(st.sampled_from(["s0", "s1"]), min_size=1, max_size=40), st.integers(-(2**63), 2**63 - 1))
def test_a_placement_that_is_read_is_the_one_that_was_written(owners: list[str], key: int) -> None:
    placement: dict[str, list[int]] = {}
    for bucket, shard in enumerate(owners):
        placement.setdefault(shard, []).append(bucket)
    tree = document(strategy="hash", key="id", buckets=len(owners), placement=placement)
    sharding = codec.parse(yaml.safe_dump(tree), env=ENV).collections["documents"].sharding
    assert sharding.placement == tuple(owners)  # type: ignore[union-attr]
    assert sharding.key.type is ValueType.BIGINT
    assert locate(sharding, key) in owners
