"""Full-text searches over shards are what one table's own ranking says, whatever the words and the rows."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest

from deploy.local import Cluster
from router.postgres.conditions import PlainParams, where
from router.postgres.fulltext_index import fulltext_index
from router.query.errors import DeadlineError, MisconfiguredError
from router.query.filter import parse
from router.query.types import Consistency, Found, SearchQuery
from router.schema import ddl
from shard_config import model
from shard_config.model import Fulltext, LanguageColumn
from shard_config.values import ValueType
from tests.integration.worlds import World, column, execute, hits, replayed, world

ROWS = 400
ENGLISH = (
    "cat cats dog running runs run quick foxes jumped over the lazy sleeping house houses database query"
    " queries searching searched café naïve word-joined e-mail"
).split()
GERMAN = "Häuser Haus laufen läuft der die das und Katzen Katze suchen gesucht cats run query".split()
VOCABULARIES = {"english": ENGLISH, "german": GERMAN, "simple": [*ENGLISH, *GERMAN], None: ENGLISH}
COLUMNS = {
    "category": column("category", ValueType.TEXT),
    "price": column("price", ValueType.FLOAT8),
    "title": column("title", ValueType.TEXT),
    "lang": column("lang", ValueType.TEXT),
}
ONE = Fulltext(("content",))
WEIGHTED = Fulltext(("title", "content", "category"))
BY_ROW = Fulltext(("title", "content"), LanguageColumn("lang", ("english", "german")))
QUESTIONS = [
    "cat",
    "running dogs",
    '"quick foxes"',
    "cat or dog",
    "cat -dog",
    "-cat",
    "Häuser",
    "the cat and the dog",
    'searching "lazy sleeping" or (queries & !house)',
    "café | naïve",
    "e-mail word-joined",
    f"dog {'-' * 34}cat",
    f"dog {'- & ' * 35}cat",
    "nothing like this",
    '"unbalanced cat',
    "cat:* dog:A <-> \\ '' \" ; drop table -- %_",
    "🦊 cat 👩‍👩‍👧",
    "cat\t\x01\x7f\u200b dog",
    "or or or",
    "- - -cat",
]
FILTERS: list[dict[str, Any] | None] = [
    None,
    {"category": "c1"},
    {"price": {"$gte": 100, "$lt": 300}},
    {"category": {"$in": ["c0", "c2"]}, "metadata.n": {"$lt": 250}},
    {"$not": {"category": "c1"}},
    {"category": None},
    {"$or": [{"metadata.tags": "t3"}, {"content": {"$like": "%cat%"}}]},
    {"id": {"$in": []}},
]


def id_of(type_: ValueType, number: int) -> Any:
    if type_ is ValueType.UUID:
        return uuid.UUID(int=number * 7919)
    return f"Ä{number}é" if type_ is ValueType.TEXT else number * 3


def documents(w: World, rows: int, seed: int = 0) -> list[Any]:
    rng = random.Random(seed)
    made = []
    categories: list[str | None] = ["c0", "c1", "c2", "cat"]
    if w.collection.sharding.key.name != "category":
        categories.append(None)
    for number in range(rows):
        lang = rng.choice(["english", "german", "klingon", None])
        vocabulary = VOCABULARIES.get(lang, ENGLISH)

        def text(most: int, vocabulary: Sequence[str] = vocabulary) -> str:
            return " ".join(rng.choices(vocabulary, k=rng.randint(0, most)))

        made.append(
            w.document(
                id_of(w.collection.id.type, number),
                [float(number)] * 8,
                content=None if rng.random() < 0.1 else text(30),
                title=None if rng.random() < 0.2 else text(4),
                lang=lang,
                category=rng.choice(categories),
                price=float(number),
                metadata={"n": number, "tags": [f"t{number % 7}"]},
            )
        )
    return made


async def ask(w: World, words: str, k: int = 10, within: float = 20.0, **options: Any) -> Found:
    raw = options.pop("filter", None)
    tree = None if raw is None else parse(w.collection, raw, w.topology.parts.settings)
    query = SearchQuery(w.collection, b"", k, filter=tree, words=words, **options)
    return await w.router.search(query, w.soon(within))


async def pairs(w: World, words: str, k: int = 10, **options: Any) -> list[tuple[str, float]]:
    return [(str(hit["id"]), hit["score"]) for hit in hits(await ask(w, words, k, **options))]


class Reference:
    """All rows in one table, searched by a statement that is written for it alone."""

    def __init__(self, connection: asyncpg.Connection, w: World) -> None:
        self._connection = connection
        self._w = w

    async def pairs(self, words: str, filter: dict[str, Any] | None = None) -> list[tuple[str, Any]]:
        """Every match as (id, score), the best first."""
        c = self._w.collection
        assert c.fulltext is not None
        params = PlainParams(words)
        tree = parse(c, {} if filter is None else filter, self._w.topology.parts.settings)
        condition = where(tree, c, params)
        # More negations than PostgreSQL takes are as good as one or none.
        params.args[0] = words.replace("-" * 34, "").replace("- & " * 35, "-")
        language = "'english'"
        if not isinstance(c.fulltext.language, str):
            language = "CASE WHEN lang IN ('english', 'german') THEN lang ELSE 'simple' END"
        query = f"websearch_to_tsquery(({language})::regconfig, $1)"
        weighted = [
            f"setweight(to_tsvector(({language})::regconfig, coalesce({name}, '')), '{weight}')"
            for name, weight in zip(c.fulltext.columns, "ABCD", strict=False)
        ]
        words_sql = (
            " || ".join(weighted) if len(weighted) > 1 else f"to_tsvector({language}, coalesce(content, ''))"
        )
        order = 'id COLLATE "C"' if c.id.type is ValueType.TEXT else "id"
        rows = await self._connection.fetch(
            f"SELECT id, ts_rank({words_sql}, {query}, 1) AS score FROM reference"
            f" WHERE ({words_sql}) @@ {query} AND {condition} ORDER BY 2 DESC, {order}",
            *params.args,
        )
        return [(str(row["id"]), pytest.approx(row["score"], rel=1e-7)) for row in rows]


@asynccontextmanager
async def searched(
    cluster: Cluster,
    fulltext: Fulltext,
    rows: int = ROWS,
    reference: type[Reference] = Reference,
    **changes: Any,
) -> AsyncIterator[tuple[World, Reference]]:
    """A world with rows, and the same rows in one table."""
    async with world(cluster, columns=COLUMNS, fulltext=fulltext, **changes) as w:
        await w.put(*documents(w, rows))
        connection = await asyncpg.connect(cluster.node("s0-a").dsn)
        try:
            await connection.execute(f"CREATE TEMP TABLE reference (LIKE {w.collection.table})")
            for node in cluster.nodes:
                if node.role != "primary":
                    continue
                other = await asyncpg.connect(node.dsn)
                try:
                    names = "id, content, title, lang, category, price, metadata"
                    there = await other.fetch(f"SELECT {names} FROM {w.collection.table}")
                finally:
                    await other.close()
                await connection.execute("ALTER TABLE reference ALTER embedding DROP NOT NULL")
                await connection.copy_records_to_table(
                    "reference", records=[tuple(row) for row in there], columns=names.split(", ")
                )
            yield w, reference(connection, w)
        finally:
            await connection.close()


@pytest.mark.parametrize(
    "fulltext", [ONE, WEIGHTED, BY_ROW], ids=["one column", "weights", "languages by row"]
)
async def test_shards_together_rank_as_one_table_does(cluster: Cluster, fulltext: Fulltext) -> None:
    async with searched(cluster, fulltext) as (w, reference):
        some = 0
        for words in QUESTIONS:
            for filter in FILTERS if words in ("cat", "cat or dog", "-cat") else FILTERS[:2]:
                expected = await reference.pairs(words, filter)
                some += bool(expected)
                assert await pairs(w, words, 1000, filter=filter) == expected, (words, filter)
                found = await pairs(w, words, 7, filter=filter)
                found += await pairs(w, words, 9, offset=7, filter=filter)
                assert found == expected[:16], (words, filter)
        assert some > 20


SHARDINGS: dict[str, model.Sharding] = {
    "one shard": model.HashSharding(column("id", ValueType.BIGINT), ("s2",) * 4),
    "three shards": model.HashSharding(column("id", ValueType.BIGINT), ("s0", "s1", "s3")),
    "a list": model.ListSharding(COLUMNS["category"], {"c0": "s0", "c1": "s1", "cat": "s2"}, "s3"),
    "ranges": model.RangeSharding(
        COLUMNS["price"], (model.RangePart(None, 150.0, "s0"), model.RangePart(150.0, None, "s1"))
    ),
}


@pytest.mark.parametrize("sharding", SHARDINGS.values(), ids=SHARDINGS)
async def test_the_order_does_not_depend_on_where_rows_lie(cluster: Cluster, sharding: Any) -> None:
    async with searched(cluster, WEIGHTED, 200, sharding=sharding) as (w, reference):
        for words in ("cat or dog", "running -cat"):
            for filter in (None, {"category": "c1"}, {"price": {"$lt": 120}}):
                expected = await reference.pairs(words, filter)
                found = await ask(w, words, 300, filter=filter)
                assert [(str(hit["id"]), hit["score"]) for hit in hits(found)] == expected
                assert found.answer.short is not None and found.answer.short.reason == "exhausted"
        shards = found.answer.coverage.shards
        assert shards.total == len(w.router.shard_map.shards_of(w.collection))
        assert shards.skipped == (1 if isinstance(sharding, model.RangeSharding) else 0)


@pytest.mark.parametrize("type_", [ValueType.UUID, ValueType.TEXT])
async def test_equal_scores_go_by_ids_of_every_type(cluster: Cluster, type_: ValueType) -> None:
    id_ = column("id", type_)
    sharding = model.HashSharding(id_, ("s0", "s1", "s2", "s3"))
    async with searched(cluster, ONE, 150, id=id_, sharding=sharding) as (w, reference):
        for words in ("cat or dog", "-zebra"):
            expected = await reference.pairs(words)
            assert len(expected) > 40
            assert await pairs(w, words, 200) == expected
            assert await pairs(w, words, 5, offset=20) == expected[20:25]


PLANNED: dict[str, tuple[Fulltext, dict[str, Any] | None]] = {
    "one column": (ONE, None),
    "several columns": (WEIGHTED, None),
    "languages by row": (BY_ROW, None),
    "filtered": (ONE, {"price": {"$gte": 0}}),
    "languages by row, filtered": (BY_ROW, {"price": {"$gte": 0}}),
    "stored": (msgspec.structs.replace(BY_ROW, stored="words"), None),
}


@pytest.mark.parametrize(("fulltext", "filter"), PLANNED.values(), ids=PLANNED)
async def test_the_index_serves_searches_however_often_they_are_asked(
    cluster: Cluster, fulltext: Fulltext, filter: dict[str, Any] | None
) -> None:
    async with world(cluster, columns=COLUMNS, fulltext=fulltext) as w:
        table, index = w.collection.table, fulltext_index(w.collection)
        assert index is not None
        if fulltext.stored is not None:
            await w.on_primaries(ddl.add_words(w.collection, fulltext))
        await w.on_primaries(ddl.create_fulltext_index(w.collection, index, f"{table.name}_fulltext"))
        await w.on_primaries(
            f"INSERT INTO {table} (id, embedding, content, title, lang, price)"
            " SELECT i, ARRAY[1,1,1,1,1,1,1,1]::float4[]::vector, 'the document number' || i % 500,"
            " 'title', 'german', i FROM generate_series(1, 5000) i"
        )
        await w.on_primaries(f"ANALYZE {table}")
        await replayed(cluster)
        for _ in range(8):  # PostgreSQL may make a plan for any values after the fifth
            found = await ask(w, "document number7", filter=filter, plan=True, cache=False)
            assert found.answer.count == 10
            for report in found.answer.reports:
                assert report.plan is not None
                assert f"Bitmap Index Scan on {table.name}_fulltext" in report.plan, report.plan


NOTHING = frozenset({"content", "vector", "metadata"})


@pytest.mark.parametrize(
    ("fulltext", "words", "reason"),
    [
        (ONE, "the of and", "no_words"),
        (ONE, '... !!! ""', "no_words"),
        (BY_ROW, "the of and", "exhausted"),  # words to `simple`
        (BY_ROW, "?!", "no_words"),
        (ONE, "zebra", "exhausted"),
    ],
)
async def test_an_answer_says_whether_there_was_a_word_to_search_for(
    cluster: Cluster, fulltext: Fulltext, words: str, reason: str
) -> None:
    async with world(cluster, columns=COLUMNS, fulltext=fulltext) as w:
        await w.put(w.document(1, [1.0] * 8, content="cat", lang="english"))
        for include in (frozenset[str](), NOTHING):
            found = await ask(w, words, explain=True, include=include)
            assert found.answer.count == 0 and found.answer.coverage.full
            assert found.answer.short is not None and found.answer.short.reason == reason, words
            assert all(report.returned == report.kept == 0 for report in found.answer.reports)


async def test_hits_have_their_columns_however_wide_these_are(cluster: Cluster) -> None:
    everything = frozenset({"content", "metadata", "vector", *COLUMNS})
    async with world(cluster, columns=COLUMNS, fulltext=ONE) as w:
        wide = "cat " + "x" * 300_000
        await w.put(
            *[w.document(i, [float(i)] * 8, content=f"cat {i}", metadata={"n": i}) for i in range(20)],
            w.document(99, [99.0] * 8, content=wide, metadata={"n": "wide"}),
        )
        for k in (5, 21, 1000):
            found = hits(await ask(w, "cat", k, include=everything))
            scores = [hit["score"] for hit in found]
            assert len(found) == min(k, 21) and scores == sorted(scores, reverse=True)
            for hit in found:
                assert list(hit)[:3] == ["id", "score", "shard"]
                assert set(hit) == {"id", "score", "shard", *everything}
                assert hit["content"] == (wide if hit["id"] == 99 else f"cat {hit['id']}")
                assert hit["vector"] == [float(hit["id"])] * 8
        assert 99 in {hit["id"] for hit in found}


async def test_caches_keep_searches_for_words_apart_and_writes_are_seen(cluster: Cluster) -> None:
    async with world(cluster, columns=COLUMNS, fulltext=ONE) as w:
        await w.put(w.document(1, [1.0] * 8, content="cat"), w.document(2, [1.0] * 8, content="dog"))
        for words, id_ in (("cat", 1), ("dog", 2), ("cat", 1)):
            assert [hit["id"] for hit in hits(await ask(w, words))] == [id_]
        assert (await ask(w, "dog")).tier == "l1"
        assert (await ask(w, "dog", explain=True)).tier == "bypass"
        for number in range(3, 20):
            await w.put(w.document(number, [1.0] * 8, content="dogs"))
            assert len(hits(await ask(w, "dog", 100))) == number - 1
        strong = await ask(w, "dog", consistency=Consistency.STRONG)
        assert {report.role for report in strong.answer.reports} == {"primary"}


async def test_a_missing_shard_is_said_and_an_error_where_all_are_wanted(cluster: Cluster) -> None:
    async with world(cluster, columns=COLUMNS, fulltext=ONE) as w:
        table = w.collection.table
        await w.put(*[w.document(i, [1.0] * 8, content="cat") for i in range(40)])
        await execute(cluster.node("s1-a").dsn, f"ALTER TABLE {table} RENAME content TO gone")
        try:
            await replayed(cluster)
            found = await ask(w, "cat", 100, cache=False)
            coverage = found.answer.coverage
            assert not coverage.full and [one.shard for one in coverage.failures] == ["s1"]
            assert 0 < found.answer.count < 40 and found.answer.short is not None
            assert found.answer.short.reason == "coverage" and not found.answer.cacheable
            with pytest.raises(MisconfiguredError):
                await ask(w, "cat", 100, cache=False, allow_partial=False)
            with pytest.raises(DeadlineError):
                await ask(w, "cat", 100, within=0.0, cache=False)
        finally:
            await execute(cluster.node("s1-a").dsn, f"ALTER TABLE {table} RENAME gone TO content")


ODD = [
    "\x01\x02",
    "cat " * 2048,
    "🦊" * 8192,
    '"' * 999,
    "-" * 8192,
    "cat " + "- !" * 99 + "-cat",
    "a|b&c!d(e)f:*<->",
    "'; --",
    "a\u2028b",
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"text": "a\0b"}, "text"),
    ({"text": "x" * 8193}, "text"),
    ({"text": "  "}, "text"),
    ({"text": None}, "text"),
    ({"text": None, "vector": [1.0] * 8}, "text"),
    ({"vector": [1.0] * 8}, "text"),
    ({"max_distance": 1.0}, "max_distance"),
    ({"ef_search": 10}, "ef_search"),
    ({"mode": "words"}, "mode"),
]


async def test_every_text_is_answered_or_refused_with_its_place(cluster: Cluster) -> None:
    plain = {"mode": "fulltext", "text": "cat"}
    async with world(cluster, columns=COLUMNS, fulltext=ONE) as w, w.over_http() as http:
        await w.put(w.document(1, [1.0] * 8, content="cat"), w.document(2, [1.0] * 8))
        answer = (await http.post("/search", json=plain)).json()
        shard = answer["hits"][0]["shard"]
        assert answer["hits"] == [{"id": 1, "score": pytest.approx(0.0607927), "shard": shard}]
        for text in ODD:
            response = await http.post("/search", json={"mode": "fulltext", "text": text})
            assert response.status_code == 200, (text, response.text)
        for changes, path in REFUSED:
            response = await http.post("/search", json={**plain, **changes})
            assert response.status_code == 422, (changes, response.text)
            assert [one["path"] for one in response.json()["errors"]] == [path], (changes, response.text)
        searches = [plain, {**plain, "text": "the"}, {"vector": [1.0] * 8, "k": 1}, {"mode": "fulltext"}]
        results = (await http.post("/search/batch", json={"searches": searches})).json()["results"]
        assert results[0]["hits"] == answer["hits"]
        assert results[1]["short"] == {"asked": 10, "returned": 0, "reason": "no_words"}
        assert "distance" in results[2]["hits"][0]
        assert results[3]["error"]["errors"][0]["path"] == "searches[3].text"
    async with world(cluster) as w, w.over_http() as http:
        response = await http.post("/search", json=plain)
        assert response.status_code == 422 and response.json()["errors"][0]["path"] == "mode"


async def test_a_document_of_more_words_than_an_index_holds_is_its_own_failure(cluster: Cluster) -> None:
    async with world(cluster, columns=COLUMNS, fulltext=ONE) as w, w.over_http() as http:
        index = fulltext_index(w.collection)
        assert index is not None
        name = f"{w.collection.table.name}_words"
        await w.on_primaries(ddl.create_fulltext_index(w.collection, index, name))
        contents = ["cat", " ".join(f"word{i:07}" for i in range(90_000)), "cat"]
        documents = [{"id": i, "vector": [1.0] * 8, "content": text} for i, text in enumerate(contents)]
        answer = (await http.put("/documents", json={"documents": documents})).json()
        assert answer["stored"] == 2 and [failure["id"] for failure in answer["failures"]] == [1]
        assert "too long for tsvector" in answer["failures"][0]["message"]
