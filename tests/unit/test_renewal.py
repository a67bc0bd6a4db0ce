from __future__ import annotations

import pytest

from router.postgres.renewal import Renewal


@pytest.mark.parametrize("size", [1, 4])
def test_requests_that_fail_everywhere_replace_each_connection_a_few_times_and_then_once_a_second(
    size: int,
) -> None:
    renewal, opened = Renewal(), [0.0] * size
    replaced = []
    now = 100.0
    for second in range(30):
        before = sum(replaced)
        for _ in range(200):
            now += 1 / 200
            for i in range(size):
                if renewal.due(opened[i], now):
                    opened[i] = now + 0.0001
                    replaced.append(True)
        assert sum(replaced) - before <= size * (9 if second == 0 else 1)
    assert sum(replaced) >= size * 8
    assert repr(renewal) in ("<Renewal 0.0 of 8>", "<Renewal 1.0 of 8>")


def test_what_was_open_when_one_was_replaced_is_replaced_too_and_what_came_after_is_not() -> None:
    renewal = Renewal()
    assert renewal.due(opened=1.0, now=10.0)
    assert all(renewal.due(opened=float(age), now=10.0) for age in range(9))
    due = [renewal.due(opened=11.0, now=11.0) for _ in range(20)]
    assert due.count(True) == 8
