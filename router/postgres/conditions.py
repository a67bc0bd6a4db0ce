"""Filters as SQL conditions.

Values are always parameters; identifiers come from the validated shard map and need no quoting. What is
compared as text names its collation, so that shards of different locales agree.

Where the map has an index on what is compared, the condition is one that the index serves with any plan:
it names the collation of the index, or is joined with what the index can look up, which is true wherever
the condition is.

`@>` on a value of the metadata is equality that looks into an array as well: jsonb lets an array contain a
scalar that is one of its elements, and a scalar contain what is equal to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from router.postgres.collations import CODE_POINT, FOLDING
from router.postgres.filter_indexes import ARRAY_AS_NUMBER, ARRAY_AS_TEXT, key_of, value_at
from router.postgres.prefix import after, literal_prefix
from router.query.filter import And, Compare, Contains, Exists, Field, Filter, In, Like, Not, Or
from router.query.metadata import Digits, may_be_index
from shard_config.model import Collection, Column, MetadataType
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
        case Not(Exists(Field(column=column))) if column is not None:
            # Which an index serves, unlike the complement of a condition.
            return f"{column.column} IS NULL"
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
        case Contains(field, elements, every):
            return _contains(field, elements, every, collection, params)


def _compare(field: Field, op: str, value: object, collection: Collection, params: Params) -> str:
    operand = _operand(field, collection, params)
    if field.column is not None:
        collate = _collation(field.column, equality=op == "=")
        return f"{operand} {op} {params.add(value, field.column.type)}{collate}"
    if op == "=":
        condition = f"{operand} @> {params.add(_json(value), 'jsonb')}"
        return _looked_up(field, (value,), condition, collection, params)
    # jsonb orders values of different types too; a comparison here means values of the same type.
    is_kind = f"jsonb_typeof({operand}) = '{_json_type(value)}'"
    if isinstance(value, str):
        # jsonb orders strings by the database's locale.
        condition = f"({is_kind} AND {_text(operand)} {op} {params.add(value, 'text')} COLLATE {CODE_POINT})"
    else:
        condition = f"({is_kind} AND {operand} {op} {params.add(_json(value), 'jsonb')})"
    key = _key(field, (value,), collection)
    return condition if key is None else _joint(f"{key} {op} {_bound(value, params)}", condition)


def _in(field: Field, values: tuple[object, ...], collection: Collection, params: Params) -> str:
    operand = _operand(field, collection, params)
    if field.column is not None:
        collate = _collation(field.column, equality=True)
        return f"{operand}{collate} = ANY({_list(values, field.column.type, params)})"
    encoded = [_json(value) for value in values]
    if len(values) <= _SINGLES:
        condition = f"{operand} @> ANY({_list(encoded, 'jsonb', params)})"
        return _looked_up(field, values, condition, collection, params)
    listed = _listed(encoded, params)
    return f"({operand} = {listed} OR {_has_element(operand, listed)})"


def _contains(
    field: Field, elements: tuple[str, ...], every: bool, collection: Collection, params: Params
) -> str:
    """The metadata as a whole contain a document of the array alone: what a GIN index on them serves.

    Many scalars are looked up by hash instead, as `_in` does.
    """
    if len(elements) > _SINGLES and not every and not any(one.startswith("{") for one in elements):
        return _has_element(_operand(field, collection, params), _listed(elements, params))
    wanted = [f"[{','.join(elements)}]"] if every else [f"[{element}]" for element in elements]
    operand = str(collection.metadata)
    if field.index is not None or any(may_be_index(step) for step in field.path):
        # Containment knows no positions in arrays; and an index on a path is smaller than one on all.
        operand = _operand(field, collection, params)
    else:
        wanted = [_nested(field.path, array) for array in wanted]
    if every:
        return f"{operand} @> {params.add(wanted[0], 'jsonb')}"
    return f"{operand} @> ANY({_list(wanted, 'jsonb', params)})"


def _nested(path: Sequence[str], value: str) -> str:
    """JSON of objects within each other that hold `value` at `path`, and nothing else."""
    return "".join(f"{{{_json(step)}:" for step in path) + value + "}" * len(path)


def _listed(values: Sequence[str], params: Params) -> str:
    """JSON values for `= ANY`, which PostgreSQL puts into a hash table once for a statement.

    Of a bare array it would compare a row with every value, once the plan is one for any array: 26 s instead
    of 0.15 s for 100,000 rows and 1,000 values. A hash table finds what is equal, and not what is contained:
    so `_has_element`.
    """
    return f"ANY(SELECT unnest({params.share(tuple(values), 'jsonb[]')}))"


def _has_element(operand: str, listed: str) -> str:
    """Whether the value is an array with an element among the listed."""
    elements = f"jsonb_array_elements(CASE jsonb_typeof({operand}) WHEN 'array' THEN {operand} END)"
    # IS TRUE keeps the planner from joining the two, which would read the list again for every row.
    return f"EXISTS (SELECT FROM {elements} e WHERE (e = {listed}) IS TRUE)"


def _list(values: Sequence[object], type_: str, params: Params) -> str:
    if not 0 < len(values) <= _SINGLES:
        return params.share(tuple(values), f"{type_}[]")
    return f"ARRAY[{', '.join(params.add(value, type_) for value in _padded(values))}]"


def _padded(values: Sequence[object]) -> list[object]:
    return [*values, *[values[-1]] * ((1 << (len(values) - 1).bit_length()) - len(values))]


def _collation(column: Column, *, equality: bool) -> str:
    """Equality is that of bytes under every deterministic collation, so it takes that of the index."""
    named = column.type is ValueType.TEXT and (column.index or not equality)
    return f" COLLATE {CODE_POINT}" if named else ""


def _like(field: Field, pattern: str, ignore_case: bool, collection: Collection, params: Params) -> str:
    operator = "ILIKE" if ignore_case else "LIKE"
    operand = _operand(field, collection, params)
    collate = f"COLLATE {FOLDING if ignore_case else CODE_POINT}"
    prefix, is_prefix = ("", False) if ignore_case else literal_prefix(pattern)
    if field.column is not None:
        begins = _begins(operand, prefix, params) if field.column.index and prefix else ""
        if begins and is_prefix:
            return begins
        matches = f"{operand} {operator} {params.add(pattern, 'text')} {collate}"
        return f"({begins} AND {matches})" if begins else matches
    matches = f"{_text(operand)} {operator} {params.add(pattern, 'text')} {collate}"
    condition = f"(jsonb_typeof({operand}) = 'string' AND {matches})"
    key = _key(field, (pattern,), collection)
    return condition if key is None or not prefix else _joint(_begins(key, prefix, params), condition)


def _begins(operand: str, prefix: str, params: Params) -> str:
    """A range, which an index serves with any plan: of LIKE it would have to know the pattern."""
    lower = f"{operand} >= {params.add(prefix, 'text')} COLLATE {CODE_POINT}"
    end = after(prefix)
    upper = "" if end is None else f" AND {operand} < {params.add(end, 'text')} COLLATE {CODE_POINT}"
    return f"({lower}{upper})"


def _key(field: Field, values: Sequence[object], collection: Collection) -> str | None:
    """What the map's text or number index on `field` is over, if it serves comparisons with all `values`."""
    if field.index is None or field.index is MetadataType.ARRAY or not values:
        return None
    kind = "string" if field.index is MetadataType.TEXT else "number"
    if any(_json_type(value) != kind for value in values):
        return None
    return key_of(str(collection.metadata), field.path, field.index)


def _looked_up(
    field: Field, values: Sequence[object], condition: str, collection: Collection, params: Params
) -> str:
    """`condition`, which says that the metadata hold one of `values` at `field`, through its index.

    Arrays stand under one key, so that each of them is looked at.
    """
    key = _key(field, values, collection)
    if key is None:
        return condition
    is_text = isinstance(values[0], str)
    keys = [
        *[_bound(value, params) for value in _padded(values)],
        ARRAY_AS_TEXT if is_text else ARRAY_AS_NUMBER,
    ]
    collate = f" COLLATE {CODE_POINT}" if is_text else ""
    return _joint(f"{key}{collate} = ANY(ARRAY[{', '.join(keys)}])", condition)


def _bound(value: object, params: Params) -> str:
    if isinstance(value, str):
        return f"{params.add(value, 'text')} COLLATE {CODE_POINT}"
    return f"{params.add(_json(value), 'jsonb')}::numeric"


def _joint(found: str, condition: str) -> str:
    """What an index finds, of which `condition` holds.

    The planner would multiply the shares of two conditions that say nearly the same, and take a filter for
    much narrower than it is; of one within coalesce it knows nothing, and takes a half.
    """
    return f"({found} AND coalesce({condition}, false))"


def _text(operand: str) -> str:
    """The string inside a jsonb string."""
    return f"({operand} #>> '{{}}')"


def _operand(field: Field, collection: Collection, params: Params) -> str:
    if field.column is not None:
        return field.column.column
    if field.index is not None:
        return f"({value_at(str(collection.metadata), field.path)})"
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
