"""What is embedded of a document that came without a vector, and the vector that comes of it. Pure.

Invariant: a document gets its vector by `with_vector` alone, which holds what a model has made to the same
checks as a caller's vector; and no vector is made of a document in whose fields there is no text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from router.decode import vectors
from router.documents.types import Document, TextDocument
from router.query.errors import InvalidError
from router.query.metadata import may_be_index
from router.query.patch import Changes, Patch
from shard_config.metadata_path import spelled
from shard_config.model import Collection
from shard_config.template import CONTENT, TemplateField, parts_of
from shard_config.values import json_form

__all__ = ["Texts", "with_vector"]

_encoder = msgspec.json.Encoder(decimal_format="number")
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_elements = msgspec.json.Decoder(list[msgspec.Raw])


class Texts:
    """The texts of one collection's documents, as its template says, or else their content."""

    def __init__(self, collection: Collection) -> None:
        self._parts = () if collection.embedder is None else parts_of(collection)
        self._collection = collection
        self._forms = {name: json_form(column.type) for name, column in collection.columns.items()}
        self._why_none = _why_none(collection, self._parts)

    def of(self, content: str | None, metadata: str | None, columns: Mapping[str, object], path: str) -> str:
        """The text of a document with these fields; what it lacks is the empty string.

        Args:
            path: where its vector would stand in the request.

        Raises:
            InvalidError: its fields hold no text, or the collection makes no vectors of texts.
        """
        written = []
        blank = True
        for part in self._parts:
            if isinstance(part, str):
                written.append(part)
                continue
            if part.path:
                value = "" if metadata is None else _at(metadata.encode(), part.path)
            elif part == CONTENT:
                value = content or ""
            else:
                value = _shown(columns.get(part.name), self._forms[part.name])
            blank = blank and not value.strip()
            written.append(value)
        if blank:
            raise InvalidError.at(path, f"required, but missing; {self._why_none}")
        return "".join(written)

    def concerned(self, patch: Patch) -> bool:
        """Whether `patch` may change the text of a document."""
        changed = {*patch.values, *patch.unset}
        for part in self._parts:
            if isinstance(part, str):
                continue
            if _column(self._collection, part) in changed:
                return True
            if part.path and patch.metadata is not None and _touches(patch.metadata, part.path):
                return True
        return False


def with_vector(collection: Collection, document: TextDocument, made: bytes) -> Document:
    """The document with the vector that a model has made of its text, as little-endian float32.

    Raises:
        InvalidError: the collection cannot hold the vector.
    """
    try:
        vector = vectors.parse(made, collection.vector, "vector")
        vectors.check_indexed(vector, collection, "vector")
    except InvalidError as exc:
        name = "the embedder" if collection.embedder is None else collection.embedder.name
        raise InvalidError.at("", f"{exc.detail}; it is what {name} has made of the text") from exc
    return document.with_vector(vector)


def _why_none(collection: Collection, parts: tuple[str | TemplateField, ...]) -> str:
    if collection.embedder is None:
        return f"collection {collection.name} has no embedder to make it of a text"
    fields = list(dict.fromkeys(_spelled(part) for part in parts if isinstance(part, TemplateField)))
    if not fields:
        return f"collection {collection.name} has neither content nor a template to make it of"
    *others, last = fields
    named = f"{', '.join(others)} and {last}" if others else last
    return f"there is no text in {named} to make it of"


def _column(collection: Collection, field: TemplateField) -> str | None:
    """The column of the table that the field is in."""
    if field.path:
        return collection.metadata
    return collection.content if field == CONTENT else collection.columns[field.name].column


def _touches(changes: Changes, path: tuple[str, ...]) -> bool:
    """Whether what stands at `path`, or a part of it, is changed."""
    first, rest = path[0], path[1:]
    if first in changes.members or first in changes.removed:
        return True
    inner = changes.within.get(first)
    return inner is not None and (not rest or _touches(inner, rest))


def _spelled(field: TemplateField) -> str:
    return f"{field.name}.{spelled(field.path)}" if field.path else field.name


def _shown(value: object, form: Callable[[object], object] | None) -> str:
    """A column's value as answers show it, a string without its quotes."""
    if value is None or isinstance(value, str):
        return value or ""
    return _unquoted(_encoder.encode(value if form is None else form(value)))


def _at(metadata: bytes, path: tuple[str, ...]) -> str:
    """What stands at `path`: a string as it is, anything else as its JSON; nothing if that is null."""
    value = metadata.strip()
    for step in path:
        found = None
        if value.startswith(b"{"):
            found = _members.decode(value).get(step)
        elif value.startswith(b"["):
            found = _element(_elements.decode(value), step)
        if found is None:
            return ""
        value = bytes(found).strip()
    return "" if value == b"null" else _unquoted(value)


def _element(elements: list[msgspec.Raw], step: str) -> msgspec.Raw | None:
    """As PostgreSQL's `#>` counts: from 0, or from the end where the number is negative."""
    if not may_be_index(step):
        return None
    try:
        return elements[int(step)]
    except (IndexError, ValueError):
        return None


def _unquoted(encoded: bytes) -> str:
    return msgspec.json.decode(encoded, type=str) if encoded[:1] == b'"' else encoded.decode()
