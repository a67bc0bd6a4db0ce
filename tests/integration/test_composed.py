"""Searches of several lists and steps on real shards, against the same computed from all rows at once."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import msgspec
import numpy as np
import pytest

from deploy.local import Cluster
from router.query.composition import Fusion, FusionMethod
from router.query.errors import UnavailableError
from router.query.fusion import fuse
from router.schema import ddl
from router.topology import assemble
from shard_config import model
from shard_config.model import Fulltext, RerankingService
from shard_config.values import ValueType, coerce
from tests.integration.worlds import World, column, execute, patient, replayed, world
from tests.unit.fake_services import Answer, FakeService, cohere

ROWS = 240
WORDS = "cat dog fox house river stone query shard index vector".split()
ONE_SHARD = model.HashSharding(column("id", ValueType.BIGINT), ("s1",))
VECTORS = np.random.default_rng(5).normal(size=(ROWS, 8)).astype(np.float32)
VECTORS[40:60] = VECTORS[0]  # equal distances, which ids must decide


def content(i: int) -> str | None:
    chosen = random.Random(i).choices(WORDS, k=2 + i % 7)
    return None if i % 17 == 3 else " ".join(chosen)


def category(i: int) -> str | None:
    # One value is nearly everywhere, so that groups lack rows within the lists' depth.
    return None if i % 12 == 5 else "common" if i % 4 else f"c{i % 9}"


def metadata(i: int) -> dict[str, Any]:
    return [{"doc": i % 7}, {"doc": float(i % 7)}, {"doc": [i % 7, 8]}, {"doc": str(i % 7)}, {}][i % 5]


@asynccontextmanager
async def filled(cluster: Cluster, **changes: Any) -> AsyncIterator[World]:
    settings = changes.pop("settings", None)
    async with world(cluster, settings, fulltext=Fulltext(("content",)), **changes) as w:
        await w.put(
            *[
                w.document(
                    i,
                    VECTORS[i],
                    content=content(i),
                    category=category(i),
                    price=float(i % 10),
                    metadata=metadata(i),
                )
                for i in range(ROWS)
            ]
        )
        yield w


async def ask(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post("/search", json={"exact": True, "cache": False, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def without_shards(answer: dict[str, Any]) -> Any:
    """What must not depend on where rows lie."""
    return (
        [{name: value for name, value in hit.items() if name != "shard"} for hit in answer["hits"]],
        [answer.get(name) for name in ("legs", "groups", "short", "diversity")],
    )


def ids(answer: dict[str, Any]) -> list[int]:
    return [hit["id"] for hit in answer["hits"]]


def distances(vector: Any) -> Any:
    return np.linalg.norm(VECTORS.astype(np.float64) - np.asarray(vector, dtype=np.float64), axis=1)


QUERY = VECTORS[7].tolist()
SHAPES: list[dict[str, Any]] = [
    {"mode": "hybrid", "text": "cat or fox", "vector": QUERY},
    {"mode": "hybrid", "text": "cat or fox", "vector": QUERY, "candidates": 7, "k": 5, "offset": 4},
    {
        "mode": "hybrid",
        "text": "stone or cat",
        "vector": QUERY,
        "fusion": {"method": "scores", "weights": {"fulltext": 0.5}},
        "filter": {"price": {"$lt": 8}},
    },
    {
        "queries": [
            {"vector": QUERY, "filter": {"category": "common"}},
            {"vector": VECTORS[0].tolist(), "weight": 2, "name": "ties"},
            {"text": "house or dog", "mode": "fulltext", "filter": {"price": {"$gt": 2}}},
            {"like": {"ids": [3, 4], "not": [9]}},
        ],
        "max_distance": 4.0,
    },
    {"vector": QUERY, "diversity": {"lambda": 0.3, "candidates": 40}, "offset": 3},
    {"like": {"ids": [11]}, "k": 20},
    {"mode": "hybrid", "text": "cat", "vector": QUERY, "group_by": {"field": "category", "size": 4}, "k": 4},
    {"vector": QUERY, "group_by": {"field": "metadata.doc", "size": 3}, "candidates": 12, "k": 6},
    {"mode": "fulltext", "text": "cat", "group_by": {"field": "price", "size": 2}, "candidates": 5, "k": 3},
]


async def test_where_rows_lie_changes_nothing(cluster: Cluster) -> None:
    async with filled(cluster) as spread, filled(cluster, sharding=ONE_SHARD) as single:
        async with spread.over_http() as one, single.over_http() as other:
            for shape in SHAPES:
                found, expected = await ask(one, **shape), await ask(other, **shape)
                assert without_shards(found) == without_shards(expected), shape
                assert found["hits"] and found["coverage"]["full"], shape
                assert found["coverage"]["shards"]["queried"] == 4
                assert expected["coverage"]["shards"]["queried"] == 1


async def test_lists_are_fused_as_they_come_when_asked_for_alone(cluster: Cluster) -> None:
    async with filled(cluster) as w, w.over_http() as http:
        near = (await ask(http, vector=QUERY, k=30))["hits"]
        by_words = {"mode": "fulltext", "text": "cat or fox", "k": 30, "exact": False}
        words = (await ask(http, **by_words))["hits"]
        assert len(words) == 30
        lists = [
            [((hit["id"], hit["distance"]), hit["shard"]) for hit in near],
            [((hit["id"], -hit["score"]), hit["shard"]) for hit in words],
        ]
        for method in FusionMethod:
            body = {"mode": "hybrid", "text": "cat or fox", "vector": QUERY, "candidates": 30, "k": 15}
            fusion = {"method": method, "weights": {"vector": 2, "fulltext": 1.5}}
            answer = await ask(http, **body, fusion=fusion)
            expected = fuse(lists, [2, 1.5], Fusion(method))[:15]
            assert ids(answer) == [row.id for row in expected]
            # Scores of words are shown as the float32 that they are, and so are not quite their doubles.
            assert [hit["score"] for hit in answer["hits"]] == [
                pytest.approx(row.score, abs=1e-6) for row in expected
            ]
            for hit, row in zip(answer["hits"], expected, strict=True):
                ranks = dict(zip(("vector", "fulltext"), row.ranks, strict=True))
                assert hit["ranks"] == {name: rank for name, rank in ranks.items() if rank is not None}
                assert hit.get("distance") == row.distances[0]
                assert hit.get("scores", {}).get("fulltext", 0) == -(row.distances[1] or 0)
        assert answer["legs"] == [
            {"name": "vector", "mode": "vector", "weight": 2.0, "candidates": 30, "returned": 30},
            {"name": "fulltext", "mode": "fulltext", "weight": 1.5, "candidates": 30, "returned": 30},
        ]


async def test_columns_come_with_the_hits_that_they_belong_to(cluster: Cluster) -> None:
    async with filled(cluster) as w, w.over_http() as http:
        body = {"mode": "hybrid", "text": "cat", "vector": QUERY, "include": ["content", "metadata", "price"]}
        answer = await ask(http, **body, explain=True)
        for hit in answer["hits"]:
            i = hit["id"]
            assert (hit["content"], hit["metadata"], hit["price"]) == (content(i), metadata(i), i % 10)
            assert "score" in hit and "ranks" in hit
        reports = answer["explain"]["shards"]
        assert sorted(report["shard"] for report in reports) == ["s0", "s1", "s2", "s3"]
        assert sum(report["kept"] for report in reports) == len(answer["hits"]) == 10


async def test_diversity_is_maximal_marginal_relevance_of_the_nearest(cluster: Cluster) -> None:
    async with filled(cluster) as w, w.over_http() as http:
        answer = await ask(http, vector=QUERY, k=8, diversity={"lambda": 0.4, "candidates": 30})
        assert answer["diversity"] == {"done": True, "candidates": 30}
        near = np.argsort(distances(QUERY), kind="stable")[:30]
        far = distances(QUERY)[near]
        relevance = (far.max() - far) / (far.max() - far.min())
        units = VECTORS[near] / np.linalg.norm(VECTORS[near], axis=1, keepdims=True)
        chosen: list[int] = []
        while len(chosen) < 8:
            similar = (units @ units[chosen].T).max(axis=1) if chosen else np.zeros(30)
            worth = 0.4 * relevance - 0.6 * similar
            worth[chosen] = -np.inf
            chosen.append(int(np.argmax(worth)))
        assert ids(answer) == near[chosen].tolist()
        assert all("distance" in hit and "score" not in hit for hit in answer["hits"])


@pytest.mark.parametrize(("field", "value"), [("category", category), ("price", lambda i: i % 10)])
async def test_groups_are_those_of_all_rows_and_say_which_are_full(
    cluster: Cluster, field: str, value: Any
) -> None:
    order = np.argsort(distances(QUERY), kind="stable").tolist()
    members: dict[Any, list[int]] = {}
    for i in order:
        members.setdefault(value(i), []).append(i)
    async with filled(cluster) as w, w.over_http() as http:
        for k, size, offset in ((3, 30, 0), (4, 5, 2), (100, 2, 0)):
            answer = await ask(
                http,
                vector=QUERY,
                k=k,
                offset=offset,
                group_by={"field": field, "size": size},
                candidates=max(10, k + offset),
            )
            expected = list(members.items())[offset : offset + k]
            assert answer["groups"] == [
                {"value": name, "hits": len(rows[:size]), "full": True} for name, rows in expected
            ]
            assert ids(answer) == [i for _, rows in expected for i in rows[:size]]
            assert [hit["group"] for hit in answer["hits"]] == [
                name for name, rows in expected for _ in rows[:size]
            ]
            assert ("short" in answer) is (len(expected) < k)
        assert answer["short"] == {"asked": 100, "returned": len(members), "reason": "exhausted"}


async def test_groups_go_by_a_path_of_the_metadata_and_keep_kinds_apart(cluster: Cluster) -> None:
    def kind(i: int) -> Any:
        return repr(metadata(i).get("doc")).replace(".0", "")

    order = np.argsort(distances(QUERY), kind="stable").tolist()
    members: dict[Any, list[int]] = {}
    for i in order:
        members.setdefault(kind(i), []).append(i)
    async with filled(cluster) as w, w.over_http() as http:
        # Arrays are values of their own, which no filter can ask for; so their groups may not be full.
        answer = await ask(
            http, vector=QUERY, k=22, candidates=22, group_by={"field": "metadata.doc", "size": 20}
        )
        assert len(answer["groups"]) == len(members) == 22
        first = 0
        for group, (name, rows) in zip(answer["groups"], members.items(), strict=True):
            found = ids(answer)[first : first + group["hits"]]
            first += group["hits"]
            assert found == rows[: len(found)], name
            assert group["full"] is (len(found) == min(20, len(rows))), name
            assert group["full"] or isinstance(group["value"], list)
        assert any(not group["full"] for group in answer["groups"])


async def test_what_may_not_be_searched_for_is_said_to_be_missing(cluster: Cluster) -> None:
    settings = patient(max_candidates=20, max_group_searches=1)
    async with filled(cluster, settings=settings) as w:
        http = httpx.AsyncClient(transport=httpx.ASGITransport(_application(w)), base_url=BASE, timeout=None)
        async with http:
            answer = await ask(
                http, vector=QUERY, k=10, candidates=20, group_by={"field": "category", "size": 20}
            )
            assert answer["short"]["reason"] == "candidates" and answer["short"]["asked"] == 10
            lacking = [group for group in answer["groups"] if not group["full"]]
            assert len(lacking) == len(answer["groups"]) - 1


async def test_examples_are_found_by_their_vectors_and_left_out(cluster: Cluster) -> None:
    async with filled(cluster) as w, w.over_http() as http:
        answer = await ask(http, like={"ids": [11]}, k=5)
        near = [i for i in np.argsort(distances(VECTORS[11]), kind="stable").tolist() if i != 11]
        assert ids(answer) == near[:5]
        liked, other = VECTORS[[1, 2]].mean(axis=0), VECTORS[[3]].mean(axis=0)
        answer = await ask(http, like={"ids": [1, 2], "not": [3]}, k=ROWS)
        near = np.argsort(distances(2 * liked - other), kind="stable").tolist()
        assert ids(answer) == [i for i in near if i not in (1, 2, 3)]
        assert answer["short"] == {"asked": ROWS, "returned": ROWS - 3, "reason": "exhausted"}
        response = await http.post("/search", json={"like": {"ids": [1, ROWS], "not": [ROWS + 1]}})
        assert response.status_code == 422
        assert [one["path"] for one in response.json()["errors"]] == ["like.ids[1]", "like.not[0]"]


async def test_a_changed_example_is_not_answered_from_a_cache(cluster: Cluster) -> None:
    async with filled(cluster, settings=patient()) as w, w.over_http() as http:
        body = {"like": {"ids": [11]}, "k": 3, "exact": True}
        first = (await http.post("/search", json=body)).json()
        again = (await http.post("/search", json=body)).json()
        assert (first["cache"], again["cache"]) == ("miss", "l1")
        assert {**first, "took_ms": 0, "cache": ""} == {**again, "took_ms": 0, "cache": ""}
        await w.put(w.document(11, VECTORS[100]))
        changed = (await http.post("/search", json=body)).json()
        assert changed["cache"] == "miss" and ids(changed)[0] == 100


async def test_caches_keep_what_was_done_beside_the_search(cluster: Cluster) -> None:
    async with world(cluster, redis=True) as w, w.over_http() as http:
        await w.put(*[w.document(i, VECTORS[i], category=category(i)) for i in range(50)])
        body = {"vector": QUERY, "k": 3, "group_by": {"field": "category", "size": 2}, "exact": True}
        first = (await http.post("/search", json=body)).json()
        w.topology.parts.store._entries.clear()
        deadline = w.soon()
        second = first
        while second["cache"] != "l2" and w.soon() < deadline + 10:
            second = (await http.post("/search", json=body)).json()
            w.topology.parts.store._entries.clear()
        assert second["cache"] == "l2"
        assert {**first, "took_ms": 0, "cache": ""} == {**second, "took_ms": 0, "cache": ""}
        assert len(first["groups"]) == 3 and first["legs"]


class Reversed:
    """Finds texts the better, the later they stand in the order before it."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def scores(
        self, service: RerankingService, query: str, texts: Sequence[str], deadline: float
    ) -> list[float]:
        if service.name == "down":
            raise UnavailableError("the re-ranker down is down")
        self.texts = list(texts)
        return [float(i) for i in range(len(texts))]

    async def close(self) -> None:
        pass


def with_rerankers(w: World, *services: RerankingService) -> None:
    shards = msgspec.structs.replace(w.router.shard_map, rerankers={one.name: one for one in services})
    w.router = w.topology.snapshot = assemble(shards, w.topology.parts)


async def test_a_model_orders_the_best_candidates_by_their_texts(cluster: Cluster) -> None:
    async with filled(cluster, settings=patient(rerank_characters=6)) as w:
        reranker = Reversed()
        w.topology.parts.reranking = cast(Any, reranker)
        with_rerankers(
            w, *[RerankingService(name, "http://127.0.0.1:9/v1", name) for name in ("reversed", "down")]
        )
        http = httpx.AsyncClient(transport=httpx.ASGITransport(_application(w)), base_url=BASE, timeout=None)
        async with http:
            before = ids(await ask(http, vector=QUERY, k=60))
            body = {"vector": QUERY, "k": 60, "rerank": {"model": "reversed", "text": "x", "candidates": 40}}
            answer = await ask(http, **body)
            with_text = [i for i in before[:40] if content(i) is not None]
            assert reranker.texts == [str(content(i))[:6] for i in with_text]
            without = [i for i in before[:40] if content(i) is None]
            assert ids(answer) == [*reversed(with_text), *without, *before[40:]]
            assert answer["rerank"] == {"done": True, "candidates": 40}
            scores = [hit["rerank_score"] for hit in answer["hits"]]
            assert scores[: len(with_text)] == sorted(range(len(with_text)), reverse=True)
            assert without and set(scores[len(with_text) :]) == {None}
            body["rerank"]["model"] = "down"
            answer = await ask(http, **body)
            assert ids(answer) == before
            assert answer["rerank"] == {"done": False, "reason": "the re-ranker down is down"}
            answer = (await http.post("/search", json={**body, "cache": True})).json()
            assert (await http.post("/search", json={**body, "cache": True})).json()["cache"] == "miss"
            response = await http.post("/search", json={**body, "rerank": {"model": "none", "text": "x"}})
            assert response.status_code == 422 and "it has down, reversed" in response.text


async def test_a_service_that_fails_is_told_of_and_asked_again(cluster: Cluster) -> None:
    async with FakeService(cohere) as fake, filled(cluster, template="{category}: {content}") as w:
        with_rerankers(w, fake.reranker(name="ce", timeout=20.0))
        http = httpx.AsyncClient(transport=httpx.ASGITransport(_application(w)), base_url=BASE, timeout=None)
        body = {"vector": QUERY, "k": 12, "rerank": {"model": "ce", "text": "x", "candidates": 12}}
        async with http:
            before = ids(await ask(http, vector=QUERY, k=12))
            texts = {i: f"{category(i) or ''}: {content(i) or ''}" for i in before}
            answer = await ask(http, **body)
            assert answer["rerank"] == {"done": True, "candidates": 12}
            assert fake.requests[-1].json["documents"] == [
                texts[i] for i in before if category(i) or content(i)
            ]
            lengths = [len(texts[i]) for i in ids(answer) if category(i) or content(i)]
            assert lengths == sorted(lengths, reverse=True)
            held = asyncio.Event()
            for failure in (Answer(held=held), Answer(body=b"no json"), Answer(body={"results": []})):
                fake.answers.append(failure)
                answer = await ask(http, **body, timeout_ms=1000)
                held.set()
                fake.answers.clear()
                assert ids(answer) == before and not answer["rerank"]["done"]
                assert "ce" in answer["rerank"]["reason"] and answer["coverage"]["full"]
            await fake.stop()
            assert not (await ask(http, **body))["rerank"]["done"]
            await fake.start()
            async with asyncio.timeout(30):
                while not (answer := await ask(http, **body))["rerank"]["done"]:
                    await asyncio.sleep(0.05)
            assert ids(answer) != before


async def test_shards_that_cannot_be_searched_for_words_still_give_what_is_near(cluster: Cluster) -> None:
    fulltext = Fulltext(("content",), stored="words")
    async with world(cluster, fulltext=fulltext) as w, w.over_http() as http:
        await w.on_primaries(ddl.add_words(w.collection, fulltext))
        await w.put(*[w.document(i, VECTORS[i], content=content(i)) for i in range(60)])
        body = {"mode": "hybrid", "text": "cat", "vector": QUERY, "k": 60, "include": ["content"]}
        whole = await ask(http, **body)
        assert whole["coverage"]["full"] and len(whole["hits"]) == 60
        primaries = {node.shard: node.dsn for node in w.cluster.nodes if node.role == "primary"}
        await execute(primaries["s2"], f"ALTER TABLE {w.collection.table} DROP COLUMN words")
        await replayed(w.cluster)
        answer = await ask(http, **body)
        assert [one["shard"] for one in answer["coverage"]["failures"]] == ["s2"]
        assert not answer["coverage"]["full"] and answer["coverage"]["shards"]["ok"] == 3
        of_lost = [hit for hit in answer["hits"] if hit["shard"] == "s2"]
        assert of_lost and all(list(hit["ranks"]) == ["vector"] for hit in of_lost)
        assert all(hit["content"] == content(hit["id"]) for hit in answer["hits"])
        assert "error" not in answer["legs"][1]
        response = await http.post("/search", json={**body, "allow_partial": False})
        assert response.status_code == 500
        for shard in ("s0", "s1", "s3"):
            await execute(primaries[shard], f"ALTER TABLE {w.collection.table} DROP COLUMN words")
        await replayed(w.cluster)
        answer = await ask(http, **body)
        near = [i for i in np.argsort(distances(QUERY), kind="stable").tolist() if i < 60]
        assert ids(answer) == near and answer["legs"][1]["error"] == "0 of 4 shards answered"
        assert all(hit["content"] == content(hit["id"]) for hit in answer["hits"])
        assert len(answer["coverage"]["failures"]) == 4 and not answer["coverage"]["full"]
        answer = await ask(http, **{**body, "k": 61})
        assert answer["short"] == {"asked": 61, "returned": 60, "reason": "legs"}
        again = (await http.post("/search", json={**body, "exact": True})).json()
        assert (await http.post("/search", json={**body, "exact": True})).json()["cache"] == "miss", again
        response = await http.post("/search", json={"mode": "fulltext", "text": "cat"})
        assert response.status_code == 500


BASE = "http://router/v1/collections/docs"


def _application(w: World) -> Any:
    from tests.http.fake import application

    return application(w.router, w.topology.parts.settings)


@pytest.mark.parametrize(
    ("metric", "type_"),
    [
        (model.Metric.COSINE, ValueType.TEXT),
        (model.Metric.INNER_PRODUCT, ValueType.UUID),
        (model.Metric.L1, ValueType.BIGINT),
    ],
)
async def test_every_metric_and_type_of_id_has_all_of_it(
    cluster: Cluster, metric: model.Metric, type_: ValueType
) -> None:
    def id_of(i: int) -> Any:
        return {ValueType.TEXT: f"é{i}", ValueType.UUID: str(uuid.UUID(int=i << 64))}.get(type_, i)

    id_ = column("id", type_)
    vector = model.Vector("embedding", model.VectorType.HALFVEC, 8, metric)
    sharding = model.HashSharding(id_, ("s0", "s1", "s2", "s3"))
    async with world(cluster, id=id_, vector=vector, sharding=sharding, fulltext=Fulltext(("content",))) as w:
        stored = [coerce(type_, id_of(i)) for i in range(60)]
        await w.put(*[w.document(stored[i], VECTORS[i], content=content(i)) for i in range(60)])
        async with w.over_http() as http:
            plain = await ask(http, vector=QUERY, k=60)
            like = await ask(http, like={"ids": [id_of(7)]}, k=60)
            assert ids(like) == [i for i in ids(plain) if i != id_of(7)]
            answer = await ask(
                http,
                queries=[
                    {"like": {"ids": [id_of(7), id_of(8)]}},
                    {"text": "cat", "mode": "fulltext"},
                ],
                diversity={},
                group_by={"field": "category"},
                k=2,
                include=["vector"],
            )
            assert answer["groups"] == [{"value": None, "hits": 1, "full": True}]
            assert len(answer["hits"]) == 1 and len(answer["hits"][0]["vector"]) == 8
            body = {"like": {"ids": [id_of(7)]}}
            found = [(await http.post("/search", json=body)).json()["cache"] for _ in range(2)]
            assert found == ["miss", "l1"]
