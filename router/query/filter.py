"""The filter language: from decoded JSON to a small checked tree.

Invariant: whatever `parse` returns can be turned into SQL whose only identifiers come from the
shard map and whose values PostgreSQL accepts for their types. Sugar is gone after parsing: `$ne`,
`$nin`, `$between` and null become the few node types below.

Logic is two-valued: a comparison with a missing value is false, and `Not` is the exact complement,
so `{"a": {"$ne": 1}}` keeps rows that have no `a`.

A condition that matches nothing whatever the rows hold is refused: it is a mistake, and an empty answer
would hide it. An empty list is not one, since programs make it from an empty set.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import msgspec

from router.query import metadata
from router.query.errors import InvalidError, Problem
from router.query.metadata import Digits
from router.settings import Settings
from shard_config import metadata_path
from shard_config.model import Collection, Column, MetadataType
from shard_config.ordering import below
from shard_config.values import ValueType, coerce, shown

__all__ = [
    "And",
    "Compare",
    "Contains",
    "Exists",
    "Field",
    "Filter",
    "In",
    "Like",
    "Not",
    "Or",
    "constant",
    "field_of",
    "parse",
]


class Field(msgspec.Struct, frozen=True, array_like=True):
    """A column, or a path into the metadata document where `column` is None.

    `index` is what the map's index on the path is for, if it has one.
    """

    column: Column | None
    path: tuple[str, ...] = ()
    index: MetadataType | None = None


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


class Contains(msgspec.Struct, frozen=True, array_like=True, tag="contains"):
    """An array in the metadata holds one of `elements`, or `every` one; each is the text of a JSON value.

    A scalar is an element that is equal, an object one that has all its members.
    """

    field: Field
    elements: tuple[str, ...]
    every: bool


class And(msgspec.Struct, frozen=True, array_like=True, tag="and"):
    parts: tuple[Filter, ...]


class Or(msgspec.Struct, frozen=True, array_like=True, tag="or"):
    parts: tuple[Filter, ...]


class Not(msgspec.Struct, frozen=True, array_like=True, tag="not"):
    part: Filter


Filter: TypeAlias = Compare | In | Exists | Like | Contains | And | Or | Not

_ANY_TEXT = Field(None)
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
    return _indexable(tree)


def field_of(collection: Collection, name: str, limits: Settings, path: str) -> Field:
    """The field that `name` means in filters.

    Raises:
        InvalidError: none of `collection`.
    """
    parser = _Parser(collection, limits)
    field = parser.field(name, path)
    if field is None:
        raise InvalidError.at(parser.problems[0].path, parser.problems[0].message)
    return field


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
            says = constant(part)
            return None if says is None else not says
        case In(_, ()) | Contains(_, (), False):
            return False
    return None


class _Parser:
    """One parse; collects problems and counts against the limits as it goes."""

    def __init__(self, collection: Collection, limits: Settings) -> None:
        self.problems: list[Problem] = []
        self._collection = collection
        self._limits = limits
        self._conditions = 0

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
        field = self.field(key, path)
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
        before = len(self.problems)
        condition = self._condition(field, op, operand, path)
        if (
            type(condition) is not Compare
            and constant(condition) is False
            and operand != []
            and len(self.problems) == before
        ):
            return self._wrong(path, "can match nothing: every document has this field")
        return condition

    def _condition(self, field: Field, op: str, operand: object, path: str) -> Filter:
        if op == "$eq":
            return self.equal(field, operand, path)
        if op in _COMPARISONS:
            return self._compare(field, _COMPARISONS[op], operand, path)
        known = _OPERATORS.get(op)
        if known is None:
            names = ", ".join(sorted([*_COMPARISONS, *_OPERATORS]))
            return self._wrong(path, f"unknown operator {_shown(op)}; known are {names}")
        return known(self, field, operand, path)

    def equal(self, field: Field, value: object, path: str) -> Filter:
        if value is None:
            return Not(self._present(field))
        return Compare(field, "=", self._value(field, value, path))

    def _compare(
        self, field: Field, op: Literal["=", "<", "<=", ">", ">="], value: object, path: str
    ) -> Filter:
        bound = self._value(field, value, path)
        # 1 == True, so identity.
        if (op == "<" and (bound is False or bound == "")) or (op == ">" and bound is True):
            return self._wrong(path, f"can match nothing: no value is {op} {shown(bound)}")
        return Compare(field, op, bound)

    def _present(self, field: Field) -> Filter:
        """That there is a value; of what no document lacks this is known."""
        collection = self._collection
        return And(()) if field.column in (collection.id, collection.sharding.key) else Exists(field)

    def listed(self, field: Field, value: object, path: str) -> Filter:
        listed = self._list(value, path)
        values = tuple(self._value(field, v, f"{path}[{i}]") for i, v in enumerate(listed) if v is not None)
        found = In(field, values)
        return Or((found, Not(self._present(field)))) if len(values) < len(listed) else found

    def between(self, field: Field, value: object, path: str) -> Filter:
        if not isinstance(value, list) or len(value) != 2:
            return self._wrong(path, "expected an array of two values: lower and upper bound, both included")
        before = len(self.problems)
        lower, upper = (self._value(field, v, f"{path}[{i}]") for i, v in enumerate(value))
        if len(self.problems) == before and not _ascending(lower, upper):
            return self._wrong(
                path,
                f"can match nothing: no value is at least {shown(lower)} and at most {shown(upper)}",
            )
        return And((Compare(field, ">=", lower), Compare(field, "<=", upper)))

    def exists(self, field: Field, value: object, path: str) -> Filter:
        if not isinstance(value, bool):
            return self._wrong(path, "expected true or false")
        present = self._present(field)
        return present if value else Not(present)

    def like(self, field: Field, value: object, path: str, *, ignore_case: bool) -> Filter:
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
        return Like(field, str(self._value(_ANY_TEXT, value, path)), ignore_case)

    def contains_listed(self, field: Field, value: object, path: str, *, every: bool) -> Filter:
        if every and value == []:
            # True of every array by logic, of nothing in MongoDB.
            return self._wrong(path, "expected a non-empty array of values")
        listed = self._list(value, path)
        return self.contains(field, listed, [f"{path}[{i}]" for i in range(len(listed))], every=every)

    def _list(self, value: object, path: str) -> list[object]:
        if not isinstance(value, list):
            self._wrong(path, "expected an array of values")
            return []
        if len(value) > self._limits.max_filter_values:
            self._wrong(path, f"{len(value)} values exceed {self._limits.max_filter_values}")
            return []
        return value

    def contains(self, field: Field, values: list[object], paths: list[str], *, every: bool) -> Filter:
        column = field.column
        if column is not None:
            hint = "; $like finds a part of a text" if column.type is ValueType.TEXT else ""
            return self._wrong(
                (paths or [column.name])[0],
                f"{column.name} is {column.type}; $contains, $containsAny and $containsAll need an array"
                f" in the metadata{hint}",
            )
        elements = [self._element(value, path) for value, path in zip(values, paths, strict=True)]
        return Contains(field, tuple(elements), every)

    def _element(self, value: object, path: str) -> str:
        try:
            return metadata.element(value, self._limits.max_filter_values)
        except ValueError as exc:
            self._wrong(path, str(exc))
            return ""

    def field(self, name: str, path: str) -> Field | None:
        collection = self._collection
        if name == "id":
            return Field(collection.id)
        column = collection.columns.get(name)
        if column is not None:
            return Field(column)
        if name == "content" and collection.content is not None:
            return Field(Column("content", collection.content, ValueType.TEXT))
        if collection.metadata is not None and name.startswith("metadata."):
            try:
                path_in = metadata_path.steps(name.removeprefix("metadata."))
                return Field(None, path_in, collection.metadata_indexes.get(path_in))
            except ValueError as exc:
                self._wrong(path, str(exc))
                return None
        known = ["id", *collection.columns]
        known += ["content"] if collection.content is not None else []
        known += ["metadata.<path>"] if collection.metadata is not None else []
        self._wrong(path, f"unknown field {_shown(name)}; fields of {collection.name} are {', '.join(known)}")
        return None

    def _value(self, field: Field, value: object, path: str) -> object:
        column = field.column
        try:
            if column is None:
                arrays = "; for arrays there are $contains, $containsAny and $containsAll"
                return metadata.scalar(value, arrays if isinstance(value, list) else "")
            return coerce(column.type, value)
        except ValueError as exc:
            self._wrong(path, str(exc))
            return None

    def _wrong(self, path: str, message: str) -> Filter:
        self.problems.append(Problem(_shown(path, 200, quote=False), message))
        return And(())


_INVERSE: dict[str, Literal["<", "<=", ">", ">="]] = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}


def _indexable(filter: Filter) -> Filter:
    """The same filter, in conditions that an index may serve where a negation can be put so."""
    match filter:
        case And(parts):
            return And(tuple(map(_indexable, parts)))
        case Or(parts):
            return Or(tuple(map(_indexable, parts)))
        case Not(part):
            served = _complement(part)
            return filter if served is None else served
    return filter


def _complement(filter: Filter) -> Filter | None:
    """The complement, if an index may find the rows that it keeps.

    A filter is true or not, never NULL: a missing value meets no comparison.
    """
    match filter:
        case And(parts):
            served = [_complement(part) for part in parts]
            known = tuple(one for one in served if one is not None)
            return Or(known) if len(known) == len(parts) else None
        case Or(parts):
            served = [_complement(part) for part in parts]
            if not any(served):
                return None
            return And(
                tuple(Not(part) if one is None else one for part, one in zip(parts, served, strict=True))
            )
        case Not(part):
            return _indexable(part)
        case Exists(Field(column=column)) if column is not None:
            return Not(filter)
        case Compare(Field(column=column) as field, op, value) if op in _INVERSE and column is not None:
            # NaN has its place in PostgreSQL's order, as the greatest.
            return Or((Compare(field, _INVERSE[op], value), Not(Exists(field))))
    return None


_Operator: TypeAlias = Callable[[_Parser, Field, object, str], Filter]

_OPERATORS: dict[str, _Operator] = {
    "$ne": lambda parser, field, value, path: Not(parser.equal(field, value, path)),
    "$in": _Parser.listed,
    "$nin": lambda parser, field, value, path: Not(parser.listed(field, value, path)),
    "$between": _Parser.between,
    "$exists": _Parser.exists,
    "$like": partial(_Parser.like, ignore_case=False),
    "$ilike": partial(_Parser.like, ignore_case=True),
    "$contains": lambda parser, field, value, path: parser.contains(field, [value], [path], every=True),
    "$containsAny": partial(_Parser.contains_listed, every=False),
    "$containsAll": partial(_Parser.contains_listed, every=True),
}


def _shown(text: str, limit: int = 60, *, quote: bool = True) -> str:
    """`text` short enough and clean enough for a message, whatever bytes it holds."""
    text = text.encode("utf-8", "backslashreplace").decode()
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return repr(text) if quote else text


def _ascending(lower: object, upper: object) -> bool:
    """Whether some value can be between the two, both included; values of different kinds have no order."""
    low, high = lower, upper
    if isinstance(lower, Digits) or isinstance(upper, Digits):
        low, high = (metadata.digits_of(value) for value in (lower, upper))
    try:
        return isinstance(low, bool) == isinstance(high, bool) and not below(high, low)
    except TypeError:
        return False
