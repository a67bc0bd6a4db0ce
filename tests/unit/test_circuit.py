"""A circuit, step by step."""

from __future__ import annotations

from router.policy.circuit import Circuit


def test_it_opens_after_failures_in_a_row_and_one_trial_closes_it() -> None:
    circuit = Circuit(3, 1.0, 8.0)
    for _ in range(2):
        assert circuit.admit(0.0) == "free"
        assert not circuit.failed("free", 0.0)
    circuit.succeeded("free")
    assert [circuit.failed("free", 0.0) for _ in range(3)] == [False, False, True]
    assert (circuit.state(), circuit.admit(0.9), circuit.wait(0.25)) == ("open", None, 0.75)
    assert circuit.admit(1.0) == "trial"
    assert (circuit.state(), circuit.admit(1.0)) == ("trial", None)
    assert circuit.succeeded("trial")
    assert (circuit.state(), circuit.admit(1.0), circuit.wait(1.0)) == ("closed", "free", 0.0)
    assert repr(circuit) == "<Circuit closed, 0 failures, 0 openings>"


def test_each_failed_trial_doubles_the_pause_up_to_the_longest() -> None:
    circuit = Circuit(1, 1.0, 5.0)
    now, pauses = 0.0, []
    circuit.failed("free", now)
    for _ in range(5):
        pauses.append(circuit.wait(now))
        now += pauses[-1]
        assert circuit.admit(now) == "trial"
        circuit.failed("trial", now)
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
    circuit.succeeded("free")
    circuit.failed("free", now)
    assert circuit.wait(now) == 1.0


def test_requests_from_before_it_opened_do_not_prolong_the_pause_and_an_answer_to_one_closes_it() -> None:
    circuit = Circuit(1, 1.0, 8.0)
    circuit.failed("free", 0.0)
    assert not circuit.failed("free", 0.9)
    assert circuit.wait(0.9) < 0.2
    assert circuit.succeeded("free")
    assert circuit.admit(0.95) == "free"


def test_after_a_trial_that_was_given_up_the_next_request_is_one() -> None:
    circuit = Circuit(1, 1.0, 8.0)
    circuit.failed("free", 0.0)
    assert circuit.admit(1.0) == "trial"
    circuit.released("trial")
    assert circuit.admit(1.0) == "trial"
