"""The circuit against a naive model that keeps all that has happened."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from router.policy.circuit import Circuit, Leave


class Machine(RuleBasedStateMachine):
    """Requests begin and end in any order; the model recounts from the list of what they told."""

    @initialize(
        limit=st.integers(1, 4), pause=st.sampled_from([0.5, 1.0]), longest=st.sampled_from([1.0, 6.0])
    )
    def begin(self, limit: int, pause: float, longest: float) -> None:
        self.circuit = Circuit(limit, pause, longest)
        self.limit, self.pause, self.longest = limit, pause, longest
        self.now = 0.0
        self.under_way: list[Leave] = []
        self.told: list[tuple[str, Leave, float]] = []

    def until(self) -> tuple[float | None, bool]:
        """When a trial may go, None if all may; and whether one is under way: recounted."""
        row, openings, until, trying = 0, 0, None, False
        for what, leave, at in self.told:
            if what == "admitted":
                trying = trying or leave == "trial"
            elif what == "succeeded":
                row, openings, until, trying = 0, 0, None, False
            elif what == "released":
                trying = trying and leave != "trial"
            elif leave == "trial":
                if trying:
                    until, openings, trying = at + self.after(openings), openings + 1, False
            elif until is None:
                row += 1
                if row >= self.limit:
                    row, until, openings = 0, at + self.after(openings), openings + 1
        return until, trying

    def after(self, openings: int) -> float:
        return min(self.pause * 2**openings, max(self.longest, self.pause))

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        until, trying = self.until()
        expected = "free" if until is None else "trial" if not trying and self.now >= until else None
        leave = self.circuit.admit(self.now)
        assert leave == expected
        if leave is not None:
            self.told.append(("admitted", leave, self.now))
            self.under_way.append(leave)

    @precondition(lambda self: self.under_way)
    @rule(at=st.integers(0, 50), outcome=st.sampled_from(["succeeded", "failed", "failed", "released"]))
    def end(self, at: int, outcome: str) -> None:
        leave = self.under_way.pop(at % len(self.under_way))
        if outcome == "failed":
            self.circuit.failed(leave, self.now)
        elif outcome == "succeeded":
            self.circuit.succeeded(leave)
        else:
            self.circuit.released(leave)
        self.told.append((outcome, leave, self.now))
        until, trying = self.until()
        assert self.circuit.state() == ("closed" if until is None else "trial" if trying else "open")
        assert self.circuit.wait(self.now) == (0.0 if until is None else max(0.0, until - self.now))


TestCircuit = Machine.TestCase
