from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from router.query.filter import parse
from router.query.plan import depths, exactly, plan_search, targets, usual_ef_search
from router.query.types import Scan
from router.settings import Settings
from shard_config import model
from shard_config.partition import NoPlaceError, locate
from tests.unit.queries import by_price, by_tenant, collection, query, shard_map

CHEAP = parse(collection(), {"price": {"$lt": 3}}, Settings())
QUANTIZED = model.Index(16, 64, model.Quantization.BINARY)


def shards(documents: model.Collection, raw: dict[str, Any]) -> tuple[str, ...]:
    return targets(parse(documents, raw, Settings()), documents, shard_map(documents))


def test_without_a_word_on_the_key_every_shard_is_a_target() -> None:
    assert shards(collection(), {"tenant": "acme"}) == ("s0", "s1", "s2", "s3")
    plan = plan_search(query(), shard_map())
    assert len(plan.targets) == plan.total == 4


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"tenant": "acme"}, ("s0",)),
        ({"tenant": "nobody"}, ("s2",)),
        ({"tenant": {"$in": ["acme", "globex"]}}, ("s0", "s1")),
        ({"tenant": {"$in": []}}, ()),
        ({"$and": [{"tenant": "acme"}, {"tenant": "globex"}]}, ()),
        ({"$or": [{"tenant": "acme"}, {"tenant": "globex"}]}, ("s0", "s1")),
        ({"$or": [{"tenant": "acme"}, {"price": 1}]}, ("s0", "s1", "s2")),
        ({"$not": {"tenant": "acme"}}, ("s0", "s1", "s2")),
        ({"tenant": {"$gte": "x"}}, ("s0", "s1", "s2")),
    ],
)
def test_a_list_key_selects_shards(raw: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert shards(collection(by_tenant()), raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"price": 10}, ("s1",)),
        ({"price": {"$lt": 10}}, ("s0",)),
        ({"price": {"$lte": 10}}, ("s0", "s1")),
        ({"price": {"$gt": 10, "$lt": 100}}, ("s1",)),
        ({"price": {"$between": [5, 100]}}, ("s0", "s1", "s2")),
        ({"price": {"$gte": 100}}, ("s2",)),
    ],
)
def test_a_range_key_selects_shards(raw: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert shards(collection(by_price()), raw) == expected


@given(
    st.sampled_from([by_tenant(), by_price(), collection().sharding]),
    st.dictionaries(
        st.sampled_from(["tenant", "price", "id"]),
        st.just(None),
        min_size=1,
    ),
    st.fixed_dictionaries(
        {
            "tenant": st.sampled_from(["acme", "globex", "other", "z"]),
            "price": st.sampled_from([-1.0, 9.5, 10.0, 50.0, 100.0, 1e9]),
            "id": st.integers(-(2**63), 2**63 - 1),
        }
    ),
    st.sampled_from(["$eq", "$gte", "$lte", "$in", "$between"]),
)
def test_a_row_that_matches_always_lies_on_a_target(
    sharding: model.Sharding, names: dict[str, None], row: dict[str, Any], operator: str
) -> None:
    documents = collection(sharding)
    operand = {"$in": lambda v: [v], "$between": lambda v: [v, v]}.get(operator, lambda v: v)
    raw = {name: {operator: operand(row[name])} for name in names}
    try:
        home = locate(sharding, row[sharding.key.name])
    except NoPlaceError:
        return
    assert home in shards(documents, raw)


def test_a_quantized_shards_rows_are_the_best_of_overfetch_times_as_many_candidates() -> None:
    plan = plan_search(query(collection(index=QUANTIZED), k=25, ef_search=10), shard_map())
    assert (plan.limit, plan.asked, plan.candidates, plan.ef_search) == (25, 50, 50, 50)


def test_over_full_vectors_the_width_that_is_asked_for_is_the_width_of_the_scan() -> None:
    plan = plan_search(query(k=10, ef_search=12), shard_map())
    assert (plan.limit, plan.asked, plan.candidates, plan.ef_search) == (10, 12, 10, 12)
    plan = plan_search(query(k=10, ef_search=100), shard_map())
    assert (plan.limit, plan.asked, plan.candidates, plan.ef_search) == (10, 20, 10, 100)


def test_candidates_are_read_only_where_that_can_change_their_order() -> None:
    assert plan_search(query(k=10), shard_map()).candidates == 10
    filtered = query(k=10, filter=parse(collection(), {"active": True}, Settings()))
    assert plan_search(filtered, shard_map()).candidates == 10


def test_a_filtered_scan_is_overfetch_times_as_wide_as_the_rows_that_are_wanted() -> None:
    filtered = query(k=25, ef_search=10, filter=parse(collection(), {"active": True}, Settings()))
    plan = plan_search(filtered, shard_map())
    assert (plan.limit, plan.asked, plan.candidates, plan.ef_search) == (25, 50, 25, 50)


def test_the_scan_is_widened_where_it_would_cut_the_rows_short() -> None:
    assert plan_search(query(k=100, ef_search=40), shard_map()).ef_search == 100
    assert plan_search(query(k=1000), shard_map(), 4000).ef_search == 1000


def test_one_row_more_is_wanted_where_a_single_shard_may_bring_all() -> None:
    spread = collection()
    assert [plan_search(query(spread, k=k), shard_map()).limit for k in (1, 2, 4, 5, 1000)] == [
        2,
        3,
        5,
        5,
        1000,
    ]
    one = parse(spread, {"id": 7}, Settings())
    assert plan_search(query(spread, k=1000, filter=one), shard_map()).limit == 1001
    # Chance does not spread these over their shards.
    for other in (collection(by_tenant()), collection(by_price())):
        assert plan_search(query(other), shard_map(other)).limit == 11
    uneven = collection(model.HashSharding(spread.id, ("s0",) * 9 + ("s1",)))
    assert plan_search(query(uneven), shard_map(uneven)).limit == 11
    assert plan_search(query(uneven, exact=True), shard_map(uneven)).limit == 10


def test_the_depths_of_a_pages_searches_depend_on_k_alone() -> None:
    assert depths(query(k=10)) == [10]
    assert depths(query(k=10, offset=1)) == depths(query(k=10, offset=30)) == [10, 40]
    assert depths(query(k=10, offset=31)) == [10, 40, 160]
    for k, offset in ((1, 10_000), (7, 9_999), (1000, 10_000)):
        found = depths(query(k=k, offset=offset))
        deepest = depths(query(k=k, offset=10_000))
        assert found == deepest[: len(found)]
        assert offset + k <= found[-1] < 4 * (offset + k)
    assert depths(query(k=10, offset=31, exact=True)) == [41]


def test_a_scan_for_more_rows_is_as_wide_as_a_search_for_them_would_be() -> None:
    assert plan_search(query(k=10), shard_map()).ef_search == 40
    assert plan_search(query(k=10), shard_map(), 160).ef_search == 320
    assert plan_search(query(k=10, ef_search=60), shard_map(), 40).ef_search == 60


def test_a_search_that_does_not_say_how_wide_gets_overfetch_times_its_rows() -> None:
    assert [usual_ef_search(collection(), limit) for limit in (10, 20, 25, 100, 600)] == [
        40,
        40,
        50,
        200,
        1000,
    ]


def test_behind_a_filter_large_shards_are_scanned_wider_unless_somebody_said_how_wide() -> None:
    def width(rows: float, of: model.Collection | None = None, **asked: Any) -> int:
        searched = query(of or collection(), **{"filter": CHEAP, **asked})
        return plan_search(searched, shard_map(), rows=rows).ef_search

    def tuned(k: int) -> model.Collection:
        measured = model.Tuned(0.97, 0.98, 0.975, k, 500, 3, 4, date(2026, 1, 1))
        return collection(search=replace(collection().search, tuned=measured))

    assert [width(rows) for rows in (0, 2_500, 15_000, 125_000, 1e9)] == [40, 40, 80, 231, 240]
    narrow = collection(search=replace(collection().search, ef_search=20))
    assert (width(500, narrow), width(2_500, narrow)) == (20, 33)
    assert width(125_000, filter=None) == 40
    assert width(125_000, ef_search=20) == 20
    assert width(125_000, k=200) == 400
    assert width(125_000, tuned(k=10)) == 40
    assert width(125_000, tuned(k=5)) == 231


def test_a_wider_scan_behind_a_filter_wants_no_more_rows_that_match() -> None:
    filtered = query(collection(index=QUANTIZED), filter=CHEAP)
    small, large = (plan_search(filtered, shard_map(), rows=rows) for rows in (0, 125_000))
    assert (small.ef_search, large.ef_search) == (40, 231)
    assert small.candidates == large.candidates == 40


def test_an_exact_search_asks_no_more_than_it_needs() -> None:
    plan = plan_search(query(k=10, exact=True), shard_map(), 15)
    assert (plan.limit, plan.scan) == (15, Scan.EXACT)


@pytest.mark.parametrize("index", [model.Index(16, 64, model.Quantization.NONE), QUANTIZED])
def test_a_plan_is_made_exact_without_planning_anew(index: model.Index) -> None:
    documents = collection(index=index)
    search = replace(query(documents), filter=CHEAP, k=30)
    anew = plan_search(search, shard_map(documents), scan=Scan.EXACT)
    made = exactly(plan_search(search, shard_map(documents)))
    # No index is read, so that its width does not matter.
    assert replace(made, ef_search=anew.ef_search) == anew


def test_a_quantized_index_brings_all_its_candidates_for_ranking() -> None:
    plan = plan_search(query(collection(index=QUANTIZED), ef_search=200), shard_map())
    assert (plan.limit, plan.asked, plan.candidates) == (10, 200, 200)


def test_values_keep_their_types_on_the_way() -> None:
    tree: Any = parse(collection(), {"day": "2026-01-31"}, Settings())
    assert tree.value == date(2026, 1, 31)
