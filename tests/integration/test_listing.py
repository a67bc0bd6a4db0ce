"""Many documents at once on the real cluster: by their ids, and all of them while others write."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections import Counter
from typing import Any

import httpx
import numpy as np
import pytest

from deploy.local import Cluster
from shard_config import model
from shard_config.partition import locate
from shard_config.values import ValueType, coerce
from tests.integration.worlds import World, column, execute, patient, replayed, until, world

ID = column("id", ValueType.BIGINT)
CATEGORY = column("category", ValueType.TEXT)
BY_CATEGORY = model.HashSharding(CATEGORY, ("s0", "s1", "s2", "s3"))
ONES = [1.0] * 8
KINDS: list[tuple[ValueType, model.Sharding | None]] = [
    (ValueType.BIGINT, None),
    (ValueType.UUID, None),
    (ValueType.TEXT, None),
    (ValueType.TEXT, BY_CATEGORY),
    (ValueType.UUID, model.ListSharding(CATEGORY, {"c0": "s0", "c1": "s1"}, "s3")),
    (
        ValueType.BIGINT,
        model.RangeSharding(ID, (model.RangePart(None, 0, "s2"), model.RangePart(0, None, "s1"))),
    ),
]


def some_ids(type_: ValueType, count: int) -> list[Any]:
    rng = random.Random(5)
    if type_ is ValueType.BIGINT:
        return [2**63 - 1, -(2**63), *rng.sample(range(-(10**6), 10**6), count - 2)]
    if type_ is ValueType.UUID:
        return [uuid.UUID(int=rng.getrandbits(128)) for _ in range(count)]
    letters = "aBz/ .%é🙂\ue000_0"
    return list({"".join(rng.choices(letters, k=rng.randrange(9))) for _ in range(2 * count)})[:count]


def of(type_: ValueType, sharding: model.Sharding | None) -> dict[str, Any]:
    id_ = column("id", type_)
    return {"id": id_, "sharding": sharding or model.HashSharding(id_, ("s0", "s1", "s2", "s3"))}


async def fill(w: World, ids: list[Any]) -> None:
    await w.put(
        *(
            w.document(id_, ONES, category=f"c{i % 5}", price=float(i), content=f"{i} é", metadata={"i": i})
            for i, id_ in enumerate(ids)
        )
    )


async def export(client: httpx.AsyncClient, **query: str) -> list[dict[str, Any]]:
    """All documents of all pages."""
    found: list[dict[str, Any]] = []
    while True:
        answer = await client.get("/documents", params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert page["coverage"]["full"] and len(page["documents"]) <= int(query.get("limit", 100))
        found += page["documents"]
        if page["cursor"] is None:
            return found
        query["cursor"] = page["cursor"]


@pytest.mark.parametrize(("id_type", "sharding"), KINDS)
async def test_all_documents_come_once_in_the_order_of_their_ids(
    cluster: Cluster, id_type: ValueType, sharding: model.Sharding | None
) -> None:
    async with world(cluster, **of(id_type, sharding)) as w, w.over_http() as client:
        assert await export(client) == []
        ids = some_ids(id_type, 120)
        await fill(w, ids)
        in_order = [id_ if id_type is ValueType.BIGINT else str(id_) for id_ in sorted(ids)]
        number = {str(id_): i for i, id_ in enumerate(ids)}
        for limit in ("1", "7", "120", "1000"):
            found = await export(client, limit=limit, include="price,content")
            assert [one["id"] for one in found] == in_order
            for one in found:
                i = number[str(one["id"])]
                assert one == {"id": one["id"], "shard": one["shard"], "price": float(i), "content": f"{i} é"}
        some = await export(
            client, limit="4", filter='{"price": {"$lt": 60}, "category": {"$in": ["c1", "c3"]}}'
        )
        expected = [id_ for id_ in sorted(ids) if number[str(id_)] < 60 and number[str(id_)] % 5 in (1, 3)]
        assert [str(one["id"]) for one in some] == [str(id_) for id_ in expected]
        assert some[0].keys() == {"id", "shard", "content", "metadata", "category", "price"}
        strong = await export(client, limit="50", consistency="strong", include="")
        assert [one["id"] for one in strong] == in_order


@pytest.mark.parametrize(("id_type", "sharding"), KINDS)
async def test_documents_of_many_ids_come_in_the_order_of_the_ids(
    cluster: Cluster, id_type: ValueType, sharding: model.Sharding | None
) -> None:
    async with world(cluster, **of(id_type, sharding)) as w, w.over_http() as client:
        ids = some_ids(id_type, 90)
        stored, absent = ids[:60], ids[60:]
        await fill(w, stored)
        asked = ids * 2
        random.Random(1).shuffle(asked)
        plain = [id_ if id_type is ValueType.BIGINT else str(id_) for id_ in asked]
        answer = (await client.post("/documents/get", json={"ids": plain})).json()
        once = list(dict.fromkeys(plain))
        known = {id_ if id_type is ValueType.BIGINT else str(id_): i for i, id_ in enumerate(stored)}
        assert [one["id"] for one in answer["documents"]] == [id_ for id_ in once if id_ in known]
        assert answer["missing"] == [id_ for id_ in once if id_ not in known]
        assert "unread" not in answer and answer["coverage"]["full"] and len(answer["missing"]) == len(absent)
        for one in answer["documents"]:
            i = known[one["id"]]
            rest = {"category": f"c{i % 5}", "price": float(i), "content": f"{i} é", "metadata": {"i": i}}
            assert one == {"id": one["id"], "shard": one["shard"]} | rest
            alone = await w.router.read(w.collection, stored[i], frozenset(), w.soon())
            assert alone is not None and alone.document["shard"] == one["shard"]
        assert (await client.post("/documents/get", json={"ids": []})).json()["documents"] == []
        encoded = {"ids": plain[:3], "include": ["vector"], "vector_format": "base64"}
        both = [
            (await client.post("/documents/get", json=body)).json()
            for body in (encoded, encoded | {"vector_format": "float"})
        ]
        for one in both[0]["documents"]:
            assert isinstance(one["vector"], str)
        assert all(one["vector"] == ONES for one in both[1]["documents"])


async def test_documents_too_wide_to_come_along_are_read_by_id_within_the_memory_for_answers(
    cluster: Cluster,
) -> None:
    settings = patient(max_answer_bytes=1 << 20, answer_memory_bytes=8 << 20)
    async with world(cluster, settings) as w, w.over_http() as client:
        rng = random.Random(2)
        texts = {i: chr(0x41 + i % 26) * rng.choice([0, 10, 4_000, 90_000]) for i in range(100)}
        texts[50] = 'é"\\' * 90_000  # one of several hundred KiB, that is escaped
        await w.put(*(w.document(i, ONES, content=text) for i, text in texts.items()))
        found: list[dict[str, Any]] = []
        query = {"include": "content,vector", "limit": "100"}
        pages = 0
        while True:
            answer = await client.get("/documents", params=query)
            assert answer.status_code == 200 and len(answer.content) < 1_100_000, answer.text[:300]
            page = answer.json()
            found += page["documents"]
            pages += 1
            if page["cursor"] is None:
                break
            query["cursor"] = page["cursor"]
        assert pages > 2
        assert {one["id"]: one["content"] for one in found} == texts and len(found) == 100
        assert all(one["vector"] == ONES for one in found)

        some = [50, 3, 99, 7, 1000]
        answer = await client.post("/documents/get", json={"ids": some, "include": ["content"]})
        assert [one["id"] for one in answer.json()["documents"]] == some[:4]
        assert all(one["content"] == texts[one["id"]] for one in answer.json()["documents"])
        assert answer.json()["missing"] == [1000]
        everything = await client.post(
            "/documents/get", json={"ids": list(range(100)), "include": ["content"]}
        )
        assert (everything.status_code, everything.json()["type"]) == (
            422,
            "urn:pgscatter:problem:answer-too-large",
        )
        texts[50] *= 3
        await w.put(w.document(50, ONES, content=texts[50]))
        query = {"include": "content", "limit": "100", "filter": '{"id": {"$gte": 50}}'}
        refused = await client.get("/documents", params=query)
        assert (refused.status_code, refused.json()["type"]) == (
            422,
            "urn:pgscatter:problem:answer-too-large",
        )
        assert [one["id"] for one in await export(client, include="price", limit="30")] == list(range(100))
        memory = w.topology.parts.memory
        del answer, everything, refused
        await until(lambda: memory.used == 0)


async def test_what_is_there_during_the_whole_export_comes_once_whatever_is_written_meanwhile(
    cluster: Cluster,
) -> None:
    async with world(cluster, **of(ValueType.TEXT, BY_CATEGORY)) as w, w.over_http() as client:
        rng = random.Random(8)
        names = [f"{rng.getrandbits(40):010x}" for _ in range(600)]
        staying, others = set(names[:300]), names[300:]
        await fill(w, [*staying, *others[:150]])
        ended = asyncio.Event()

        async def write() -> int:
            writes = 0
            while not ended.is_set():
                id_ = rng.choice(others)
                if rng.random() < 0.5:
                    await w.router.delete(w.collection, [id_], w.soon())
                else:
                    document = w.document(id_, ONES, category=f"c{rng.randrange(5)}", content="x" * 5000)
                    await w.router.upsert(w.collection, [document], w.soon())
                writes += 1
            return writes

        writers = [asyncio.create_task(write()) for _ in range(3)]
        try:
            for _ in range(3):
                ids = [one["id"] for one in await export(client, limit="11", include="content")]
                assert ids == sorted(set(ids))
                assert staying <= set(ids) <= set(names)
        finally:
            ended.set()
            counts = await asyncio.gather(*writers)
        assert sum(counts) > 20


@pytest.mark.parametrize("type_", list(model.VectorType))
async def test_what_is_exported_as_lines_can_be_stored_as_a_stream(
    cluster: Cluster, type_: model.VectorType
) -> None:
    vector = model.Vector("embedding", type_, 8, model.Metric.L2)
    async with world(cluster, vector=vector, sharding=BY_CATEGORY) as w, w.over_http() as client:
        await fill(w, list(range(50)))
        await w.put(w.document(50, ONES, category="c0", content="x" * 300_000, metadata={"n": "\n"}))
        before = await export(client, include="vector,content,metadata,category,price")
        lines = {"accept": "application/x-ndjson"}
        query = {"include": "vector,content,metadata,category,price", "limit": "20"}
        stream = b""
        while True:
            page = await client.get("/documents", params=query, headers=lines)
            assert page.status_code == 200
            stream += page.content
            if "x-next-cursor" not in page.headers:
                break
            query["cursor"] = page.headers["x-next-cursor"]
        assert len(stream.splitlines()) == 51
        await w.router.delete(w.collection, list(range(51)), w.soon())
        assert await export(client) == []
        stored = await client.put(
            "/documents", content=stream, headers={"content-type": "application/x-ndjson"}
        )
        assert (stored.status_code, stored.json()["stored"]) == (200, 51)
        assert await export(client, include="vector,content,metadata,category,price") == before


async def test_a_row_that_goes_between_being_listed_and_being_read_is_left_out(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(cluster) as w, w.over_http() as client:
        await w.put(*(w.document(i, ONES, content="x" * 50_000) for i in range(40)))
        fanout = w.router._fanout
        fetch, calls = type(fanout).fetch, 0

        async def fetched(self: Any, probes: Any, deadline: float) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:
                await w.router.delete(w.collection, [5, 39], w.soon())
            return await fetch(self, probes, deadline)

        monkeypatch.setattr(type(fanout), "fetch", fetched)
        page = (await client.get("/documents", params={"limit": "40"})).json()
        assert calls > 1
        assert [one["id"] for one in page["documents"]] == [i for i in range(39) if i != 5]
        assert page["cursor"] is None


async def test_a_shard_that_is_away_fails_an_export_and_leaves_ids_unread(cluster: Cluster) -> None:
    async with world(cluster) as w, w.over_http() as client:
        await w.put(*(w.document(i, ONES) for i in range(40)))
        nodes = [node for node in cluster.nodes if node.shard == "s1"]
        away = [i for i in range(40) if locate(w.collection.sharding, i) == "s1"]
        assert away and nodes
        for node in nodes:
            if node.role == "primary":
                await execute(
                    node.dsn, f"ALTER TABLE {w.collection.table} RENAME TO {w.collection.table.name}_away"
                )
        await replayed(cluster)
        try:
            page = await client.get("/documents")
            assert page.status_code == 500 and page.json()["type"].endswith(":misconfigured")
            assert [error["path"] for error in page.json()["errors"]] == ["shards.s1"]
            got = (await client.post("/documents/get", json={"ids": [*range(40), 1000]})).json()
            assert [one["id"] for one in got["documents"]] == [i for i in range(40) if i not in away]
            gone = [1000] if locate(w.collection.sharding, 1000) == "s1" else []
            assert got["unread"] == [*away, *gone] and got["missing"] == ([] if gone else [1000])
            assert got["coverage"]["shards"]["failed"] == 1
            counted = (await client.post("/facets", json={"field": "category"})).json()
            assert counted["facets"][0]["missing"] == 40 - len(away) and not counted["coverage"]["full"]
            only = await client.get("/documents", params={"filter": json.dumps({"id": away[0]})})
            assert only.status_code == 500
            other = next(i for i in range(40) if i not in away)
            only = await client.get("/documents", params={"filter": json.dumps({"id": other})})
            assert [one["id"] for one in only.json()["documents"]] == [other]
        finally:
            for node in nodes:
                if node.role == "primary":
                    await execute(
                        node.dsn, f"ALTER TABLE {w.collection.table}_away RENAME TO {w.collection.table.name}"
                    )


FACETS: list[tuple[Any, Any]] = [
    # metadata, category
    ({"lang": "en", "tags": ["x", "y", "x"], "n": 1}, "a"),
    ({"lang": "de", "tags": ["y"], "n": 1.0}, "b"),
    ({"lang": "en", "tags": [], "n": True}, "a"),
    ({"lang": None, "tags": "x", "n": "1"}, None),
    ({"tags": [None, {"k": 1}, ["z"]], "n": {"b": [1, 2.50], "a": None}}, ""),
    ({"tags": [{"k": 1.0}], "n": {"a": None, "b": [1.0, 2.5]}}, "A"),
    (None, "a"),
    ({"lang": "e" * 300, "tags": ["t" * 300, "u" * 300, "x"], "n": 1e3}, "é" * 200),
    ({"lang": "en", "n": 1000}, "é"),
]


async def facet(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/facets", json=body)
    assert answer.status_code == 200, answer.text
    (only,) = answer.json()["facets"]
    assert isinstance(only, dict)
    return only


@pytest.mark.parametrize("sharding", [None, BY_CATEGORY])
async def test_facets_count_values_elements_of_arrays_and_what_is_missing(
    cluster: Cluster, sharding: model.Sharding | None
) -> None:
    async with (
        world(cluster, **({} if sharding is None else {"sharding": sharding})) as w,
        w.over_http() as client,
    ):
        keyed = sharding is not None
        await w.put(
            *(
                w.document(
                    i, ONES, metadata=metadata, category=("none" if keyed and category is None else category)
                )
                for i, (metadata, category) in enumerate(FACETS)
            )
        )

        def pairs(found: dict[str, Any]) -> list[tuple[Any, int]]:
            return [(one["value"], one["count"]) for one in found["values"]]

        category = await facet(client, field="category")
        rest = [("none", 1)] if keyed else []
        assert pairs(category) == [("a", 3), ("", 1), ("A", 1), ("b", 1), *rest, ("é", 1)]
        assert (category["missing"], category["too_long"]) == (0 if keyed else 1, 1)
        assert (category["exact"], category["more"]) == (True, 0) and "undercount" not in category

        lang = await facet(client, field="metadata.lang")
        assert pairs(lang) == [("en", 3), ("de", 1)]
        assert (lang["missing"], lang["too_long"], lang["exact"]) == (4, 1, True)
        tags = await facet(client, field="metadata.tags")
        assert pairs(tags) == [("x", 3), ("y", 2), ({"k": 1}, 2), (["z"], 1)]
        assert (tags["missing"], tags["too_long"]) == (3, 2)
        n = await client.post("/facets", json={"field": "metadata.n"})
        (numbers,) = n.json()["facets"]
        assert [(json.dumps(value), count) for value, count in pairs(numbers)] == [
            ("1", 2),
            ("1000", 2),
            ('{"a": null, "b": [1, 2.5]}', 2),
            ("true", 1),
            ('"1"', 1),
        ]
        assert numbers["missing"] == 1

        cut = await facet(client, field="category", limit=2)
        assert pairs(cut) == [("a", 3), ("", 1)] and cut["more"] == (4 if keyed else 3)
        few = await facet(client, field="metadata.tags", filter={"category": "a"}, timeout_ms=15_000)
        assert pairs(few) == [("x", 1), ("y", 1)] and few["missing"] == 2
        nothing = await facet(client, field="metadata.none.at.all")
        assert (nothing["values"], nothing["missing"]) == ([], len(FACETS))
        none = await facet(client, field="category", filter={"id": {"$lt": -5}})
        assert (none["values"], none["missing"], none["exact"]) == ([], 0, True)


async def test_facets_of_every_type_are_those_of_one_table(cluster: Cluster) -> None:
    columns = {type_.name.lower(): column(f"c_{type_.name.lower()}", type_) for type_ in ValueType}
    values: dict[str, list[Any]] = {
        "bigint": [2**62, -1, 0],
        "integer": [3, -3],
        "smallint": [1, 2],
        "text": ["x", "X", "ä"],
        "uuid": [uuid.UUID(int=1), uuid.UUID(int=2**127)],
        "boolean": [True, False],
        "float8": [0.1, float("nan"), float("inf"), -0.0, 0.0],
        "float4": [float(np.float32(0.1)), float("nan")],
        "numeric": ["1.50", "1.5", "NaN", "1e3", "1000"],
        "date": ["2026-01-31", "infinity", "0044-03-15 BC"],
        "timestamp": ["2026-01-31T12:00:00", "-infinity"],
        "timestamptz": ["2026-01-31T12:00:00Z", "294276-12-31T00:00:00Z"],
    }
    async with world(cluster, columns=columns) as w, w.over_http() as client:
        rng = random.Random(4)
        documents = []
        for i in range(80):
            fields = {
                name: coerce(columns[name].type, rng.choice(values[name]))
                for name in columns
                if rng.random() < 0.8
            }
            documents.append(w.document(i, ONES, **fields))
        await w.put(*documents)
        answer = await client.post("/facets", json={"fields": list(columns)[:12]})
        assert answer.status_code == 200, answer.text
        everything = {one["id"]: one for one in await export(client)}
        for found in answer.json()["facets"]:
            column_ = columns[found["field"]]
            shown = [document[found["field"]] for document in everything.values()]
            expected = Counter(equal(column_.type, value) for value in shown if value is not None)
            assert {equal(column_.type, one["value"]): one["count"] for one in found["values"]} == expected
            assert len(found["values"]) == len(expected)
            assert (found["missing"], found["exact"], found["more"]) == (shown.count(None), True, 0)


def equal(type_: ValueType, shown: Any) -> Any:
    """What values have in common that PostgreSQL takes for equal."""
    return float(shown) if type_ is ValueType.NUMERIC and shown != "NaN" else shown


async def test_facets_of_more_values_than_a_shard_may_bring_say_how_wrong_they_may_be(
    cluster: Cluster,
) -> None:
    async with world(cluster, patient(max_facet_values=5)) as w, w.over_http() as client:
        rng = random.Random(6)
        names = [f"v{min(rng.randrange(30), rng.randrange(30)):02d}" for _ in range(400)]
        await w.put(*(w.document(i, ONES, category=name) for i, name in enumerate(names)))
        found = await facet(client, field="category", limit=5)
        assert (found["exact"], found["more"]) == (False, None)
        for one in found["values"]:
            assert one["count"] <= names.count(one["value"]) <= one["count"] + found["undercount"]
        listed = {one["value"] for one in found["values"]}
        best = max(names.count(name) for name in set(names) - listed)
        assert best <= max(
            found["undercount"], max(one["count"] for one in found["values"]) + found["undercount"]
        )
        few = await facet(
            client, field="category", filter={"category": {"$in": ["v00", "v01", "v02"]}}, limit=5
        )
        assert few["exact"] and sum(one["count"] for one in few["values"]) == sum(
            names.count(name) for name in ("v00", "v01", "v02")
        )
