"""The order of key values, which is PostgreSQL's: text by code point (collation "C"), UUIDs by byte."""

from __future__ import annotations

from typing import Any


def below(value: object, bound: object) -> bool:
    """Whether `value` sorts before `bound`; both are what `coerce` gives for one and the same type."""
    left: Any = value
    return bool(left < bound)
