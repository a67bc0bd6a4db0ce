"""Newline-delimited JSON in pieces becomes lines, and no line is held beyond its limit. Pure."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Line", "Lines"]


class Line(NamedTuple):
    """`number` counts from 1; `data` is None where the line was longer than allowed."""

    number: int
    data: bytes | None


class Lines:
    """Splits what `feed` is given; what follows the last newline waits for more, or for `finish`."""

    def __init__(self, max_line_bytes: int) -> None:
        self._limit = max_line_bytes
        self._number = 0
        self._parts: list[bytes] = []
        self._size = 0  # of the line so far, what was thrown away included

    def feed(self, piece: bytes) -> list[Line]:
        *complete, rest = piece.split(b"\n")
        lines = [self._end(part) for part in complete]
        self._hold(rest)
        return lines

    def finish(self) -> list[Line]:
        return [self._end(b"")] if self._size else []

    def _hold(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._limit:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _end(self, part: bytes) -> Line:
        self._hold(part)
        self._number += 1
        line = Line(self._number, None if self._size > self._limit else b"".join(self._parts))
        self._parts.clear()
        self._size = 0
        return line
