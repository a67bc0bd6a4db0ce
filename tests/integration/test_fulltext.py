"""Full-text searches over shards are what one table's own ranking says, whatever the words and the rows."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest

from deploy.local import Cluster
from router.postgres.conditions import PlainParams, where
from router.postgres.fulltext_index import words_of
from router.query.errors import DeadlineError, InvalidError, UnavailableError
from router.query.filter import parse
from router.query.types import Consistency, Found, SearchQuery
from shard_config import model
from shard_config.model import Fulltext, LanguageColumn
from shard_config.values import ValueType
from tests.integration.worlds import World, column, execute, hits, world

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
                category=rng.choice(["c0", "c1", "c2", None, "cat"]),
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

    async def pairs(self, words: str, filter: dict[str, Any] | None = None) -> list[tuple[str, float]]:
        """Every match as (id, score), the best first."""
        c = self._w.collection
        assert c.fulltext is not None
        params = PlainParams(words)
        tree = parse(c, {} if filter is None else filter, self._w.topology.parts.settings)
        condition = where(tree, c, params)
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
            f"SELECT id, ts_rank({words_sql}, {query}, 1)::float8::float4 AS score FROM reference"
            f" WHERE ({words_sql}) @@ {query} AND {condition} ORDER BY 2 DESC, {order}",
            *params.args,
        )
        return [(str(row["id"]), pytest.approx(row["score"], rel=1e-6)) for row in rows]


@asynccontextmanager
async def searched(
    cluster: Cluster, fulltext: Fulltext, rows: int = ROWS, **changes: Any
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
            yield w, Reference(connection, w)
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
                found = [
                    *await pairs(w, words, 7, filter=filter),
                    *await pairs(w, words, 9, offset=7, filter=filter),
                ]
                assert found == expected[:16], (words, filter)
        assert some > 20
