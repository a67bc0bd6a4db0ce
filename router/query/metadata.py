"""What a filter says of the metadata: where to look, and values to compare with.

    metadata.author.name      the member `name` of the object `author`
    metadata."author.name"    the member `author.name`: a quoted step is a JSON string, and may be empty
    metadata.tags.0           the first element where `tags` is an array, the member `0` where it is an object

Invariant: every member that a document can hold has a name, and what is returned is JSON that jsonb takes.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal

import msgspec

from shard_config.values import ValueType, coerce, shown

__all__ = ["Digits", "digits_of", "element", "may_be_index", "scalar", "steps"]

_MOST_LEVELS = 32  # of the metadata of a document
_INTEGER_BITS = 4096
_NUMBER_EXPONENT = 1000
_FLOAT_EXPONENT = 308
_STEP = re.compile(r'"(?:[^"\\]|\\.)*"|[^".][^.]*', re.DOTALL)
_INDEX = re.compile(r"\s*[+-]?\d+")
_SCALARS = "a string, a finite number, true or false"


class Digits(msgspec.Struct, frozen=True, array_like=True, tag="digits"):
    """A number that has more digits than a float keeps, as JSON."""

    text: str


def steps(text: str) -> tuple[str, ...]:
    """The steps of `text`, which is what follows `metadata.` in a field's name.

    Raises:
        ValueError: with a message that says what is wrong.
    """
    found: list[str] = []
    at = 0
    while at <= len(text):
        match = _STEP.match(text, at)
        if match is None:
            raise ValueError(_complaint(text[at:]))
        found.append(_step(match[0]))
        if len(found) > _MOST_LEVELS:
            raise ValueError(f"a metadata path has at most {_MOST_LEVELS} steps")
        at = match.end() + 1
        if text[match.end() : at] not in ("", "."):
            raise ValueError("a dot or nothing follows the closing quote of a step of a metadata path")
    return tuple(found)


def may_be_index(step: str) -> bool:
    """Whether PostgreSQL takes `step` for the number of an element where it meets an array."""
    return _INDEX.fullmatch(step) is not None


def scalar(value: object, also: str = "") -> object:
    """`value` if it is neither null, an array nor an object; `also` ends the message.

    Raises:
        ValueError
    """
    match value:
        case bool():
            return value
        case str():
            return coerce(ValueType.TEXT, value)
        case int() if value.bit_length() <= _INTEGER_BITS:
            return value
        case float() if math.isfinite(value):
            return value
        case Decimal() if abs(value.adjusted()) <= _NUMBER_EXPONENT:
            return _number(value)
    raise ValueError(f"expected {_SCALARS}{also}")


def element(value: object, most: int) -> str:
    """JSON of what an array is to contain: a scalar, or an object of at most `most` values within.

    Raises:
        ValueError
    """
    if isinstance(value, dict):
        checked: object = _Object(most).checked(value, 1)
    else:
        also = ", or an object; for several values there are $containsAny and $containsAll"
        checked = _json(scalar(value, also))
    return msgspec.json.encode(checked).decode()


class _Object:
    """Checks an object, and counts the values in it as it goes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values = 0

    def checked(self, value: object, depth: int) -> object:
        self._values += 1
        if self._values > self._most:
            raise ValueError(f"an object of more than {self._most} values")
        if depth > _MOST_LEVELS:
            raise ValueError(f"nested deeper than {_MOST_LEVELS} levels")
        if isinstance(value, dict):
            return {coerce(ValueType.TEXT, name): self.checked(v, depth + 1) for name, v in value.items()}
        if isinstance(value, list):
            return [self.checked(v, depth + 1) for v in value]
        return None if value is None else _json(scalar(value, f", got {shown(value)}"))


def _number(value: Decimal) -> float | Digits:
    """jsonb compares numbers digit by digit; a float does where its shortest text is all of them."""
    number = float(value) if abs(value.adjusted()) < _FLOAT_EXPONENT else math.inf
    return number if math.isfinite(number) and Decimal(repr(number)) == value else Digits(str(value))


def digits_of(value: object) -> object:
    """A number as jsonb compares it; anything else as it is."""
    if isinstance(value, Digits):
        return Decimal(value.text)
    return Decimal(repr(value)) if isinstance(value, float) else value


def _json(value: object) -> object:
    return msgspec.Raw(value.text.encode()) if isinstance(value, Digits) else value


def _step(text: str) -> str:
    if text.startswith('"'):
        try:
            text = json.loads(text, strict=False)
        except ValueError:
            raise ValueError("a quoted step of a metadata path is a JSON string, with its escapes") from None
    return str(coerce(ValueType.TEXT, text))


def _complaint(rest: str) -> str:
    if rest.startswith('"'):
        return "a quoted step of a metadata path lacks its closing quote"
    return 'a metadata path is non-empty names joined by dots; the empty name is written ""'
