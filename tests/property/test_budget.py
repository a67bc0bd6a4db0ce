"""A budget against all that ever came and went, in whatever order."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from router.policy.budget import Budget


class Bucket(RuleBasedStateMachine):
    """What a bucket holds is the least that it can have had since it was last full.

    `sums` are those of all that was earned, less what was spent: from any moment on, the bucket holds at
    most the burst and what has come since; it holds the least of these.
    """

    # Such shares add up exactly, as floats too.
    @initialize(
        share=st.sampled_from([0.0, 1 / 16, 1 / 8, 0.25, 1.0]), burst=st.sampled_from([1.0, 4.0, 10.0])
    )
    def begin(self, share: float, burst: float) -> None:
        self.budget = Budget(share, burst)
        self.share = Fraction(share)
        self.burst = Fraction(burst) if share else Fraction(0)
        self.sums = [Fraction(0)]
        self.denied = 0

    @rule(requests=st.integers(1, 40))
    def earn(self, requests: int) -> None:
        for _ in range(requests):
            self.budget.earn()
            self.sums.append(self.sums[-1] + self.share)

    @rule(urgent=st.booleans())
    def spend(self, urgent: bool) -> None:
        allowed = self.held() >= 1 + (0 if urgent else self.burst / 2)
        assert self.budget.try_spend(urgent=urgent) is allowed
        if allowed:
            self.sums.append(self.sums[-1] - 1)
        else:
            self.denied += 1

    @invariant()
    def says_what_it_holds(self) -> None:
        assert 0 <= self.held() <= self.burst
        said = f"<Budget {float(self.held()):.1f} of {float(self.burst):g}, {self.denied} denied>"
        assert repr(self.budget) == said

    def held(self) -> Fraction:
        return self.burst + self.sums[-1] - max(self.sums)


TestBucket = Bucket.TestCase
TestBucket.settings = settings(max_examples=60, stateful_step_count=40)
