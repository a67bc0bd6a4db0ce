"""The filter language: from decoded JSON to a small checked tree.

Invariant: whatever `parse` returns can be turned into SQL whose only identifiers come from the
shard map and whose values PostgreSQL accepts for their types. Sugar is gone after parsing: `$ne`,
`$nin`, `$between` and null become the few node types below.

Logic is two-valued: a comparison with a missing value is false, and `Not` is the exact complement,
so `{"a": {"$ne": 1}}` keeps rows that have no `a`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Literal, TypeAlias

import msgspec

from router.query.errors import InvalidError, Problem
from router.settings import Settings
from shard_config.model import Collection, Column
from shard_config.values import ValueType, coerce

__all__ = [
    "And",
    "Compare",
    "Digits",
    "Exists",
    "Field",
    "Filter",
    "In",
    "Like",
    "Not",
    "Or",
    "constant",
    "parse",
]

_METADATA_DEPTH = 16
_INTEGER_BITS = 4096
_METADATA_EXPONENT = 1000  # of a document's metadata
_FLOAT_EXPONENT = 308


class Field(msgspec.Struct, frozen=True, array_like=True):
    """A column, or a path into the metadata document where `column` is None."""

    column: Column | None
    path: tuple[str, ...] = ()


class Compare(msgspec.Struct, frozen=True, array_like=True, tag="compare"):
    field: Field
    op: Literal["=", "<", "<=", ">", ">="]
    value: object


class In(msgspec.Struct, frozen=True, array_like=True, tag="in"):
    field: Field
    values: tuple[object, ...]


class Exists(msgspec.Struct, frozen=True, array_like=True, tag="exists"):
    field: Field


class Like(msgspec.Struct, frozen=True, array_like=True, tag="like"):
    field: Field
    pattern: str
    ignore_case: bool


class Digits(msgspec.Struct, frozen=True, array_like=True, tag="digits"):
    """A number for metadata that has more digits than a float keeps, as JSON."""

    text: str


class And(msgspec.Struct, frozen=True, array_like=True, tag="and"):
    parts: tuple[Filter, ...]


class Or(msgspec.Struct, frozen=True, array_like=True, tag="or"):
    parts: tuple[Filter, ...]


class Not(msgspec.Struct, frozen=True, array_like=True, tag="not"):
    part: Filter


Filter: TypeAlias = Compare | In | Exists | Like | And | Or | Not

_COMPARISONS: dict[str, Literal["=", "<", "<=", ">", ">="]] = {
    "$eq": "=",
    "$lt": "<",
    "$lte": "<=",
    "$gt": ">",
    "$gte": ">=",
}


def parse(collection: Collection, raw: dict[str, object], limits: Settings, path: str = "filter") -> Filter:
    """The checked form of `raw`, a decoded JSON object; an empty one matches every row.

    Raises:
        InvalidError: with every problem found, each with its path below `path`.
    """
    parser = _Parser(collection, limits)
    tree = parser.conditions(raw, path, depth=1)
    if parser.problems:
        first = parser.problems[0]
        raise InvalidError(f"{first.path}: {first.message}", parser.problems)
    return tree


def constant(filter: Filter) -> bool | None:
    """What `filter` says of every row by its form alone; None where it depends on the row."""
    match filter:
        case And(parts) | Or(parts):
            absorbing = isinstance(filter, Or)
            said = {constant(part) for part in parts}
            if absorbing in said:
                return absorbing
            return None if None in said else not absorbing
        case Not(part):
            negated = constant(part)
            return None if negated is None else not negated
        case In(_, ()):
            return False
    return None


class _Parser:
    """One parse; collects problems and counts against the limits as it goes."""

    def __init__(self, collection: Collection, limits: Settings) -> None:
        self.problems: list[Problem] = []
        self._collection = collection
        self._limits = limits
        self._conditions = 0
        self._operators: dict[str, Callable[[Field, object, str], Filter]] = {
            "$ne": lambda field, value, path: Not(self._equal(field, value, path)),
            "$in": self._in,
            "$nin": lambda field, value, path: Not(self._in(field, value, path)),
            "$between": self._between,
            "$exists": self._exists,
            "$like": lambda field, value, path: self._like(field, value, path, ignore_case=False),
            "$ilike": lambda field, value, path: self._like(field, value, path, ignore_case=True),
        }

    def conditions(self, raw: object, path: str, depth: int) -> Filter:
        if not isinstance(raw, dict):
            return self._wrong(path, "expected an object of conditions")
        if depth > self._limits.max_filter_depth:
            return self._wrong(path, f"nested deeper than {self._limits.max_filter_depth} levels")
        parts = [self._entry(key, value, f"{path}.{key}", depth) for key, value in raw.items()]
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _entry(self, key: str, value: object, path: str, depth: int) -> Filter:
        if key in ("$and", "$or"):
            if not isinstance(value, list) or not value:
                return self._wrong(path, "expected a non-empty array of filters")
            parts = tuple(self.conditions(part, f"{path}[{i}]", depth + 1) for i, part in enumerate(value))
            return And(parts) if key == "$and" else Or(parts)
        if key == "$not":
            return Not(self.conditions(value, path, depth + 1))
        if key.startswith("$"):
            return self._wrong(path, f"unknown combinator {_shown(key)}; known are $and, $or, $not")
        field = self._field(key, path)
        return And(()) if field is None else self._conditions_on(field, value, path)

    def _conditions_on(self, field: Field, value: object, path: str) -> Filter:
        if not isinstance(value, dict):
            return self._operator(field, "$eq", value, path)
        if not value:
            return self._wrong(path, "expected a value or an object of operators")
        parts = [self._operator(field, op, operand, f"{path}.{op}") for op, operand in value.items()]
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _operator(self, field: Field, op: str, operand: object, path: str) -> Filter:
        self._conditions += 1
        if self._conditions > self._limits.max_filter_conditions:
            # Said once, however many more there are.
            if self._conditions == self._limits.max_filter_conditions + 1:
                self._wrong(path, f"more than {self._limits.max_filter_conditions} conditions in one filter")
            return And(())
        if op == "$eq":
            return self._equal(field, operand, path)
        if op in _COMPARISONS:
            return Compare(field, _COMPARISONS[op], self._value(field, operand, path))
        known = self._operators.get(op)
        if known is None:
            names = ", ".join(sorted([*_COMPARISONS, *self._operators]))
            return self._wrong(path, f"unknown operator {_shown(op)}; known are {names}")
        return known(field, operand, path)

    def _equal(self, field: Field, value: object, path: str) -> Filter:
        if value is None:
            return Not(Exists(field))
        return Compare(field, "=", self._value(field, value, path))

    def _in(self, field: Field, value: object, path: str) -> Filter:
        if not isinstance(value, list):
            return self._wrong(path, "expected an array of values")
        if len(value) > self._limits.max_filter_values:
            return self._wrong(path, f"{len(value)} values exceed {self._limits.max_filter_values}")
        values = tuple(self._value(field, v, f"{path}[{i}]") for i, v in enumerate(value) if v is not None)
        found = In(field, values)
        return Or((found, Not(Exists(field)))) if len(values) < len(value) else found

    def _between(self, field: Field, value: object, path: str) -> Filter:
        if not isinstance(value, list) or len(value) != 2:
            return self._wrong(path, "expected an array of two values: lower and upper bound, both included")
        lower, upper = (self._value(field, v, f"{path}[{i}]") for i, v in enumerate(value))
        return And((Compare(field, ">=", lower), Compare(field, "<=", upper)))

    def _exists(self, field: Field, value: object, path: str) -> Filter:
        if not isinstance(value, bool):
            return self._wrong(path, "expected true or false")
        return Exists(field) if value else Not(Exists(field))

    def _like(self, field: Field, value: object, path: str, *, ignore_case: bool) -> Filter:
        if field.column is not None and field.column.type is not ValueType.TEXT:
            return self._wrong(
                path, f"{field.column.name} is {field.column.type}; $like and $ilike need text"
            )
        if not isinstance(value, str):
            return self._wrong(path, "expected a pattern: a string in which % and _ are wildcards")
        if (len(value) - len(value.rstrip("\\"))) % 2:
            return self._wrong(
                path, "a pattern cannot end with a single backslash: there is nothing to escape"
            )
        pattern = self._checked(ValueType.TEXT, value, path)
        return Like(field, str(pattern), ignore_case)

    def _field(self, name: str, path: str) -> Field | None:
        collection = self._collection
        if name == "id":
            return Field(collection.id)
        column = collection.columns.get(name)
        if column is not None:
            return Field(column)
        if collection.metadata is not None and name.startswith("metadata."):
            steps = tuple(name.split(".")[1:])
            if all(steps) and len(steps) <= _METADATA_DEPTH and "\0" not in name and _encodable(name):
                return Field(None, steps)
            self._wrong(path, f"a metadata path is 1 to {_METADATA_DEPTH} non-empty names joined by dots")
            return None
        known = ["id", *collection.columns, *(["metadata.<path>"] if collection.metadata else [])]
        self._wrong(path, f"unknown field {_shown(name)}; fields of {collection.name} are {', '.join(known)}")
        return None

    def _value(self, field: Field, value: object, path: str) -> object:
        if field.column is not None:
            return self._checked(field.column.type, value, path)
        return self._metadata_value(value, path)

    def _metadata_value(self, value: object, path: str) -> object:
        match value:
            case bool():
                return value
            case str():
                return self._checked(ValueType.TEXT, value, path)
            case int() if value.bit_length() <= _INTEGER_BITS:
                return value
            case float() if math.isfinite(value):
                return value
            case Decimal() if abs(value.adjusted()) <= _METADATA_EXPONENT:
                return _number(value)
        self._wrong(path, "expected a string, a finite number, true or false")
        return False

    def _checked(self, type_: ValueType, value: object, path: str) -> object:
        try:
            return coerce(type_, value)
        except ValueError as exc:
            self._wrong(path, str(exc))
            return None

    def _wrong(self, path: str, message: str) -> Filter:
        self.problems.append(Problem(_shown(path, 200, quote=False), message))
        return And(())


def _number(value: Decimal) -> float | Digits:
    """jsonb compares numbers digit by digit; a float does where its shortest text is all of them."""
    number = float(value) if abs(value.adjusted()) < _FLOAT_EXPONENT else math.inf
    return number if math.isfinite(number) and Decimal(repr(number)) == value else Digits(str(value))


def _shown(text: str, limit: int = 60, *, quote: bool = True) -> str:
    """`text` short enough and clean enough for a message, whatever bytes it holds."""
    text = text.encode("utf-8", "backslashreplace").decode()
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return repr(text) if quote else text


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
