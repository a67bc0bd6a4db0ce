"""The statement of a full-text search: the rows of a shard that match words, those that match best first.

Ranking is exact: every row that matches is ranked, and none is left out. A score depends on the row and the
words alone, and not on the other rows, as one with an inverse document frequency would; so scores of
different shards compare, and it does not matter how rows lie on them.
"""

from __future__ import annotations

import re

from router.postgres.conditions import PlainParams, where
from router.postgres.fulltext_index import by_language, configuration, languages, row_words
from router.postgres.search import PLANNED_ANEW, id_in_order, limited
from router.postgres.sql import Statement, read_as, result_columns
from router.query.filter import Filter
from router.query.sizes import Layout
from shard_config.model import Collection, Fulltext

__all__ = ["NORMALISATION", "words_search"]

# A score is divided by 1 + log of the text's length. nDCG@10 of names as queries for what they name, where
# all words must match and where any will do: 528 docstrings of Python's library, 0.69 and 0.34; 400 Debian
# packages, 0.71 and 0.37. Divided by the length itself: 0.70 and 0.20, 0.74 and 0.20. Not divided: 0.70 and
# 0.24, 0.69 and 0.32. ts_rank_cd, which looks at how close words stand, so divided: 0.72 and 0.19, 0.67 and
# 0.09.
NORMALISATION = 1
# PostgreSQL refuses a query of more than 32 operators that wait for one operand, which only negations do:
# "-" that stand next to each other, or with nothing but space and what it passes over between them.
_NEGATIONS = re.compile(r"(?:-[\s!&|()]*){4,}")


def words_search(
    collection: Collection,
    fulltext: Fulltext,
    words: str,
    *,
    limit: int,
    filter: Filter | None,
    layout: Layout,
) -> Statement:
    """The best `limit` rows as (id, negated score, *columns of `layout`), ascending by (-score, id).

    `words` are read as `websearch_to_tsquery` does, in each language that a row may be in. Where they hold
    nothing to search for, in none of these, the only row begins with NULL.
    """
    params = PlainParams()
    text, wanted = params.add(_NEGATIONS.sub(_fewer, words), "text"), params.add(limit, "int")
    most = params.add(layout.row_bytes, "int") if layout.guarded else ""
    condition = ""
    if filter is not None:
        anew = PLANNED_ANEW.format(true=params.add(True, "bool"))
        condition = f"{where(filter, collection, params)} AND {anew} AND "
    # A plan that is made for the words knows how many rows they match, which decides between their index and
    # one of the filter. Without a filter there is nothing to decide: the sub-select hides the words, so that
    # the plan is made once, and each is taken apart once and not for every row.
    queries = {one: f"websearch_to_tsquery({configuration(one)}, {text})" for one in languages(fulltext)}
    every = " || ".join(queries.values())
    if filter is None:
        queries = {one: f"(SELECT {query})" for one, query in queries.items()}
        every = f"SELECT {every}"
    ranked = _ranked(collection, fulltext, queries, f"({every})", condition, layout)
    rows = limited(collection, ranked, wanted, most, layout.inline, False)
    columns = len(layout.inline) + layout.guarded
    none = f"SELECT NULL, NULL{', NULL' * columns} WHERE numnode(({every})) = 0"
    return Statement(f"({rows}) UNION ALL {none}", tuple(params.args))


def _fewer(negations: re.Match[str]) -> str:
    """As many as say the same; not one alone, which would join two words into one with a hyphen."""
    return "--" if negations[0].count("-") % 2 == 0 else "---"


def _ranked(
    collection: Collection,
    fulltext: Fulltext,
    queries: dict[str, str],
    every: str,
    condition: str,
    layout: Layout,
) -> str:
    """All rows that match, as (_id, _d, *columns); `every` is what `queries` of all languages find together.

    OFFSET 0 keeps what each row costs, taking it apart and ranking it, from being done for each place that
    names its outcome.
    """
    columns = [column for _, column in result_columns(collection, layout.inline)]
    read = "".join(f", {read_as(collection, column)} AS _c{i}" for i, column in enumerate(columns))
    words, id_ = row_words(fulltext), id_in_order(collection)
    found = f" FROM {collection.table} t WHERE {condition}({words}) @@ {every} OFFSET 0"
    if len(queries) == 1:
        return f"SELECT {id_} AS _id, -ts_rank({words}, {every}, {NORMALISATION}) AS _d{read}{found}"
    # The index knows words and no languages: what it finds by the words of another language than the row's
    # is left out by the second condition.
    passed = "".join(f", _c{i}" for i in range(len(columns)))
    rows = f"SELECT {id_} AS _id, {words} AS _w, {by_language(fulltext, queries)} AS _q{read}{found}"
    return (
        f"SELECT _id, -ts_rank(_w, _q, {NORMALISATION}) AS _d{passed} FROM ({rows}) m WHERE _w @@ _q OFFSET 0"
    )
