"""Shards whose locales order and fold letters otherwise than the router, and than each other."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest

from deploy.local import Cluster, servers
from router.postgres.sql import Statement, count, delete_by_ids, existing_ids, select_by_id
from router.query.filter import parse
from router.settings import Settings
from shard_config import model
from shard_config.values import ValueType
from tests.integration import locales
from tests.integration.filter_semantics import matches
from tests.integration.random_filters import ONES, agree, stored
from tests.integration.worlds import World, column, world

ID = column("id", ValueType.TEXT)
BY_ID = model.HashSharding(ID, ("s0", "s1"))
WORDS = ["a", "A", "ä", "Ä", "b", "B", "c", "Z", "z", "Ähre", "ähre", "ÄHRE", "Σίσυφος", "σίσυφοσ"]
FILTERS: list[dict[str, Any]] = [
    {"$between": ["B", "a"]},
    {"$between": ["a", "b"]},
    {"$gt": "B"},
    {"$gte": "ä"},
    {"$lt": "a"},
    {"$lte": "Z"},
    {"$ilike": "ähre"},
    {"$ilike": "Ä%"},
    {"$ilike": "σίσυφοσ"},
    {"$like": "Ä%"},
    {"$in": ["a", "Ähre"]},
    {"$ne": "A"},
]


@pytest.fixture(scope="module")
def divided() -> Iterator[Cluster]:
    """Two shards in databases called `words`: s0's in the locale of `locales`, s1's in C."""
    if not locales.can_compile():
        pytest.skip("there is no localedef, which comes with glibc")
    folder = Path(tempfile.mkdtemp(prefix="pgscatter-locale-"))
    try:
        locales.compile_into(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LOCPATH", locales.search_path(folder))
            with Cluster.temporary(shards=2, replicas=0, fsync=False) as running:
                yield running
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def words(divided: Cluster) -> locales.InDatabase:
    databases = locales.InDatabase(divided, "words")

    async def made() -> list[bool]:
        await databases.create(divided, {"s0": locales.NAME, "s1": "C"})
        return [await databases.ask(shard, "SELECT 'a' < 'B'") for shard in ("s0", "s1")]

    assert asyncio.run(made()) == [True, False]
    return databases


def cluster_of(words: locales.InDatabase) -> Cluster:
    return cast(Cluster, words)


def dictionary() -> list[dict[str, Any]]:
    """Every word on every shard, in every field that holds text."""
    return [
        {"id": f"{word}{n}", "category": word, "content": word, "metadata": {"word": word, "list": [word]}}
        for word in WORDS
        for n in range(6)
    ]


async def put(w: World, documents: list[dict[str, Any]]) -> None:
    await w.put(*(w.document(d["id"], ONES, **{k: v for k, v in d.items() if k != "id"}) for d in documents))


@pytest.mark.parametrize("field", ["category", "content", "metadata.word", "metadata.list.0"])
async def test_shards_of_different_locales_agree(words: locales.InDatabase, field: str) -> None:
    async with world(cluster_of(words), id=ID, sharding=BY_ID) as w:
        documents = dictionary()
        await put(w, documents)
        for condition in FILTERS:
            raw = {field: condition}
            for asked in (raw, {"$not": raw}):
                right = [d["id"] for d in documents if matches(asked, d)]
                # All distances are equal, so the ids are in the order of code points.
                assert await w.ids(ONES, 100, filter=asked, exact=True) == sorted(right), asked


async def test_random_filters_mean_the_same_in_every_locale(words: locales.InDatabase) -> None:
    rng = random.Random(13)
    async with world(cluster_of(words), id=ID, sharding=BY_ID) as w:
        assert await agree(w, rng, await stored(w, rng, 150), 150) > 50


async def test_text_ids_go_by_code_point_and_fold_by_unicode(words: locales.InDatabase) -> None:
    async with world(cluster_of(words), id=ID, sharding=BY_ID) as w:
        ids = [*WORDS, *("".join(pair) for pair in itertools.product("aAbBzZ", repeat=2))]
        await put(w, [{"id": word} for word in ids])
        for condition in FILTERS:
            right = sorted(word for word in ids if matches({"id": condition}, {"id": word}))
            assert await w.ids(ONES, 100, filter={"id": condition}) == right, condition
        pages = [await w.ids(ONES, 5, offset=offset, exact=True) for offset in range(0, len(ids), 5)]
        assert [id_ for page in pages for id_ in page] == sorted(ids)


@pytest.mark.parametrize("key", ["id", "category"])
async def test_a_delete_by_what_is_not_alike_spares_what_is(words: locales.InDatabase, key: str) -> None:
    """Ids and sharding keys have collation "C" where `schema apply` made them: it folds ASCII alone."""
    by = model.HashSharding(column(key, ValueType.TEXT), ("s0", "s1"))
    async with world(cluster_of(words), id=ID, sharding=by) as w:
        await w.on_primaries(f'ALTER TABLE {w.collection.table} ALTER COLUMN {key} TYPE text COLLATE "C"')
        await put(w, [{"id": word, "category": word} for word in WORDS])
        unlike = parse(w.collection, {"$not": {key: {"$ilike": "ähre"}}}, Settings())
        deleted = await w.router.delete_matching(w.collection, unlike, w.soon())
        assert sum(shard.rows for shard in deleted.shards) == len(WORDS) - 3
        assert await w.ids(ONES, 100) == ["ÄHRE", "Ähre", "ähre"]


async def test_a_range_of_a_sharding_key_is_the_same_to_router_and_shards(words: locales.InDatabase) -> None:
    parts = (model.RangePart(None, "a", "s0"), model.RangePart("a", None, "s1"))
    by = model.RangeSharding(column("category", ValueType.TEXT), parts)
    async with world(cluster_of(words), id=ID, sharding=by) as w:
        documents = dictionary()
        await put(w, documents)
        for condition in FILTERS:
            right = sorted(d["id"] for d in documents if matches({"category": condition}, d))
            found = await w.ids(ONES, 100, filter={"category": condition}, exact=True)
            assert found == right, condition


async def test_a_lookup_by_id_uses_the_primary_key_whatever_its_collation(words: locales.InDatabase) -> None:
    async with world(cluster_of(words), id=ID, sharding=BY_ID) as w:
        c = w.collection
        equal = count(c, parse(c, {"id": "a"}, Settings()))
        some = count(c, parse(c, {"id": {"$in": ["a", "b"]}}, Settings()))
        single = select_by_id(c, "a", frozenset(), 1 << 20)
        for statement in (equal, some, single, existing_ids(c, ["a"]), delete_by_ids(c, ["a"])):
            assert "Index Cond: (id = " in await plan(words, statement), statement.sql


async def plan(words: locales.InDatabase, statement: Statement) -> str:
    connection = await asyncpg.connect(words.nodes[0].dsn)
    try:
        await connection.execute("SET enable_seqscan = off")
        rows = await connection.fetch(f"EXPLAIN {statement.sql}", *statement.args)
    finally:
        await connection.close()
    return "\n".join(row[0] for row in rows)


@pytest.fixture(scope="module")
def older() -> Iterator[Cluster]:
    """Two shards of PostgreSQL 16, which lacks the collation that `$ilike` names."""
    folder = Path(tempfile.mkdtemp(prefix="pgscatter-older-"))
    folder.chmod(0o755)
    programs = servers.binary("postgres").parents[2] / "pginstall" / "bin"
    initdb = folder / "initdb"
    # It knows no builtin locales either.
    initdb.write_text(
        "#!/bin/sh\n"
        'for arg do shift; case $arg in --locale-provider=*) ;; *) set -- "$@" "$arg" ;; esac; done\n'
        f'exec "{programs}/initdb" "$@"\n'
    )
    initdb.chmod(0o755)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(servers, "binary", lambda name: initdb if name == "initdb" else programs / name)
            with Cluster.temporary(shards=2, replicas=0, fsync=False) as running:
                yield running
    finally:
        shutil.rmtree(folder)


async def test_an_older_server_folds_by_the_collation_that_it_has(older: Cluster) -> None:
    rng = random.Random(14)
    async with world(older, id=ID, sharding=BY_ID) as w:
        connection = await asyncpg.connect(older.nodes[0].dsn)
        try:
            assert connection.get_server_version().major == 16
        finally:
            await connection.close()
        documents = await stored(w, rng, 100)
        assert await agree(w, rng, documents, 100) > 30
        alike = {"content": {"$ilike": "ähre"}}
        right = sorted(d["id"] for d in documents if matches(alike, d))
        assert await w.ids(ONES, 100, filter=alike) == right
        explained = (await w.search(ONES, filter=alike, explain=True, plan=True)).answer
        assert all("~~*" in (report.plan or "") for report in explained.reports)
        deleted = await w.router.delete_matching(
            w.collection, parse(w.collection, alike, Settings()), w.soon()
        )
        assert sum(shard.rows for shard in deleted.shards) == len(right) > 0
