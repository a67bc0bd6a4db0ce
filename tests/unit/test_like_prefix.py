"""The range of texts that begin with a prefix, against Python's own order, which is that of code points."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.postgres.prefix import after, literal_prefix

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("abc%", ("abc", True)),
        ("abc%%", ("abc", True)),
        ("abc%d", ("abc", False)),
        ("abc", ("abc", False)),
        ("a_c%", ("a", False)),
        ("%", ("", True)),
        ("", ("", False)),
        (r"a\%b%", ("a%b", True)),
        (r"a\\%", ("a\\", True)),
    ],
)
def test_a_pattern_s_beginning_is_literal_up_to_its_first_wildcard(
    pattern: str, found: tuple[str, bool]
) -> None:
    assert literal_prefix(pattern) == found


@given(st.sampled_from("aÄ\ud7ff\ue000\U0010ffff") | texts.filter(bool), texts, texts)
def test_a_text_begins_with_the_prefix_if_it_lies_between(prefix: str, rest: str, other: str) -> None:
    end = after(prefix)
    for text in (prefix, prefix + rest, prefix + "\U0010ffff" * 3, other):
        assert (prefix <= text and (end is None or text < end)) is text.startswith(prefix)


def test_the_end_of_a_range_is_a_text_that_utf_8_has() -> None:
    assert after("a\ud7ff") == "a\ue000"
    assert after("a\U0010ffff") == "b"
    assert after("\U0010ffff\U0010ffff") is None
