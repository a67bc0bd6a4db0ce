"""Fusion, diversity and groups against the plainest statements of what they are."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.query.composition import Fusion, FusionMethod
from router.query.diversity import diversified, unit_rows
from router.query.filter import And, Compare, Contains, Field, Not
from router.query.fusion import Fused, fuse, scaled
from router.query.grouping import (
    GroupKey,
    filter_for,
    grouped,
    key_of_json,
    key_of_value,
    without_lost,
)
from router.query.metadata import Digits
from router.query.ranked import Ranked
from shard_config.model import Column
from shard_config.values import ValueType

FIELD = Field(Column("doc", "doc", ValueType.TEXT))
IDS = st.one_of(st.lists(st.integers(0, 30), unique=True), st.lists(st.text("abc", max_size=2), unique=True))
WEIGHTS = st.floats(0, 8)


def ranked(ids: list[Any], distances: list[float]) -> list[Ranked]:
    """A list of a leg: ascending by (distance, id)."""
    pairs = sorted(zip(distances, ids, strict=False))
    return [((id_, distance), f"s{hash(id_) % 3}") for distance, id_ in pairs]


@st.composite
def lists(draw: st.DrawFn) -> list[list[Ranked]]:
    kind = draw(st.sampled_from([st.integers(0, 30), st.text("abc", max_size=2)]))
    made = []
    for _ in range(draw(st.integers(2, 4))):
        ids = draw(st.lists(kind, unique=True, max_size=15))
        made.append(ranked(ids, draw(st.lists(st.floats(-5, 5), min_size=15, max_size=15))))
    return made


@given(lists(), st.lists(WEIGHTS, min_size=4, max_size=4), st.floats(0, 100))
def test_reciprocal_ranks_are_fused_as_their_formula_says(
    legs: list[list[Ranked]], weights: list[float], k: float
) -> None:
    expected: dict[Any, Fraction] = {}
    for leg, weight in zip(legs, weights, strict=False):
        for rank, (row, _) in enumerate(leg, 1):
            term = Fraction(weight / (k + rank))
            expected[row[0]] = expected.get(row[0], Fraction(0)) + term
    fused = fuse(legs, weights[: len(legs)], Fusion(k=k))
    order = sorted(expected, key=lambda id_: (-float(expected[id_]), id_))
    assert [one.id for one in fused] == order
    assert [one.score for one in fused] == [float(expected[id_]) for id_ in order]


@given(lists(), st.randoms())
def test_the_order_of_lists_changes_no_score(legs: list[list[Ranked]], random: Any) -> None:
    places = list(range(len(legs)))
    random.shuffle(places)
    for method in FusionMethod:
        one = fuse(legs, [1.0] * len(legs), Fusion(method))
        other = fuse([legs[i] for i in places], [1.0] * len(legs), Fusion(method))
        assert [(row.id, row.score) for row in one] == [(row.id, row.score) for row in other]


@given(lists())
def test_each_row_says_where_each_list_has_it(legs: list[list[Ranked]]) -> None:
    for row in fuse(legs, [1.0] * len(legs), Fusion()):
        for leg, rank, distance in zip(legs, row.ranks, row.distances, strict=True):
            if rank is None:
                assert distance is None and row.id not in [one[0] for one, _ in leg]
            else:
                assert leg[rank - 1][0] == (row.id, distance)


def test_scores_are_scaled_between_each_lists_own_ends() -> None:
    near = ranked([1, 2, 3], [0.1, 0.2, 0.5])
    words = ranked([3, 4], [-8.0, -2.0])
    fused = fuse([near, words], [1.0, 0.5], Fusion(FusionMethod.SCORES))
    assert [(one.id, round(one.score, 6)) for one in fused] == [(1, 1.0), (2, 0.75), (3, 0.5), (4, 0.0)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        ([2.0, 2.0], [1.0, 1.0]),
        ([math.inf, 3.0, 1.0, -math.inf], [1.0, 1.0, 0.0, 0.0]),
        ([3.4e38, -3.4e38, 0.0], [1.0, 0.0, 0.5]),
    ],
)
def test_what_is_scaled_lies_between_0_and_1(values: list[float], expected: list[float]) -> None:
    assert scaled(values) == expected


def test_a_single_list_keeps_its_order_and_its_distances() -> None:
    one = ranked([7, 5], [0.25, 0.25])
    assert fuse([one], [3.0], Fusion()) == [
        Fused(5, one[0][1], -0.25, (1,), (0.25,)),
        Fused(7, one[1][1], -0.25, (2,), (0.25,)),
    ]


def naive_mmr(relevance: list[float], units: Any, weight: float, count: int) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < min(count, len(relevance)):
        best, most = -1, -math.inf
        for i in range(len(relevance)):
            if i in chosen:
                continue
            similar = max((float(np.dot(units[i], units[j])) for j in chosen), default=0.0)
            value = weight * relevance[i] - (1 - weight) * similar
            if value > most + 1e-5:
                best, most = i, value
        chosen.append(best)
    return chosen


@given(st.integers(1, 12), st.integers(0, 14), st.floats(0, 1), st.integers(0, 2**16))
def test_diversity_chooses_as_its_definition_says(rows: int, count: int, weight: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(rows, 6)).astype("<f4")
    relevance = rng.random(rows).tolist()
    units = unit_rows([vector.tobytes() for vector in vectors], 6)
    chosen = diversified(relevance, units, weight, count)
    expected = naive_mmr(relevance, units, weight, count)
    # Where two rows are equally good but for rounding, either will do, and the rest may differ.
    for i, (one, other) in enumerate(zip(chosen, expected, strict=True)):
        if one != other:
            before = chosen[:i]
            values = [
                weight * relevance[row]
                - (1 - weight) * max((float(units[row] @ units[j]) for j in before), default=0.0)
                for row in (one, other)
            ]
            assert abs(values[0] - values[1]) < 1e-4
            break


def test_diversity_takes_vectors_that_have_no_direction() -> None:
    zero, one = np.zeros(2, "<f4").tobytes(), np.array([3e-30, 4e-30], "<f4").tobytes()
    units = unit_rows([zero, one, None], 2)
    assert units.tolist() == [[0, 0], [pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]
    assert diversified([1.0, 0.9, 0.8], units, 0.5, 5) == [0, 1, 2]


def test_all_similarities_at_once_or_one_by_one_choose_the_same() -> None:
    rng = np.random.default_rng(1)
    units = unit_rows([row.tobytes() for row in rng.normal(size=(200, 8)).astype("<f4")], 8)
    relevance = rng.random(200).tolist()
    assert diversified(relevance, units, 0.4, 10) == diversified(relevance, units, 0.4, 200)[:10]


@given(st.lists(st.integers(0, 5)), st.integers(1, 4), st.integers(1, 6))
def test_groups_hold_the_best_rows_of_each_value(values: list[int], size: int, most: int) -> None:
    rows = [Fused(i, "s0", float(-i), (i + 1,), (float(i),)) for i in range(len(values))]
    keys = {i: key_of_value(FIELD, str(value)) for i, value in enumerate(values)}
    groups = grouped(rows, keys, size, most)
    firsts = list(dict.fromkeys(values))[:most]
    assert [group.key.json for group in groups] == [b'"%d"' % value for value in firsts]
    for value, group in zip(firsts, groups, strict=True):
        members = [i for i, one in enumerate(values) if one == value]
        assert [row.id for row in group.rows] == members[:size]
        assert group.full == (len(members) >= size)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("1", "1.0", True),
        ("1", '"1"', False),
        ("1", "true", False),
        ("0", "false", False),
        ("[1, 2]", "[1.0, 2]", True),
        ("[1]", "1", False),
        ('{"a": 1}', '{"a": 1.00}', True),
        ("null", None, True),
        ("null", '"null"', False),
        ("123456789012345678901234567890", "123456789012345678901234567891", False),
        ("0.1", "0.10000000000000000001", False),
        ("[" * 2000 + "]" * 2000, "[]", False),
    ],
)
def test_values_of_the_metadata_are_of_one_group_where_jsonb_finds_them_equal(
    one: str, other: str | None, equal: bool
) -> None:
    assert (key_of_json(one).same == key_of_json(other).same) is equal


def test_a_group_is_asked_for_by_its_value() -> None:
    path = Field(None, ("doc",))
    assert filter_for(FIELD, key_of_value(FIELD, "x")) == Compare(FIELD, "=", "x")
    for text, value in (
        ("7", 7),
        ("0.25", 0.25),
        ("0.10000000000000000001", Digits("0.10000000000000000001")),
    ):
        no_array = Not(Contains(path, (text,), every=False))
        assert filter_for(path, key_of_json(text)) == And((Compare(path, "=", value), no_array))
    assert isinstance(filter_for(path, key_of_json("null")), Not)
    assert filter_for(path, key_of_json("[7]")) is None
    assert filter_for(path, key_of_json("[" * 2000 + "]" * 2000)) is None


def test_groups_without_rows_that_were_lost_say_so() -> None:
    groups = [one.account for one in grouped(*_two_groups())]
    assert [(one.hits, one.full) for one in groups] == [(2, True), (1, False)]
    kept = without_lost(groups, [0, 1, 2], {0, 2})
    assert [(one.value, one.hits, one.full) for one in kept] == [(b'"a"', 1, False), (b'"b"', 1, False)]


def _two_groups() -> tuple[list[Fused], dict[object, GroupKey], int]:
    rows = [Fused(i, "s0", 0.0, (i,), (0.0,)) for i in range(3)]
    return rows, {i: key_of_value(FIELD, value) for i, value in enumerate("aab")}, 2
