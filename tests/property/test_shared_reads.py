"""How many searches share an exact read, against statements of a known fixed and marginal cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.policy.shared_reads import SharedReads

SECONDS = 0.05
costs = st.floats(0.0001, 0.5)


@given(costs, costs, st.integers(2, 32))
def test_as_many_share_a_read_as_keep_within_its_time(fixed: float, marginal: float, together: int) -> None:
    reads = SharedReads(together, SECONDS)

    def run(searches: int) -> float:
        seconds = fixed + searches * marginal
        reads.took("kind", searches, seconds)
        return seconds

    allowed = max(SECONDS, 2 * run(1))
    slowest = [run(reads.most("kind")) for _ in range(40)][8:]
    # It tries twice as many now and then, and never more.
    assert max(slowest) <= 2 * allowed + marginal
    assert min(slowest) <= allowed or reads.most("kind") == 1
    assert 1 <= reads.most("kind") <= 4 * together
    if fixed + 4 * together * marginal <= allowed:
        assert reads.most("kind") == 4 * together


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 64), costs)), st.integers(1, 32))
def test_the_number_is_bounded_whatever_is_measured(
    took: list[tuple[str, int, float]], together: int
) -> None:
    reads = SharedReads(together, SECONDS)
    for kind, searches, seconds in took:
        reads.took(kind, searches, seconds)
        assert 1 <= reads.most(kind) <= (4 * together if together > 1 else 1)


def test_few_share_before_anything_was_measured() -> None:
    assert SharedReads(16, SECONDS).most("new") == 4
    assert SharedReads(1, SECONDS).most("new") == 1
