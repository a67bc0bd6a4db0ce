"""The indexes that a map wants on what filters compare, and the expressions that they are over.

Invariant: `router.postgres.conditions` writes the very expressions that stand here, with paths as literals:
the planner takes an index for a condition only if the two are the same.

A path of the metadata holds values of any type, and equality looks into arrays as well. So the key of a text
or number index is the value where it has the type, a marker where it is an array, which has to be looked at
then, and NULL else. Only of what has the type a row's key is as long as the value, and PostgreSQL refuses
keys of more than 2704 bytes; an index for arrays holds hashes.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from shard_config.metadata_path import spelled
from shard_config.model import Collection, Column, MetadataType
from shard_config.values import ValueType

__all__ = [
    "ARRAY_AS_NUMBER",
    "ARRAY_AS_TEXT",
    "IndexDefinition",
    "filter_indexes",
    "key_of",
    "same_expression",
    "value_at",
]

# What JSON has no number like, and what sorts before every other text.
ARRAY_AS_NUMBER = "'NaN'::numeric"
ARRAY_AS_TEXT = "''::text"

_REMEMBERED = 1024  # texts, which every search with such a filter needs


class IndexDefinition(msgspec.Struct, frozen=True):
    """An index that is wanted, in the words of PostgreSQL's catalogs.

    Attributes:
        field: what it is on, as filters call it.
        column: the table's column.
        path: where in the metadata.
        method: of access, `btree` or `gin`.
        key: a column, or an expression as `pg_get_indexdef` writes it.
        code_point: texts are in the order of their code points.
        opclass: None for the type's default.
    """

    field: str
    column: str
    path: tuple[str, ...]
    method: str
    key: str
    code_point: bool = False
    opclass: str | None = None


def filter_indexes(collection: Collection) -> list[IndexDefinition]:
    """All that the map wants, in its order."""
    wanted = [_on_column(column) for column in collection.columns.values() if column.index]
    for path, type_ in collection.metadata_indexes.items():
        wanted.append(
            IndexDefinition(
                field=f"metadata.{spelled(path)}",
                column=str(collection.metadata),
                path=path,
                method="gin" if type_ is MetadataType.ARRAY else "btree",
                key=key_of(str(collection.metadata), path, type_),
                code_point=type_ is MetadataType.TEXT,
                opclass="jsonb_path_ops" if type_ is MetadataType.ARRAY else None,
            )
        )
    return wanted


def _on_column(column: Column) -> IndexDefinition:
    # One index serves equality, ranges and prefixes of a text if all of these name the same collation.
    is_text = column.type is ValueType.TEXT
    return IndexDefinition(column.name, column.column, (), "btree", column.column, code_point=is_text)


@lru_cache(_REMEMBERED)
def key_of(metadata: str, path: tuple[str, ...], type_: MetadataType) -> str:
    """The expression under the index on `path` of the column `metadata`."""
    value = value_at(metadata, path)
    match type_:
        case MetadataType.ARRAY:
            return f"({value})"
        case MetadataType.NUMBER:
            found, is_array, none = f"({value})::numeric", ARRAY_AS_NUMBER, "NULL::numeric"
        case MetadataType.TEXT:
            found, is_array, none = f"({value}) #>> '{{}}'::text[]", ARRAY_AS_TEXT, "NULL::text"
    kind = "string" if type_ is MetadataType.TEXT else "number"
    return (
        f"(CASE jsonb_typeof({value}) WHEN '{kind}'::text THEN {found}"
        f" WHEN 'array'::text THEN {is_array} ELSE {none} END)"
    )


def same_expression(one: str, other: str) -> bool:
    """Whether the two differ only in the parentheses around them and in space outside of literals."""
    return _bare(one) == _bare(other)


def _bare(expression: str) -> str:
    text = re.sub(r"('(?:[^']|'')*')|\s+", lambda match: match[1] or "", expression)
    while text.startswith("(") and text.endswith(")") and _closes_at_end(text):
        text = text[1:-1]
    return text


def _closes_at_end(text: str) -> bool:
    depth = 0
    for at, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return at == len(text) - 1
    return False


@lru_cache(_REMEMBERED)
def value_at(metadata: str, path: tuple[str, ...]) -> str:
    """The value at `path`, which the map names, with the path as a literal."""
    array = "{" + ",".join(map(_element, path)) + "}"
    # A backslash is one: every session has standard_conforming_strings.
    literal = array.replace("'", "''")
    return f"{metadata} #> '{literal}'::text[]"


def _element(step: str) -> str:
    """As `array_out` writes it."""
    plain = step and step.upper() != "NULL" and not any(c in '{}",\\' or c in " \t\n\r\v\f" for c in step)
    if plain:
        return step
    escaped = step.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
