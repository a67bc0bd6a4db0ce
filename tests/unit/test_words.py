from __future__ import annotations

import re

import msgspec
import pytest

from router.postgres.fulltext_index import fulltext_index, languages, same_document, words_of
from router.postgres.rights import Held, Use, missing_rights
from router.postgres.words import words_search
from router.query.composition import Match
from router.query.filter import parse
from router.query.sizes import Layout
from router.settings import Settings
from shard_config.limits import LANGUAGES
from shard_config.model import Fulltext, LanguageColumn
from tests.unit.queries import collection

PLAIN = Layout(frozenset())
ONE = Fulltext(("content",))
STORED = Fulltext(("content", "tenant"), stored="words")


def searched(words: str, fulltext: Fulltext = ONE, **options: object) -> tuple[str, tuple[object, ...]]:
    documents = collection(fulltext=fulltext)
    tree = parse(documents, options["filter"], Settings()) if "filter" in options else None  # type: ignore[arg-type]
    match = Match(str(options.get("match", "all")))
    statement = words_search(documents, fulltext, words, match=match, limit=10, filter=tree, layout=PLAIN)
    return statement.sql, statement.args


def test_a_statement_depends_on_the_shape_of_a_search_and_not_on_its_values() -> None:
    one, other = searched("cat"), searched("dog or 'mouse")
    assert one[0] == other[0] and one[1] != other[1]
    assert searched("cat", filter={"tenant": "a"})[0] == searched("dog", filter={"tenant": "b"})[0]
    for words in ("cat dog", '"a \'b" or "c" -d'):
        one, other = (searched(text, match="any") for text in (words, f"{words} 'mouse\\"))
        assert one[0] == other[0] and one[1] != other[1]


def test_where_any_word_may_match_words_and_conditions_are_arguments_apart() -> None:
    _, args = searched('cat it\'s <b "big house" -dog', match="any")
    assert args == ('["cat","it\'s","<b","big house"]', '"big house" -dog', 10)
    assert searched("cat or dog", match="any")[1] == ('["cat","dog"]', 10)


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        ("---cat", "---cat"),
        ("----cat", "--cat"),
        ("-" * 33 + "cat", "---cat"),
        ("a " + "- " * 40 + "b", "a --b"),
        ("a" + "-(" * 41 + "b", "a---b"),
        ("a - b - c - d - e", "a - b - c - d - e"),
    ],
)
def test_negations_are_as_many_as_say_the_same(words: str, sent: str) -> None:
    assert searched(words)[1][0] == sent


def test_as_many_languages_as_a_map_may_name_make_no_endless_statement() -> None:
    names = tuple(f"language_{i}" for i in range(LANGUAGES))
    fulltext = Fulltext(("content", "tenant"), LanguageColumn("tenant", (*names, "simple", "simple")))
    assert languages(fulltext) == (*names, "simple")
    sql, _ = searched("cat", fulltext)
    any_word, _ = searched('cat "dog"', fulltext, match="any")
    assert len(any_word) < len(sql) + 1500 * LANGUAGES
    assert len(sql) < 2 * len(words_of(fulltext)) + 300 * LANGUAGES
    stored, _ = searched("cat", msgspec.structs.replace(fulltext, stored="words"))
    assert "to_tsvector" not in stored


def test_columns_are_weighted_in_their_order_and_a_single_one_is_not() -> None:
    assert "setweight" not in words_of(ONE)
    weights = re.findall(r"COALESCE\((\w+), ''::text\)\), '(\w)'", words_of(STORED))
    assert weights == [("content", "A"), ("tenant", "B")]


def test_expressions_are_the_same_up_to_what_the_server_writes_otherwise() -> None:
    index = fulltext_index(collection(fulltext=ONE))
    assert index is not None
    for same in (
        "to_tsvector('english'::regconfig, COALESCE(content, ''::text))",
        "(to_tsvector('english'::regconfig, (COALESCE(content, ''::character varying))::text))",
    ):
        assert same_document(same, index.key)
    for other in (
        "to_tsvector('german'::regconfig, COALESCE(content, ''::text))",
        "to_tsvector('english'::regconfig, COALESCE(title, ''::text))",
        "to_tsvector('english'::regconfig, content)",
        "to_tsvector('english'::regconfig, COALESCE(content, '::text'))",
    ):
        assert not same_document(other, index.key)


def test_a_role_that_may_not_read_the_column_of_words_is_told_the_grant() -> None:
    documents = collection(fulltext=STORED)
    every = frozenset({"SELECT", "INSERT", "UPDATE"})
    names = ("id", "embedding", "content", "metadata", "tenant", "price", "day", "is_active")
    held = Held(
        role="router",
        owner="owner",
        owns=False,
        analyzes=False,
        table=frozenset({"DELETE"}),
        columns={**dict.fromkeys(names, every), "words": frozenset()},
        schemas={"public": True},
        progress={},
    )
    for use in (Use.READ, Use.WRITE):
        assert missing_rights(documents, held, use) == ["GRANT SELECT (words) ON public.documents TO router"]
    assert missing_rights(documents, held, Use.LOAD) == []
