from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.query.merge import merge, within

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
