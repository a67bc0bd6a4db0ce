"""Tokens in Redis and the positions beside them: the decisions, without Redis."""

from __future__ import annotations

import itertools

import pytest

from router.freshness import token
from router.freshness.token import Token
from router.query.types import Position

HIGH = 2**63 - 1


@pytest.mark.parametrize(
    ("read", "floor", "enough"),
    [
        ((1, 100), (1, 100), True),
        ((1, 99), (1, 100), False),
        ((2, 100), (1, 100), True),
        # It is to follow the promotion, and has not come to where it happened.
        ((2, 99), (1, 100), False),
        # It follows a primary that was replaced: its log went on elsewhere.
        ((1, 500), (2, 100), False),
        # Nothing is known of the shard's primary.
        ((0, 500), (1, 100), False),
        ((0, 500), (0, 500), True),
    ],
)
def test_an_answer_reaches_a_floor_by_timeline_and_by_position(
    read: tuple[int, int], floor: tuple[int, int], enough: bool
) -> None:
    assert token.reaches({"s0": Position(*read)}, {"s0": Position(*floor)}) is enough


def test_only_the_shards_that_an_answer_rests_on_have_to_reach_their_floors() -> None:
    floor = {"s0": Position(1, 100), "s1": Position(1, 10)}
    assert token.reaches({"s1": Position(1, 10)}, floor)
    assert not token.reaches({"s1": Position(1, 10), "s0": Position(1, 99)}, floor)
    assert not token.reaches({"s2": Position(9, 999)}, floor)


@pytest.mark.parametrize(
    ("written", "head", "floor"),
    [
        (None, (1, 100), (1, 100)),
        # Told of since the probe.
        ((1, 120), (1, 100), (1, 120)),
        ((1, 80), (1, 100), (1, 100)),
        # What the promotion lost is not waited for.
        ((1, 500), (2, 480), (2, 480)),
        # The promotion is not known here yet.
        ((2, 90), (1, 100), (2, 90)),
    ],
)
def test_the_later_timeline_sets_the_floor(
    written: tuple[int, int] | None, head: tuple[int, int], floor: tuple[int, int]
) -> None:
    told = {} if written is None else {"s0": Position(*written)}
    assert token.floors(told, {"s0": Position(*head)}) == {"s0": Position(*floor)}


def test_an_entry_holds_what_was_told_unless_it_is_older() -> None:
    written = {"s0": Position(2, 100)}
    assert token.holds({"s0": Position(2, 100), "s1": Position(1, 1)}, written)
    assert token.holds({"s1": (1, 1)}, written)
    assert token.holds({"s0": (3, 90)}, written)
    assert not token.holds({"s0": (2, 99)}, written)
    assert not token.holds({"s0": (1, 999)}, written)


def test_positions_are_told_in_words_that_sort_as_they_do() -> None:
    positions = [Position(t, n) for t in (0, 1, 9, 10, 16, 2**31 - 1) for n in (0, 9, 10, 2**53 + 1, HIGH)]
    words = [token.script_args({"s0": position})[1] for position in positions]
    assert words == sorted(words)
    for position, word in zip(positions, words, strict=True):
        value = b'{"token":"t","lineage":"l","written":{"s0":"%s"}}' % word.encode()
        assert token.decode(value) == Token("t", "l", {"s0": position})


@pytest.mark.parametrize("value", [b"\x01\xffrandom12345", b"", b"[]", b'{"token":1}', b'{"token":"t"}'])
def test_what_was_not_written_by_a_router_like_us_is_a_token_of_its_own(value: bytes) -> None:
    found = token.decode(value)
    assert found == Token(value.hex(), value.hex(), {})


def test_tokens_never_repeat() -> None:
    names = [token.random_token() for _ in range(1000)]
    assert len(set(names)) == 1000
    first = token.decode(token.encode(names[0]))
    assert first == Token(names[0], names[0], {})
    assert all(a != b for a, b in itertools.pairwise(names))
