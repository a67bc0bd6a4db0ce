"""A document's metadata: the JSON text of an object that jsonb takes, kept as it was written.

Invariant: PostgreSQL stores what `checked_text` returns without an error about its values, and filters can
name every member of it: both have the same bounds. jsonb has no U+0000, and its parser recurses.
"""

from __future__ import annotations

from decimal import Decimal

from router.decode.body import decode_object
from router.query.errors import InvalidError
from router.query.metadata import MOST_EXPONENT
from shard_config.metadata_path import MOST_STEPS
from shard_config.values import ValueType, coerce

__all__ = ["checked_text", "checked_value"]


def checked_text(data: bytes, path: str) -> str:
    """`data` as text; decoding it and writing it anew would make floats of its numbers.

    Raises:
        MalformedError, InvalidError: with `path`.
    """
    _check(decode_object(data, path, exact=True), 1, path)
    return data.decode()


def checked_value(data: bytes, path: str, level: int) -> str:
    """`data`, the JSON of any value, as text; if it is an object or an array, it stands at this `level`.

    Raises:
        MalformedError, InvalidError: with `path`.
    """
    _check(decode_object(b'{"":' + data + b"}", path, exact=True)[""], level, path)
    return data.decode()


def _check(tree: object, level: int, path: str) -> None:
    stack: list[tuple[object, int]] = [(tree, level)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, str):
            _check_text(value, path)
        elif isinstance(value, Decimal):
            if abs(value.adjusted()) > MOST_EXPONENT:
                raise InvalidError.at(path, f"a number's exponent exceeds {MOST_EXPONENT}")
        elif isinstance(value, (dict, list)):
            if depth > MOST_STEPS:
                raise InvalidError.at(path, f"nested deeper than {MOST_STEPS} levels")
            stack.extend((item, depth + 1) for item in value)
            if isinstance(value, dict):
                stack.extend((item, depth + 1) for item in value.values())


def _check_text(text: str, path: str) -> None:
    try:
        coerce(ValueType.TEXT, text)
    except ValueError as exc:
        raise InvalidError.at(path, str(exc)) from exc
