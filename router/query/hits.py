"""Rows as JSON: the hits of an answer, and single documents. Pure.

The values of a row are those that PostgreSQL sent. JSON has no number for an infinite distance and none for
some values of columns; these have names. Text, metadata and vectors of any length can be written in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from router.query.types import Row, VectorFormat
from router.query.wire import base64_text, number_text
from shard_config.model import Collection
from shard_config.values import json_form

__all__ = ["encode_hits", "field_values", "hit_of", "json_forms", "pieces_of"]

Forms: TypeAlias = Mapping[str, Callable[[object], object]]

_encoder = msgspec.json.Encoder(decimal_format="number")
_PIECE = 1 << 18


def encode_hits(
    kept: Sequence[tuple[Row, str]],
    collection: Collection,
    columns: Sequence[tuple[str, str]],
    vector_format: VectorFormat = "float",
) -> bytes:
    """The hits as a JSON array; a row is (id, distance, *columns)."""
    names = [name for name, _ in columns]
    forms = json_forms(collection, names)
    hits = [hit_of(row, shard, collection, names, forms, vector_format) for row, shard in kept]
    return _encoder.encode(hits)


def json_forms(collection: Collection, names: Sequence[str]) -> Forms:
    """What `field_values` needs to write the values of columns that JSON does not have as they are."""
    columns = [collection.columns[name] for name in names if name in collection.columns]
    return {column.name: form for column in columns if (form := json_form(column.type)) is not None}


def hit_of(
    row: Row,
    shard: str,
    collection: Collection,
    names: Sequence[str],
    forms: Forms,
    vector_format: VectorFormat,
) -> dict[str, Any]:
    """A row of (id, distance, *columns) as JSON will hold it.

    JSON has no number for an infinite distance, which then has the name that such values have. Vectors that
    the router stored have none; others' may be so long that float32 overflows.
    """
    distance = row[1]
    if not math.isfinite(distance):
        distance = "Infinity" if distance > 0 else "-Infinity"
    hit: dict[str, Any] = {"id": row[0], "distance": distance, "shard": shard}
    if names:
        hit.update(field_values(collection, names, forms, row, 2, vector_format))
    return hit


def pieces_of(hit: dict[str, Any]) -> Iterator[bytes]:
    """The JSON of one hit or document with megabytes of text or metadata, in pieces of some 256 KiB."""
    written = b"{"
    for i, (name, value) in enumerate(hit.items()):
        written += (b"," if i else b"") + _encoder.encode(name) + b":"
        if isinstance(value, str) and len(value) > _PIECE:
            yield written + b'"'
            for start in range(0, len(value), _PIECE):
                yield _encoder.encode(value[start : start + _PIECE])[1:-1]
            written = b'"'
        elif isinstance(value, msgspec.Raw) and len(value) > _PIECE:
            yield written
            view = memoryview(value)
            for start in range(0, len(view), _PIECE):
                yield bytes(view[start : start + _PIECE])
            written = b""
        else:
            written += _encoder.encode(value)
    yield written + b"}"


def field_values(
    collection: Collection,
    names: Sequence[str],
    forms: Forms,
    row: Row,
    first: int,
    vector_format: VectorFormat = "float",
) -> dict[str, Any]:
    """Columns of a row, from position `first` on, by name and as JSON will hold them."""
    values: dict[str, Any] = {}
    for position, name in enumerate(names, first):
        value = row[position]
        if value is not None and name == "metadata":
            # PostgreSQL's own text of the document: decoding it only to encode it again is waste.
            value = msgspec.Raw(value.encode())
        elif value is not None and name == "vector":
            text = number_text if vector_format == "float" else base64_text
            value = msgspec.Raw(text(value, collection.vector.type))
        elif value is not None and name in forms:
            value = forms[name](value)
        values[name] = value
    return values
