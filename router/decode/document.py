"""One document's JSON becomes a checked `Document` of its collection.

Invariant: what `read` returns PostgreSQL stores without an error about its values, and its sharding
key has a place. What answers show as a document is one: `shard` and `distance`, which say where it was
found, are taken and mean nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec

from router.decode import vectors
from router.decode.body import Decoder
from router.decode.embedded import Texts
from router.decode.metadata import checked_text
from router.documents.types import Document, TextDocument
from router.query.errors import InvalidError
from shard_config import partition
from shard_config.model import Collection, Column
from shard_config.values import ValueType, coerce

__all__ = ["CONTENT", "FOUND_FIELDS", "DocumentReader", "Readers", "checked"]

# What a document in an answer has besides its own fields.
FOUND_FIELDS = ("shard", "distance")
_NULL = msgspec.Raw(b"null")
CONTENT = Column("content", "content", ValueType.TEXT)


class DocumentReader:
    """Reads documents of one collection; those without a vector if it has an embedder to make one."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        # Columns may be called like Python's keywords, so the struct's own names are numbers.
        names = {f"c{i}": name for i, name in enumerate(collection.columns)}
        fields: list[Any] = [("id", Any), ("vector", list[float] | bytes | None, None)]
        if collection.content is not None:
            fields.append(("content", str | None, None))
        if collection.metadata is not None:
            fields.append(("metadata", msgspec.Raw, _NULL))
        fields.extend((field, Any, None) for field in names)
        fields.extend((name, Any, None) for name in FOUND_FIELDS)
        self._columns = [(field, collection.columns[name]) for field, name in names.items()]
        self._texts = Texts(collection)
        self._decoder: Decoder[msgspec.Struct] = Decoder(
            msgspec.defstruct("Document", fields, rename=names, forbid_unknown_fields=True), exact=True
        )

    def read(self, data: bytes | msgspec.Raw, index: int, path: str) -> Document | TextDocument:
        """The document, with its text where it has no vector; `path` is where it stands in the request.

        Raises:
            MalformedError, InvalidError
        """
        raw: Any = self._decoder.decode(data, path)
        collection = self.collection
        prefix = f"{path}." if path else ""
        id_ = checked(collection.id, raw.id, f"{prefix}id")
        vector = None
        if raw.vector is not None:
            vector = vectors.parse(raw.vector, collection.vector, f"{prefix}vector")
            vectors.check_indexed(vector, collection, f"{prefix}vector")
        content = getattr(raw, "content", None)
        if content is not None:
            checked(CONTENT, content, f"{prefix}content")
        raw_metadata = bytes(getattr(raw, "metadata", _NULL))
        columns = {}
        for field, column in self._columns:
            value = getattr(raw, field)
            if value is not None:
                columns[column.name] = checked(column, value, f"{prefix}{column.name}")
        self._check_place(id_, columns, prefix)
        metadata = None if raw_metadata == b"null" else checked_text(raw_metadata, f"{prefix}metadata")
        if vector is not None:
            return Document(index, id_, vector, content, metadata, columns)
        text = self._texts.of(content, metadata, columns, f"{prefix}vector")
        return TextDocument(index, id_, text, content, metadata, columns)

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
