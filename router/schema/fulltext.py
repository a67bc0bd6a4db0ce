"""What a table needs for full text, and what it has of that. Pure.

The words are kept either by an index alone or by a generated column and an index on that, as the map says;
see `router.postgres.fulltext_index`. A column is added to an empty table only: of others it rewrites
everything behind a lock, which is for whoever owns the table to choose the time of.
"""

from __future__ import annotations

from router.postgres.fulltext_index import (
    FulltextIndex,
    fulltext_index,
    languages,
    same_document,
    words_of,
)
from router.schema import ddl
from router.schema.inspect import Found, FoundIndex
from shard_config.model import Collection, Fulltext

__all__ = ["column_mismatches", "found_index", "language_mismatches", "missing_column", "remarks", "serves"]


def found_index(collection: Collection, found: Found) -> FoundIndex | None:
    """An index that serves the collection's searches for words, under whatever name."""
    wanted = fulltext_index(collection)
    if wanted is None:
        return None
    return next((index for index in found.indexes if index.valid and serves(wanted, index)), None)


def serves(wanted: FulltextIndex, index: FoundIndex) -> bool:
    """Further keys do no harm."""
    if index.method != "gin" or not index.total or not index.keys or not index.default_opclass:
        return False
    return same_document(index.keys[0], wanted.key)


def language_mismatches(collection: Collection, found: Found) -> list[str]:
    if collection.fulltext is None:
        return []
    known = ", ".join(sorted(found.languages))
    return [
        f"there is no text search configuration {name}; right would be one of {known}; or create it"
        for name in languages(collection.fulltext)
        if name not in found.languages
    ]


def missing_column(collection: Collection, found: Found) -> Fulltext | None:
    """The full text whose column is to be added."""
    fulltext = collection.fulltext
    if fulltext is None or fulltext.stored is None or fulltext.stored in found.columns or not found.empty:
        return None
    return fulltext


def column_mismatches(collection: Collection, found: Found) -> list[str]:
    """What is wrong with the column that keeps each row's words, if the map names one."""
    fulltext = collection.fulltext
    if fulltext is None or fulltext.stored is None or missing_column(collection, found) is not None:
        return []
    name, wanted = fulltext.stored, ddl.words_column(fulltext)
    column = found.columns.get(name)
    if column is None:
        return [
            f"column {name} is missing; right would be: {ddl.add_words(collection, fulltext)}; which rewrites"
            " the table and all of its indexes, and keeps everybody out meanwhile. Without `stored` in the"
            " map, searches for words need an index alone, which is built beside them"
        ]
    if column.type != "tsvector":
        return [f"column {name} is {column.type}; right would be {wanted}"]
    if column.stored is None and (column.generated or not found.triggers):
        return [f"column {name} does not keep the words of each row; right would be {wanted}"]
    if column.stored is not None and not same_document(column.stored, words_of(fulltext)):
        return [
            f"column {name} keeps other words than the map says, {column.stored}; right would be {wanted}"
        ]
    return []


def remarks(collection: Collection, found: Found) -> list[str]:
    """A column of words that a trigger fills is as good, where its owner sees to that."""
    fulltext = collection.fulltext
    column = None if fulltext is None else found.columns.get(fulltext.stored or "")
    if fulltext is None or column is None or column.stored is not None or column.type != "tsvector":
        return []
    return [
        f"column {column.name} is not generated: it has a row's words only if the table's trigger writes"
        f" them, as {words_of(fulltext)}"
    ]
