"""A document's metadata: the JSON text of an object that jsonb takes, kept as it was written.

Invariant: PostgreSQL stores what `checked_text` returns without an error about its values. jsonb has no
U+0000, its parser recurses, and it writes every number out: 1e131071 would be 128 KiB in each answer.
"""

from __future__ import annotations

from decimal import Decimal

from router.decode.body import decode_object
from router.query.errors import InvalidError
from shard_config.values import ValueType, coerce

__all__ = ["checked_text"]

_DEPTH = 32
_EXPONENT = 1000


def checked_text(data: bytes, path: str) -> str:
    """`data` as text; decoding it and writing it anew would make floats of its numbers.

    Raises:
        MalformedError, InvalidError: with `path`.
    """
    stack: list[tuple[object, int]] = [(decode_object(data, path, exact=True), 1)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, str):
            _check_text(value, path)
        elif isinstance(value, Decimal):
            if abs(value.adjusted()) > _EXPONENT:
                raise InvalidError.at(path, f"a number's exponent exceeds {_EXPONENT}")
        elif isinstance(value, (dict, list)):
            if depth > _DEPTH:
                raise InvalidError.at(path, f"nested deeper than {_DEPTH} levels")
            stack.extend((item, depth + 1) for item in value)
            if isinstance(value, dict):
                stack.extend((item, depth + 1) for item in value.values())
    return data.decode()


def _check_text(text: str, path: str) -> None:
    try:
        coerce(ValueType.TEXT, text)
    except ValueError as exc:
        raise InvalidError.at(path, str(exc)) from exc
