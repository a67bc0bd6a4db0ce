from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.query.filter import parse
from router.query.plan import plan_search, targets
from router.query.types import SearchQuery
from router.settings import Settings
from shard_config import model
from shard_config.partition import NoPlaceError, locate
from tests.unit.queries import by_price, by_tenant, collection, query, shard_map

QUANTIZED = model.Index(16, 64, model.Quantization.BINARY)


def shards(documents: model.Collection, raw: dict[str, Any]) -> tuple[str, ...]:
    return targets(parse(documents, raw, Settings()), documents, shard_map(documents))


def test_without_a_word_on_the_key_every_shard_is_a_target() -> None:
    assert shards(collection(), {"tenant": "acme"}) == ("s0", "s1", "s2", "s3")
    assert plan_search(query(), shard_map()).skipped == 0


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


def filtered(**changes: Any) -> SearchQuery:
    return query(filter=parse(collection(), {"active": True}, Settings()), **changes)


def test_over_full_vectors_the_scan_brings_what_is_wanted_and_is_no_wider_than_said() -> None:
    plan = plan_search(query(k=10, offset=15, ef_search=10), shard_map())
    assert (plan.limit, plan.asked, plan.ef_search) == (25, 25, 25)
    assert plan_search(query(k=10, ef_search=12), shard_map()).ef_search == 12


def test_with_a_filter_a_shards_rows_are_the_best_of_overfetch_times_as_many_candidates() -> None:
    plan = plan_search(filtered(k=10, offset=15, ef_search=10), shard_map())
    assert (plan.limit, plan.asked, plan.ef_search) == (25, 50, 50)
    assert plan_search(filtered(k=10, exact=True), shard_map()).asked == 10


def test_the_scan_is_widened_where_it_would_cut_the_rows_short() -> None:
    assert plan_search(query(k=100), shard_map()).ef_search == 100
    assert plan_search(filtered(k=100), shard_map()).ef_search == 200
    assert plan_search(query(k=1000, offset=500), shard_map()).ef_search == 1000


def test_an_exact_search_asks_no_more_than_it_needs() -> None:
    plan = plan_search(query(k=10, offset=5, exact=True), shard_map())
    assert (plan.limit, plan.exact) == (15, True)


def test_a_quantized_index_brings_all_its_candidates_for_ranking() -> None:
    plan = plan_search(query(collection(index=QUANTIZED), ef_search=200), shard_map())
    assert (plan.limit, plan.asked, plan.ef_search) == (10, 200, 200)
    narrow = plan_search(query(collection(index=QUANTIZED), ef_search=5), shard_map())
    assert (narrow.asked, narrow.ef_search) == (20, 20)


def test_values_keep_their_types_on_the_way() -> None:
    tree: Any = parse(collection(), {"day": "2026-01-31"}, Settings())
    assert tree.value == date(2026, 1, 31)
