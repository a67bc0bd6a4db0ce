from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from router.query.histogram import Pattern
from router.query.statistics import column_statistics

PATTERNS = st.text("aab%_", max_size=9)
TEXTS = st.lists(st.text("aabB", max_size=9), unique=True, min_size=1, max_size=24)


@given(pattern=PATTERNS, texts=TEXTS, ignore_case=st.booleans())
def test_a_pattern_keeps_what_the_same_regular_expression_does(
    pattern: str, texts: list[str], ignore_case: bool
) -> None:
    expression = re.compile(pattern.replace("%", ".*").replace("_", "."), re.IGNORECASE if ignore_case else 0)
    order = column_statistics(0.0, len(texts), [(text, 1 / len(texts)) for text in texts], []).order
    (kept,) = Pattern(pattern, ignore_case).shares([order])
    assert round(kept * len(texts), 6) == sum(expression.fullmatch(text) is not None for text in texts)
