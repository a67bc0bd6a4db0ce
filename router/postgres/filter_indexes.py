"""The indexes that a map wants on what filters compare, and the expressions that they are over.

Invariant: `router.postgres.conditions` writes the very expressions that stand here, with paths as literals:
the planner takes an index for a condition only if the two are the same.

A path of the metadata holds values of any type, and equality looks into arrays as well. So the key of a text
or number index is the value where it has the type, a marker where it is an array, which has to be looked at
then, and NULL else. Only of what has the type a row's key is as long as the value, and PostgreSQL refuses
keys of more than 2704 bytes; an index for arrays holds hashes.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from shard_config.metadata_path import spelled
from shard_config.model import Collection, Column, MetadataType
from shard_config.values import ValueType

__all__ = ["ARRAY_AS_NUMBER", "ARRAY_AS_TEXT", "IndexDefinition", "filter_indexes", "key_of", "value_at"]

# What JSON has no number like, and what sorts before every other text.
ARRAY_AS_NUMBER = "'NaN'::numeric"
ARRAY_AS_TEXT = "''::text"


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

    @property
    def is_expression(self) -> bool:
        """Of whose values the server has statistics only once they were gathered with the index there."""
        return bool(self.path)


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
                key=key_of(collection, path, type_),
                code_point=type_ is MetadataType.TEXT,
                opclass="jsonb_path_ops" if type_ is MetadataType.ARRAY else None,
            )
        )
    return wanted


def _on_column(column: Column) -> IndexDefinition:
    # One index serves equality, ranges and prefixes of a text if all of these name the same collation.
    is_text = column.type is ValueType.TEXT
    return IndexDefinition(column.name, column.column, (), "btree", column.column, code_point=is_text)


def key_of(collection: Collection, path: Sequence[str], type_: MetadataType) -> str:
    """The expression under the index on `path`."""
    value = value_at(collection, path)
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


def value_at(collection: Collection, path: Sequence[str]) -> str:
    """The value of the metadata at `path`, which the map names, with the path as a literal."""
    array = "{" + ",".join(map(_element, path)) + "}"
    # A backslash is one: every session has standard_conforming_strings.
    literal = array.replace("'", "''")
    return f"{collection.metadata} #> '{literal}'::text[]"


def _element(step: str) -> str:
    """As `array_out` writes it."""
    plain = step and step.upper() != "NULL" and not any(c in '{}",\\' or c in " \t\n\r\v\f" for c in step)
    if plain:
        return step
    escaped = step.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
