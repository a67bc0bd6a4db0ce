"""The limit over a host that is a formula: what it answers per second follows from the limit alone."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from router.policy.limit import Limit


class Host:
    """Answers `rate(value)` searches per second while there are enough, or `demand` if there are not."""

    def __init__(self, limit: Limit, rate: Callable[[int], float], seed: int = 1, noise: float = 0.1) -> None:
        self.limit, self.rate, self.noise = limit, rate, noise
        self.now = 0.0
        self.rng = Random(seed)
        self.demand = float("inf")
        self.values: list[int] = []
        self.pace = 1.0

    def run(self, seconds: float) -> float:
        """The mean limit of this time."""
        end, self.values = self.now + seconds, []
        while self.now < end:
            busy = self.rate(self.limit.value) < self.demand
            self.limit.in_flight = self.limit.value if busy else 0
            per_second = min(self.rate(self.limit.value), self.demand) * self.pace
            self.now += 4 / per_second * self.rng.lognormvariate(0, self.noise)
            self.limit.observe(4, self.now, waiting=busy)
            self.values.append(self.limit.value)
        return sum(self.values) / len(self.values)


def cores(count: int, crowding: float = 0.01) -> Callable[[int], float]:
    """Linear up to so many, then a little less with each."""
    return lambda value: 300.0 * min(value, count) * (1 - crowding * max(0, value - count))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 6, 16, 48])
def test_it_finds_the_top_within_seconds_and_stays_there(count: int, seed: int) -> None:
    host = Host(Limit(1, 64), cores(count), seed)
    host.run(15)
    assert 0.75 * count <= host.run(30) <= 1.25 * count + 1


def test_it_takes_the_fewest_statements_where_the_top_is_flat() -> None:
    host = Host(Limit(1, 64), cores(4, crowding=0.0))
    host.run(10)
    assert 3.5 <= host.run(60) <= 5.5


def test_it_follows_when_the_host_changes() -> None:
    host = Host(Limit(1, 64), cores(16))
    host.run(20)
    host.rate = cores(3)
    host.run(60)
    assert 2.4 <= host.run(30) <= 5


def test_what_happens_to_both_turns_alike_moves_nothing() -> None:
    """A machine whose speed goes up and down by half, in seconds."""
    host = Host(Limit(1, 64), cores(8))
    host.run(15)
    means = []
    for step in range(60):
        host.pace = 1 + (step % 2) * 0.5
        means.append(host.run(1))
    assert 6 <= sum(means) / len(means) <= 10.5


def test_where_nothing_waits_it_does_not_go_down() -> None:
    host = Host(Limit(1, 64), cores(16))
    host.run(20)
    host.demand = 600.0  # which 2 could answer
    before = host.run(1)
    assert host.run(60) >= before * 0.95


def test_idle_time_is_nobodys_turn() -> None:
    host = Host(Limit(1, 64), cores(4))
    for _ in range(40):
        host.run(0.5)
        host.now += 30
    assert 3 <= host.run(10) <= 6


def test_a_node_without_room_halves_it() -> None:
    limit = Limit(1, 16, nodes=2)
    host = Host(limit, cores(16))
    host.run(15)
    before = limit.value
    limit.refused()
    assert limit.value <= before // 2 + 1
    for _ in range(10):
        limit.refused()
    assert limit.value == 2


def test_a_node_always_has_its_least_and_the_rest_goes_to_whoever_comes() -> None:
    limit = Limit(1, 4, nodes=2)
    limit.value = 3
    assert limit.admits(0)
    limit.start(0)
    assert limit.admits(1)  # the third place; the second is the other node's
    limit.start(1)
    assert not limit.admits(2)
    assert limit.admits(0)
    limit.start(0)
    assert not limit.admits(1)
    assert limit.in_flight == 3
    limit.end(1)
    assert limit.admits(1)
    for own in (0, 0):
        limit.end(own)
    assert limit.in_flight == 0


def test_it_keeps_within_its_bounds() -> None:
    fixed = Host(Limit(3, 3, nodes=2), cores(40))
    assert fixed.run(20) == 6
    most = Host(Limit(1, 4, nodes=2), cores(40))
    most.run(10)
    assert 6.5 <= most.run(20) <= 8
    assert max(most.values) == 8
