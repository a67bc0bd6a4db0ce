from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from router.query.merge import Ranked, merge, page, within
from router.query.plan import depths
from tests.unit.queries import query

ROWS = st.lists(st.tuples(st.integers(0, 40), st.sampled_from([0.0, 0.5, 0.5000001, 1.0, 2.0])), max_size=15)
SHARDS = st.dictionaries(st.sampled_from(["s0", "s1", "s2", "s3"]), ROWS)


@given(SHARDS, st.integers(0, 10), st.integers(1, 20))
def test_merging_equals_sorting_everything_and_keeping_the_nearest_of_each_id(
    shards: dict[str, list[tuple[int, float]]], offset: int, k: int
) -> None:
    runs = {name: sorted(rows, key=lambda row: (row[1], row[0])) for name, rows in shards.items()}
    nearest: dict[int, float] = {}
    for rows in shards.values():
        for id_, distance in rows:
            nearest[id_] = min(distance, nearest.get(id_, distance))
    expected = sorted(((distance, id_) for id_, distance in nearest.items()))[offset : offset + k]
    assert [(row[1], row[0]) for row, _ in merge(runs, offset + k)][offset:] == expected


@given(SHARDS, st.randoms())
def test_the_order_in_which_shards_answer_does_not_matter(
    shards: dict[str, list[tuple[int, float]]], random: object
) -> None:
    # An id on two shards is a row on the move, so its two copies are the same distance away.
    runs = {
        name: sorted({(id_, float(id_ % 5)) for id_, _ in rows}, key=lambda row: (row[1], row[0]))
        for name, rows in shards.items()
    }
    backwards = dict(reversed(runs.items()))
    assert [row for row, _ in merge(runs, 10)] == [row for row, _ in merge(backwards, 10)]


@given(ROWS, st.sampled_from([0.0, 0.5, 0.7, 1.0, 3.0]))
def test_a_maximal_distance_keeps_what_lies_within_it(rows: list[tuple[int, float]], limit: float) -> None:
    merged = merge({"s0": sorted(rows, key=lambda row: (row[1], row[0]))}, 100)
    assert within(merged, limit) == [pair for pair in merged if pair[0][1] <= limit]
    assert within(merged, None) == merged


def search(seed: int, rows: int, depth: int) -> list[Ranked]:
    """What an unreliable index finds: the same at each time, but for each depth other rows, some far off.

    Where fewer than `depth` rows are left after that, it is asked for all.
    """
    rng = random.Random(f"{seed} {depth}")
    found = [id_ for id_ in range(rows) if rng.random() < 0.8]
    if len(found) < depth:
        found = list(range(rows))
    # Distances tie in threes.
    return [((id_, float(id_ // 3)), "s0") for id_ in found[:depth]]


@given(st.integers(0, 10**6), st.integers(0, 120), st.integers(1, 12), st.integers(0, 130))
def test_pages_of_searches_that_differ_by_depth_neither_repeat_nor_lose_a_row(
    seed: int, rows: int, k: int, start: int
) -> None:
    def shown(offset: int) -> list[Ranked]:
        wanted = depths(query(k=k, offset=offset))
        return page([(depth, search(seed, rows, depth)) for depth in wanted], offset, k)

    walked = [pair for offset in range(0, rows + k, k) for pair in shown(offset)]
    assert sorted(row[0] for row, _ in walked) == list(range(rows))
    window = shown(start)
    assert window == sorted(window, key=lambda pair: (pair[0][1], pair[0][0]))
    assert len(window) == max(min(k, rows - start), 0)
    # Any window is of the same list: it lies within the two pages that it overlaps.
    first = start // k * k
    assert {row[0] for row, _ in window} <= {row[0] for at in (first, first + k) for row, _ in shown(at)}


def test_the_first_page_is_what_the_search_has_found() -> None:
    ranked: list[Ranked] = [((id_, 1.0), "s0") for id_ in range(10)]
    assert page([(10, ranked)], 0, 10) == ranked
    assert page([(25, ranked)], 8, 17) == ranked[8:]
