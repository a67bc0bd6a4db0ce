"""When nodes of a set are left out, tried and taken back, against the rules written out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.policy.ejection import TRIAL_SECONDS, Ejection, has_room

NODES = st.integers(0, 3)


def waits() -> Iterator[float]:
    return chain([1.0, 2.0, 4.0], repeat(5.0))


class Node:
    """What is known of one node: silences in a row, when it was left out, and when it may be tried."""

    def __init__(self) -> None:
        self.silent = 0
        self.times = 0
        self.waits = waits()
        self.left_out = float("-inf")
        self.until: float | None = None


class Ejections(RuleBasedStateMachine):
    @initialize(count=st.integers(1, 4), share=st.sampled_from([0.0, 0.34, 0.5, 1.0]))
    def begin(self, count: int, share: float) -> None:
        self.now = 0.0
        self.share = share
        self.real = [Ejection() for _ in range(count)]
        self.model = [Node() for _ in range(count)]

    @rule(number=NODES)
    def silent(self, number: int) -> None:
        real, node = self.at(number)
        out = sum(node.until is not None for node in self.model)
        room = has_room(out, len(self.model), self.share)
        assert room is ((out + 1) / len(self.model) <= self.share)
        node.silent += 1
        fresh = node.until is None
        leaves = not fresh or (node.silent >= 3 and room)
        assert real.struck(self.now, room=room) is (leaves and fresh)
        if leaves:
            if fresh:
                node.times += 1
                if self.now - node.left_out > 60:
                    node.waits = waits()
            node.left_out = self.now
            node.until = self.now + next(node.waits)

    @rule(number=NODES)
    def silent_in_a_row(self, number: int) -> None:
        for _ in range(3):
            self.silent(number)

    @rule(number=NODES)
    def answers(self, number: int) -> None:
        real, node = self.at(number)
        real.answered()
        node.silent, node.until = 0, None

    @rule(number=NODES)
    def is_tried(self, number: int) -> None:
        real, node = self.at(number)
        if real.due(self.now):
            real.tried(self.now + TRIAL_SECONDS)
            node.until = self.now + TRIAL_SECONDS

    @rule(number=NODES)
    def is_back(self, number: int) -> None:
        """A probe finds it well that was down."""
        real, node = self.at(number)
        real.returned(self.now)
        if node.until is not None:
            node.until, node.waits = self.now, waits()

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 4.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    @precondition(lambda self: hasattr(self, "real"))
    def agrees(self) -> None:
        for real, node in zip(self.real, self.model, strict=True):
            assert real.out is (node.until is not None)
            assert real.due(self.now) is (node.until is not None and self.now >= node.until)
            assert real.untried(self.now) is (node.until is not None and self.now >= node.until + 10)
            if node.until is not None:
                assert real.due(node.until) and not real.due(node.until - 0.01)
            assert real.count == node.times
        assert sum(real.out for real in self.real) <= self.share * len(self.real)

    def at(self, number: int) -> tuple[Ejection, Node]:
        return self.real[number % len(self.real)], self.model[number % len(self.real)]


TestEjections = Ejections.TestCase
TestEjections.settings = settings(max_examples=60, stateful_step_count=50)
