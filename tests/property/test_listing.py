"""Pages of all shards' documents, and counts of all shards' values, against one list of everything."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from router.query.facets import FacetField, FacetValue, facet_of
from router.query.filter import Field
from router.query.merge import merge_by_id
from router.query.types import Row
from shard_config.model import Column
from shard_config.values import ValueType

IDS = st.one_of(
    st.lists(st.integers(-50, 50), max_size=60),
    st.lists(st.uuids(), max_size=40),
    st.lists(st.text(max_size=3), max_size=60),
)
NAMES = ["s0", "s1", "s2", "s3"]


def placed(ids: list[Any], data: st.DataObject) -> dict[str, list[Any]]:
    """Each id on one shard, or on two, as while rows move; ascending on each."""
    shards: dict[str, set[Any]] = {name: set() for name in NAMES}
    for id_ in ids:
        for name in data.draw(st.sets(st.sampled_from(NAMES), min_size=1, max_size=2)):
            shards[name].add(id_)
    return {name: sorted(held) for name, held in shards.items()}


@given(IDS, st.integers(1, 12), st.data())
def test_pages_one_after_the_other_are_all_ids_once_and_in_order(
    ids: list[Any], limit: int, data: st.DataObject
) -> None:
    shards = placed(ids, data)
    seen: list[Any] = []
    after: Any = None
    while True:
        # What each shard answers to a page's statement, for one row more than the page may have.
        rest = {name: [id_ for id_ in held if after is None or id_ > after] for name, held in shards.items()}
        parts: dict[str, list[Row]] = {
            name: [(id_, name) for id_ in held[: limit + 1]] for name, held in rest.items()
        }
        merged = merge_by_id(parts, limit + 1)
        assert all(row[1] == name for row, name in merged)
        page = [row[0] for row, _ in merged[:limit]]
        seen += page
        if len(merged) <= limit:
            break
        after = page[-1]
    assert seen == sorted(set(ids))


TEXT = FacetField("category", Field(Column("category", "category", ValueType.TEXT)))
JSON = FacetField("metadata.a", Field(None, ("a",)))
VALUES = st.lists(st.one_of(st.none(), st.sampled_from("abcdeéz")), max_size=80)


def groups(values: list[str | None], most: int) -> list[Row]:
    """What a shard answers: those without a value, then by falling count, one more than `most`."""
    counts = Counter(values)
    missing = counts.pop(None, 0)
    rows: list[Row] = [(None, False, missing)] if missing else []
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return rows + [(value, False, count) for value, count in ordered[: most + 1]]


@given(st.lists(VALUES, max_size=4), st.integers(1, 8))
def test_counts_do_not_depend_on_where_documents_lie(parts: list[list[str | None]], limit: int) -> None:
    together = [value for part in parts for value in part]
    expected = facet_of(TEXT, {"s0": groups(together, 100)}, limit, 100)
    apart = {f"s{i}": groups(part, 100) for i, part in enumerate(parts)}
    assert facet_of(TEXT, apart, limit, 100) == expected
    counts = Counter(value for value in together if value is not None)
    best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    assert expected.values == tuple(FacetValue(*pair) for pair in best[:limit])
    assert (expected.missing, expected.more) == (together.count(None), max(0, len(best) - limit))


@given(st.lists(VALUES, max_size=4), st.integers(1, 4), st.integers(1, 8))
def test_no_count_is_further_from_the_truth_than_is_said(
    parts: list[list[str | None]], most: int, limit: int
) -> None:
    found = facet_of(TEXT, {f"s{i}": groups(part, most) for i, part in enumerate(parts)}, limit, most)
    true = Counter(value for part in parts for value in part if value is not None)
    shown: defaultdict[Any, int] = defaultdict(int)
    for one in found.values:
        shown[one.value] = one.count
    whole = facet_of(TEXT, {f"s{i}": groups(part, most) for i, part in enumerate(parts)}, 100, most)
    counted = {one.value: one.count for one in whole.values}
    for value, count in true.items():
        assert counted.get(value, 0) <= count <= counted.get(value, 0) + found.undercount
    assert (found.more is None) == (found.undercount > 0)


def test_json_values_that_are_equal_are_one_and_kinds_are_apart() -> None:
    texts = [
        "1",
        "1.0",
        "1.00",
        "true",
        '"1"',
        '{"b": [1.0], "a": "é"}',
        '{"a": "é", "b": [1]}',
        "-0",
        "0.0",
        "[]",
    ]
    rows = {f"s{i}": [(text, False, 1)] for i, text in enumerate(texts)}
    found = facet_of(JSON, rows, 20, 10)
    shown = [(bytes(one.value).decode(), one.count) for one in found.values]  # type: ignore[call-overload]
    assert shown == [
        ("1", 3),
        ("0", 2),
        ('{"a": "é", "b": [1]}', 2),
        ("true", 1),
        ('"1"', 1),
        ("[]", 1),
    ]
