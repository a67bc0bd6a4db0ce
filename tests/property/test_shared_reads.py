"""How many searches share an exact read, against statements of a known fixed and marginal cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.policy.shared_reads import SharedReads

SECONDS = 0.05
costs = st.floats(0.0001, 0.5)


@given(costs, costs, st.integers(2, 32), st.integers(1, 100))
def test_as_many_share_a_read_as_keep_within_its_time(
    fixed: float, marginal: float, together: int, expected: int
) -> None:
    reads = SharedReads(together, SECONDS)

    def run(searches: int) -> float:
        seconds = fixed + searches * marginal
        reads.took("kind", searches, seconds, expected)
        return seconds

    allowed = max(SECONDS, 2 * run(1))
    taken = [run(reads.most("kind", expected)) for _ in range(40)][8:]
    assert max(taken) <= allowed * 1.001 or reads.most("kind", expected) == 1
    assert 1 <= reads.most("kind", expected) <= 4 * together
    if 1.1 * (fixed + 4 * together * marginal) <= allowed:
        assert reads.most("kind", expected) == 4 * together


@given(costs, st.integers(2, 64), st.integers(1, 100))
def test_a_wrong_expectation_costs_one_slow_statement(marginal: float, together: int, expected: int) -> None:
    """Where sharing saves nothing, few share once that has been seen, though none was ever alone."""
    reads = SharedReads(together, SECONDS)
    for _ in range(20):
        searches = reads.most("kind", expected)
        seconds = searches * marginal
        reads.took("kind", searches, seconds, expected)
    assert searches <= max(2 * 16, SECONDS / marginal)
    assert reads.most("kind", 1) == reads.most("kind", 100)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 64), costs, st.integers(1, 1000))),
    st.integers(1, 32),
)
def test_the_number_is_bounded_whatever_is_measured(
    took: list[tuple[str, int, float, int]], together: int
) -> None:
    reads = SharedReads(together, SECONDS)
    for kind, searches, seconds, expected in took:
        reads.took(kind, searches, seconds, expected)
        assert 1 <= reads.most(kind, expected) <= (4 * together if together > 1 else 1)


def test_before_anything_was_measured_as_many_share_as_are_expected_to_be_able_to() -> None:
    reads = SharedReads(16, SECONDS)
    assert (reads.most("new", 1), reads.most("new", 5), reads.most("new", 1000)) == (1, 5, 16)
    assert SharedReads(1, SECONDS).most("new", 5) == 1


def test_the_kind_that_was_measured_longest_ago_is_forgotten() -> None:
    reads = SharedReads(16, SECONDS)
    for kind in range(256):
        assert reads.took(kind, 64, 0.01, 1) == 64
    reads.took(0, 64, 0.01, 1)
    reads.took("one more", 64, 0.01, 1)
    assert repr(reads) == "<SharedReads of 256 kinds>"
    assert (reads.most(0, 1), reads.most(1, 1), reads.most(2, 1)) == (64, 1, 64)
