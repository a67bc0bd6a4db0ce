"""What a collection says of texts: the model that embeds them, the template, and full-text search."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from shard_config import limits, template
from shard_config.file import fields
from shard_config.file.fields import Field, schema_of, shown, text_of, values
from shard_config.file.problems import quoted, suggestion
from shard_config.file.reader import Cursor, repeated
from shard_config.file.view import escaped
from shard_config.model import Collection, Column, EmbeddingService, Fulltext, LanguageColumn
from shard_config.values import ValueType

_LANGUAGE = "the name of a text search configuration, such as english"


class NamedFulltext(msgspec.Struct):
    """Full-text search by the names that requests use; `Fulltext` has the table's columns."""

    columns: tuple[str, ...]
    language: str | LanguageColumn
    stored: str | None


def _read_column_names(cursor: Cursor) -> tuple[str, ...]:
    items = cursor.items("columns")
    if cursor.is_sequence and not 1 <= len(items) <= limits.FULLTEXT_COLUMNS:
        cursor.fail(f"expected from 1 to {limits.FULLTEXT_COLUMNS} columns, got {len(items)}")
    names = [(item.string(), item) for item in items]
    for name, at, first in repeated(names):
        at.fail(f"the column {name} stands at {first} already")
    return tuple(name for name, _ in names if name is not None)


def _read_languages(cursor: Cursor) -> tuple[str, ...]:
    items = cursor.items("languages")
    if cursor.is_sequence and not 1 <= len(items) <= limits.LANGUAGES:
        cursor.fail(f"expected from 1 to {limits.LANGUAGES} languages, got {len(items)}")
    names = [(item.matching(limits.IDENTIFIER, _LANGUAGE), item) for item in items]
    for name, at, first in repeated(names):
        at.fail(f"the language {name} stands at {first} already")
    return tuple(name for name, _ in names if name is not None)


def _read_language(cursor: Cursor) -> str | LanguageColumn:
    """A section, or the one language of all rows."""
    if cursor.is_mapping:
        found = values(cursor, LANGUAGE)
        return LanguageColumn(found["column"] or "", found["values"])
    return cursor.matching(limits.IDENTIFIER, _LANGUAGE) or "english"


def _list_of(pattern: str, most: int) -> fields.Schema:
    return {"type": "array", "items": text_of(pattern), "minItems": 1, "maxItems": most}


LANGUAGE = {
    "column": Field(
        Cursor.string, {"type": "string"}, help="A declared text column that names each row's language."
    ).required("lang"),
    "values": Field(
        _read_languages,
        _list_of(limits.IDENTIFIER, limits.LANGUAGES),
        help="The names that it may hold; a row with another, or none, is read as `simple`.",
        show=list,
    ).required("[english, german]"),
}
FULLTEXT = {
    "columns": Field(
        _read_column_names,
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": limits.FULLTEXT_COLUMNS},
        help="`content` and declared text columns, the weightiest first.",
        show=list,
    ).required("[content]"),
    "language": Field(
        _read_language,
        {"anyOf": [text_of(limits.IDENTIFIER), schema_of(LANGUAGE)]},
        "english",
        show=lambda language: language if isinstance(language, str) else shown(language, LANGUAGE),
    ),
    "stored": fields.column(),
}


def _read_fulltext(cursor: Cursor) -> NamedFulltext | None:
    return NamedFulltext(**values(cursor, FULLTEXT)) if cursor.present else None


WORDS = {
    "embedder": Field(
        Cursor.string,
        text_of(limits.NAME),
        help="One of `models`: it turns texts into vectors of this collection.",
        show=lambda service: service.name,
    ),
    "template": Field(
        Cursor.string,
        {"type": "string"},
        help="What is embedded of a document, such as '{title}\\n{content}'; the content, if left out.",
        show=escaped,
    ),
    "fulltext": Field(_read_fulltext, schema_of(FULLTEXT), show=lambda named: shown(named, FULLTEXT)),
}


def embedder_of(
    name: str | None, cursor: Cursor, models: Mapping[str, EmbeddingService], dimensions: int
) -> EmbeddingService | None:
    """The model of this name, for vectors of so many dimensions."""
    if name is None:
        return None
    service = models.get(name)
    if service is None:
        near = suggestion(name, models) or "; the map has no models"
        cursor.fail(f"no model {cursor.shown()} in this map{near}")
    elif service.dimensions not in (0, dimensions):
        made = service.dimensions
        cursor.fail(f"the model {name} makes {made} dimensions, and the vector has {dimensions}")
    return service


def check_template(collection: Collection, cursor: Cursor) -> None:
    """Find fault with a template that names what documents do not have, or that nobody would use."""
    at, text = cursor["template"], collection.template
    if text is None:
        return
    if not cursor["embedder"].present:
        at.fail("a template has no effect without an embedder")
    try:
        parts = template.parts(text)
    except ValueError as exc:
        at.fail(str(exc))
        return
    known = list(collection.columns)
    known += ["content"] if collection.content is not None else []
    known += ["metadata"] if collection.metadata is not None else []
    for part in dict.fromkeys(part for part in parts if isinstance(part, template.TemplateField)):
        if part.name not in known:
            near = suggestion(part.name, known)
            at.fail(f"{{{part.name[:60]}}} is no field of the collection's documents{near}")
        elif part.name == "metadata" and not part.path:
            at.fail("expected a path in the metadata, such as {metadata.title}, got {metadata}")


def fulltext_of(
    named: NamedFulltext | None, cursor: Cursor, content: str | None, columns: Mapping[str, Column]
) -> Fulltext | None:
    """With the table's columns in place of the names that requests use."""
    if named is None:
        return None
    texts = {name: column.column for name, column in columns.items() if column.type is ValueType.TEXT}

    def resolved(name: str, at: Cursor, known: Mapping[str, str]) -> str:
        if name not in known:
            wrong = "is not of type text" if name in columns else "is none of the collection's"
            at.fail(f"the column {quoted(name)} {wrong}{suggestion(name, known)}")
        return known.get(name, name)

    searched = texts if content is None else {"content": content, **texts}
    names = zip(named.columns, cursor["columns"].items(), strict=False)
    found = tuple(resolved(name, at, searched) for name, at in names)
    language = named.language
    if isinstance(language, LanguageColumn):
        column = resolved(language.column, cursor["language"]["column"], texts)
        language = LanguageColumn(column, language.values)
    return Fulltext(found, language, named.stored)


def named_fulltext(collection: Collection) -> NamedFulltext | None:
    """The other way about: by the names that requests use."""
    fulltext = collection.fulltext
    if fulltext is None:
        return None
    names = {column.column: name for name, column in collection.columns.items()}
    if collection.content is not None:
        names[collection.content] = "content"
    language = fulltext.language
    if isinstance(language, LanguageColumn):
        language = LanguageColumn(names[language.column], language.values)
    return NamedFulltext(tuple(names[column] for column in fulltext.columns), language, fulltext.stored)
