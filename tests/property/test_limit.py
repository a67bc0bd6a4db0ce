"""Statements of several nodes under one limit, against a count of each node's, while the limit moves."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.policy.limit import Limit

NODES = st.integers(0, 3)


class Statements(RuleBasedStateMachine):
    @initialize(least=st.integers(1, 3), more=st.integers(0, 6), count=st.integers(1, 4))
    def begin(self, least: int, more: int, count: int) -> None:
        self.least, self.most = least, least + more
        self.limit = Limit(self.least, self.most, count)
        self.own = [0] * count
        self.now = 0.0

    @rule(number=NODES, wanted=st.integers(1, 8))
    def send(self, number: int, wanted: int) -> None:
        """As many as may be of those that wait for a node."""
        node = number % len(self.own)
        for _ in range(wanted):
            admitted = self.limit.admits(self.own[node])
            # Its least is each node's own; what is left is for whoever comes.
            free = self.own[node] < self.most and self.taken() < self.limit.value
            assert admitted is (self.own[node] < self.least or free)
            if not admitted:
                break
            before = max(self.limit.value, self.taken())
            self.limit.start(self.own[node])
            self.own[node] += 1
            assert self.taken() <= before

    @rule(
        number=NODES,
        searches=st.integers(1, 8),
        waiting=st.booleans(),
        gap=st.sampled_from([0.001, 0.02, 0.2]),
    )
    def answer(self, number: int, searches: int, waiting: bool, gap: float) -> None:
        node = number % len(self.own)
        if not self.own[node]:
            return
        self.own[node] -= 1
        self.limit.end(self.own[node])
        self.now += gap
        self.limit.observe(searches, self.now, waiting=waiting)

    @rule(climbing=st.booleans(), waiting=st.booleans())
    def work_for_a_second(self, climbing: bool, waiting: bool) -> None:
        """Enough answers for the limit to move; with `climbing`, more statements bring more of them."""
        end = self.now + 1.0
        while self.now < end:
            for node in range(len(self.own)):
                self.send(node, 64)
                self.answer(node, 4, waiting, 0.02 / self.limit.value if climbing else 0.01)

    @rule()
    def is_refused(self) -> None:
        before = self.limit.value
        self.limit.refused()
        assert self.limit.value <= max(before, self.least * len(self.own))

    @invariant()
    @precondition(lambda self: hasattr(self, "limit"))
    def counts_what_is_under_way(self) -> None:
        nodes = len(self.own)
        assert self.least * nodes <= self.limit.value <= self.most * nodes
        assert self.limit.in_flight == sum(self.own)
        assert self.limit.room is (self.taken() < self.limit.value)

    def taken(self) -> int:
        """Places that are in use, or kept for a node's least."""
        return sum(max(own, self.least) for own in self.own)


TestStatements = Statements.TestCase
TestStatements.settings = settings(max_examples=25, stateful_step_count=30)
