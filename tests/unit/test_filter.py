from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.postgres.sql import count
from router.query.errors import InvalidError
from router.query.filter import And, Compare, Digits, Exists, In, Like, Not, Or, constant, parse
from router.settings import Settings
from tests.unit.queries import collection

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
        ({"metadata.a": {"$eq": [1]}}, "expected a string, a finite number"),
        ({"metadata.a": float("inf")}, "finite number"),
        ({"metadata.a": 10**2000}, "finite number"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(raw: dict[str, Any], expected: str) -> None:
    assert expected in message(raw)


def test_all_problems_are_reported_at_once() -> None:
    assert message({"nope": 1, "price": "x", "tenant": {"$in": [1, "a", 2]}}).count("\n") == 3


def test_depth_conditions_and_values_are_bounded() -> None:
    deep: dict[str, Any] = {"tenant": "a"}
    for _ in range(LIMITS.max_filter_depth):
        deep = {"$not": deep}
    assert f"nested deeper than {LIMITS.max_filter_depth} levels" in message(deep)
    many = {"$or": [{"price": i} for i in range(LIMITS.max_filter_conditions + 50)]}
    assert message(many).count(f"more than {LIMITS.max_filter_conditions} conditions") == 1
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
                st.sampled_from("$and $or $not $in $eq $like id tenant metadata.a x".split()),
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
