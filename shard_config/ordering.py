"""The order of key values, which is PostgreSQL's.

Text goes by code point (collation "C"), UUIDs by byte, and NaN, which Python orders with nothing, above
every other number.
"""

from __future__ import annotations

from typing import Any


def below(value: object, bound: object) -> bool:
    """Whether `value` sorts before `bound`; both are what `coerce` gives for one and the same type."""
    left: Any = value
    if value != value:
        return False
    return bound != bound or bool(left < bound)


def rank(value: object) -> tuple[bool, Any]:
    """A sort key: keys of values of one type compare as PostgreSQL compares the values."""
    return (True, 0) if value != value else (False, value)
