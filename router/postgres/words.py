"""The statement of a full-text search: the rows of a shard that match words, those that match best first.

Ranking is exact: every row that matches is ranked, and none is left out. A score depends on the row and the
words alone, and not on the other rows, as one with an inverse document frequency would; so scores of
different shards compare, and it does not matter how rows lie on them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from router.postgres.conditions import PlainParams, where
from router.postgres.fulltext_index import by_language, configuration, languages, row_words
from router.postgres.search import PLANNED_ANEW, id_in_order, limited
from router.postgres.sql import Statement, read_as, result_columns
from router.query.composition import Match
from router.query.filter import Filter
from router.query.sizes import Layout
from router.query.websearch import loosened
from shard_config.model import Collection, Fulltext

__all__ = ["ANY_OF", "NORMALISATION", "words_search"]

# A score is divided by 1 + log of the text's length. nDCG@10 of names as queries for what they name, where
# all words must match and where any will do: 528 docstrings of Python's library, 0.69 and 0.34; 400 Debian
# packages, 0.71 and 0.37. Divided by the length itself: 0.70 and 0.20, 0.74 and 0.20. Not divided: 0.70 and
# 0.24, 0.69 and 0.32. ts_rank_cd, which looks at how close words stand, so divided: 0.72 and 0.19, 0.67 and
# 0.09.
NORMALISATION = 1
# PostgreSQL refuses a query of more than 32 operators that wait for one operand, which only negations do:
# "-" that stand next to each other, or with nothing but space and what it passes over between them.
_NEGATIONS = re.compile(r"(?:-[\s!&|()]*){4,}")
# A vector's text is its lexemes, each quoted as it is in a query, with a space between them; each gets an
# operator in front, and the first loses it. The expression takes a lexeme at a time, with the quotation marks
# in it, which are doubled: so none is mistaken for its end, or for an operator, whatever is in it.
ANY_OF = r"substr(regexp_replace(strip({vector})::text, '''(?:[^'']|'''')*''', '| \&', 'g'), 3)::tsquery"


def words_search(
    collection: Collection,
    fulltext: Fulltext,
    words: str,
    *,
    match: Match = Match.ALL,
    limit: int,
    filter: Filter | None,
    layout: Layout,
) -> Statement:
    """The best `limit` rows as (id, negated score, *columns of `layout`), ascending by (-score, id).

    `words` are read as `websearch_to_tsquery` does, or where any of them may match as
    `router.query.websearch` does, in each language that a row may be in. Where they hold nothing to search
    for, in none of these, the only row begins with NULL.
    """
    params = PlainParams()
    read = _all_words(words, params) if match is Match.ALL else _any_word(words, params)
    sought = {one: read(configuration(one)) for one in languages(fulltext)}
    wanted = params.add(limit, "int")
    most = params.add(layout.row_bytes, "int") if layout.guarded else ""
    condition = ""
    if filter is not None:
        anew = PLANNED_ANEW.format(true=params.add(True, "bool"))
        condition = f"{where(filter, collection, params)} AND {anew} AND "
    # A plan that is made for the words knows how many rows they match, which decides between their index and
    # one of the filter. Without a filter there is nothing to decide: the sub-select hides the words, so that
    # the plan is made once, and each is taken apart once and not for every row.
    every = " || ".join(one.query for one in sought.values())
    if filter is None:
        sought = {one: _Sought(*(f"(SELECT {sql})" for sql in it if sql)) for one, it in sought.items()}
        every = f"SELECT {every}"
    ranked = _ranked(collection, fulltext, sought, f"({every})", condition, layout)
    rows = limited(collection, ranked, wanted, most, layout.inline, False)
    columns = len(layout.inline) + layout.guarded
    none = f"SELECT NULL, NULL{', NULL' * columns} WHERE numnode(({every})) = 0"
    return Statement(f"({rows}) UNION ALL {none}", tuple(params.args))


class _Sought(NamedTuple):
    """What is sought in one language, in SQL: the query and, where any word may match, what it ranks by."""

    query: str
    lexemes: str = ""
    either: str = ""


def _all_words(words: str, params: PlainParams) -> Callable[[str], _Sought]:
    text = params.add(_NEGATIONS.sub(_fewer, words), "text")
    return lambda language: _Sought(f"websearch_to_tsquery({language}, {text})")


def _any_word(words: str, params: PlainParams) -> Callable[[str], _Sought]:
    loose = loosened(words)
    # An array in JSON, each element of which PostgreSQL takes apart by itself: text between "<" and ">",
    # which may stand in different words, would be a tag to it.
    each = params.add(msgspec.json.encode(loose.words).decode(), "jsonb")
    conditions = params.add(loose.conditions, "text") if loose.conditions else ""

    def sought(language: str) -> _Sought:
        vector = f"to_tsvector({language}, {each})"
        either = ANY_OF.format(vector=vector)
        query = f"({either} && websearch_to_tsquery({language}, {conditions}))" if conditions else either
        return _Sought(query, f"tsvector_to_array({vector})", either)

    return sought


def _fewer(negations: re.Match[str]) -> str:
    """As many as say the same; not one alone, which would join two words into one with a hyphen."""
    return "--" if negations[0].count("-") % 2 == 0 else "---"


def _ranked(
    collection: Collection,
    fulltext: Fulltext,
    sought: dict[str, _Sought],
    every: str,
    condition: str,
    layout: Layout,
) -> str:
    """All rows that match, as (_id, _d, *columns); `every` is what is sought in all languages together.

    OFFSET 0 keeps what each row costs, taking it apart and ranking it, from being done for each place that
    names its outcome.
    """
    columns = [column for _, column in result_columns(collection, layout.inline)]
    read = "".join(f", {read_as(collection, column)} AS _c{i}" for i, column in enumerate(columns))
    words, id_ = row_words(fulltext), id_in_order(collection)
    found = f" FROM {collection.table} t WHERE {condition}({words}) @@ {every} OFFSET 0"
    any_word = any(one.either for one in sought.values())
    if len(sought) == 1 and not any_word:
        return f"SELECT {id_} AS _id, -ts_rank({words}, {every}, {NORMALISATION}) AS _d{read}{found}"
    passed = "".join(f", _c{i}" for i in range(len(columns)))
    rows = f"SELECT {id_} AS _id, {words} AS _w{read}"
    own, score = "", f"ts_rank(_w, _q, {NORMALISATION})"
    if len(sought) > 1:
        # The index knows words and no languages: what it finds by the words of another language than the
        # row's is left out by the second condition.
        query = by_language(fulltext, {language: one.query for language, one in sought.items()})
        rows += f", {query} AS _q"
        own = " WHERE _w @@ _q"
    if any_word:
        lexemes = by_language(fulltext, {language: one.lexemes for language, one in sought.items()})
        either = by_language(fulltext, {language: one.either for language, one in sought.items()})
        rows += f", {lexemes} AS _l, {either} AS _a"
        # How many words are there, and what is below 1: the rank by words of which any will do is the mean of
        # what each adds, at most the sum of 1/i^2 for its 255 positions by 1.64493.
        score = f"length(_w) - length(ts_delete(_w, _l)) + ts_rank(_w, _a, {NORMALISATION})"
    return f"SELECT _id, -({score}) AS _d{passed} FROM ({rows}{found}) m{own} OFFSET 0"
