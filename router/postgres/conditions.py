"""Filters as SQL conditions.

Values are always parameters; identifiers come from the validated shard map and need no quoting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from router.query.filter import And, Compare, Digits, Exists, Field, Filter, In, Like, Not, Or
from shard_config.model import Collection
from shard_config.values import ValueType

__all__ = ["Params", "PlainParams", "where"]

# Lists up to this long become single values, their number rounded up to a power of two: so that searches
# with different lists share a statement, which an array in an array of arguments could not.
_SINGLES = 16


class Params(Protocol):
    """Collects arguments and hands out the SQL that stands for them."""

    def add(self, value: object, type_: str) -> str: ...

    def share(self, value: object, type_: str) -> str:
        """For a value that all searches of one statement must have in common, such as an array."""
        ...


class PlainParams:
    """Every argument is a parameter of a statement for one request."""

    def __init__(self, *args: object) -> None:
        self.args = list(args)

    def add(self, value: object, type_: str) -> str:
        self.args.append(value)
        return f"${len(self.args)}::{type_}"

    share = add


def where(filter: Filter, collection: Collection, params: Params) -> str:
    """The condition's SQL; each node is either true or not, so that NULLs never leak out of `Not`."""
    match filter:
        case And(parts):
            return _joined(" AND ", "true", [where(part, collection, params) for part in parts])
        case Or(parts):
            return _joined(" OR ", "false", [where(part, collection, params) for part in parts])
        case Not(part):
            return f"({where(part, collection, params)}) IS NOT TRUE"
        case Exists(field):
            operand = _operand(field, collection, params)
            # JSON's null is no value either; jsonb keeps it apart from what is missing.
            return f"{operand if field.column is not None else _without_null(operand)} IS NOT NULL"
        case Compare(field, op, value):
            return _compare(field, op, value, collection, params)
        case In(field, values):
            return _in(field, values, collection, params)
        case Like(field, pattern, ignore_case):
            return _like(field, pattern, ignore_case, collection, params)


def _compare(field: Field, op: str, value: object, collection: Collection, params: Params) -> str:
    operand = _operand(field, collection, params)
    if field.column is not None:
        # Order by code point everywhere, as the router does when it routes by ranges of text.
        collate = ' COLLATE "C"' if field.column.type is ValueType.TEXT and op != "=" else ""
        return f"{operand} {op} {params.add(value, field.column.type)}{collate}"
    bound = f"{operand} {op} {params.add(_json(value), 'jsonb')}"
    if op == "=":
        return bound
    # jsonb orders values of different types too; a comparison here means values of the same type.
    return f"(jsonb_typeof({operand}) = '{_json_type(value)}' AND {bound})"


def _in(field: Field, values: tuple[object, ...], collection: Collection, params: Params) -> str:
    operand = _operand(field, collection, params)
    if field.column is not None:
        return f"{operand} = ANY({_list(values, field.column.type, params)})"
    return f"{operand} = ANY({_list([_json(value) for value in values], 'jsonb', params)})"


def _list(values: Sequence[object], type_: str, params: Params) -> str:
    if not 0 < len(values) <= _SINGLES:
        return params.share(tuple(values), f"{type_}[]")
    padded = [*values, *[values[-1]] * ((1 << (len(values) - 1).bit_length()) - len(values))]
    return f"ARRAY[{', '.join(params.add(value, type_) for value in padded)}]"


def _like(field: Field, pattern: str, ignore_case: bool, collection: Collection, params: Params) -> str:
    operator = "ILIKE" if ignore_case else "LIKE"
    operand = _operand(field, collection, params)
    if field.column is not None:
        return f"{operand} {operator} {params.add(pattern, 'text')}"
    # #>> '{}' is the string inside a jsonb string; numbers have no pattern to match.
    text = f"({operand} #>> '{{}}')"
    return f"(jsonb_typeof({operand}) = 'string' AND {text} {operator} {params.add(pattern, 'text')})"


def _operand(field: Field, collection: Collection, params: Params) -> str:
    if field.column is not None:
        return field.column.column
    return f"({collection.metadata} #> {params.share(tuple(field.path), 'text[]')})"


def _without_null(operand: str) -> str:
    return f"nullif({operand}, 'null'::jsonb)"


def _json(value: object) -> str:
    if isinstance(value, Digits):
        return value.text
    return msgspec.json.encode(value).decode()


def _json_type(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "number"


def _joined(operator: str, empty: str, parts: Sequence[str]) -> str:
    return f"({operator.join(parts)})" if parts else empty
