"""YAML text as a tree of values that know their place in the file.

PyYAML parses; this module composes, because three things must hold that its own composer leaves open:
a repeated key is kept for the report, the tree is bounded in depth and in size after aliases are followed,
and plain scalars mean what YAML 1.2's core schema says (`no` and `12:30` are strings). Tags are refused:
nothing in a file chooses what is constructed.
"""

from __future__ import annotations

import re
from typing import Protocol, TypeAlias

import yaml

from shard_config import limits
from shard_config.file.problems import quoted


class Scalar:
    """A leaf: `value` as YAML means it, `text` as the file spells it."""

    def __init__(self, value: str | int | float | bool | None, text: str, line: int, column: int) -> None:
        self.value, self.text, self.line, self.column = value, text, line, column


class Sequence:
    def __init__(self, line: int, column: int) -> None:
        self.line, self.column = line, column
        self.items: list[Element] = []


class Mapping:
    """`entries` maps a key's text to the key itself, for its place, and its value.

    Where a key stands more than once the first counts, and the others are in `repeated`.
    """

    def __init__(self, line: int, column: int) -> None:
        self.line, self.column = line, column
        self.entries: dict[str, tuple[Scalar, Element]] = {}
        self.repeated: list[Scalar] = []


Element: TypeAlias = Scalar | Sequence | Mapping

# libyaml's parser where PyYAML was built with it: 4 MiB take a second instead of half a minute.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INTEGER = re.compile(r"[-+]?[0-9]{1,400}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class _Mark(Protocol):
    """What PyYAML's two parsers, which have a type each, both say of a place."""

    line: int
    column: int


class Refused(Exception):
    """The text cannot be read as a document; never leaves this package, which raises MapError."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(message)
        self.line, self.column, self.message = line, column, message


def compose(text: str) -> Element:
    """The document's root.

    Raises:
        Refused: at the first place where the text is no YAML or beyond a bound.
    """
    stray = _NOT_YAML.search(text)
    if stray is not None:
        raise _at(text, stray.start(), f"the character {stray.group()!r} cannot stand in YAML")
    composer = _Composer()
    try:
        for event in yaml.parse(text, Loader=_Loader):
            composer.take(event)
    except yaml.MarkedYAMLError as exc:
        line, column = _place(exc.problem_mark or exc.context_mark)
        source = text.split("\n")[line - 1 : line]
        hint = "; quote a value that holds ${...}" if source and "${" in source[0] else ""
        raise Refused(line, column, f"not valid YAML: {exc.problem or exc.context}{hint}") from None
    except yaml.YAMLError as exc:
        raise Refused(1, 1, f"not valid YAML: {type(exc).__name__}") from None
    if composer.root is None:
        raise Refused(1, 1, "the document is empty; a shard map has version, shards and collections")
    return composer.root


def resolve(text: str) -> str | int | float | bool | None:
    """What a plain scalar means in YAML 1.2's core schema, less octal, hexadecimal, .inf and .nan."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _place(mark: _Mark | None) -> tuple[int, int]:
    """PyYAML counts from 0; people and editors count from 1."""
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)


def _at(text: str, offset: int, message: str) -> Refused:
    before = text[:offset]
    return Refused(before.count("\n") + 1, offset - before.rfind("\n"), message)


class _Open:
    """A sequence or mapping whose end has not come; `key` waits for its value."""

    def __init__(self, element: Sequence | Mapping, anchor: str | None, before: int) -> None:
        self.element, self.anchor, self.before = element, anchor, before
        self.key: Scalar | None = None


class _Composer:
    """Builds the tree from the parser's events without recursion; changed by `take` only."""

    def __init__(self) -> None:
        self.root: Element | None = None
        self._stack: list[_Open] = []
        self._size = 0  # elements so far, each alias counted with all that it stands for
        self._anchors: dict[str, tuple[Element, int] | None] = {}  # None while still open

    def take(self, event: yaml.Event) -> None:
        line, column = _place(event.start_mark)
        match event:
            case yaml.ScalarEvent():
                self._check_tag(event.tag, line, column)
                value = resolve(event.value) if event.implicit[0] else event.value
                scalar = Scalar(value, event.value, line, column)
                self._grow(1, line, column)
                self._anchor(event.anchor, scalar, 1)
                self._attach(scalar)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                self._check_tag(event.tag, line, column)
                sequence = isinstance(event, yaml.SequenceStartEvent)
                self._open(Sequence(line, column) if sequence else Mapping(line, column), event.anchor)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                done = self._stack.pop()
                self._anchor(done.anchor, done.element, self._size - done.before)
                self._attach(done.element)
            case yaml.AliasEvent():
                self._alias(event.anchor or "", line, column)
            case yaml.DocumentStartEvent() if self.root is not None:
                raise Refused(line, column, "a second document; a file holds one shard map")

    @staticmethod
    def _check_tag(tag: str | None, line: int, column: int) -> None:
        if tag is not None:
            message = f"the tag {quoted(tag)} is not read; quote a value to make it a string"
            raise Refused(line, column, message)

    def _grow(self, by: int, line: int, column: int) -> None:
        self._size += by
        if self._size > limits.ELEMENTS:
            raise Refused(line, column, f"more than {limits.ELEMENTS} values, aliases followed")

    def _open(self, element: Sequence | Mapping, anchor: str | None) -> None:
        if len(self._stack) >= limits.DEPTH:
            raise Refused(element.line, element.column, f"nested more than {limits.DEPTH} levels deep")
        if anchor is not None:
            self._anchors[anchor] = None
        self._stack.append(_Open(element, anchor, self._size))
        self._grow(1, element.line, element.column)

    def _anchor(self, anchor: str | None, element: Element, size: int) -> None:
        if anchor is not None:
            self._anchors[anchor] = element, size

    def _alias(self, anchor: str, line: int, column: int) -> None:
        if anchor not in self._anchors:
            raise Refused(line, column, f"the alias *{anchor} has no anchor &{anchor} before it")
        target = self._anchors[anchor]
        if target is None:
            raise Refused(line, column, f"the alias *{anchor} stands inside of what it names")
        self._grow(target[1], line, column)
        self._attach(target[0])

    def _attach(self, element: Element) -> None:
        if not self._stack:
            self.root = element
            return
        parent = self._stack[-1]
        if isinstance(parent.element, Sequence):
            parent.element.items.append(element)
        elif parent.key is None:
            if not isinstance(element, Scalar):
                raise Refused(element.line, element.column, "a key must be a plain name")
            parent.key = element
        else:
            self._enter(parent.element, parent.key, element)
            parent.key = None

    @staticmethod
    def _enter(mapping: Mapping, key: Scalar, element: Element) -> None:
        if key.text in mapping.entries:
            mapping.repeated.append(key)
        else:
            mapping.entries[key.text] = key, element
