"""A cursor over the document: reads one value as what it should be, or records what is wrong with it.

Reading never stops at a fault, so that an operator sees all of them at once. What cannot be read comes
back as the given default; it is a placeholder that nobody sees, because a map with findings is not
handed out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import TypeVar

from shard_config import limits
from shard_config.file import document
from shard_config.file.environment import Unresolved, substitute
from shard_config.file.problems import Findings, quoted, suggestion
from shard_config.values import ValueType, coerce

D = TypeVar("D")
E = TypeVar("E", bound=StrEnum)

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(limits.DURATION)


class Context:
    """What all cursors over one file share: where findings go, and the environment."""

    def __init__(self, findings: Findings, env: Mapping[str, str]) -> None:
        self.findings, self.env = findings, env


class Cursor:
    """One place in the document. `element` is None where the file has nothing there."""

    def __init__(
        self, element: document.Element | None, path: str, line: int, column: int, context: Context
    ) -> None:
        self.element, self.path, self.context = element, path, context
        self.line, self.column = line, column

    @property
    def present(self) -> bool:
        return self.element is not None

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.element, document.Mapping)

    @property
    def is_sequence(self) -> bool:
        return isinstance(self.element, document.Sequence)

    @property
    def is_text(self) -> bool:
        return self._leaf is not None and isinstance(self._leaf.value, str)

    def fail(self, message: str) -> None:
        self.context.findings.add(self.line, self.column, self.path, message)

    # Mappings and sequences.

    def __getitem__(self, field: str) -> Cursor:
        """The field's value; where it is missing, a cursor whose reads give their defaults."""
        entries = self.element.entries if isinstance(self.element, document.Mapping) else {}
        at, value = entries.get(field, (self, None))
        return Cursor(value, self._under(field), at.line, at.column, self.context)

    def required(self, field: str, example: str) -> Cursor:
        """As `[field]`, and a finding where it is missing."""
        value = self[field]
        if self.is_mapping and not value.present:
            self.fail(f"missing field {field!r}, such as `{field}: {example}`")
        return value

    def check_fields(self, known: Iterable[str]) -> None:
        """Find fault with every field of this mapping that is not among `known`."""
        names = tuple(known)
        for name, entry in self.entries():
            if name not in names:
                entry.fail(f"unknown field {quoted(name)}{suggestion(name, names)}")

    def entries(self) -> list[tuple[str, Cursor]]:
        """The keys and values of this mapping, each value under the place of its key."""
        if self.element is None:
            return []
        if not isinstance(self.element, document.Mapping):
            self.fail(f"expected a mapping, got {self.shown()}")
            return []
        for key in self.element.repeated:
            first = self.element.entries[key.text][0].line
            message = f"the key stands twice in one mapping, first in line {first}"
            self.context.findings.add(key.line, key.column, self._under(key.text), message)
        return [
            (name, Cursor(value, self._under(name), key.line, key.column, self.context))
            for name, (key, value) in self.element.entries.items()
        ]

    def items(self, what: str | None = None) -> list[Cursor]:
        """The items of this sequence of `what`; without it, a single value is a sequence of one."""
        if self.element is None:
            return []
        if not isinstance(self.element, document.Sequence):
            if what is None:
                return [self]
            self.fail(f"expected a list of {what}, got {self.shown()}")
            return []
        return [
            Cursor(item, f"{self.path}[{at}]", item.line, item.column, self.context)
            for at, item in enumerate(self.element.items)
        ]

    # Scalars.

    def string(self) -> str | None:
        """Text, with the environment put in."""
        value = self._value()
        if isinstance(value, str):
            return value
        self._expected("a string" if self._leaf is None else "a string; quote it to make it one")
        return None

    @property
    def text(self) -> str | None:
        """A scalar as the file spells it, or None; records nothing."""
        return self._leaf.text if self._leaf else None

    def matching(self, pattern: str, what: str) -> str | None:
        text = self.string()
        if text is None or re.fullmatch(pattern, text):
            return text
        self.fail(f"expected {what}, got {self.shown()}")
        return None

    def integer(self, bounds: tuple[int, int], default: int) -> int:
        value = self._value()
        if isinstance(value, int) and not isinstance(value, bool) and bounds[0] <= value <= bounds[1]:
            return value
        self._expected(f"an integer from {bounds[0]} to {bounds[1]}")
        return default

    def boolean(self, default: bool) -> bool:
        value = self._value()
        if isinstance(value, bool):
            return value
        self._expected("true or false")
        return default

    def number(self, bounds: tuple[float, float], default: D) -> float | D:
        value = self._value()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and _within(bounds, value):
            return float(value)
        self._expected(f"a number from {bounds[0]:g} to {bounds[1]:g}")
        return default

    def duration(self, bounds: tuple[float, float], default: float) -> float:
        """Seconds, from a bare number or from text such as `500ms`, `2s`, `1m`, `1h`."""
        value = self._value()
        if isinstance(value, str) and (parts := _DURATION.fullmatch(value)):
            value = float(parts[1]) * _SECONDS[parts[2]]
        if isinstance(value, (int, float)) and not isinstance(value, bool) and _within(bounds, value):
            return float(value)
        self._expected(f"a duration from {bounds[0]:g}s to {bounds[1]:g}s, such as 500ms, 2s or 1m")
        return default

    def choice(self, options: type[E], default: D) -> E | D:
        value = self._value()
        if isinstance(value, str) and value in list(options):
            return options(value)
        self._expected(f"one of {', '.join(options)}")
        return default

    def typed(self, type_: ValueType) -> object | None:
        """A value of a column's type, never null, or None with a finding."""
        value, leaf = self._value(), self._leaf
        if value is None or leaf is None:
            self._expected(f"a value of type {type_}")
            return None
        if isinstance(value, float) and type_ is ValueType.NUMERIC:
            value = leaf.text  # the float has been rounded
        try:
            return coerce(type_, value)
        except ValueError as exc:
            hint = "; quote it to make it a string" if type_ is ValueType.TEXT else ""
            self.fail(f"not a value of type {type_}" if "$" in leaf.text else f"{exc}{hint}")
            return None

    def shown(self) -> str:
        """What the file says here, for a message: never what the environment put in."""
        match self.element:
            case document.Scalar():
                bare = not isinstance(self.element.value, str)
                return self.element.text[:40] or "nothing" if bare else quoted(self.element.text)
            case document.Sequence():
                return "a list"
            case document.Mapping():
                return "a mapping"
        return "nothing"

    # Internals.

    def _under(self, key: str) -> str:
        shown = key if re.fullmatch(limits.NAME, key) or key.isidentifier() else quoted(key)
        return f"{self.path}.{shown}" if self.path else shown

    @property
    def _leaf(self) -> document.Scalar | None:
        return self.element if isinstance(self.element, document.Scalar) else None

    def _value(self) -> str | int | float | bool | None:
        value = self._leaf.value if self._leaf else None
        if not isinstance(value, str) or "$" not in value:
            return value
        try:
            return substitute(value, self.context.env)
        except Unresolved as exc:
            self.fail(str(exc))
            self.element = None  # one finding is enough: from here on it reads as its default
            return None

    def _expected(self, what: str) -> None:
        # A field that the file leaves out has its default; that it had to be there is said elsewhere.
        if self.element is not None:
            self.fail(f"expected {what}, got {self.shown()}")


def repeated(places: Iterable[tuple[D, Cursor]]) -> Iterator[tuple[D, Cursor, str]]:
    """Each place whose value stood at another one before, and the path of the first; None is no value."""
    first: dict[D, str] = {}
    for value, at in places:
        if value in first:
            yield value, at, first[value]
        elif value is not None:
            first[value] = at.path


def _within(bounds: tuple[float, float], value: float) -> bool:
    return math.isfinite(value) and bounds[0] <= value <= bounds[1]
