from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.postgres.sql import count
from router.query.errors import InvalidError
from router.query.filter import And, Compare, Contains, Exists, In, Like, Not, Or, constant, parse
from router.query.metadata import Digits
from router.settings import Settings
from shard_config.metadata_path import steps
from shard_config.values import ValueType
from tests.unit.queries import by_tenant, collection

LIMITS = Settings()


def parsed(raw: dict[str, Any]) -> Any:
    return parse(collection(), raw, LIMITS)


def message(raw: dict[str, Any]) -> str:
    with pytest.raises(InvalidError) as caught:
        parsed(raw)
    return "\n".join(f"{problem.path}: {problem.message}" for problem in caught.value.problems)


def test_a_plain_value_means_equality() -> None:
    tree = parsed({"tenant": "acme"})
    assert isinstance(tree, Compare)
    assert (tree.op, tree.value) == ("=", "acme")


def test_several_operators_and_fields_must_all_hold() -> None:
    tree = parsed({"price": {"$gte": 3, "$lt": 10}, "active": True})
    assert isinstance(tree, And)
    price, active = tree.parts
    assert isinstance(price, And)
    assert [part.op for part in price.parts if isinstance(part, Compare)] == [">=", "<"]
    assert isinstance(active, Compare)


def test_a_negation_becomes_conditions_that_an_index_serves_where_there_are_such() -> None:
    price = {"price": {"$lt": 10}}
    below = parsed(price)
    above, missing = parsed({"price": {"$gte": 10}}), parsed({"price": None})
    assert parsed({"$not": price}) == Or((above, missing))
    assert parsed({"$not": {"$not": price}}) == below
    tenant = parsed({"tenant": "a"})
    assert parsed({"$not": {"$or": [price, {"tenant": "a"}]}}) == And((Or((above, missing)), Not(tenant)))
    assert parsed({"$not": {**price, "tenant": "a"}}) == Not(And((below, tenant)))
    assert isinstance(parsed({"$not": {"metadata.n": {"$lt": 3}}}), Not)


def test_sugar_is_gone_after_parsing() -> None:
    assert isinstance(parsed({"tenant": None}), Not)
    assert isinstance(parsed({"tenant": {"$ne": "a"}}).part, Compare)
    assert isinstance(parsed({"tenant": {"$nin": ["a"]}}).part, In)
    assert isinstance(parsed({"tenant": {"$exists": True}}), Exists)
    assert isinstance(parsed({"tenant": {"$ilike": "a%"}}), Like)
    between = parsed({"price": {"$between": [1, 2]}})
    assert [part.op for part in between.parts] == [">=", "<="]
    with_null = parsed({"tenant": {"$in": ["a", None]}})
    assert isinstance(with_null, Or)


def test_an_empty_filter_matches_everything() -> None:
    assert count(collection(), parsed({})).sql.endswith("WHERE true")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({}, True),
        ({"$not": {}}, False),
        ({"$not": {"price": {"$in": []}}}, True),
        ({"price": {"$in": []}, "tenant": "a"}, False),
        ({"$or": [{"tenant": "a"}, {"price": {"$nin": []}}]}, True),
        ({"$or": [{"tenant": "a"}, {"price": {"$in": []}}]}, None),
        ({"$not": {"tenant": "a"}}, None),
        ({"price": {"$nin": [None]}}, None),
        ({"id": {"$exists": True}}, True),
        ({"id": {"$ne": None}}, True),
        ({"$not": {"metadata.a": {"$containsAny": []}}}, True),
    ],
)
def test_what_a_filter_says_of_every_row_shows_in_its_form(raw: dict[str, Any], said: bool | None) -> None:
    assert constant(parsed(raw)) is said


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"nope": 1}, "unknown field 'nope'; fields of documents are id, tenant, price"),
        ({"tenant": 1}, "filter.tenant: expected a string, got 1"),
        ({"price": "x"}, "expected a number"),
        ({"price": True}, "expected a number, got true"),
        ({"id": 2**63}, "expected an integer from"),
        ({"day": "2026-13-01"}, "expected a date"),
        ({"tenant": {"$foo": 1}}, "unknown operator '$foo'"),
        ({"$nor": []}, "unknown combinator '$nor'"),
        ({"$and": []}, "expected a non-empty array"),
        ({"$or": [1]}, "filter.$or[0]: expected an object"),
        ({"$not": []}, "expected an object"),
        ({"tenant": {}}, "expected a value or an object of operators"),
        ({"tenant": {"$in": "a"}}, "expected an array"),
        ({"price": {"$between": [1]}}, "array of two values"),
        ({"price": {"$like": "1%"}}, "need text"),
        ({"tenant": {"$like": "a\\"}}, "cannot end with a single backslash"),
        ({"tenant": {"$exists": 1}}, "expected true or false"),
        ({"tenant": "a\0b"}, "U+0000"),
        ({"tenant": "\ud800"}, "lone surrogate"),
        ({"metadata.": 1}, "non-empty names"),
        ({"metadata.a..b": 1}, 'the empty name is written ""'),
        ({"metadata.a.": 1}, "non-empty names"),
        ({'metadata."a': 1}, "lacks its closing quote"),
        ({'metadata."a"b': 1}, "a dot or nothing follows the closing quote"),
        ({'metadata."\\x"': 1}, "is a JSON string"),
        ({'metadata."\\ud800"': 1}, "lone surrogate"),
        ({"metadata.a\0": 1}, "U+0000"),
        ({"metadata." + ".".join("a" * 33): 1}, "at most 32 steps"),
        ({"metadata.a": {"$eq": [1]}}, "expected a string, a finite number"),
        ({"metadata.a": float("inf")}, "finite number"),
        ({"metadata.a": 10**2000}, "finite number"),
        ({"metadata.a": ["x"]}, "for arrays there are $contains, $containsAny and $containsAll"),
        ({"metadata": {"a": 1}}, "unknown field 'metadata'; fields of documents are id, tenant, price, day"),
        ({"nope": 1}, "active, content, metadata.<path>"),
        ({"metadata.a": {"$contains": ["x"]}}, "there are $containsAny and $containsAll"),
        (
            {"metadata.a": {"$contains": None}},
            "expected a string, a finite number, true or false, or an object",
        ),
        ({"metadata.a": {"$contains": {"b": "\0"}}}, "filter.metadata.a.$contains: a string cannot hold"),
        ({"metadata.a": {"$contains": {"\ud800": 1}}}, "lone surrogate"),
        ({"metadata.a": {"$contains": {"b": [1, {"c": float("nan")}]}}}, "finite number"),
        ({"metadata.a": {"$containsAny": "x"}}, "expected an array of values"),
        ({"metadata.a": {"$containsAny": ["x", None]}}, "$containsAny[1]: expected a string"),
        ({"metadata.a": {"$containsAll": []}}, "non-empty array"),
        ({"price": {"$contains": 1}}, "price is double precision; $contains"),
        ({"content": {"$containsAny": ["x"]}}, "$like finds a part of a text"),
        ({"content": 1}, "filter.content: expected a string, got 1"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(raw: dict[str, Any], expected: str) -> None:
    assert expected in message(raw)


def test_every_operator_is_documented() -> None:
    known = message({"tenant": {"$nope": 1}}).split("known are ")[1].split(", ")
    assert len(known) > 10
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
    assert [op for op in known if f"| `{op}`" not in page and f"` `{op}`" not in page] == []


def test_all_problems_are_reported_at_once() -> None:
    assert message({"nope": 1, "price": "x", "tenant": {"$in": [1, "a", 2]}}).count("\n") == 3


@pytest.mark.parametrize(
    "raw",
    [
        {"price": {"$between": [3, 1]}},
        {"tenant": {"$between": ["b", "B"]}},
        {"metadata.a": {"$between": [2, 1]}},
        {"metadata.a": {"$between": [1, "a"]}},
        {"metadata.a": {"$between": [0, True]}},
        {"active": {"$gt": True}},
        {"metadata.a": {"$lt": False}},
        {"tenant": {"$lt": ""}},
        {"metadata.a": {"$lt": ""}},
        {"id": None},
        {"id": {"$exists": False}},
        {"id": {"$in": [None]}},
        {"$not": {"id": None}},
    ],
)
def test_a_condition_that_can_match_nothing_is_refused(raw: dict[str, Any]) -> None:
    assert "can match nothing" in message(raw)


def test_a_sharding_key_is_never_missing_and_other_columns_may_be() -> None:
    with pytest.raises(InvalidError, match=r"filter.tenant.\$eq: can match nothing: every document"):
        parse(collection(by_tenant()), {"tenant": {"$eq": None}}, LIMITS)
    assert isinstance(parsed({"tenant": None}), Not)


@pytest.mark.parametrize(
    "raw",
    [
        {"price": {"$between": [1, 1]}},
        {"metadata.a": {"$between": [1, 1.5]}},
        {"active": {"$gte": True}},
        {"active": {"$lt": True}},
        {"metadata.a": {"$lt": 0}},
        {"tenant": {"$lte": ""}},
        {"price": {"$in": []}},
        {"metadata.a": {"$containsAny": []}},
        {"id": {"$in": [1, None]}},
        {"id": {"$ne": None}},
        # Several operators are not compared with each other: a page that begins at its end is empty.
        {"price": {"$gt": 5, "$lte": 5}},
    ],
)
def test_conditions_that_match_something_or_come_from_programs_are_taken(raw: dict[str, Any]) -> None:
    parsed(raw)


def test_arrays_are_asked_for_one_some_or_all_elements() -> None:
    one = parsed({"metadata.tags": {"$contains": "x"}})
    assert isinstance(one, Contains)
    assert (one.field.path, one.elements, one.every) == (("tags",), ('"x"',), True)
    some = parsed({"metadata.tags": {"$containsAny": ["x", 1.5, True]}})
    assert (some.elements, some.every) == (('"x"', "1.5", "true"), False)
    every = parsed({"metadata.tags": {"$containsAll": [{"name": "x", "n": None}]}})
    assert (every.elements, every.every) == (('{"name":"x","n":null}',), True)


def test_an_object_within_an_array_is_bounded_in_depth_and_in_values() -> None:
    deep: Any = 1
    for _ in range(40):
        deep = {"a": deep}
    assert "nested deeper than 32 levels" in message({"metadata.a": {"$contains": deep}})
    wide = {"a": list(range(LIMITS.max_filter_values))}
    assert f"more than {LIMITS.max_filter_values} values" in message({"metadata.a": {"$contains": wide}})


@given(st.lists(st.text(), min_size=1, max_size=32))
def test_every_name_in_the_metadata_can_be_written(path: list[str]) -> None:
    if any("\0" in step for step in path):
        return
    assert steps(".".join(json.dumps(step) for step in path)) == tuple(path)
    assert steps(".".join(json.dumps(step, ensure_ascii=False) for step in path)) == tuple(path)
    plain = [step for step in path if step and "." not in step and not step.startswith('"')]
    if plain:
        assert steps(".".join(plain)) == tuple(plain)


@pytest.mark.parametrize(
    "raw",
    [{op: value} for op in ("$gt", "$gte", "$lt", "$lte", "$like", "$ilike") for value in ("b", "b%")]
    + [{"$between": ["a", "b"]}],
)
@pytest.mark.parametrize("field", ["id", "tenant", "content", "metadata.a", 'metadata."a.b".0'])
def test_every_comparison_of_texts_by_order_or_pattern_states_its_collation(
    raw: dict[str, Any], field: str
) -> None:
    text_id = collection(id=msgspec.structs.replace(collection().id, type=ValueType.TEXT))
    sql = count(text_id, parse(text_id, {field: raw}, LIMITS)).sql
    stated = 'COLLATE "pg_c_utf8"' if "$ilike" in raw else 'COLLATE "C"'
    texts = re.findall(r"::text(?!\[)(.*?)(?:\)|$| AND)", sql)
    assert texts == [f" {stated}"] * len(raw.get("$between", [1]))


def test_depth_conditions_and_values_are_bounded() -> None:
    deep: dict[str, Any] = {"tenant": "a"}
    for _ in range(LIMITS.max_filter_depth):
        deep = {"$not": deep}
    assert f"nested deeper than {LIMITS.max_filter_depth} levels" in message(deep)
    many = {"$or": [{"price": i} for i in range(LIMITS.max_filter_conditions + 50)]}
    assert message(many).count(f"more than {LIMITS.max_filter_conditions} conditions") == 1
    for op in ("$containsAny", "$containsAll"):
        listed = {"metadata.a": {op: list(range(LIMITS.max_filter_values + 1))}}
        assert f"exceed {LIMITS.max_filter_values}" in message(listed)
    wide = {"price": {"$in": list(range(LIMITS.max_filter_values + 1))}}
    assert f"exceed {LIMITS.max_filter_values}" in message(wide)


@given(st.text(), st.text())
def test_values_and_names_never_reach_the_sql_text(field: str, value: str) -> None:
    raw = {field: value, f"metadata.{field}": value, "tenant": {"$ne": value}}
    try:
        statement = count(collection(), parsed(raw))
    except InvalidError:
        return
    same = count(collection(), parsed({"metadata.a": "b", "tenant": {"$ne": "c"}} | {}))
    if len(raw) == 2:
        assert statement.sql == same.sql


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from("$and $or $not $in $eq $like $contains $containsAll id metadata.a x".split()),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_parsed_or_refused_with_problems(raw: Any) -> None:
    if not isinstance(raw, dict):
        return
    try:
        statement = count(collection(), parsed(raw))
    except InvalidError as exc:
        assert exc.problems
    else:
        assert statement.sql.startswith("SELECT count(*)")


def test_a_number_for_metadata_keeps_the_digits_that_a_float_would_not() -> None:
    digits = "0.12345678901234567890"
    for value, kept in (
        (Decimal("0.1"), 0.1),
        (Decimal("1e22"), 1e22),
        (Decimal(digits), Digits(digits)),
        (Decimal("1e400"), Digits("1E+400")),
        (Decimal("1e-400"), Digits("1E-400")),
    ):
        tree = parsed({"metadata.n": value})
        assert isinstance(tree, Compare)
        assert tree.value == kept
    assert "filter.metadata.n: expected" in message({"metadata.n": Decimal("1e1001")})


def test_bounds_and_elements_keep_every_digit_of_a_number() -> None:
    long = Decimal("0.1000000000000000000001")
    tree = parsed({"metadata.score": {"$between": [Decimal("0.1"), long]}})
    assert [part.value for part in tree.parts] == [0.1, Digits(str(long))]
    assert parsed({"metadata.scores": {"$contains": long}}).elements == (str(long),)
    assert "can match nothing" in message({"metadata.score": {"$between": [long, Decimal("0.1")]}})
