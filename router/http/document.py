"""One document's JSON becomes a checked `Document` of its collection.

Invariant: what `read` returns PostgreSQL stores without an error about its values, and its sharding
key has a place. Metadata is looked through for that: jsonb has no U+0000, and its parser recurses.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import msgspec

from router.documents.types import Document
from router.http import vectors
from router.http.decode import Decoder
from router.query.errors import InvalidError
from shard_config import partition
from shard_config.model import Collection, Column
from shard_config.values import ValueType, coerce

__all__ = ["DocumentReader", "Readers", "checked"]

_METADATA_DEPTH = 32


class DocumentReader:
    """Reads documents of one collection."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        # Columns may be called like Python's keywords, so the struct's own names are numbers.
        names = {f"c{i}": name for i, name in enumerate(collection.columns)}
        fields: list[Any] = [("id", Any), ("vector", list[float] | bytes)]
        if collection.content is not None:
            fields.append(("content", str | None, None))
        if collection.metadata is not None:
            fields.append(("metadata", dict[str, Any] | None, None))
        fields.extend((field, _json_type(collection.columns[name]), None) for field, name in names.items())
        self._columns = [(field, collection.columns[name]) for field, name in names.items()]
        self._decoder: Decoder[msgspec.Struct] = Decoder(
            msgspec.defstruct("Document", fields, rename=names, forbid_unknown_fields=True)
        )

    def read(self, data: bytes | msgspec.Raw, index: int, path: str) -> Document:
        """The document; `path` is where it stands in the request.

        Raises:
            MalformedError, InvalidError
        """
        raw: Any = self._decoder.decode(data, path)
        collection = self.collection
        prefix = f"{path}." if path else ""
        id_ = checked(collection.id, raw.id, f"{prefix}id")
        vector = vectors.parse(raw.vector, collection.vector, f"{prefix}vector")
        vectors.check_indexed(vector, collection, f"{prefix}vector")
        content = getattr(raw, "content", None)
        if content is not None:
            _text(content, f"{prefix}content")
        metadata = getattr(raw, "metadata", None)
        columns = {}
        for field, column in self._columns:
            value = getattr(raw, field)
            if value is not None:
                columns[column.name] = checked(column, value, f"{prefix}{column.name}")
        self._check_place(id_, columns, prefix)
        return Document(
            index=index,
            id=id_,
            vector=vector,
            content=content,
            metadata=None if metadata is None else _encoded(metadata, f"{prefix}metadata"),
            columns=columns,
        )

    def _check_place(self, id_: object, columns: dict[str, object], prefix: str) -> None:
        sharding = self.collection.sharding
        key = sharding.key
        value = id_ if self.collection.sharded_by_id else columns.get(key.name)
        if value is None:
            raise InvalidError.at(f"{prefix}{key.name}", "the sharding key, which no document can do without")
        try:
            partition.locate(sharding, value)
        except partition.NoPlaceError as exc:
            raise InvalidError.at(f"{prefix}{key.name}", str(exc)) from exc


class Readers:
    """A reader per collection, built when first needed and again when a new map changes the collection."""

    def __init__(self) -> None:
        self._readers: dict[str, DocumentReader] = {}

    def of(self, collection: Collection) -> DocumentReader:
        reader = self._readers.get(collection.name)
        if reader is None or reader.collection is not collection:
            reader = self._readers[collection.name] = DocumentReader(collection)
        return reader


def checked(column: Column, value: object, path: str) -> object:
    """`value` as `column` stores it.

    Raises:
        InvalidError
    """
    try:
        return coerce(column.type, value)
    except ValueError as exc:
        raise InvalidError.at(path, str(exc)) from exc


def _json_type(column: Column) -> Any:
    # A number that is decoded as anything goes through a float, and comes out with 17 digits.
    return Decimal | None if column.type is ValueType.NUMERIC else Any


def _text(text: str, path: str) -> None:
    try:
        coerce(ValueType.TEXT, text)
    except ValueError as exc:
        raise InvalidError.at(path, str(exc)) from exc


def _encoded(metadata: dict[str, Any], path: str) -> str:
    stack: list[tuple[object, int]] = [(metadata, 1)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, str):
            _text(value, path)
        elif isinstance(value, dict | list):
            if depth > _METADATA_DEPTH:
                raise InvalidError.at(path, f"nested deeper than {_METADATA_DEPTH} levels")
            stack.extend((item, depth + 1) for item in value)
            if isinstance(value, dict):
                stack.extend((item, depth + 1) for item in value.values())
    # Not msgspec: it writes no integers beyond 64 bits, which jsonb holds.
    return json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))
