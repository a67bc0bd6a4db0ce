"""A file that is to become part of a map: its plain values, and the line of each.

Whether they are right is checked in the whole map, whose findings name paths; this module translates such a
path into the line of the file that the operator has given.
"""

from __future__ import annotations

import os
from typing import TypeAlias

from shard_config.file.codec import read
from shard_config.file.document import Element, Mapping, Refused, Scalar, compose
from shard_config.file.problems import Findings, MapError, Problem, TooManyProblems
from shard_config.file.reader import Context, Cursor

__all__ = ["Fragment", "Plain", "fragment"]

Plain: TypeAlias = "str | int | float | bool | list[Plain] | dict[str, Plain] | None"


class Fragment:
    """`value` as YAML means it; `place` finds what a path of the map names."""

    def __init__(self, name: str, value: Plain, places: dict[str, tuple[int, int]]) -> None:
        self.name, self.value = name, value
        self._places = places

    def __repr__(self) -> str:
        return f"<Fragment {self.name}: {len(self._places)} values>"

    def problem(self, path: str, message: str, *, under: str = "") -> Problem:
        """A finding at `path` of a map in which this file's values stand under the key `under`."""
        own = path.removeprefix(f"{under}.") if under else path
        return Problem(self.name, *self._place(own), own, message)

    def _place(self, path: str) -> tuple[int, int]:
        """Of the value at `path`, or of the nearest one around it, if any is in this file."""
        while path and path not in self._places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self._places.get(path, (0, 0))


def fragment(path: str | os.PathLike[str]) -> Fragment:
    """The file at `path`.

    Raises:
        MapError: it cannot be read, is no YAML as maps are, or repeats a key.
    """
    name = os.fspath(path)
    text = read(path)
    findings = Findings(name)
    places: dict[str, tuple[int, int]] = {}
    try:
        root = compose(text)
        _visit(Cursor(root, "", 1, 1, Context(findings, {})), places)
    except Refused as exc:
        raise MapError([Problem(name, exc.line, exc.column, "", exc.message)]) from None
    except TooManyProblems:
        pass
    if findings.problems:
        raise MapError(findings.problems)
    return Fragment(name, _plain(root), places)


def _visit(cursor: Cursor, places: dict[str, tuple[int, int]]) -> None:
    if cursor.path:
        places[cursor.path] = cursor.line, cursor.column
    inner = [one for _, one in cursor.entries()] if cursor.is_mapping else []
    for one in cursor.items() if cursor.is_sequence else inner:
        _visit(one, places)


def _plain(element: Element) -> Plain:
    match element:
        case Scalar():
            return element.value
        case Mapping():
            return {key: _plain(value) for key, (_, value) in element.entries.items()}
    return [_plain(item) for item in element.items]
