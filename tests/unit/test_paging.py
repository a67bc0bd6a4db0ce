"""Cursors as text: what was encoded comes back, and nothing else is taken for a cursor."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.query.paging import MAX_CURSOR, Cursor, decode, encode

CURSORS = st.builds(Cursor, st.binary(min_size=16, max_size=16), st.integers(0, 2**32 - 1))


@given(CURSORS)
def test_a_cursor_comes_back_from_its_text(cursor: Cursor) -> None:
    text = encode(cursor)
    assert decode(text) == cursor
    assert len(text) == MAX_CURSOR
    assert text.replace("-", "").replace("_", "").isalnum() and text.isascii()


@given(CURSORS, st.integers(0, MAX_CURSOR - 1), st.characters())
def test_a_cursor_that_was_changed_is_none(cursor: Cursor, at: int, character: str) -> None:
    text = encode(cursor)
    changed = text[:at] + character + text[at + 1 :]
    assert (decode(changed) is None) == (changed != text)
    assert decode(text[:at]) is None
    assert decode(text + character) is None


@given(st.text(max_size=60) | st.text("ABab01-_+/= \n", min_size=MAX_CURSOR, max_size=MAX_CURSOR))
def test_any_other_text_is_none(text: str) -> None:
    assert decode(text) is None
