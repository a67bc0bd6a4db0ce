"""Rows as JSON: the hits of an answer, and single documents. Pure.

The values of a row are those that PostgreSQL sent. JSON has no number for an infinite distance and none for
some values of columns; these have names. Text, metadata and vectors of any length can be written in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np

from router.query.ranked import Ranked
from router.query.types import Row, VectorFormat
from router.query.wire import base64_text, number_text
from shard_config.model import Collection
from shard_config.values import json_form

__all__ = [
    "Fields",
    "Notes",
    "encode_document",
    "encode_hits",
    "field_values",
    "fields_of",
    "hit_of",
    "json_number",
    "pieces_of",
]

# Columns by name, and what turns a value into one that JSON has; None where nothing need be done.
Fields: TypeAlias = Sequence[tuple[str, Callable[[Any], object] | None]]
# By id, what a hit shows in place of its distance: members of its JSON.
Notes: TypeAlias = Mapping[object, bytes] | None

_encoder = msgspec.json.Encoder(decimal_format="number")
_PIECE = 1 << 18


class _Hit(msgspec.Struct):
    """One without columns: half the time of a dictionary."""

    id: Any
    distance: float
    shard: str


def fields_of(collection: Collection, names: Sequence[str], vector_format: VectorFormat = "float") -> Fields:
    """How JSON will show the columns `names`."""
    return [(name, _form(collection, name, vector_format)) for name in names]


def encode_hits(rows: Sequence[Ranked], fields: Fields, notes: Notes = None) -> bytes:
    """The hits as a JSON array; a row is (id, distance, *columns), and they ascend by distance."""
    if notes is not None:
        hits = [b"".join(pieces_of(hit_of(row, shard, fields), notes[row[0]])) for row, shard in rows]
        return b"[%s]" % b",".join(hits)
    # The ends tell of all.
    if not fields and rows and math.isfinite(rows[0][0][1]) and math.isfinite(rows[-1][0][1]):
        return _encoder.encode([_Hit(row[0], row[1], shard) for row, shard in rows])
    return _encoder.encode([hit_of(row, shard, fields) for row, shard in rows])


def encode_document(document: dict[str, Any]) -> bytes:
    """The JSON of one document whose values are as `field_values` gives them."""
    return _encoder.encode(document)


def hit_of(row: Row, shard: str, fields: Fields) -> dict[str, Any]:
    """A row of (id, distance, *columns) as JSON will hold it.

    JSON has no number for an infinite distance, which then has the name that such values have. Vectors that
    the router stored have none; others' may be so long that float32 overflows.
    """
    hit: dict[str, Any] = {"id": row[0], "distance": json_number(row[1]), "shard": shard}
    if fields:
        hit.update(field_values(row, 2, fields))
    return hit


def json_number(value: float) -> float | str:
    """`value`, or the name that it has where JSON has no number for it."""
    return value if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


def words_score(negated: float) -> float:
    """As few digits as tell scores apart: ranks are float32 below 1, to which a number of words is added."""
    score = -negated
    return float(str(np.float32(score))) if score < 1 else float(f"{score:.9g}")


def field_values(row: Row, first: int, fields: Fields) -> dict[str, Any]:
    """Columns of a row, from position `first` on, by name and as JSON will hold them."""
    values: dict[str, Any] = {}
    for position, (name, form) in enumerate(fields, first):
        value = row[position]
        values[name] = value if form is None or value is None else form(value)
    return values


def pieces_of(hit: dict[str, Any], note: bytes | None = None) -> Iterator[bytes]:
    """The JSON of one hit or document with megabytes of text or metadata, in pieces of some 256 KiB.

    `note` takes the place of the distance.
    """
    written = b"{"
    for i, (name, value) in enumerate(hit.items()):
        if name == "distance" and note is not None and i == 1:
            written += b"," + note
            continue
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


def _form(collection: Collection, name: str, vector_format: VectorFormat) -> Callable[[Any], object] | None:
    if name == "metadata":
        # PostgreSQL's own text of the document: decoding it only to encode it again is waste.
        return lambda text: msgspec.Raw(text.encode())
    if name == "vector":
        write, type_ = (number_text if vector_format == "float" else base64_text), collection.vector.type
        return lambda data: msgspec.Raw(write(data, type_))
    column = collection.columns.get(name)
    return None if column is None else json_form(column.type)
