from __future__ import annotations

from router.policy.changes import Changes, Subject, View

NODE = Subject("node state", "s0", "s0-a")
UP = View("up")
DOWN = View("down", "connection refused", "unreachable", bad=True)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def made(most: int = 100) -> tuple[Changes, Clock]:
    clock = Clock()
    return Changes(clock, most), clock


def test_a_change_is_said_once_with_what_from_to_and_why() -> None:
    changes, clock = made()
    assert changes.note(NODE, UP) == []
    (line,) = changes.note(NODE, DOWN)
    assert (line.level, line.event) == ("warning", "node state")
    assert line.fields == {
        "shard": "s0",
        "node": "s0-a",
        "from": "up",
        "to": "down",
        "cause": "unreachable",
        "reason": "connection refused",
    }
    assert changes.note(NODE, View("down", "timed out", "timeout", bad=True)) == []
    clock.now += 2
    (line,) = changes.note(NODE, UP)
    assert line.level == "info"
    assert line.fields == {"shard": "s0", "node": "s0-a", "from": "down", "to": "up"}


def test_what_is_bad_from_the_start_is_said_and_what_is_well_is_not() -> None:
    changes, _ = made()
    assert changes.note(NODE, UP) == []
    (line,) = changes.note(Subject("redis"), View("off", "refused", bad=True))
    assert line.fields["from"] is None


def test_any_state_is_said_whatever_it_is_called() -> None:
    changes, _ = made()
    changes.note(NODE, UP)
    (line,) = changes.note(NODE, View("foreign", "another system", "foreign", bad=True))
    assert line.fields["to"] == "foreign"


def test_a_flapping_subject_is_said_once_a_second_with_the_number_of_changes() -> None:
    changes, clock = made()
    changes.note(NODE, UP)
    lines = changes.note(NODE, DOWN)
    for _ in range(20):
        lines += changes.note(NODE, UP) + changes.note(NODE, DOWN)
    lines += changes.due()
    assert len(lines) == 1
    clock.now += 1
    (late,) = changes.due()
    # It is where it was, and has been elsewhere.
    assert (late.fields["from"], late.fields["to"], late.fields["changes"]) == ("down", "down", 40)
    assert late.level == "warning"
    assert not changes.held


def test_one_that_is_well_again_by_its_next_line_is_warned_of() -> None:
    changes, clock = made()
    changes.note(NODE, DOWN)
    changes.note(NODE, UP)
    clock.now += 1
    changes.due()
    changes.note(NODE, DOWN)
    assert changes.note(NODE, UP) == []
    clock.now += 1
    (late,) = changes.due()
    assert (late.fields["from"], late.fields["to"], late.level) == ("up", "up", "warning")


def test_the_last_state_is_said_though_nothing_changes_any_more() -> None:
    changes, clock = made()
    changes.note(NODE, UP)
    changes.note(NODE, DOWN)
    assert changes.note(NODE, UP) == [] and changes.held
    clock.now += 1
    (late,) = changes.due()
    assert (late.fields["from"], late.fields["to"], late.level) == ("down", "up", "info")


def test_of_many_subjects_at_once_some_are_said_now_and_all_in_the_end() -> None:
    changes, clock = made(most=10)
    nodes = [Subject("node state", "s0", f"n{i}") for i in range(25)]
    for node in nodes:
        changes.note(node, UP)
    said = [line for node in nodes for line in changes.note(node, DOWN)]
    assert len(said) == 10
    for expected in (20, 25):
        clock.now += 1
        said += changes.due()
        assert len(said) == expected
    assert {line.fields["node"] for line in said} == {f"n{i}" for i in range(25)}
    assert not changes.held
