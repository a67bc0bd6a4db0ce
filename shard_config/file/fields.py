"""The plain fields of a collection's sections, each described once.

A field knows how its value is read from a file, what the JSON Schema says of it, and how a map is shown with
it. The reader, the schema and the view of a section go through its table, and the errors keep the place in
the file, because a field is read through the cursor that stands there.

Invariant: the names of a table are the fields of the model class that its values make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import date
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

import msgspec

from shard_config import limits
from shard_config.file.reader import Cursor, Section
from shard_config.model import Metric, Quantization, Tuned, VectorType

__all__ = [
    "CACHE",
    "INDEX",
    "SEARCH",
    "TUNED",
    "VECTOR",
    "Field",
    "Schema",
    "choice_of",
    "integer_of",
    "number_of",
    "object_of",
    "ref",
    "schema_of",
    "shown",
    "text_of",
    "values",
]

Schema: TypeAlias = dict[str, Any]


class Field(NamedTuple):
    """One field of a section.

    Attributes:
        read: takes the field's cursor, and gives the default where the file has nothing there.
        default: None if there is none.
        example: what the message about a missing field shows; None if the field may be missing.
        show: the value as the file has it.
    """

    read: Callable[[Cursor], Any]
    schema: Schema
    default: Any = None
    example: str | None = None
    show: Callable[[Any], Any] = lambda value: value


def values(section: Section, fields: Mapping[str, Field]) -> dict[str, Any]:
    """What the section says, by field."""
    return {
        name: field.read(section[name] if field.example is None else section.required(name, field.example))
        for name, field in fields.items()
    }


def shown(value: msgspec.Struct, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The value as a section of the file, every default written out."""
    found = {name: getattr(value, name) for name in fields}
    return {name: fields[name].show(one) for name, one in found.items() if one is not None}


def schema_of(fields: Mapping[str, Field]) -> Schema:
    """The JSON Schema of the section."""
    required = [name for name, field in fields.items() if field.example is not None]
    return object_of({name: field.schema for name, field in fields.items()}, required)


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


def integer_of(bounds: tuple[int, int], description: str = "") -> Schema:
    return _said({"type": "integer", "minimum": bounds[0], "maximum": bounds[1]}, description)


def number_of(bounds: tuple[float, float], description: str = "") -> Schema:
    return _said({"type": "number", "minimum": bounds[0], "maximum": bounds[1]}, description)


def text_of(pattern: str, description: str = "") -> Schema:
    # What a variable will hold is not known to an editor.
    return _said({"type": "string", "pattern": rf"^(?:{pattern})$|\$\{{"}, description)


def choice_of(options: type[StrEnum]) -> Schema:
    return {"enum": [str(option) for option in options]}


def _said(schema: Schema, description: str, default: object = None) -> Schema:
    more = {"description": description or None, "default": default}
    return {**schema, **{name: value for name, value in more.items() if value is not None}}


# Kinds of fields.


def _integer(
    bounds: tuple[int, int], default: int | None = None, description: str = "", *, example: str | None = None
) -> Field:
    placeholder = bounds[0] if default is None else default
    schema = _said(integer_of(bounds, description), "", default)
    return Field(lambda cursor: cursor.integer(bounds, placeholder), schema, default, example)


def _number(
    bounds: tuple[float, float],
    default: float | None = None,
    description: str = "",
    *,
    example: str | None = None,
) -> Field:
    schema = _said(number_of(bounds, description), "", default)
    return Field(lambda cursor: cursor.number(bounds, default), schema, default, example)


def _duration(bounds: tuple[float, float], default: float) -> Field:
    either = {"anyOf": [number_of(bounds), text_of(limits.DURATION)]}
    schema = _said(either, "Seconds, or text such as 500ms, 2s, 1m, 1h.", default)
    return Field(lambda cursor: cursor.duration(bounds, default), schema, default)


def _choice(options: type[StrEnum], default: StrEnum, *, example: str | None = None) -> Field:
    schema = choice_of(options) if example else {**choice_of(options), "default": str(default)}
    return Field(lambda cursor: cursor.choice(options, default), schema, default, example, str)


def _column(default: str) -> Field:
    def read(cursor: Cursor) -> str:
        name = cursor.string()
        return default if name is None else name

    return Field(read, {**ref("column"), "default": default}, default)


def _day(example: str) -> Field:
    def read(cursor: Cursor) -> date:
        text = cursor.matching(limits.DAY, f"a date such as {example}")
        try:
            return date.min if text is None else date.fromisoformat(text)
        except ValueError:
            cursor.fail(f"expected a day of the calendar, got {cursor.shown()}")
            return date.min

    return Field(read, text_of(limits.DAY), example=example, show=date.isoformat)


def _section(fields: Mapping[str, Field], made: Callable[..., msgspec.Struct], description: str) -> Field:
    def read(cursor: Cursor) -> msgspec.Struct | None:
        return made(**values(cursor.section(fields), fields)) if cursor.present else None

    schema = _said(schema_of(fields), description)
    return Field(read, schema, show=lambda value: shown(value, fields))


# The tables.

VECTOR = {
    "column": _column("embedding"),
    "type": _choice(VectorType, VectorType.VECTOR),
    "dimensions": _integer(limits.DIMENSIONS, example="384"),
    "metric": _choice(Metric, Metric.L2, example="cosine"),
}
INDEX = {
    "m": _integer(limits.M, 16),
    "ef_construction": _integer(limits.EF_CONSTRUCTION, 64),
    "quantization": _choice(Quantization, Quantization.NONE),
}
TUNED = {
    "target_recall": _number(limits.TARGET_RECALL, example="0.99"),
    "recall": _number(
        limits.SHARE,
        description="Mean of the queries' recall at k, in the worst case measured.",
        example="0.995",
    ),
    "lower_bound": _number(
        limits.SHARE, description="What that is at least, with 95 % confidence.", example="0.99"
    ),
    "k": _integer(limits.MAX_K, example="10"),
    "queries": _integer(limits.TUNE_QUERIES, example="500"),
    "filters": _integer(
        limits.TUNE_FILTERS, description="How many filters were measured beside no filter.", example="0"
    ),
    "shards": _integer((1, limits.SHARDS), description="How many shards the collection had.", example="4"),
    "at": _day("2026-01-31"),
}
SEARCH = {
    "ef_search": _integer(limits.EF_SEARCH, 40),
    "overfetch": _number(limits.OVERFETCH, 2.0),
    "timeout": _duration(limits.TIMEOUT, 2.0),
    "max_k": _integer(limits.MAX_K, 1000),
    "target_recall": _number(
        limits.TARGET_RECALL, description="What `pgscatter tune` chooses ef_search for."
    ),
    "tuned": _section(TUNED, Tuned, "Written by `pgscatter tune`."),
}
CACHE = {"ttl": _duration(limits.TTL, 60.0)}
