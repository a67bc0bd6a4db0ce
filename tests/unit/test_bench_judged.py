"""Judged queries and the measures of rankings, against what can be said without running them."""

from __future__ import annotations

import itertools
import math

import pytest

from bench.errors import NotHere
from bench.judged import debian, library
from bench.judged.measures import difference, ndcg, recall, reciprocal_rank
from bench.judged.types import Query
from bench.scenarios import relevance
from deploy.corpus.documents import Entry

RANKED = [5, 3, 8, 1]


@pytest.mark.parametrize(
    ("relevant", "expected"),
    [({5}, 1.0), ({3}, 1 / math.log2(3)), ({1}, 0.0), ({9}, 0.0), ({5, 3, 8}, 1.0)],
)
def test_ndcg_is_what_was_gained_of_what_could_be(relevant: set[int], expected: float) -> None:
    assert ndcg(RANKED, relevant, 3) == pytest.approx(expected)


def test_ndcg_is_one_for_the_best_order_only() -> None:
    relevant = {0, 1, 2}
    gained = {order: ndcg(order, relevant, 4) for order in itertools.permutations(range(5))}
    best = {order for order, gain in gained.items() if gain == pytest.approx(1)}
    assert best == {order for order in gained if set(order[:3]) == relevant}
    assert max(gained.values()) == pytest.approx(1)


def test_ndcg_of_more_answers_than_are_looked_at_can_be_one() -> None:
    assert ndcg([1, 2], {1, 2, 3, 4}, 2) == pytest.approx(1)


def test_the_reciprocal_rank_is_that_of_the_first_answer_within_the_depth() -> None:
    assert [reciprocal_rank(RANKED, {8, 1}, depth) for depth in (2, 3, 4)] == [0, 1 / 3, 1 / 3]


def test_recall_is_the_share_of_the_answers_found() -> None:
    assert recall(RANKED, {3, 1, 9}, 3) == pytest.approx(1 / 3)


def test_a_difference_of_every_query_is_beyond_chance_and_one_of_noise_is_not() -> None:
    base = [0.2, 0.5, 0.1, 0.9] * 50
    better = difference([value + 0.05 for value in base], base)
    assert better.low == pytest.approx(0.05) and better.high == pytest.approx(0.05)
    turned = [value for pair in zip(base[1::2], base[::2], strict=True) for value in pair]
    none = difference(turned, base)
    assert none.median == pytest.approx(0) and none.low < 0 < none.high


def test_sides_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="1 queries against 2"):
        difference([1.0], [1.0, 1.0])


REST = "It says more about itself than that, in words that a query can be compared with, and at length."


def entry(place: int, name: str, text: str) -> Entry:
    return Entry(place, name, name.partition(".")[0], "function", text)


CORPUS = [
    entry(0, "a.first_thing", f"Do the very first thing. {REST}"),
    entry(1, "a.second", f"Do the same as another one.\n\n{REST}"),
    entry(2, "b.second", f"Do the same as another one.\n\n{REST} Twice."),
    entry(3, "b.HTTPThing", "This is all that is said of it."),
    entry(4, "b.short", f"Too short. {REST}"),
    entry(5, "b.repeats", f"Say the whole thing twice. Say the whole thing twice. {REST}"),
]


def test_a_summary_is_asked_for_and_is_not_in_its_document() -> None:
    found = library.summaries(10, corpus=CORPUS)
    assert [(query.text, query.relevant) for query in found.queries] == [("Do the very first thing.", {0})]
    assert found.documents[0] == f"a.first_thing\n{REST}"
    assert "Do the same" not in found.documents[1], "also where it is no query, it is taken away"
    assert found.documents[3] == "b.HTTPThing\nThis is all that is said of it."
    assert len(found.documents) == len(CORPUS)


def test_a_name_is_asked_for_in_words_and_all_that_have_it_are_answers() -> None:
    found = library.names(10, corpus=CORPUS)
    asked = {query.text: set(query.relevant) for query in found.queries}
    assert asked["first thing"] == {0} and asked["second"] == {1, 2} and asked["http thing"] == {3}
    assert found.documents == [entry.text for entry in CORPUS]


def test_the_same_queries_are_drawn_each_time_and_no_more_than_wanted() -> None:
    assert library.names(2, corpus=CORPUS) == library.names(2, corpus=CORPUS)
    assert len(library.names(2, corpus=CORPUS).queries) == 2
    assert library.names(2, corpus=CORPUS) != library.names(2, seed=1, corpus=CORPUS)


@pytest.mark.parametrize(
    ("text", "sentence", "rest"),
    [
        ("One.", "One.", ""),
        ("One two\nthree. Four.\n\nFive.", "One two three.", "Four.\n\nFive."),
        ("No end\n\nmore", "No end", "more"),
        ("os.path is one. Two", "os.path is one.", "Two"),
        ("", "", ""),
    ],
)
def test_a_first_sentence_ends_where_a_space_follows(text: str, sentence: str, rest: str) -> None:
    assert library.split(text) == (sentence, rest)


LISTED = """\
Package: small-tool
Section: utils
Description: tool that is small
Description-md5: 0

Package: small-tool-extra
Source: small-tool
Section: utils
Description: more for the small tool

Package: libsmall-dev
Section: libdevel
Description: development files of the small tool

Package: small-tool
Section: utils
Description: tool that is small
 It is described at length
 .
 in two paragraphs.
"""


def test_a_package_is_there_once_with_its_longest_description() -> None:
    assert debian.packages(LISTED) == {
        "small-tool": "tool that is small\nIt is described at length\n\nin two paragraphs."
    }


def test_packages_are_asked_for_by_their_names_in_words() -> None:
    listed = "\n\n".join(
        f"Package: tool-{i}.x\nSection: utils\nDescription: what is told of number {i}" for i in range(300)
    )
    found = debian.judged(20, 250, listed=listed)
    assert len(found.documents) == 250 and len(found.queries) == 20
    for query in found.queries:
        (place,) = query.relevant
        number = found.documents[place].rpartition(" ")[2]
        assert query.text == f"tool {number} x"
    assert found == debian.judged(20, 250, listed=listed)


def test_a_machine_that_describes_hardly_a_package_is_told_with_the_number() -> None:
    with pytest.raises(NotHere, match="1 packages are described on this machine; 200 are needed"):
        debian.judged(10, 10, listed=LISTED)


def test_a_mode_is_judged_by_its_short_answers_and_its_long_ones() -> None:
    queries = [Query("a", frozenset({1})), Query("b", frozenset({2, 3})), Query("c", frozenset({4}))]
    found = relevance.judge(queries, [([1, 5], [1, 5, 6]), ([5, 2], [5, 2, 3]), ([], [])])
    second = (1 / math.log2(3)) / (1 + 1 / math.log2(3))
    assert found.ndcg == pytest.approx([1, second, 0])
    assert found.reciprocal_rank == [1, 0.5, 0] and found.recall == [1, 1, 0]
    assert found.empty == pytest.approx(1 / 3)
