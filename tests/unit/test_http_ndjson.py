from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.http.ndjson import Line, Lines


def split(pieces: list[bytes], limit: int) -> list[Line]:
    lines = Lines(limit)
    found = [line for piece in pieces for line in lines.feed(piece)]
    return found + lines.finish()


def reference(data: bytes, limit: int) -> list[Line]:
    parts = data.split(b"\n")
    if not parts[-1]:
        parts.pop()
    return [Line(i, part if len(part) <= limit else None) for i, part in enumerate(parts, 1)]


PIECES = st.lists(st.text("ab\n", max_size=12).map(str.encode), max_size=12)


@given(PIECES, st.integers(1, 8))
def test_lines_do_not_depend_on_how_the_bytes_come(pieces: list[bytes], limit: int) -> None:
    assert split(pieces, limit) == reference(b"".join(pieces), limit)


def test_a_line_without_end_is_not_held() -> None:
    lines = Lines(100)
    for _ in range(1000):
        assert lines.feed(b"x" * 60) == []
        assert sum(map(len, lines._parts)) <= 100
    assert lines.feed(b"\nnext\n") == [Line(1, None), Line(2, b"next")]
