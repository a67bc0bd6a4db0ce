"""What the ledger of a soak takes for wrong, and what it must not."""

from __future__ import annotations

import pytest

from bench.soak.ledger import End, Ledger, Version

ID, OWNER = 7, 1


def ledger(*writes: tuple[Version, End], catching_up: float = 10.0) -> Ledger:
    """Of one document, written at 10, 20, ... and told of 1 later each."""
    made = Ledger(catching_up)
    before: Version = None
    for number, (version, end) in enumerate(writes, 1):
        made.begin(ID, OWNER, version, 10.0 * number)
        made.end(ID, version, end, before, 10.0 * number + 1)
        before = version if end == "acknowledged" else before
    return made


def shown(of: Ledger, version: Version, start: float, end: float) -> bool:
    """Whether a read may show this."""
    return not of.wrong({} if version is None else {ID: version}, [ID], start, end)


STORED: tuple[Version, End] = (1, "acknowledged")


@pytest.mark.parametrize(
    ("writes", "right", "wrong"),
    [
        ((STORED,), {1}, {None, 2}),
        ((STORED, (2, "acknowledged")), {2}, {None, 1}),
        ((STORED, (None, "acknowledged")), {None}, {1}),
        ((STORED, (2, "refused")), {1}, {None, 2}),
        (((1, "refused"),), {None}, {1}),
        ((STORED, (2, "unknown")), {1, 2}, {None}),
        ((STORED, (None, "unknown")), {None, 1}, {2}),
    ],
)
def test_a_read_after_a_write_shows_what_its_writer_was_told(
    writes: tuple[tuple[Version, End], ...], right: set[Version], wrong: set[Version]
) -> None:
    made = ledger(*writes)
    assert {version for version in right | wrong if shown(made, version, 50.0, 51.0)} == right
    rows = [[] if version is None else [(ID, version)] for version in right | wrong]
    assert [bool(made.compare(held)) for held in rows] == [version in wrong for version in right | wrong]


def test_a_read_beside_a_write_shows_the_document_before_or_after_it() -> None:
    made = ledger(STORED, (2, "acknowledged"))
    for start, end, right in (
        (12.0, 13.0, {1}),
        (12.0, 20.5, {1, 2}),  # it came back while the write was under way
        (20.5, 20.7, {1, 2}),
        (20.5, 30.0, {1, 2}),  # it was sent before the writer had its answer
        (21.0, 22.0, {2}),
    ):
        assert {version for version in (None, 1, 2) if shown(made, version, start, end)} == right


def test_what_is_not_asked_for_need_not_be_shown_but_must_be_right_if_it_is() -> None:
    made = ledger(STORED)
    assert made.wrong({}, [], 50.0, 51.0) == []
    assert made.wrong({ID: 2}, [], 50.0, 51.0) == ["document 7 is shown as v2, may be v1"]
    assert made.wrong({8: 1}, [], 50.0, 51.0) == ["document 8 is shown as v1, may be none"]


def test_rows_that_are_doubled_or_that_nobody_wrote_are_wrong() -> None:
    made = ledger(STORED)
    assert made.compare([(ID, 1), (ID, 1)]) == ["document 7 is stored as v1 or v1, must be v1"]
    assert made.compare([(ID, 1), (8, 3)]) == ["document 8 is stored as v3, must be none"]


def test_a_number_of_documents_lies_between_those_that_are_certain_and_those_that_may_be() -> None:
    made = Ledger(0.0)
    ends: tuple[End, ...] = ("acknowledged", "acknowledged", "unknown", "refused")
    for id_, end in enumerate(ends):
        made.begin(id_, OWNER, 1, 10.0)
        made.end(id_, 1, end, None, 11.0)
    assert [bool(made.wrong_number(OWNER, n, 12.0, 13.0)) for n in range(5)] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert made.wrong_number(OWNER, 1, 12.0, 13.0, most=1) == []
    assert made.wrong_number(OWNER + 1, 0, 12.0, 13.0) == []
    assert dict(made.certain()) == {0: 1, 1: 1, 3: None}
    assert made.uncertain() == {2}
    assert made.counts == {"acknowledged": 2, "unknown": 1, "refused": 1}


def test_a_router_that_has_just_started_may_lack_what_was_written_just_before() -> None:
    made = ledger(STORED, (2, "acknowledged"))
    made.restarted(25.0)
    assert shown(made, 1, 30.0, 31.0)
    assert not shown(made, None, 30.0, 31.0)  # the first write was told of long before
    assert not shown(made, 1, 35.0, 36.0)
    assert not shown(made, 1, 22.0, 23.0)  # and the old router knew


def test_a_read_older_than_what_is_remembered_may_show_the_oldest_of_that_and_not_nothing() -> None:
    made = ledger(*((version, "acknowledged") for version in range(1, 41)))
    allowed = made.allowed(ID, 11.0, 500.0)
    assert None not in allowed and 40 in allowed
