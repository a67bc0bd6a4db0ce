"""The values that a filter compares metadata with; `shard_config.metadata_path` says where to look.

Invariant: what is returned is JSON that jsonb takes.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

import msgspec

from shard_config.metadata_path import MOST_STEPS
from shard_config.values import ValueType, coerce, shown

__all__ = ["MOST_EXPONENT", "Digits", "digits_of", "element", "may_be_index", "scalar"]

_INTEGER_BITS = 4096
# Of a number. jsonb writes every number out: 1e131071 would be 128 KiB in each answer.
MOST_EXPONENT = 1000
_FLOAT_EXPONENT = 308
_INDEX = re.compile(r"\s*[+-]?\d+")
_SCALARS = "a string, a finite number, true or false"


class Digits(msgspec.Struct, frozen=True, array_like=True, tag="digits"):
    """A number that has more digits than a float keeps, as JSON."""

    text: str


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
        case Decimal() if abs(value.adjusted()) <= MOST_EXPONENT:
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
        if depth > MOST_STEPS:
            raise ValueError(f"nested deeper than {MOST_STEPS} levels")
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
