"""Which conditions of a filter an index can look up, as `router.postgres.conditions` writes them."""

from __future__ import annotations

from collections.abc import Sequence

from router.query.filter import Compare, Contains, Field, Filter, In, Like
from router.query.histogram import fixed_prefix
from router.query.metadata import may_be_index
from router.query.statistics import FilterIndex, IndexKey, Place

__all__ = ["place", "served"]

# Longer lists of JSON are looked up in a hash table, and not through an index.
_LISTED = 16


def served(index: FilterIndex, parts: Sequence[Filter]) -> list[Filter]:
    """Those of the conditions that decide which part of the index is read."""
    found: list[Filter] = []
    if index.predicate is None:
        for key in index.keys:
            here = [part for part in parts if _serves(key, part)]
            found += here
            # A btree is read on, key by key, while values are given; whatever order, for GIN.
            if index.method != "gin" and not any(_gives_values(part) for part in here):
                break
    return found


def _gives_values(part: Filter) -> bool:
    return isinstance(part, In) or (isinstance(part, Compare) and part.op == "=")


def _serves(key: IndexKey, part: Filter) -> bool:
    """Whether the condition, as router.postgres.conditions writes it, can be looked up under `key`."""
    match part:
        case Compare(field, "=", _):
            return place(field) == key.place and (key.equality if field.column else key.contains)
        case Compare(field, _, value):
            by_text = field.column is None and isinstance(value, str)
            return key.ranges and place(field) == key.place and not by_text
        case In(field, values):
            if field.column is None:
                return key.contains and field.path == key.place and len(values) <= _LISTED
            return key.equality and place(field) == key.place
        case Like(field, pattern, False):
            return key.prefixes and place(field) == key.place and bool(fixed_prefix(pattern)[0])
        case Contains(field, elements, every):
            whole = not any(may_be_index(step) for step in field.path)
            listed = every or len(elements) <= _LISTED or any(one.startswith("{") for one in elements)
            return key.contains and listed and key.place == (() if whole else field.path)
    return False


def place(field: Field) -> Place:
    return field.path if field.column is None else field.column.column
