"""What the words of a document are, in SQL, and the index on them that a map wants.

Invariant: `router.postgres.words` asks for the very expression that stands here, with the languages as
literals: the planner takes an index for a condition only if the two are the same. It is immutable, so that it
may stand under an index or a generated column, since each language is named in it, and none is taken from the
session.

Either an index is on the expression, or a generated column stores its value and the index is on that. The
first is built beside writers on any table; but then ranking takes each document that matches apart anew.
Measured on 63,681 descriptions, of 0.3 kB and of 1.1 kB: 19 and 82 microseconds for each that matches, where
reading what is stored takes 0.8 and 2.
"""

from __future__ import annotations

import re

import msgspec

from shard_config.model import Collection, Fulltext, LanguageColumn

__all__ = [
    "FulltextIndex",
    "by_language",
    "configuration",
    "fulltext_index",
    "languages",
    "row_words",
    "same_document",
    "words_of",
]

# What a row is taken apart by whose language is none of those that are declared.
_OTHERWISE = "simple"
_WEIGHTS = "ABCD"
# Casts that PostgreSQL adds or leaves out as columns are of type text or not, and what it writes for reading.
_UNSAID = re.compile(r"('(?:[^']|'')*')|::text\b|::character varying(?:\(\d+\))?|::\"?char\"?|[\s()]+")


class FulltextIndex(msgspec.Struct, frozen=True):
    """The index that a map wants: `key` is the column or the expression that it is over."""

    key: str
    stored: bool


def fulltext_index(collection: Collection) -> FulltextIndex | None:
    """None where the map wants none."""
    fulltext = collection.fulltext
    if fulltext is None:
        return None
    if fulltext.stored is not None:
        return FulltextIndex(fulltext.stored, stored=True)
    return FulltextIndex(f"({words_of(fulltext)})", stored=False)


def row_words(fulltext: Fulltext) -> str:
    """A row's words as conditions and ranking read them: the stored ones, if they are stored."""
    return words_of(fulltext) if fulltext.stored is None else fulltext.stored


def words_of(fulltext: Fulltext) -> str:
    """The expression over a row's columns, a tsvector; NULL counts as an empty text."""
    language = fulltext.language
    if isinstance(language, str):
        return _in_language(fulltext.columns, language)
    return by_language(fulltext, {one: _in_language(fulltext.columns, one) for one in languages(fulltext)})


def languages(fulltext: Fulltext) -> tuple[str, ...]:
    """The text search configurations that rows are taken apart by, each once; the last is for the rest."""
    language = fulltext.language
    if isinstance(language, str):
        return (language,)
    return (*_declared(language), _OTHERWISE)


def by_language(fulltext: Fulltext, values: dict[str, str]) -> str:
    """Of the SQL in `values`, by language, that of the row's own."""
    language = fulltext.language
    if isinstance(language, str):
        return values[language]
    cases = " ".join(f"WHEN {_literal(value)}::text THEN {values[value]}" for value in _declared(language))
    return f"CASE {language.column} {cases} ELSE {values[_OTHERWISE]} END"


def configuration(name: str) -> str:
    """As a literal of type regconfig."""
    return f"{_literal(name)}::regconfig"


def same_document(one: str, other: str) -> bool:
    """Whether two expressions differ only in parentheses, space, and casts to text outside of literals."""
    return _said(one) == _said(other)


def _said(expression: str) -> str:
    return _UNSAID.sub(lambda match: match[1] or "", expression).lower()


def _declared(language: LanguageColumn) -> tuple[str, ...]:
    return tuple(value for value in dict.fromkeys(language.values) if value != _OTHERWISE)


def _in_language(columns: tuple[str, ...], language: str) -> str:
    parsed = [f"to_tsvector({configuration(language)}, COALESCE({name}, ''::text))" for name in columns]
    if len(parsed) == 1:
        return parsed[0]
    # Only four weights there are: columns beyond the fourth count as much as that.
    weighted = [
        f"setweight({one}, '{_WEIGHTS[min(i, len(_WEIGHTS) - 1)]}'::\"char\")" for i, one in enumerate(parsed)
    ]
    return " || ".join(weighted)


def _literal(text: str) -> str:
    # A backslash is one: every session has standard_conforming_strings.
    return "'" + text.replace("'", "''") + "'"
