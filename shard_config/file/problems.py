"""What is wrong with a shard map: every finding with its place, and the one error that carries them.

No message holds the password of a DSN, wherever in the document it stands; `quoted` is the way to show
what the file says.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import msgspec

from shard_config.dsn import redact

# So many faults have one cause, such as a wrong file; more of them would not help to find it.
MAX_PROBLEMS = 100
_SHOWN = 60


class Problem(msgspec.Struct, frozen=True, order=True):
    """One finding. `line` and `column` count from 1; a `line` of 0 is the file as a whole."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class MapError(Exception):
    """A shard map that cannot be used; `problems` are in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class TooManyProblems(Exception):
    """Reading was given up after `MAX_PROBLEMS` findings; never leaves this package."""


class Findings:
    """The problems found so far in one file."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def add(self, line: int, column: int, path: str, message: str) -> None:
        """Record one problem.

        Raises:
            TooManyProblems: there are `MAX_PROBLEMS` now.
        """
        self.problems.append(Problem(self.file, line, column, path, message))
        if len(self.problems) >= MAX_PROBLEMS:
            raise TooManyProblems


def quoted(value: object) -> str:
    """A value of the document for a message: short, on one line, without passwords."""
    shown = repr(redact(value) if isinstance(value, str) else value)
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, or the short list of them, or nothing."""
    known = [str(name) for name in known]
    near = difflib.get_close_matches(word[:_SHOWN], known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(known)}" if 0 < len(known) <= 12 else ""
