from __future__ import annotations

import json
import sys
import time
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from router.query import histogram
from router.query.filter import parse
from router.query.histogram import Pattern
from router.query.selectivity import Estimate, estimates
from router.query.statistics import (
    CombinedStatistics,
    FilterIndex,
    Lookup,
    TableStatistics,
    column_statistics,
    path_statistics,
)
from router.settings import Settings
from shard_config import model
from shard_config.values import ValueType
from tests.unit.queries import collection

COLLECTION = collection(
    columns={
        name: model.Column(name, name, type_)
        for name, type_ in {
            "category": ValueType.TEXT,
            "brand": ValueType.TEXT,
            "price": ValueType.FLOAT8,
            "amount": ValueType.NUMERIC,
            "day": ValueType.DATE,
            "seen": ValueType.TIMESTAMPTZ,
            "key": ValueType.UUID,
            "active": ValueType.BOOLEAN,
        }.items()
    }
)

# 40 % "a", 10 % "b", 20 % NULL; the other 30 % are of ten values, each as frequent.
CATEGORY = column_statistics(0.2, 12, [("a", 0.4), ("b", 0.1)], [f"c{i}" for i in range(10)])
# Each of 1,000 values between 0 and 100 once.
PRICE = column_statistics(0.0, 1000, [], [float(i) for i in range(101)])
LANGUAGE = path_statistics(
    0.1,
    20,
    [('"en"', 0.5), ('["de", "en"]', 0.1), ("null", 0.1), ("7", 0.05)],
    ['"es"', '"fr"', '"it"', '"pl"', "1", "2", "3", '["de", "nl"]', '["nl"]', "true"],
)
TABLE = TableStatistics(
    rows=1000,
    counted=True,
    pages=50,
    toast_pages=0,
    columns={"category": CATEGORY, "price": PRICE},
    paths={("lang",): LANGUAGE},
)


def ordered(place: Any) -> tuple[Lookup, ...]:
    return Lookup(place, "equal"), Lookup(place, "range")


BY_CATEGORY = FilterIndex("by_category", "btree", (ordered("category"),))
BY_PRICE = FilterIndex("by_price", "btree", (ordered("price"),))
INDEXES = (BY_CATEGORY, BY_PRICE)


def estimated(raw: dict[str, Any], table: TableStatistics = TABLE) -> Estimate:
    return estimates(parse(COLLECTION, raw, Settings()), [table])[0]


def share(raw: dict[str, Any], **changes: Any) -> float:
    found = estimated(raw, with_(**changes))
    assert found.known, found
    return found.share


def with_(**changes: Any) -> TableStatistics:
    fields = {name: getattr(TABLE, name) for name in TABLE.__struct_fields__}
    return TableStatistics(**{**fields, **changes})


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"category": "a"}, 0.4),
        ({"category": "c3"}, 0.03),
        ({"category": {"$in": ["a", "b", "c3", "a"]}}, 0.53),
        ({"category": {"$in": []}}, 0.0),
        ({"category": {"$ne": "a"}}, 0.6),
        ({"category": {"$nin": ["a", "b"]}}, 0.5),
        ({"category": None}, 0.2),
        ({"category": {"$exists": True}}, 0.8),
        ({"category": {"$in": ["a", None]}}, 0.6),
        ({"$or": [{"category": None}, {"category": "a"}, {"category": {"$in": ["a", "b"]}}]}, 0.7),
        ({"$or": [{"category": None}, {"price": {"$lte": 50}}]}, 1 - 0.8 * 0.5),
        ({"$and": [{"category": "a"}, {"price": {"$lt": 50}}]}, 0.4 * 0.499),
        ({"$or": [{"category": "a"}, {"price": {"$lte": 50}}]}, 1 - 0.6 * 0.5),
        ({"$or": [{"category": "a"}, {"category": "b"}]}, 0.5),
        ({"$not": {"$or": [{"category": "a"}, {"category": "b"}]}}, 0.5),
        ({"$not": {"price": {"$lte": 50}}}, 0.5),
        ({}, 1.0),
        ({"$not": {}}, 0.0),
        ({"$or": [{"category": "a"}, {"$not": {}}]}, 0.4),
    ],
)
def test_the_share_is_that_of_the_values_that_are_kept(filter: dict[str, Any], expected: float) -> None:
    assert share(filter) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"$lte": 25.5}, 0.255),
        ({"$gt": 25.5}, 0.745),
        ({"$lt": 25.5}, 0.254),  # less by the rows of one value
        ({"$gte": 25.5}, 0.746),
        ({"$gte": 20, "$lt": 30}, 0.1),
        ({"$between": [20, 30]}, 0.101),
        ({"$gte": 30, "$lt": 20}, 0.0),
        ({"$gt": 20, "$lt": 20}, 0.0),
        ({"$gt": 10, "$gte": 20, "$lt": 90, "$lte": 30}, 0.101),
        # Statistics may be out of date: outside the histogram there may be a few rows.
        ({"$gt": 1000}, 0.0001),
        ({"$lt": -5}, 0.0001),
        ({"$lt": 1000}, 0.9999),
        ({"$lte": 0}, 0.001),
    ],
)
def test_a_range_is_read_from_the_histogram(filter: dict[str, Any], expected: float) -> None:
    assert share({"price": filter}) == pytest.approx(expected, abs=2e-6)


def test_a_range_counts_the_common_values_within_it() -> None:
    mixed = column_statistics(0.1, 103, [(50.0, 0.3), (10.0, 0.1)], [float(i) for i in range(0, 101, 10)])
    table = {"columns": {"price": mixed}}
    assert share({"price": {"$gte": 50, "$lte": 60}}, **table) == pytest.approx(0.3 + 0.5 * 0.11, abs=0.01)
    assert share({"price": {"$gt": 50, "$lte": 60}}, **table) == pytest.approx(0.5 * 0.1, abs=0.01)
    assert share({"price": {"$lt": 45}}, **table) == pytest.approx(0.1 + 0.5 * 0.45, abs=0.01)


MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("column", "bounds", "middle"),
    [
        ("amount", [Decimal(i) for i in range(11)], 5),
        ("day", [date(2026, 1, 1) + timedelta(days=i) for i in range(11)], "2026-01-06"),
        ("seen", [MOMENT + timedelta(hours=i) for i in range(11)], "2026-01-01T05:00:00Z"),
        ("key", [UUID(int=i << 100) for i in range(11)], str(UUID(int=5 << 100))),
        ("brand", [f"{c}{c}" for c in "abcdefghijk"], "ff"),
    ],
)
def test_ranges_of_every_type_are_interpolated(column: str, bounds: list[Any], middle: Any) -> None:
    known = column_statistics(0.0, -1, [], bounds)
    assert share({column: {"$lte": middle}}, columns={column: known}) == pytest.approx(0.5, abs=0.01)


def test_text_between_two_bounds_is_interpolated_by_its_bytes() -> None:
    known = column_statistics(0.0, 1e6, [], ["aaa", "azz"])
    low, high = (share({"brand": {"$lt": value}}, columns={"brand": known}) for value in ("aca", "axa"))
    assert 0.03 < low < 0.15 < 0.85 < high < 0.97


def test_text_that_the_server_sorts_otherwise_is_a_sample() -> None:
    known = column_statistics(0.0, 1e6, [], ["a", "B", "c", "D"], quantiles=False)
    assert share({"brand": {"$lt": "a"}}, columns={"brand": known}) == pytest.approx(0.5)


def test_nan_equals_itself_and_is_above_all_numbers() -> None:
    known = column_statistics(0.0, 50, [(float("nan"), 0.25)], [float(i) for i in range(11)])
    assert share({"price": "NaN"}, columns={"price": known}) == 0.25
    assert share({"price": {"$gt": 5}}, columns={"price": known}) == pytest.approx(0.25 + 0.75 * 0.5)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a%", 0.4),
        ("_", 0.5),
        ("%a", 0.4),
        ("%_b", 0.3),
        ("a\\%", 0.0),
        ("b", 0.1),
    ],
)
def test_patterns_are_tried_on_the_common_values(pattern: str, expected: float) -> None:
    known = column_statistics(0.2, 3, [("a", 0.4), ("cb", 0.3), ("b", 0.1)], [])
    found = share({"category": {"$like": pattern}}, columns={"category": known})
    assert found == pytest.approx(expected, abs=1e-4)


def test_patterns_are_tried_on_a_histogram_of_enough_values() -> None:
    known = column_statistics(0.0, 1e6, [], [f"{c}{i:02}" for c in "ab" for i in range(60)])
    table = {"columns": {"brand": known}}
    assert share({"brand": {"$like": "%1"}}, **table) == pytest.approx(0.1, abs=0.01)
    assert share({"brand": {"$ilike": "B%"}}, **table) == pytest.approx(0.5, abs=0.01)
    assert share({"brand": {"$like": "b%"}}, **table) == pytest.approx(0.5, abs=0.01)
    assert share({"brand": {"$like": "b0%"}}, **table) == pytest.approx(1 / 12, abs=0.02)


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ("en", 0.6),  # "en" itself, and an array that has it
        (7, 0.05),
        ({"$in": ["en", 7]}, 0.65),
        ({"$exists": True}, 0.8),
        (None, 0.2),
        ({"$contains": "nl"}, 0.15 * 0.2),
        ({"$contains": "de"}, 0.1 + 0.15 * 0.1),
        ({"$containsAny": ["de", "nl"]}, 0.1 + 0.15 * 0.3),
        ({"$containsAll": ["de", "en"]}, 0.115 * 0.1),
    ],
)
def test_equality_in_the_metadata_looks_into_arrays(filter: Any, expected: float) -> None:
    found = estimated({"metadata.lang": filter})
    assert found.least == pytest.approx(expected)
    # What the sample does not have may be in arrays that are not in it.
    assert found.most <= found.least + 0.15 * 0.2 * 2 + 1e-9


def test_comparisons_in_the_metadata_are_within_one_type() -> None:
    found = share({"metadata.lang": {"$gte": 2}})
    assert found == pytest.approx(0.05 + 0.15 * 0.3 * 0.5, abs=0.02)
    assert share({"metadata.lang": {"$gte": "a"}}) == pytest.approx(0.5 + 0.15 * 0.4, abs=0.01)


def test_numbers_of_the_metadata_are_compared_by_their_digits() -> None:
    known = path_statistics(0.0, 2, [("0.1", 0.6), ("true", 0.1), ("1", 0.3)], [])
    for value, expected in [(0.1, 0.6), (True, 0.1), (1, 0.3), (1.0, 0.3)]:
        assert share({"metadata.n": value}, paths={("n",): known}) == expected


def test_what_no_statistics_speak_of_is_unknown() -> None:
    for raw in ({"brand": "x"}, {"metadata.other": 1}, {"metadata.other": {"$contains": "x"}}):
        found = estimated(raw)
        assert (found.least, found.most, found.known) == (0.0, 1.0, False)
    both = estimated({"category": "b", "metadata.other": 1})
    assert (both.least, both.most) == (0.0, pytest.approx(0.1))
    either = estimated({"$or": [{"category": "b"}, {"metadata.other": 1}]})
    assert (either.least, either.most) == (pytest.approx(0.1), 1.0)
    neither = estimated({"$not": {"$or": [{"category": "b"}, {"metadata.other": 1}]}})
    assert (neither.least, neither.most) == (0.0, pytest.approx(0.9))
    assert not estimated({"$not": {"metadata.other": 1}}).known


def test_a_unique_column_needs_no_statistics() -> None:
    primary = FilterIndex("pk", "btree", (ordered("id"),), unique=True)
    found = estimated({"id": {"$in": [1, 2, 2]}}, with_(indexes=(primary,)))
    assert (found.share, found.indexed, found.indexes) == (0.002, 0.002, ("pk",))
    assert not estimated({"id": {"$gt": 5}}, with_(indexes=(primary,))).known


def test_columns_that_go_together_are_known_by_extended_statistics() -> None:
    brand = column_statistics(0.0, 10, [("x", 0.1), ("y", 0.4)], ["p", "q", "r"])
    both = {"category": "a", "brand": "x"}
    columns = {"category": CATEGORY, "brand": brand}
    apart = share(both, columns=columns)
    assert apart == pytest.approx(0.04)
    combined = CombinedStatistics(
        ("category", "brand"), common={("a", "x"): (0.1, 0.04), ("b", "y"): (0.1, 0.04)}, others=0.8
    )
    assert share(both, columns=columns, combined=(combined,)) == pytest.approx(0.1)
    some = {"category": {"$in": ["a", "b"]}, "brand": {"$in": ["x", "y"]}}
    assert share(some, columns=columns, combined=(combined,)) == pytest.approx(0.2 + 0.25 - 0.08)
    by_brand = (frozenset({"brand"}), "category", 1.0)
    depends = CombinedStatistics(("category", "brand"), dependencies=(by_brand,))
    assert share(both, columns=columns, combined=(depends,)) == pytest.approx(0.1)
    three = {**both, "price": {"$lte": 50}}
    assert share(three, columns={**columns, "price": PRICE}, combined=(depends,)) == pytest.approx(0.05)


def test_the_index_that_brings_the_fewest_rows_is_named() -> None:
    table = with_(indexes=INDEXES)
    found = estimated({"category": "b", "price": {"$lte": 50}}, table)
    assert found.indexes == ("by_category",)
    assert found.indexed == pytest.approx(0.1) and found.share == pytest.approx(0.05)
    assert estimated({"category": "a", "price": {"$lte": 1}}, table).indexes == ("by_price",)
    either = estimated({"$or": [{"category": "b"}, {"price": {"$lte": 10}}]}, table)
    assert either.indexes == ("by_category", "by_price") and either.indexed == pytest.approx(0.2)
    for raw in (
        {"$or": [{"category": "b"}, {"brand": "x"}]},
        {"$not": {"category": "b"}},
        {"metadata.lang": "en"},
    ):
        assert estimated(raw, table).indexes == ()


def test_an_index_finds_what_is_missing_and_what_a_negation_keeps() -> None:
    table = with_(indexes=INDEXES)
    for raw in (
        {"category": None},
        {"$not": {"category": {"$lte": "b"}}},
        {"category": {"$in": ["a", None]}},
    ):
        found = estimated(raw, table)
        assert found.indexes == ("by_category",)
        assert found.indexed == pytest.approx(share(raw))
    assert estimated({"$not": {"category": "a"}}, table).indexes == ()


def test_an_index_of_several_columns_is_read_by_the_first_that_are_given() -> None:
    keys = (ordered("category"), ordered("price"))
    table = with_(indexes=(FilterIndex("both", "btree", keys),))
    found = estimated({"category": "b", "price": {"$lte": 50}, "brand": "x"}, table)
    assert found.indexed == pytest.approx(0.05) and not found.known
    assert estimated({"price": {"$lte": 50}}, table).indexes == ()
    assert estimated({"category": {"$gte": "b"}, "price": 5}, table).indexed == pytest.approx(
        share({"category": {"$gte": "b"}})
    )


def test_shards_with_different_indexes_are_estimated_by_their_own() -> None:
    parsed = parse(COLLECTION, {"category": "b", "price": {"$lte": 50}}, Settings())
    tables = [TABLE, with_(indexes=INDEXES), with_(indexes=(BY_PRICE,)), with_(indexes=INDEXES)]
    found = estimates(parsed, tables)
    assert [one.indexes for one in found] == [(), ("by_category",), ("by_price",), ("by_category",)]
    assert found == [estimates(parsed, [table])[0] for table in tables]


def test_an_index_serves_only_the_conditions_of_its_kind() -> None:
    hashed = FilterIndex("h", "hash", ((Lookup("category", "equal"),),))
    located = FilterIndex("l", "btree", ((Lookup("category", "equal"),),))  # of another collation
    for index in (hashed, located):
        assert estimated({"category": "a"}, with_(indexes=(index,))).indexes == (index.name,)
        assert estimated({"category": {"$gt": "a"}}, with_(indexes=(index,))).indexes == ()
    partial = FilterIndex("p", "btree", BY_CATEGORY.keys, predicate="category = 'a'")
    assert estimated({"category": "a"}, with_(indexes=(partial,))).indexes == ()
    prefixes = FilterIndex("t", "btree", ((Lookup("category", "prefix"),),))
    assert estimated({"category": {"$like": "a%"}}, with_(indexes=(prefixes,))).indexes == ("t",)
    assert estimated({"category": {"$like": "%a"}}, with_(indexes=(prefixes,))).indexes == ()
    document = FilterIndex("g", "gin", ((Lookup((), "element"),),))
    found = estimated({"metadata.tags": {"$contains": "x"}}, with_(indexes=(document,)))
    assert (found.indexes, found.indexed, found.known) == (("g",), None, False)
    assert estimated({"metadata.lang": "en"}, with_(indexes=(document,))).indexes == ()
    path = FilterIndex("e", "gin", ((Lookup(("lang",), "element"),),))
    assert estimated({"metadata.lang": 7}, with_(indexes=(path,))).indexed == pytest.approx(0.05 + 0.03)
    assert estimated({"metadata.lang": {"$in": list(range(20))}}, with_(indexes=(path,))).indexes == ()


def test_hostile_statistics_do_no_harm() -> None:
    empty = column_statistics(1.0, 0, [], [])
    assert share({"brand": "x"}, columns={"brand": empty}, rows=0) == 0.0
    wide = path_statistics(0.0, -1, [], [json.dumps(10**400), "-1e400", json.dumps({"a": 1}), "[[1]]"])
    assert 0 <= share({"metadata.n": {"$gt": 0}}, paths={("n",): wide}) <= 1
    infinite = column_statistics(0.0, 100, [], [float("-inf"), 0.0, float("inf")])
    assert 0 <= share({"price": {"$gt": 5}}, columns={"price": infinite}) <= 1


def test_a_pattern_with_many_wildcards_takes_no_longer_than_one_with_few() -> None:
    order = column_statistics(0.0, 1, [("ab" * 63, 1.0)], []).order
    started = time.thread_time()
    # Each part of these occurs in the text, but not all of them in this order.
    for pattern in ("%_" * 12 + "%a_b", "%a" * 64 + "%b", "%" + "b" * 100_000):
        assert Pattern(pattern, ignore_case=False).shares([order]) == [0.0]
        assert Pattern(pattern, ignore_case=True).shares([order]) == [0.0]
    assert Pattern("%a" * 63 + "%b", ignore_case=True).shares([order]) == [1.0]
    assert time.thread_time() - started < 2


@pytest.mark.parametrize("few_steps", [histogram._FEW_STEPS, -1], ids=["by hand", "by expression"])
@pytest.mark.parametrize("ignore_case", [False, True])
@pytest.mark.parametrize(
    ("pattern", "matching"),
    [
        ("%", {"", "a", "ab", "aB", "ba", "b%", "aab"}),
        ("a%", {"a", "ab", "aB", "aab"}),
        ("%a", {"a", "ba"}),
        ("%ab%", {"ab", "aab"}),
        ("%ba%", {"ba"}),
        ("a%b", {"ab", "aab"}),
        ("a%a%b", {"aab"}),
        ("%a%a%", {"aab"}),
        ("%a_b", {"aab"}),
        ("_", {"a"}),
        ("__", {"ab", "aB", "ba", "b%"}),
        ("%__%", {"ab", "aB", "ba", "b%", "aab"}),
        ("_a%", {"ba", "aab"}),
        ("%a_%", {"ab", "aB", "aab"}),
        ("a_b", {"aab"}),
        ("a_%", {"ab", "aB", "aab"}),
        ("_%\\%", {"b%"}),
        ("ab", {"ab"}),
        ("", {""}),
        ("%%%", {"", "a", "ab", "aB", "ba", "b%", "aab"}),
        ("%aba%", set()),
    ],
)
def test_a_pattern_keeps_the_texts_that_like_would(
    pattern: str,
    matching: set[str],
    ignore_case: bool,
    few_steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(histogram, "_FEW_STEPS", few_steps)
    texts = ["", "a", "ab", "aB", "ba", "b%", "aab"]
    if ignore_case:
        pattern = pattern.upper()
        matching = matching | ({"aB"} if "ab" in matching else set())
    known = column_statistics(0.0, len(texts), [(text, 2.0**i / 127) for i, text in enumerate(texts)], [])
    (kept,) = Pattern(pattern, ignore_case).shares([known.order])
    assert kept == pytest.approx(sum(2.0**i / 127 for i, text in enumerate(texts) if text in matching))


def test_lower_case_is_that_of_each_character() -> None:
    texts = ["İZMİR", "ΟΔΟΣ", "ΣΟΦΙΑ"]
    order = column_statistics(0.0, 3, [(text, 0.25) for text in texts], []).order
    for pattern, share in [("%izmir%", 0.25), ("%σ%", 0.5), ("%Σ", 0.25), ("σοφ%", 0.25)]:
        assert Pattern(pattern, ignore_case=True).shares([order]) == [share]


def of_shard(number: int) -> TableStatistics:
    """As many values of each column as ANALYZE keeps, other ones on each shard."""
    names = [f"item {i * 7919 % 10_000:04} of {number}" for i in range(201)]
    prices = [float(i * 17 + number) for i in range(201)]
    return TableStatistics(
        rows=250_000,
        counted=True,
        pages=9000,
        toast_pages=0,
        columns={
            "category": column_statistics(0.0, 5000, [(n, 0.005) for n in names[:100]], sorted(names[100:])),
            "price": column_statistics(0.0, 5000, [(p, 0.005) for p in prices[:100]], prices[100:]),
            "active": column_statistics(0.0, 2, [(True, 0.6), (False, 0.4)], []),
        },
        combined=(CombinedStatistics(("category", "active"), common={(names[0], True): (0.005, 0.003)}),),
        indexes=INDEXES,
    )


@pytest.mark.parametrize(
    "filter",
    [
        {"category": "a", "price": {"$gte": 10, "$lt": 50}, "metadata.lang": "en"},
        {"category": {"$in": ["a", "b"]}, "active": True},
        {"$or": [{"category": {"$like": "%1%"}}, {"price": None}, {"price": {"$lt": 20}}, {"active": True}]},
        {"$not": {"$or": [{"category": "a"}, {"metadata.lang": {"$containsAny": ["de", "en"]}}]}},
        {"$or": [{"category": "a", "price": {"$lt": 20}}, {"$and": [{"category": "b"}, {"brand": "x"}]}]},
        {"metadata.lang": {"$lt": "f"}, "metadata.other": 1},
    ],
)
def test_what_is_estimated_of_a_shard_does_not_depend_on_the_others(filter: dict[str, Any]) -> None:
    parsed = parse(COLLECTION, filter, Settings())
    # Some know more than others.
    tables = [
        with_(indexes=INDEXES),
        with_(indexes=INDEXES, columns={"category": CATEGORY}, paths={}),
        with_(indexes=INDEXES, columns={}, rows=0),
        of_shard(1),
    ]
    assert estimates(parsed, tables) == [estimates(parsed, [table])[0] for table in tables]


@pytest.mark.parametrize(
    ("filter", "most"),
    [
        ({"category": "item 0003"}, 40),
        ({"category": {"$in": ["a", "b"]}}, 45),
        ({"price": {"$gte": 700, "$lt": 2500}}, 95),
        ({"category": {"$gte": "item 5"}}, 90),
        ({"category": {"$like": "item 5%"}}, 150),
        ({"category": {"$like": "%zz%"}}, 120),
        ({"category": {"$like": "%tem 79%"}}, 185),
        ({"category": {"$ilike": "%TEM 79%"}}, 190),
        ({"category": "x", "price": {"$gte": 700}, "active": True}, 265),
        ({"$or": [{"category": "x"}, {"price": {"$lt": 700}}]}, 160),
        ({"$not": {"$or": [{"category": "x"}, {"price": {"$lt": 700}}]}}, 200),
    ],
)
def test_an_estimate_does_not_ask_value_by_value(filter: dict[str, Any], most: int) -> None:
    """Counted in calls of functions, for a search on four shards of which each has been estimated before."""
    tables = [of_shard(number) for number in range(4)]
    parsed = parse(COLLECTION, filter, Settings())
    estimates(parsed, tables)
    calls = 0

    def count(_: Any, event: str, __: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        estimates(parsed, tables)
    finally:
        sys.setprofile(None)
    assert calls <= most
