"""What a filter means, said in Python: the reference that shards' answers are compared with.

Written from docs/http.md, for filters that the router takes; it shares no code with the router.
"""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["matches"]

_MISSING = object()
_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


def matches(filter: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Whether `document`, of columns by name and `metadata`, matches."""
    return all(_entry(name, value, document) for name, value in filter.items())


def _entry(name: str, value: Any, document: Mapping[str, Any]) -> bool:
    if name == "$and":
        return all(matches(part, document) for part in value)
    if name == "$or":
        return any(matches(part, document) for part in value)
    if name == "$not":
        return not matches(value, document)
    found = _field(name, document)
    operators = value if isinstance(value, dict) else {"$eq": value}
    return all(_holds(found, op, operand) for op, operand in operators.items())


def _field(name: str, document: Mapping[str, Any]) -> Any:
    if not name.startswith("metadata."):
        found = document.get(name)
    else:
        found = document.get("metadata")
        for step in re.findall(r'\.("(?:[^"\\]|\\.)*"|[^.]*)', name.removeprefix("metadata"), re.DOTALL):
            found = _member(found, json.loads(step) if step.startswith('"') else step)
    return _MISSING if found is None else found


def _member(value: Any, step: str) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    if isinstance(value, list) and re.fullmatch(r"\s*[+-]?[0-9]+", step):
        at = int(step)
        return value[at] if -len(value) <= at < len(value) else None
    return None


def _holds(found: Any, op: str, operand: Any) -> bool:
    match op:
        case "$eq":
            return found is _MISSING if operand is None else _equal(found, operand)
        case "$ne":
            return not _holds(found, "$eq", operand)
        case "$in":
            return any(_holds(found, "$eq", one) for one in operand)
        case "$nin":
            return not _holds(found, "$in", operand)
        case "$exists":
            return (found is not _MISSING) is operand
        case "$between":
            return _holds(found, "$gte", operand[0]) and _holds(found, "$lte", operand[1])
        case "$like":
            return isinstance(found, str) and _like(found, operand)
        case "$ilike":
            return isinstance(found, str) and _like(_lower(found), _lower(operand))
        case "$contains":
            return isinstance(found, list) and any(_within(operand, one) for one in found)
        case "$containsAny":
            return any(_holds(found, "$contains", one) for one in operand)
        case "$containsAll":
            return all(_holds(found, "$contains", one) for one in operand)
    return _kind(found) == _kind(operand) != "other" and _ORDERED[op](found, operand)


def _equal(found: Any, value: Any) -> bool:
    """Equal and of one kind, or an array that has such an element."""
    if isinstance(found, list):
        return any(not isinstance(one, list) and _equal(one, value) for one in found)
    return _kind(found) == _kind(value) != "other" and bool(found == value)


def _within(wanted: Any, found: Any) -> bool:
    """jsonb's containment, less the scalars within an array that it knows at the outermost level alone."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(
            name in found and _within(one, found[name]) for name, one in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(found, list) and all(any(_within(one, other) for other in found) for one in wanted)
    if wanted is None or found is None:
        return wanted is found
    return _kind(wanted) == _kind(found) and bool(wanted == found)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "other"


def _lower(text: str) -> str:
    """Character by character, as Unicode's simple mapping has it."""
    return "".join("i" if one == "İ" else "σ" if one == "Σ" else one.lower() for one in text)


def _like(text: str, pattern: str) -> bool:
    return _regex(pattern).fullmatch(text) is not None


@functools.cache
def _regex(pattern: str) -> re.Pattern[str]:
    parts = re.findall(r"\\.|.", pattern, re.DOTALL)
    wild = {"%": ".*", "_": "."}
    return re.compile("".join(wild.get(part) or re.escape(part[-1]) for part in parts), re.DOTALL)
