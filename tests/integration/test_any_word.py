"""Searches of which any word may match, over shards, against one table's rows counted word by word."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import pytest

from deploy.local import Cluster
from router.postgres.conditions import PlainParams, where
from router.postgres.fulltext_index import fulltext_index
from router.postgres.words import ANY_OF
from router.query.composition import Match
from router.query.filter import parse
from router.schema import ddl
from shard_config.model import Fulltext
from tests.integration.test_fulltext import (
    BY_ROW,
    COLUMNS,
    FILTERS,
    ODD,
    ONE,
    SHARDINGS,
    WEIGHTED,
    Reference,
    ask,
    pairs,
    searched,
)
from tests.integration.test_fulltext import QUESTIONS as OTHERS
from tests.integration.worlds import World, hits, replayed, world

# By text: what counts of it, and what every row must fulfil as well.
QUESTIONS: dict[str, tuple[str, str | None]] = {
    "cat": ("cat", None),
    "which cats and dogs run in the houses": ("which cats and dogs run in the houses", None),
    "cat nothing like this": ("cat nothing like this", None),
    "zebra": ("zebra", None),
    "quick or cat dog": ("quick cat dog", None),
    'cat "lazy sleeping" house': ("cat lazy sleeping house", '"lazy sleeping"'),
    '"quick foxes" or "lazy sleeping"': ("quick foxes lazy sleeping", '"quick foxes" or "lazy sleeping"'),
    'cat or "lazy sleeping"': ("cat lazy sleeping", 'cat or "lazy sleeping"'),
    "cat dog -run -jumped": ("cat dog", "-run -jumped"),
    "-cat": ("", "-cat"),
    'cat -"quick foxes"': ("cat", '-"quick foxes"'),
    "cat - dog": ("cat dog", None),
    'queries 5" house': ("queries 5 house", None),
    "Häuser e-mail café": ("Häuser e-mail café", None),
    "cat:* dog:A <-> \\ '' \" ; drop table -- %_": ("cat dog A drop table", None),
    "cat <i dog> run": ("cat run i dog", None),
    'the "" -the cat': ("the cat", "-the"),
}


class Counted(Reference):
    """Every row has its words counted by a join, and those that hold any are ranked."""

    async def pairs(self, words: str, filter: dict[str, Any] | None = None) -> list[tuple[str, Any]]:
        loose, conditions = QUESTIONS[words]
        c = self._w.collection
        assert c.fulltext is not None
        params = PlainParams(loose, conditions)
        condition = where(parse(c, filter or {}, self._w.topology.parts.settings), c, params)
        language = "'english'"
        if not isinstance(c.fulltext.language, str):
            language = "CASE WHEN lang IN ('english', 'german') THEN lang ELSE 'simple' END"
        language = f"({language})::regconfig"
        weights = "ABCD" if len(c.fulltext.columns) > 1 else "D"
        vector = " || ".join(
            f"setweight(to_tsvector({language}, coalesce({name}, '')), '{weight}')"
            for name, weight in zip(c.fulltext.columns, weights, strict=False)
        )
        rows = await self._connection.fetch(
            f"WITH r AS (SELECT *, {vector} AS w, {language} AS l FROM reference WHERE {condition}),"
            " n AS (SELECT r.*, ARRAY(SELECT DISTINCT s.lexeme FROM unnest(to_tsvector(l, $1)) s) AS sought"
            " FROM r), s AS (SELECT n.*, (SELECT count(*) FROM unnest(w) u WHERE u.lexeme = ANY (sought)) AS"
            " there, (SELECT coalesce(string_agg(quote_literal(x), '|'), '') FROM unnest(sought) x)::tsquery"
            " AS q FROM n) SELECT id, there + ts_rank(w, q, 1) AS score FROM s"
            " WHERE (there > 0 OR $1 = '') AND ($2::text IS NULL"
            " OR numnode(websearch_to_tsquery(l, $2)) = 0 OR w @@ websearch_to_tsquery(l, $2))"
            " ORDER BY 2 DESC, id",
            *params.args,
        )
        return [(str(row["id"]), pytest.approx(row["score"], rel=1e-7)) for row in rows]


@pytest.mark.parametrize(
    "fulltext", [ONE, WEIGHTED, BY_ROW], ids=["one column", "weights", "languages by row"]
)
async def test_shards_together_rank_as_one_table_does(cluster: Cluster, fulltext: Fulltext) -> None:
    async with searched(cluster, fulltext, reference=Counted) as (w, reference):
        some = 0
        for words in QUESTIONS:
            for filter in FILTERS if words.startswith("which") else FILTERS[:2]:
                expected = await reference.pairs(words, filter)
                some += len(expected) > 20
                assert await pairs(w, words, 1000, match=Match.ANY, filter=filter) == expected, words
                found = await pairs(w, words, 7, match=Match.ANY, filter=filter)
                found += await pairs(w, words, 9, offset=7, match=Match.ANY, filter=filter)
                assert found == expected[:16], (words, filter)
        assert some > 20
        for words in OTHERS:
            every = {id_ for id_, _ in await pairs(w, words, 1000)}
            assert every <= {id_ for id_, _ in await pairs(w, words, 1000, match=Match.ANY)}, words


@pytest.mark.parametrize("name", ["one shard", "ranges"])
async def test_the_order_does_not_depend_on_where_rows_lie(cluster: Cluster, name: str) -> None:
    async with searched(cluster, WEIGHTED, 200, reference=Counted, sharding=SHARDINGS[name]) as (
        w,
        reference,
    ):
        for words in QUESTIONS:
            assert await pairs(w, words, 300, match=Match.ANY) == await reference.pairs(words), words


async def test_rows_with_more_of_the_words_come_first_and_their_weights_second(cluster: Cluster) -> None:
    async with world(cluster, columns=COLUMNS, fulltext=WEIGHTED) as w:
        texts = {
            1: ("cat " * 300, None),
            2: (None, "cat"),
            3: ("cat", None),
            4: (None, " ".join(["dog", *["filler"] * 200, "cat"])),
            5: ("cat", "dog"),
            6: (None, "dog cat fox"),
            7: ("mouse", "mouse"),
        }
        await w.put(*[w.document(i, [1.0] * 8, title=t, content=c) for i, (t, c) in texts.items()])
        found = hits(await ask(w, "cat dog fox", match=Match.ANY))
        assert [int(hit["score"]) for hit in found] == [3, 2, 2, 1, 1, 1]
        assert [hit["id"] for hit in found] == [6, 5, 4, 3, 2, 1] or [hit["id"] for hit in found][-1] == 2
        every = [hit["id"] for hit in hits(await ask(w, "cat dog"))]
        assert sorted(every) == [4, 5, 6] and len(found) == 6


@pytest.mark.parametrize("filter", [None, {"price": {"$gte": 0}}], ids=["no filter", "filtered"])
@pytest.mark.parametrize("fulltext", [ONE, BY_ROW], ids=["one column", "languages by row"])
async def test_the_index_serves_searches_however_often_they_are_asked(
    cluster: Cluster, fulltext: Fulltext, filter: dict[str, Any] | None
) -> None:
    async with world(cluster, columns=COLUMNS, fulltext=fulltext) as w:
        table, index = w.collection.table, fulltext_index(w.collection)
        assert index is not None
        await w.on_primaries(ddl.create_fulltext_index(w.collection, index, f"{table.name}_fulltext"))
        await w.on_primaries(
            f"INSERT INTO {table} (id, embedding, content, title, lang, price)"
            " SELECT i, ARRAY[1,1,1,1,1,1,1,1]::float4[]::vector, 'a text number' || i % 500,"
            " 'title', 'german', i FROM generate_series(1, 5000) i"
        )
        await w.on_primaries(f"ANALYZE {table}")
        await replayed(cluster)
        options: dict[str, Any] = {"match": Match.ANY, "filter": filter, "plan": True, "cache": False}
        for _ in range(8):  # PostgreSQL may make a plan for any values after the fifth
            for words in ("which has number7 in it", 'number7 or "text number9" -number11'):
                found = await ask(w, words, **options)
                assert found.answer.count == 10
                for report in found.answer.reports:
                    assert report.plan is not None
                    assert f"Bitmap Index Scan on {table.name}_fulltext" in report.plan, report.plan


async def test_lexemes_of_all_kinds_become_a_query_for_each_of_them(cluster: Cluster) -> None:
    odd = [
        "a",
        "it's",
        "''",
        "'",
        "\\",
        "\\'",
        "a' 'b",
        "x' ",
        " 'y",
        "' | '",
        " ",
        "(",
        "a & !b",
        ":*",
        "é🦊",
    ]
    sql = f"SELECT {ANY_OF.format(vector='array_to_tsvector($1::text[])')}::text"
    connection = await asyncpg.connect(cluster.node("s0-a").dsn)
    try:
        for some in ([], odd[:1], odd, odd[::2], odd[1::2], odd[3:9]):
            either = await connection.fetchval(sql, some)
            nodes = await connection.fetchval("SELECT numnode($1::text::tsquery)", either)
            assert nodes == max(2 * len(some) - 1, 0)
            for one in odd:
                matches = "SELECT array_to_tsvector(ARRAY[$1::text]) @@ $2::text::tsquery"
                assert await connection.fetchval(matches, one, either) is (one in some), (one, either)
    finally:
        await connection.close()


async def post(w: World, **body: Any) -> dict[str, Any]:
    async with w.over_http() as http:
        response = await http.post("/search", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def found(answer: dict[str, Any]) -> list[int]:
    return [hit["id"] for hit in answer["hits"]]


async def test_all_words_match_by_default_in_hybrid_searches_too(cluster: Cluster) -> None:
    async with world(cluster, columns=COLUMNS, fulltext=ONE) as w:
        texts = ["cat", "cat dog", "dog", "fish"]
        await w.put(*[w.document(i, [float(i)] * 8, content=text) for i, text in enumerate(texts)])
        both, words = {"vector": [3.0] * 8, "mode": "hybrid"}, {"mode": "fulltext"}
        assert found(await post(w, **words, text="cat dog fish")) == []
        assert found(await post(w, **words, text="cat dog fish", match="all")) == []
        # The same text by another match is another search to the caches.
        any_word = await post(w, **words, text="cat dog fish", match="any")
        assert found(any_word)[0] == 1 and sorted(found(any_word)) == [0, 1, 2, 3]
        assert [int(hit["score"]) for hit in any_word["hits"]] == [2, 1, 1, 1]
        for match, returned in ((None, 0), ("any", 4), ("all", 0)):
            given = {} if match is None else {"match": match}
            answer = await post(w, **both, **given, text="cat dog fish")
            assert answer["legs"][1]["returned"] == returned and answer["legs"][0]["returned"] == 4
            if returned:
                ranks = {hit["id"]: hit["ranks"]["fulltext"] for hit in answer["hits"]}
                assert [id_ for id_, _ in sorted(ranks.items(), key=lambda pair: pair[1])] == found(any_word)
        queries = [
            {"mode": "fulltext", "text": "cat dog fish"},
            {"mode": "fulltext", "text": "cat dog fish", "match": "any", "filter": {"content": "dog"}},
            {"mode": "fulltext", "text": "cat dog", "match": "all"},
        ]
        answer = await post(w, queries=queries)
        assert [leg["returned"] for leg in answer["legs"]] == [0, 1, 1]
        assert answer["hits"][0]["ranks"].keys() <= {"fulltext2", "fulltext3"}


async def test_batches_say_for_each_search_what_may_match(cluster: Cluster) -> None:
    async with world(cluster, columns=COLUMNS, fulltext=ONE) as w, w.over_http() as http:
        await w.put(w.document(1, [1.0] * 8, content="cat"))
        text = {"mode": "fulltext", "text": "cat zebra"}
        searches = [
            text,
            {**text, "match": "any"},
            {"mode": "hybrid", "match": "any", "text": "cat zebra", "vector": [1.0] * 8},
            {**text, "text": "the of", "match": "any"},
            {**text, "match": "some"},
        ]
        results = (await http.post("/search/batch", json={"searches": searches})).json()["results"]
        assert [len(result.get("hits", ())) for result in results] == [0, 1, 1, 0, 0]
        assert results[2]["hits"][0]["ranks"] == {"vector": 1, "fulltext": 1}
        assert results[3]["short"] == {"asked": 10, "returned": 0, "reason": "no_words"}
        assert [one["path"] for one in results[4]["error"]["errors"]] == ["searches[4].match"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mode": "fulltext", "text": "a", "match": "some"}, "match"),
    ({"mode": "fulltext", "text": "a", "match": ["any"]}, "match"),
    ({"vector": [1.0] * 8, "match": "any"}, "match"),
    ({"like": {"ids": [1]}, "match": "all"}, "match"),
    ({"queries": [{"mode": "fulltext", "text": "a"}], "match": "any"}, "match"),
    ({"queries": [{"vector": [1.0] * 8, "match": "any"}]}, "queries[0].match"),
    ({"queries": [{"mode": "fulltext", "text": "a", "match": "ANY"}]}, "queries[0].match"),
]


async def test_every_text_is_answered_and_what_means_nothing_is_refused_at_its_place(
    cluster: Cluster,
) -> None:
    async with world(cluster, columns=COLUMNS, fulltext=BY_ROW) as w, w.over_http() as http:
        await w.put(w.document(1, [1.0] * 8, content="cat", lang="english"), w.document(2, [1.0] * 8))
        many = " ".join(f"{i:x}" for i in range(2000))
        phrases = '-"a b" or ' * 800
        for text in [
            *ODD,
            many,
            phrases,
            "<a cat>",
            "-" * 8191 + "x",
            '"' + "- " * 4000,
            json.dumps("\\u0000"),
        ]:
            for filter in ({}, {"filter": {"lang": "english"}}):
                body = {"mode": "fulltext", "text": text, "match": "any", **filter}
                response = await http.post("/search", json=body)
                assert response.status_code == 200, (text, response.text)
                holds = [hit["id"] for hit in response.json()["hits"]]
                wanted = text == "<a cat>" or ("cat" in text.split() and not text.endswith("-cat"))
                assert wanted <= (1 in holds), text
        for body, path in REFUSED:
            response = await http.post("/search", json=body)
            assert response.status_code == 422, (body, response.text)
            assert [one["path"] for one in response.json()["errors"]] == [path], (body, response.text)
