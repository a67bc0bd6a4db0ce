"""Pages of a kept ranking on real shards and a real Redis, whoever writes, fails or asks meanwhile."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local import Cluster
from router.topology import Parts, Topology
from shard_config import model
from shard_config.values import ValueType
from tests.conftest import Serve
from tests.http.fake import application
from tests.integration.apps import applied_map, collection
from tests.integration.test_search import gaussian, locked, primary
from tests.integration.worlds import World, column, patient, world

QUERY = gaussian(1, 8, seed=5)[0].tolist()
SEARCH = {"vector": QUERY, "exact": True}


async def fill(w: World, ids: Sequence[Any]) -> None:
    vectors = gaussian(len(ids), 8)
    for start in range(0, len(ids), 500):
        await w.put(
            *(
                w.document(
                    ids[n], vectors[n], category="ab"[n % 2], price=float(n), content=f"text {n} " * 40
                )
                for n in range(start, min(start + 500, len(ids)))
            )
        )


async def ask(client: httpx.AsyncClient, body: dict[str, Any], status: int = 200) -> Any:
    reply = await client.post("/search", json=body)
    assert reply.status_code == status, reply.text
    return reply.json()


async def follow(
    client: httpx.AsyncClient, first: Any, k: int, **options: Any
) -> AsyncIterator[dict[str, Any]]:
    """The pages from `first` on."""
    page = first
    while True:
        yield page
        if page["cursor"] is None:
            return
        page = await ask(client, {"cursor": page["cursor"], "k": k, **options})


async def walk(client: httpx.AsyncClient, k: int, **body: Any) -> list[dict[str, Any]]:
    first = await ask(client, {**SEARCH, "k": k, "cursor": "*", **body})
    include = {"include": body["include"]} if "include" in body else {}
    pages = [page async for page in follow(client, first, k, **include)]
    assert all(len(page["hits"]) == k for page in pages[:-1])
    assert [page["page"]["position"] for page in pages] == [k * n for n in range(len(pages))]
    return pages


def ids_of(pages: Sequence[dict[str, Any]]) -> list[Any]:
    return [hit["id"] for page in pages for hit in page["hits"]]


@pytest.mark.parametrize("type_", [ValueType.BIGINT, ValueType.UUID, ValueType.TEXT])
@pytest.mark.parametrize("redis", [False, True], ids=["memory", "redis"])
async def test_the_pages_of_a_ranking_are_one_deep_search(
    cluster: Cluster, type_: ValueType, redis: bool
) -> None:
    rng = random.Random(1)
    ids: list[Any] = list(range(-50, 350))
    if type_ is ValueType.UUID:
        ids = [uuid.UUID(int=rng.getrandbits(128)) for _ in ids]
    elif type_ is ValueType.TEXT:
        ids = [f"{rng.choice('aBé𝄞_/')}{n}" for n in ids]
    id_ = column("id", type_)
    sharding = model.HashSharding(id_, ("s0", "s1", "s2"))
    async with world(cluster, redis=redis, id=id_, sharding=sharding) as w, w.over_http() as client:
        await fill(w, ids)
        wide = ["content", "vector", "price"]
        for body in ({}, {"filter": {"category": "a", "price": {"$lt": 300.5}}}, {"include": wide}):
            deep = await ask(client, {**SEARCH, "k": 1000, **body})
            for k in (7, 150):
                pages = await walk(client, k, **body)
                assert [hit for page in pages for hit in page["hits"]] == deep["hits"]
                last = pages[-1]
                assert last["page"]["ended"] == last["short"]["reason"] == "exhausted"
                assert all("ended" not in page["page"] for page in pages[:-1])
                assert {page["page"]["kept"] for page in pages} == {"l2" if redis else "l1"}
                assert pages[0]["cache"] == "bypass" and pages[1]["cache"] == "l1"
        one = await ask(client, {**SEARCH, "k": 500, "cursor": "*"})
        assert one["cursor"] is None and "kept" not in one["page"] and len(one["hits"]) == 400


@pytest.mark.parametrize(
    "body",
    [
        {"text": "cat", "mode": "fulltext"},
        {"queries": [{"vector": QUERY}, {"text": "cat or dog", "mode": "fulltext", "name": "words"}]},
        {"vector": QUERY, "exact": True, "diversity": {"lambda": 0.5, "candidates": 60}},
        {"like": {"ids": [3, 4], "not": [5]}, "exact": True},
        {"queries": [{"vector": QUERY}, {"text": "nothing", "mode": "fulltext"}], "max_distance": 4.0},
    ],
    ids=["words", "two lists", "diverse", "like", "near"],
)
async def test_searches_of_lists_and_steps_have_pages_too(cluster: Cluster, body: dict[str, Any]) -> None:
    rng = random.Random(4)
    async with (
        world(cluster, redis=True, fulltext=model.Fulltext(("content",))) as w,
        w.over_http() as client,
    ):
        vectors = gaussian(300, 8)
        texts = [" ".join(rng.choices(["cat", "dog", "runs", "fast"], k=6)) for _ in vectors]
        await w.put(
            *(w.document(n, vectors[n], content=texts[n], category="ab"[n % 2]) for n in range(len(vectors)))
        )
        search = {**body, "filter": {"category": "a"}}
        deep = await ask(client, {**search, "k": 1000})
        assert len(deep["hits"]) > 30
        async with second_router(w) as other:
            for include in ([], ["content", "vector"]):
                whole = await ask(client, {**search, "k": 1000, "include": include})
                first = await ask(client, {**search, "k": 8, "cursor": "*", "include": include})
                pages = [page async for page in follow(other, first, 8, include=include)]
                assert [hit for page in pages for hit in page["hits"]] == whole["hits"]
                assert pages[-1]["page"]["ended"] == whole["short"]["reason"]
                # What was done is said again by each page, as far as it is about the ranking.
                for member in ("legs", "diversity"):
                    assert {json.dumps(page.get(member)) for page in pages} == {json.dumps(whole.get(member))}
        problem = await ask(client, {**search, "cursor": "*", "group_by": {"field": "category"}}, 422)
        assert "group_by" in [one["path"] for one in problem["errors"]]


async def test_a_ranking_ends_at_its_depth_or_distance_and_says_so(cluster: Cluster) -> None:
    async with world(cluster, patient(ranking_depth=60)) as w, w.over_http() as client:
        await fill(w, range(200))
        deep = await ask(client, {**SEARCH, "k": 200})
        pages = await walk(client, 25)
        assert ids_of(pages) == [hit["id"] for hit in deep["hits"][:60]]
        assert pages[-1]["page"] == {"position": 50, "ranked": 60, "gone": 0, "kept": "l1", "ended": "depth"}
        assert pages[-1]["short"] == {"asked": 25, "returned": 10, "reason": "depth"}
        full = await walk(client, 20)
        assert full[-1]["page"]["ended"] == "depth" and "short" not in full[-1]
        near = await walk(client, 20, max_distance=deep["hits"][29]["distance"] + 1e-6)
        assert len(ids_of(near)) == 30 and near[-1]["page"]["ended"] == "max_distance"
        # The same cursor is the same page, of any size.
        again = await ask(client, {"cursor": pages[0]["cursor"], "k": 3, "include": ["content"]})
        assert [hit["id"] for hit in again["hits"]] == ids_of(pages)[25:28]
        assert all(hit["content"].startswith("text") for hit in again["hits"])
        beyond = await ask(client, {**SEARCH, "k": 100, "cursor": "*"})
        assert (len(beyond["hits"]), beyond["page"]["ended"]) == (100, "depth")


async def test_under_writes_nothing_comes_twice_and_only_what_is_gone_is_missing(cluster: Cluster) -> None:
    rng = random.Random(2)
    async with world(cluster, redis=True) as w, w.over_http() as client:
        await fill(w, range(600))
        deleted: set[int] = set()
        ended = asyncio.Event()

        async def write() -> None:
            new = 1000
            while not ended.is_set():
                # Nearer than all there is.
                await w.put(*(w.document(new + n, QUERY, category="a") for n in range(5)))
                new += 5
                doomed = rng.sample(range(600), 3)
                deleted.update(doomed)
                await w.router.delete(w.collection, doomed, w.soon())
                # Others change, which moves none.
                kept = [n for n in rng.sample(range(600), 3) if n not in deleted]
                await w.put(*(w.document(n, QUERY, category="b", price=-1.0) for n in kept))

        before = [hit["id"] for hit in (await ask(client, {**SEARCH, "k": 1000}))["hits"]]
        first = await ask(client, {**SEARCH, "k": 9, "cursor": "*"})
        writing = asyncio.create_task(write())
        try:
            pages = [page async for page in follow(client, first, 9, include=["content", "price"])]
        finally:
            ended.set()
            await writing
        seen = ids_of(pages)
        assert len(set(seen)) == len(seen) and all(len(page["hits"]) == 9 for page in pages[:-1])
        assert seen == [id_ for id_ in before if id_ in set(seen)]
        assert set(before) - deleted <= set(seen)
        gone = sum(page["page"]["gone"] for page in pages)
        assert gone > 0 and len(seen) + gone == len(before) == first["page"]["ranked"]
        assert any(hit.get("price") == -1.0 for page in pages for hit in page["hits"])


async def test_pages_are_filled_past_long_runs_of_rows_that_are_gone(cluster: Cluster) -> None:
    async with world(cluster) as w, w.over_http() as client:
        await fill(w, range(300))
        first = await ask(client, {**SEARCH, "filter": {"price": {"$gte": 0}}, "k": 5, "cursor": "*"})
        ranking = [hit["id"] for hit in (await ask(client, {**SEARCH, "k": 300}))["hits"]]
        await w.router.delete(w.collection, ranking[5:150], w.soon())
        # They are there, and match no longer.
        vectors = gaussian(300, 8)
        await w.put(*(w.document(n, vectors[n], price=-1.0) for n in ranking[150:250]))
        page = await ask(client, {"cursor": first["cursor"], "k": 5})
        assert [hit["id"] for hit in page["hits"]] == ranking[250:255]
        assert page["page"] == {"position": 5, "ranked": 300, "gone": 245, "kept": "l1"}
        rest = [one async for one in follow(client, page, 20)]
        assert ids_of(rest) == ranking[250:]
        await w.router.delete(w.collection, ranking[255:], w.soon())
        last = await ask(client, {"cursor": page["cursor"], "k": 5})
        assert (last["hits"], last["cursor"], last["page"]["gone"]) == ([], None, 45)
        assert last["short"] == {"asked": 5, "returned": 0, "reason": "exhausted"}


async def test_a_ranking_that_lacks_a_shard_says_so_on_every_page(cluster: Cluster) -> None:
    async with world(cluster, patient(hedge_quantile=0, primary_reads="equal")) as w, w.over_http() as client:
        await fill(w, range(200))
        strong = {"consistency": "strong", "timeout_ms": 2000}
        async with locked(primary(cluster, "s1"), w.collection.table):
            body = {**SEARCH, **strong, "k": 20, "cursor": "*", "include": ["content"], "explain": True}
            first = await ask(client, body)
            states = {one["shard"]: one["state"] for one in first["explain"]["shards"]}
            assert states == {"s0": "ok", "s1": "timed_out", "s2": "ok", "s3": "ok"}
            assert [one["shard"] for one in first["coverage"]["failures"]] == ["s1"]
            assert len(first["hits"]) == 20
        pages = [page async for page in follow(client, first, 20)]
        for page in pages:
            assert not page["coverage"]["full"]
            assert [one["shard"] for one in page["coverage"]["failures"]] == ["s1"]
        whole = await ask(client, {**SEARCH, "k": 200})
        assert ids_of(pages) == [hit["id"] for hit in whole["hits"] if hit["shard"] != "s1"]
        assert pages[-1]["page"]["ended"] == "coverage"
        # What happened then is not told as if it happened now.
        told = await ask(client, {"cursor": first["cursor"], "explain": True})
        assert "s1" not in [one["shard"] for one in told["explain"]["shards"]]
        refused = {"cursor": first["cursor"], "allow_partial": False}
        assert (await ask(client, refused, 504))["errors"][0]["path"] == "shards.s1"


async def test_a_shard_that_fails_while_a_page_is_read_costs_its_rows_until_it_is_asked_again(
    cluster: Cluster,
) -> None:
    async with world(cluster, patient(hedge_quantile=0)) as w, w.over_http() as client:
        await fill(w, range(200))
        whole = await ask(client, {**SEARCH, "k": 200})
        first = await ask(client, {**SEARCH, "k": 30, "cursor": "*"})
        cursor = {"cursor": first["cursor"], "k": 30, "include": ["content"], "consistency": "strong"}
        async with locked(primary(cluster, "s2"), w.collection.table):
            page = await ask(client, {**cursor, "timeout_ms": 1000})
            await ask(client, {**cursor, "timeout_ms": 500, "allow_partial": False}, 504)
        expected = whole["hits"][30:60]
        assert [hit["id"] for hit in page["hits"]] == [hit["id"] for hit in expected if hit["shard"] != "s2"]
        assert [one["shard"] for one in page["coverage"]["failures"]] == ["s2"]
        assert page["short"]["reason"] == "coverage" and page["page"]["gone"] == 0
        again = await ask(client, cursor)
        assert [hit["id"] for hit in again["hits"]] == [hit["id"] for hit in expected]
        assert again["coverage"]["full"] and again["cursor"] == page["cursor"]


async def test_a_cursor_ends_with_its_time(cluster: Cluster) -> None:
    for redis in (False, True):
        async with world(cluster, patient(ranking_ttl=0.3), redis=redis) as w, w.over_http() as client:
            await fill(w, range(50))
            first = await ask(client, {**SEARCH, "k": 10, "cursor": "*"})
            async with asyncio.timeout(20):
                while True:
                    reply = await client.post("/search", json={"cursor": first["cursor"]})
                    if reply.status_code != 200:
                        break
                    await asyncio.sleep(0.02)
            assert (reply.status_code, reply.json()["type"]) == (410, "urn:pgscatter:problem:expired")


@asynccontextmanager
async def second_router(w: World, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Another router with the same map and Redis, which has nothing in memory."""
    parts = Parts(w.router.shard_map, patient(**settings), redis_url=w.cluster.redis_url)
    topology = Topology(w.router.shard_map, parts)
    await topology.open()
    transport = httpx.ASGITransport(application(topology.snapshot, parts.settings))
    base = "http://second/v1/collections/docs"
    try:
        async with httpx.AsyncClient(transport=transport, base_url=base, timeout=None) as client:
            yield client
    finally:
        await topology.close()


async def test_another_router_goes_on_where_one_has_ended(cluster: Cluster) -> None:
    async with world(cluster, redis=True) as w, w.over_http() as client:
        await fill(w, range(100))
        deep = await ask(client, {**SEARCH, "filter": {"category": "a"}, "k": 100})
        first = await ask(client, {**SEARCH, "filter": {"category": "a"}, "k": 10, "cursor": "*"})
        async with second_router(w) as other:
            pages = [page async for page in follow(other, first, 10)]
            assert ids_of(pages) == [hit["id"] for hit in deep["hits"]]
            # It keeps for itself what it has read once.
            assert [page["cache"] for page in pages[:3]] == ["bypass", "l2", "l1"]
            assert {page["page"]["kept"] for page in pages} == {"l2"}


async def test_without_its_redis_a_router_goes_on_with_what_it_remembers(cluster: Cluster) -> None:
    # A Redis of its own time: others' tests use it before and after.
    settings = {"l2_pause": 0.05}
    async with world(cluster, patient(**settings), redis=True) as w, w.over_http() as client:
        await fill(w, range(100))
        first = await ask(client, {**SEARCH, "k": 10, "cursor": "*"})
        async with second_router(w, **settings) as other:
            cluster.kill("redis")
            try:
                asked = {"cursor": first["cursor"], "k": 10}
                away = await ask(other, asked, 503)
                assert "Redis" in away["detail"] and away["type"] == "urn:pgscatter:problem:unavailable"
                page = await ask(client, asked)
                assert len(page["hits"]) == 10 and page["cache"] == "l1"
                alone = await ask(client, {**SEARCH, "k": 10, "cursor": "*"})
                assert alone["page"]["kept"] == "l1"
                assert len(ids_of([one async for one in follow(client, alone, 10)])) == 100
            finally:
                cluster.start("redis")
            async with asyncio.timeout(20):
                while (reply := await other.post("/search", json=asked)).status_code == 503:
                    await asyncio.sleep(0.02)
            # It came back empty.
            assert reply.status_code == 410


async def test_no_text_in_the_place_of_a_cursor_is_answered_but_by_its_own_page(cluster: Cluster) -> None:
    rng = random.Random(3)
    async with world(cluster, redis=True) as w, w.over_http() as client:
        await fill(w, range(30))
        first = await ask(client, {**SEARCH, "k": 5, "cursor": "*"})
        good = first["cursor"]
        bad = [good[:n] for n in range(len(good))] + [good + "A", good + "=", f" {good}", good.swapcase()]
        for _ in range(100):
            at = rng.randrange(len(good))
            bad.append(good[:at] + rng.choice("AZaz09-_+/=.*\0é𝄞 ") + good[at + 1 :])
        for text in bad:
            if text not in (good, "*"):
                problem = await ask(client, {"cursor": text, "k": 5}, 422)
                assert problem["errors"][0]["path"] == "cursor"
        for value in (1, True, [], {}, 1.5):
            await ask(client, {"cursor": value}, 422)
        # What is left out, or null, is no cursor.
        assert "page" not in await ask(client, {**SEARCH, "cursor": None})


async def test_what_a_cursor_leaves_no_room_for_is_refused_with_its_place(cluster: Cluster) -> None:
    async with world(cluster) as w, w.over_http() as client:
        await fill(w, range(30))
        first = await ask(client, {**SEARCH, "k": 5, "cursor": "*"})
        for field, value in {
            "vector": QUERY,
            "text": "words",
            "offset": 5,
            "filter": {},
            "exact": True,
            "max_distance": 1.0,
            "ef_search": 10,
            "cache": False,
            "explain_plan": True,
            "include": ["nothing"],
            "k": 0,
            "timeout_ms": 0,
        }.items():
            problem = await ask(client, {"cursor": first["cursor"], field: value}, 422)
            assert [one["path"].split("[")[0] for one in problem["errors"]] == [field]
        for field, value in {"offset": 5, "cache": False}.items():
            problem = await ask(client, {**SEARCH, "cursor": "*", field: value}, 422)
            assert [one["path"] for one in problem["errors"]] == [field]
        problem = await ask(client, {"cursor": "*"}, 422)
        assert "needs a vector" in problem["detail"]
        reply = await client.post("/search/batch", json={"searches": [{**SEARCH, "cursor": "*"}, SEARCH]})
        refused, found = reply.json()["results"]
        assert refused["error"]["errors"][0]["path"] == "searches[0].cursor" and found["hits"]


async def test_a_page_is_explained_and_metered(cluster: Cluster) -> None:
    async with world(cluster) as w, w.over_http() as client:
        await fill(w, range(60))
        first = await ask(client, {**SEARCH, "k": 20, "cursor": "*", "explain": True})
        assert {one["shard"] for one in first["explain"]["shards"]} == {"s0", "s1", "s2", "s3"}
        page = await ask(
            client, {"cursor": first["cursor"], "k": 20, "explain": True, "include": ["content"]}
        )
        reports = page["explain"]["shards"]
        assert sum(one["kept"] for one in reports) == 20
        assert all(one["attempts"] >= 2 and one["node"] for one in reports if one["kept"])
        figures = w.router.cache_stats()
        assert (figures["rankings"], figures["rankings_found_l1"]) == (1, 1)
        assert 500 < int(figures["rankings_bytes"]) < 5000


async def test_a_ranking_too_large_to_be_kept_is_refused(cluster: Cluster) -> None:
    async with world(cluster, patient(ranking_bytes=8000)) as w, w.over_http() as client:
        await fill(w, range(200))
        problem = await ask(client, {**SEARCH, "k": 10, "cursor": "*"}, 422)
        assert problem["type"] == "urn:pgscatter:problem:answer-too-large"
        assert "--ranking-bytes" in problem["detail"]
    async with world(cluster, patient(ranking_bytes=0)) as w, w.over_http() as client:
        problem = await ask(client, {**SEARCH, "k": 10, "cursor": "*"}, 422)
        assert "--ranking-bytes 0" in problem["detail"]
    # With Redis it needs no memory of its own.
    async with world(cluster, patient(ranking_bytes=0), redis=True) as w, w.over_http() as client:
        await fill(w, range(50))
        pages = await walk(client, 10)
        assert len(ids_of(pages)) == 50 and [page["cache"] for page in pages[1:]] == ["l2"] * 4


def test_several_workers_share_rankings_by_redis_or_have_none(
    cluster: Cluster, serve: Serve, tmp_path: Path
) -> None:
    map_path = applied_map(cluster, tmp_path, documents=collection(), others=collection())
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        "keys: [{name: a, key: key-of-a, scopes: [read, write]}, {name: b, key: key-of-b, scopes: [read]}]"
    )
    path = "/v1/collections/documents"
    search = {"vector": [0, 1, 0, 0], "k": 10, "cursor": "*"}
    # Connections that are closed after each request reach both workers.
    of_a = {"authorization": "Bearer key-of-a", "connection": "close"}
    with (
        serve(map_path, redis=cluster.redis_url, workers=2, api_keys=keys) as url,
        httpx.Client(base_url=url, timeout=30, headers=of_a) as client,
    ):
        documents = [{"id": n, "vector": [n, 1, 0, 0]} for n in range(200)]
        assert client.put(f"{path}/documents", json={"documents": documents}).status_code == 200
        found = client.post(f"{path}/search", json=search).json()
        cursor, ids, tiers = found["cursor"], [hit["id"] for hit in found["hits"]], set()
        while found["cursor"] is not None:
            found = client.post(f"{path}/search", json={"cursor": found["cursor"]}).json()
            ids += [hit["id"] for hit in found["hits"]]
            tiers.add(found["cache"])
        assert ids == list(range(200)) and tiers <= {"l1", "l2"}
        refused = [
            client.post("/v1/collections/others/search", json={"cursor": cursor}),
            client.post(
                f"{path}/search", json={"cursor": cursor}, headers={"authorization": "Bearer key-of-b"}
            ),
        ]
        assert [reply.status_code for reply in refused] == [410, 410]
        assert refused[0].json()["detail"] == refused[1].json()["detail"]
    with serve(map_path, workers=2) as url, httpx.Client(base_url=url, timeout=30) as client:
        reply = client.post(f"{path}/search", json=search)
        assert reply.status_code == 422
        assert reply.json()["errors"][0]["path"] == "cursor" and "--redis" in reply.json()["detail"]
