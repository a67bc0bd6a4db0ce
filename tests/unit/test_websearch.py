from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.query.websearch import Loose, loosened

READ: dict[str, tuple[tuple[str, ...], str]] = {
    "": ((), ""),
    "  \t\n": ((), ""),
    "fast cars": (("fast", "cars"), ""),
    "cat cat Cat": (("cat", "Cat"), ""),
    "fast or slow cars": (("fast", "slow", "cars"), ""),
    "cars -fast": (("cars",), "-fast"),
    "-cars": ((), "-cars"),
    '"fast cars" red': (("fast cars", "red"), '"fast cars"'),
    'red -"fast cars" -slow': (("red",), '-"fast cars" -slow'),
    'a"b"c': (("a", "b", "c"), '"b"'),
    '"a"-b': (("a",), '"a" -b'),
    "cat(-dog)&!bird|-fish": (("cat", "bird"), "-dog -fish"),
    # Hyphens that exclude nothing.
    "word-joined e-": (("word-joined", "e-"), ""),
    "before - behind": (("before", "behind"), ""),
    "--verbose": (("verbose",), ""),
    '--"a b" ---c': (("a b",), '"a b" -c'),
    "-": ((), ""),
    "-- - ---": ((), ""),
    '-" "': ((), ""),
    # Quotation marks that none closes, and others.
    '5" disk': (("5", "disk"), ""),
    '"a b" 5" disk -new': (("a b", "5", "disk"), '"a b" -new'),
    'cat -"fast cars': (("cat",), '-"fast cars"'),
    'cat "': (("cat",), ""),
    '"': ((), ""),
    '""': ((), ""),
    '" " cat': (("cat",), ""),
    "“fast cars” «red» ‚blue‘": (("“fast", "cars”", "«red»", "‚blue‘"), ""),
    "it's 'quoted' \\": (("it's", "'quoted'", "\\"), ""),
    # `or` between others, and as a word.
    "or": (("or",), ""),
    "or cat": (("or", "cat"), ""),
    "cat or": (("cat", "or"), ""),
    "or or or": (("or",), ""),
    "cat OR or Or dog": (("cat", "or", "dog"), ""),
    "order or-else": (("order", "or-else"), ""),
    '"a b" or "c d"': (("a b", "c d"), '"a b" or "c d"'),
    '"a b" or cat dog': (("a b", "cat", "dog"), '"a b" or cat or dog'),
    "cat -dog or bird": (("cat", "bird"), "-dog or bird"),
    "-dog or -bird": ((), "-dog or -bird"),
    'cat or "" or -dog': (("cat",), "cat or -dog"),
}


@pytest.mark.parametrize("text", READ)
def test_words_and_conditions_of_a_text_are_told_apart(text: str) -> None:
    assert loosened(text) == Loose(*READ[text])


PIECES = st.sampled_from(['"', "-", " ", "or", "cat", "dog", "é", "!", "|", "(", "\u2003", "a'b", "\\", ":*"])


@given(st.lists(PIECES, max_size=40).map("".join))
@example('-"-"-')
def test_conditions_are_balanced_and_no_word_is_lost(text: str) -> None:
    loose = loosened(text)
    assert loose.conditions.count('"') % 2 == 0 and '"' not in "".join(loose.words)
    # PostgreSQL takes 32 operators that wait for one operand.
    assert not re.search(r"(^|\s)-[-\s]", re.sub('"[^"]*"', "x", loose.conditions))
    for letters in re.findall(r"cat|dog|é|a'b", text):
        assert letters in loose.conditions or any(letters in word for word in loose.words)
    # What was told apart is told apart in the same way again.
    again = loosened(loose.conditions)
    assert again.conditions == loose.conditions or " or " in loose.conditions


@pytest.mark.parametrize(
    "text", ["-" * 200_000, '"' * 199_999, "- " * 100_000, '-"' * 99_999, "a" * 200_000, '"a" or ' * 30_000]
)
def test_reading_takes_time_in_proportion_to_length(text: str) -> None:
    # Where it went by the square, this would take minutes, which the limit of every test ends.
    assert len(loosened(text).conditions) <= 5 * len(text)
