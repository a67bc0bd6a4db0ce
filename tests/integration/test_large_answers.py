"""Answers whose columns do not come along with the rows: the same hits, fetched by id, in pieces."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest

from deploy.local import Cluster
from router.query.errors import AnswerTooLargeError, OverloadedError, UnavailableError
from router.query.sizes import layout_for
from router.query.types import Found
from shard_config import model
from shard_config.values import ValueType
from tests.integration.worlds import Vectors, World, column, execute, hits, patient, replayed, until, world

DIMENSIONS = 600
ROWS = 240
ALL = frozenset(["content", "metadata", "vector", "category", "price", "amount"])
COLUMNS = {
    "category": column("category", ValueType.TEXT),
    "price": column("price", ValueType.FLOAT8),
    "amount": column("amount", ValueType.NUMERIC),
}


def vectors(type_: model.VectorType) -> Vectors:
    made = np.random.default_rng(7).normal(size=(ROWS, DIMENSIONS)).astype(np.float32)
    return made.astype(np.float16).astype(np.float32) if type_ is model.VectorType.HALFVEC else made


def text_of(i: int) -> str | None:
    """From nothing to longer than a row may bring along, with what JSON must escape."""
    return None if i % 7 == 0 else f'{i}: “quoted" \\ \n\u0001 é 🙂” ' * (i % 5 * 40 + 1)


def vector(type_: model.VectorType = model.VectorType.VECTOR) -> model.Vector:
    return model.Vector("embedding", type_, DIMENSIONS, model.Metric.L2)


async def fill(w: World, type_: model.VectorType = model.VectorType.VECTOR) -> Vectors:
    made = vectors(type_)
    await w.put(
        *(
            w.document(
                i,
                made[i],
                content=text_of(i),
                metadata=None
                if i % 11 == 0
                else {"n": i, "text": text_of(i + 3), "deep": {"a": [1.5, None]}},
                category=f"c{i % 3}",
                price=i / 7,
            )
            for i in range(ROWS)
        )
    )
    return made


def expected(made: Vectors, query: Vectors, k: int) -> list[int]:
    return [int(i) for i in np.argsort(np.linalg.norm(made - query, axis=1), kind="stable")[:k]]


def check(hit: dict[str, Any], made: Vectors) -> None:
    i = hit["id"]
    assert hit["content"] == text_of(i)
    assert hit["metadata"] == (
        None if i % 11 == 0 else {"n": i, "text": text_of(i + 3), "deep": {"a": [1.5, None]}}
    )
    assert (hit["category"], hit["price"]) == (f"c{i % 3}", i / 7)
    assert np.array_equal(np.array(hit["vector"], np.float32), made[i])


@pytest.mark.parametrize("type_", list(model.VectorType))
async def test_large_and_small_answers_hold_the_same_hits(cluster: Cluster, type_: model.VectorType) -> None:
    async with world(cluster, vector=vector(type_), columns=COLUMNS) as w:
        made = await fill(w, type_)
        query = made[5] + 0.01
        for k in (1, 20, ROWS):
            found = await w.search(query, k, include=ALL, exact=True, cache=False)
            shown = hits(found)
            assert [hit["id"] for hit in shown] == expected(made, query, k)
            assert found.answer.count == k and sum(report.kept for report in found.answer.reports) == k
            for hit in shown:
                check(hit, made)
        # All three ways were taken: along with the row, partly, and not at all.
        assert layout_for(w.collection, ALL, 1, 4).inline == ALL
        assert layout_for(w.collection, ALL, ROWS, 4).inline == frozenset()
        assert found.answer.more and found.answer.reservation is not None


async def test_long_texts_alone_are_fetched_where_others_came_along(cluster: Cluster) -> None:
    # One statement at a time, so that whatever comes at once must share.
    narrow = patient(node_connections=1, node_statements=1)
    async with world(cluster, narrow, vector=vector(), columns=COLUMNS) as w:
        made = await fill(w)
        include = frozenset(["content", "metadata", "category"])
        carried = layout_for(w.collection, include, 100, 4)
        assert carried.guarded and carried.inline == include
        sizes = [len((text_of(i) or "").encode()) for i in range(ROWS)]
        assert min(sizes) < carried.row_bytes < max(sizes)
        shown = hits(await w.search(made[0], 100, include=include, exact=True, filter={"category": "c1"}))
        assert len(shown) == ROWS // 3 and all(hit["content"] == text_of(hit["id"]) for hit in shown)
        shown = hits(await w.search(made[0], 90, include=include, exact=True, offset=10))
        assert [hit["id"] for hit in shown] == expected(made, made[0], 100)[10:]
        assert all(hit["content"] == text_of(hit["id"]) for hit in shown)
        # Several searches in one statement bring the same.
        together = await asyncio.gather(
            *(w.search(made[i], 100, include=include, cache=False) for i in range(20))
        )
        assert any(report.together > 1 for found in together for report in found.answer.reports)
        assert all(hit["content"] == text_of(hit["id"]) for found in together for hit in hits(found))


async def test_vectors_as_base64_are_what_requests_take(cluster: Cluster) -> None:
    async with world(cluster, vector=vector(), columns={}) as w, w.over_http() as client:
        made = await fill_plain(w)
        body = {"vector": made[0].tolist(), "k": ROWS, "include": ["vector"], "exact": True}
        numbers = (await client.post("/search", json=body)).json()["hits"]
        encoded = (await client.post("/search", json=body | {"vector_format": "base64"})).json()["hits"]
        assert [hit["id"] for hit in numbers] == [hit["id"] for hit in encoded]
        for one, two in zip(numbers, encoded, strict=True):
            data = base64.b64decode(two["vector"])
            assert data == made[one["id"]].tobytes() == np.array(one["vector"], "<f4").tobytes()
        read = (await client.get("/documents/3?include=vector&vector_format=base64")).json()
        assert base64.b64decode(read["vector"]) == made[3].tobytes()
        put = {"documents": [{"id": 1000, "vector": read["vector"]}]}
        assert (await client.put("/documents", json=put)).json()["stored"] == 1
        again = (await client.get("/documents/1000?include=vector")).json()
        assert np.array(again["vector"], "<f4").tobytes() == made[3].tobytes()


async def fill_plain(w: World) -> Vectors:
    made = vectors(model.VectorType.VECTOR)
    await w.put(*(w.document(i, made[i]) for i in range(ROWS)))
    return made


async def test_an_answer_beyond_the_limit_is_refused_and_gives_its_memory_back(cluster: Cluster) -> None:
    settings = patient(max_answer_bytes=1_000_000, answer_memory_bytes=2_000_000)
    async with world(cluster, settings, vector=vector(), columns=COLUMNS) as w, w.over_http() as client:
        made = await fill(w)
        memory = w.topology.parts.memory
        with pytest.raises(AnswerTooLargeError, match="1000000 bytes that an answer may have"):
            await w.search(made[0], ROWS, include=frozenset(["vector"]), exact=True)
        assert memory.used == 0
        # In base64 it fits.
        found = await w.search(
            made[0], ROWS, include=frozenset(["vector"]), exact=True, vector_format="base64"
        )
        assert memory.used == found.answer.size_bytes
        del found
        body = {"vector": made[0].tolist(), "k": ROWS, "include": ["vector"], "exact": True, "cache": False}
        refused = await client.post("/search", json=body)
        assert refused.status_code == 422
        assert refused.json()["type"] == "urn:pgscatter:problem:answer-too-large"
        assert "--max-answer-bytes" in refused.json()["detail"]
        small = body | {"k": 1}
        half = body | {"k": ROWS // 4}
        batch = await client.post("/search/batch", json={"searches": [half, half, body, small, half, half]})
        results = batch.json()["results"]
        assert len(batch.content) <= 1_000_000
        errors = [result["error"] for result in results if "error" in result]
        assert {error["type"] for error in errors} == {"urn:pgscatter:problem:answer-too-large"}
        assert "error" in results[2] and len(results[3]["hits"]) == 1
        assert [len(result["hits"]) for result in results if "hits" in result].count(ROWS // 4) == 2
        assert any("other results leave" in error["detail"] for error in errors)
        assert memory.used == 0


async def test_a_batch_that_holds_memory_does_not_wait_for_more(cluster: Cluster) -> None:
    """Two that did would wait for each other."""
    settings = patient(max_answer_bytes=8_000_000, answer_memory_bytes=8_000_000)
    async with world(cluster, settings, vector=vector(), columns=COLUMNS) as w, w.over_http() as client:
        made = await fill(w)
        large: dict[str, Any] = {"vector": made[0].tolist(), "k": ROWS, "include": ["vector"], "exact": True}
        large |= {"cache": False, "timeout_ms": 60_000}
        size = len((await client.post("/search", json=large)).content)
        # Room for one and a half of them.
        memory = w.topology.parts.memory
        elsewhere = await memory.take(memory.most - size * 3 // 2, asyncio.get_running_loop().time())
        began = asyncio.get_running_loop().time()
        batch = await client.post("/search/batch", json={"searches": [large] * 2})
        assert asyncio.get_running_loop().time() - began < 30.0
        results = batch.json()["results"]
        kinds = sorted(result["error"]["status"] if "error" in result else 200 for result in results)
        assert kinds == [200, 429]
        elsewhere.release()


async def test_texts_of_any_length_are_bounded_before_they_are_read(cluster: Cluster) -> None:
    settings = patient(max_answer_bytes=8 << 20, answer_memory_bytes=16 << 20)
    async with world(cluster, settings, vector=vector(), columns=COLUMNS) as w, w.over_http() as client:
        made = vectors(model.VectorType.VECTOR)
        # 3 MB each that PostgreSQL compresses to 40 kB, so that the table does not show what they take.
        await w.put(*(w.document(i, made[i], content="a\n" * 1_500_000) for i in range(4)))
        await w.put(w.document(4, made[4], metadata={"text": "é" * 1_000_000}))
        one = await client.get("/documents/0")
        # A line break takes two bytes in JSON.
        assert one.status_code == 200 and one.json()["content"] == "a\n" * 1_500_000
        assert (await client.get("/documents/4")).json()["metadata"] == {"text": "é" * 1_000_000}
        body = {"vector": made[0].tolist(), "k": 1, "include": ["content"], "exact": True}
        found = await client.post("/search", json=body)
        assert found.json()["hits"][0]["content"] == "a\n" * 1_500_000
        # 6 MB as they are, 9 MB when they are escaped.
        refused = await client.post("/search", json=body | {"k": 2})
        assert (refused.status_code, refused.json()["type"]) == (
            422,
            "urn:pgscatter:problem:answer-too-large",
        )
        await w.put(w.document(0, made[0], content="a" * (9 << 20)))
        refused = await client.get("/documents/0")
        assert (refused.status_code, refused.json()["type"]) == (
            422,
            "urn:pgscatter:problem:answer-too-large",
        )
        assert (await client.get("/documents/0?include=price")).json()["price"] is None
        assert w.topology.parts.memory.used == 0


async def test_a_large_answer_waits_for_memory_and_no_longer_than_it_has_time(cluster: Cluster) -> None:
    settings = patient(max_answer_bytes=4 << 20, answer_memory_bytes=4 << 20)
    async with world(cluster, settings, vector=vector(), columns=COLUMNS) as w:
        made = await fill(w)

        async def one(i: int, within: float = 10.0) -> Found:
            include = frozenset(["vector"])
            return await w.search(made[i], ROWS, include=include, exact=True, cache=False, within=within)

        first: Found | None = await one(0)
        second = await one(1)
        assert w.topology.parts.memory.used > 3 << 20
        with pytest.raises(OverloadedError, match="--answer-memory-bytes"):
            await one(2, within=2.0)
        waiting = asyncio.create_task(one(3))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        del first
        third = await waiting
        assert third.answer.count == second.answer.count == ROWS
        del second, third, waiting
        await until(lambda: w.topology.parts.memory.used == 0)


async def test_rows_that_change_between_ranking_and_reading_are_ranked_anew(cluster: Cluster) -> None:
    async with world(cluster, vector=vector(), columns=COLUMNS) as w:
        made = await fill(w)
        columns = w.router._search._inner._inner._columns  # type: ignore[attr-defined]
        read = columns._by_id
        gone = expected(made, made[0], ROWS)[:3]
        deleted: list[int] = []
        most = 1

        async def after_a_delete(*args: Any) -> Any:
            if len(deleted) < most:
                deleted.append(gone[len(deleted)])
                await w.on_primaries(f"DELETE FROM {w.collection.table} WHERE id = {deleted[-1]}")
                await replayed(cluster)
            return await read(*args)

        columns._by_id = after_a_delete
        options: dict[str, Any] = {"include": frozenset(["vector"]), "exact": True, "cache": False}
        found = await w.search(made[0], ROWS, **options)
        assert deleted[0] not in [hit["id"] for hit in hits(found)]
        assert found.answer.count == ROWS - 1 and found.answer.short is not None
        most = 3
        with pytest.raises(UnavailableError, match="deleted or changed while they were read"):
            await w.search(made[0], ROWS, **options)


async def test_a_shard_that_fails_in_between_is_reported(cluster: Cluster) -> None:
    async with world(cluster, vector=vector(), columns=COLUMNS) as w:
        made = await fill(w)
        columns = w.router._search._inner._inner._columns  # type: ignore[attr-defined]
        read, broken = columns._by_id, False

        async def without_the_table(statement: Any, query: Any, *args: Any) -> Any:
            nonlocal broken
            if not broken and statement.__name__ == "select_by_ids":
                broken = True
                dsn = next(n.dsn for n in cluster.nodes if n.shard == "s1" and n.role == "primary")
                await execute(dsn, f"ALTER TABLE {w.collection.table} RENAME COLUMN content TO gone")
                await replayed(cluster)
            return await read(statement, query, *args)

        columns._by_id = without_the_table
        found = await w.search(
            made[0], ROWS, include=frozenset(["vector", "content"]), exact=True, cache=False
        )
        assert [failure.shard for failure in found.answer.coverage.failures] == ["s1"]
        assert not found.answer.cacheable and found.answer.short is not None
        shown = hits(found)
        assert 0 < len(shown) < ROWS and len(shown) == found.answer.count
        assert {hit["shard"] for hit in shown} >= {"s0", "s2", "s3"}
        assert json.loads(bytes(found.answer.whole)) == shown
