"""What a field of a map is, and the kinds of fields: a section of the file is a table of them.

A field knows how its value is read from a file, what the JSON Schema says of it, and how a map is shown with
it. The reader, the schema and the view of a section go through its table, and the errors keep the place in
the file, because a field is read through the cursor that stands there. What spans several fields is checked
by whoever has read the section.

Invariant: the names of a table are the fields of the model class that its values make, but for a `name`
that is the section's key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

import msgspec

from shard_config import limits
from shard_config.file.identifiers import column_complaint
from shard_config.file.problems import suggestion
from shard_config.file.reader import Cursor
from shard_config.values import TYPE_NAMES, ValueType, parse_type

Schema: TypeAlias = dict[str, Any]


class Field(NamedTuple):
    """One field of a section.

    Attributes:
        read: takes the field's cursor, and gives the default where the file has nothing there.
        schema: of its value.
        default: None if there is none.
        help: what an editor shows.
        example: what the message about a missing field shows; None if the field may be missing.
        show: the value as the file has it.
    """

    read: Callable[[Cursor], Any]
    schema: Schema
    default: Any = None
    help: str = ""
    example: str | None = None
    show: Callable[[Any], Any] = lambda value: value

    def required(self, example: str) -> Field:
        return self._replace(example=example)


def values(cursor: Cursor, fields: Mapping[str, Field]) -> dict[str, Any]:
    """What the section under `cursor` says, by field."""
    cursor.check_fields(fields)
    return {
        name: field.read(cursor[name] if field.example is None else cursor.required(name, field.example))
        for name, field in fields.items()
    }


def shown(value: msgspec.Struct, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The value as a section of the file, every default written out."""
    found = {name: getattr(value, name) for name in fields}
    return {name: fields[name].show(one) for name, one in found.items() if one is not None}


def schema_of(fields: Mapping[str, Field]) -> Schema:
    """The JSON Schema of the section."""
    required = [name for name, field in fields.items() if field.example is not None]
    return object_of({name: _property(field) for name, field in fields.items()}, required)


def _property(field: Field) -> Schema:
    description = {"description": field.help} if field.help else {}
    default = {} if field.default is None else {"default": field.show(field.default)}
    return {**field.schema, **description, **default}


# Pieces of schemas.


def ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def object_of(fields: Schema, required: Iterable[str] = ()) -> Schema:
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def text_of(pattern: str) -> Schema:
    # What a variable will hold is not known to an editor.
    return {"type": "string", "pattern": rf"^(?:{pattern})$|\$\{{"}


def named_of(value: Schema) -> Schema:
    """A mapping of names to such values."""
    names = {"pattern": f"^(?:{limits.NAME})$"}
    return {"type": "object", "propertyNames": names, "additionalProperties": value}


# Kinds of fields.


def integer(bounds: tuple[int, int], default: int | None = None, help: str = "") -> Field:
    placeholder = bounds[0] if default is None else default
    schema = {"type": "integer", "minimum": bounds[0], "maximum": bounds[1]}
    return Field(lambda cursor: cursor.integer(bounds, placeholder), schema, default, help)


def number(bounds: tuple[float, float], default: float | None = None, help: str = "") -> Field:
    schema = {"type": "number", "minimum": bounds[0], "maximum": bounds[1]}
    return Field(lambda cursor: cursor.number(bounds, default), schema, default, help)


def boolean(default: bool, help: str) -> Field:
    return Field(lambda cursor: cursor.boolean(default), {"type": "boolean"}, default, help)


def duration(bounds: tuple[float, float], default: float) -> Field:
    schema = {"anyOf": [number(bounds).schema, text_of(limits.DURATION)]}
    help = "Seconds, or text such as 500ms, 2s, 1m, 1h."
    return Field(lambda cursor: cursor.duration(bounds, default), schema, default, help)


def choice(options: type[StrEnum], default: StrEnum | None = None) -> Field:
    schema = {"enum": [str(option) for option in options]}
    return Field(lambda cursor: cursor.choice(options, default), schema, default, show=str)


def text(pattern: str, what: str, help: str) -> Field:
    """`what` a text of `pattern` is, for the message about one that is not."""
    return Field(lambda cursor: cursor.matching(pattern, what), text_of(pattern), help=help)


def column(default: str | None = None) -> Field:
    """The name of a column of the table."""

    def read(cursor: Cursor) -> str | None:
        name = cursor.string()
        wrong = None if name is None else column_complaint(name)
        if wrong:
            cursor.fail(wrong)
        return default if name is None else name

    return Field(read, ref("column"), default)


def value_type(options: Iterable[ValueType], example: ValueType) -> Field:
    """One of `options` under any of its names; required."""
    types = tuple(options)
    names = [str(name) for name in TYPE_NAMES if parse_type(name) in types]

    def read(cursor: Cursor) -> ValueType:
        name = cursor.string()
        if name is None:
            return example
        try:
            type_ = parse_type(name)
        except ValueError:
            near = suggestion(name, names) or f"; known are {', '.join(types)}, and their aliases"
            cursor.fail(f"unknown type {cursor.shown()}{near}")
            return example
        if type_ not in types:
            cursor.fail(f"expected one of {', '.join(types)}, got {cursor.shown()}")
        return type_

    return Field(read, {"enum": names}, show=str).required(example)


def section(fields: Mapping[str, Field], made: Callable[..., msgspec.Struct]) -> Field:
    """A section of its own; its values are what `made` takes."""

    def read(cursor: Cursor) -> msgspec.Struct:
        return made(**values(cursor, fields))

    return Field(read, schema_of(fields), show=lambda value: shown(value, fields))


def optional_section(fields: Mapping[str, Field], made: Callable[..., msgspec.Struct], help: str) -> Field:
    """As `section`; None where the file has nothing there."""
    field = section(fields, made)
    return field._replace(read=lambda cursor: field.read(cursor) if cursor.present else None, help=help)


def later(schema: Schema, show: Callable[[Any], Any]) -> Field:
    """One that can be read only when others have been: its value is the place where it stands."""
    return Field(lambda cursor: cursor, schema, show=show)
