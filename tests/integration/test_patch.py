"""Patches on the real cluster: what is named changes as said, all else stays, and no shard does half."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import asyncpg
import msgspec
import numpy as np
import pytest

from deploy.local import Cluster
from router.decode.patch import patch_of
from router.documents.types import PatchOutcome
from shard_config import model
from shard_config.partition import locate
from shard_config.values import ValueType
from tests.integration.worlds import World, column, hits, world

ID = column("id", ValueType.BIGINT)
BY_CATEGORY = model.HashSharding(column("category", ValueType.TEXT), ("s0", "s1", "s2", "s3"))
ONES = [1.0] * 8
COLUMNS = {
    "category": column("category", ValueType.TEXT),
    "price": column("price", ValueType.FLOAT8),
    "amount": column("amount", ValueType.NUMERIC),
    "at": column("at", ValueType.TIMESTAMPTZ),
}


async def stored(w: World, id_: object) -> dict[str, Any]:
    answer = await w.router.read(w.collection, id_, frozenset(COLUMNS) | {"content", "metadata"}, w.soon())
    assert answer is not None
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(answer.document))
    return document


@pytest.mark.parametrize(
    ("id_type", "sharding"),
    [
        (ValueType.BIGINT, None),
        (ValueType.UUID, BY_CATEGORY),
        (
            ValueType.TEXT,
            model.ListSharding(column("category", ValueType.TEXT), {"a": "s0", "b": "s1"}, "s2"),
        ),
        (
            ValueType.BIGINT,
            model.RangeSharding(ID, (model.RangePart(None, 3, "s0"), model.RangePart(3, None, "s1"))),
        ),
    ],
)
async def test_what_is_named_changes_and_everything_else_stays(
    cluster: Cluster, id_type: ValueType, sharding: model.Sharding | None
) -> None:
    id_ = column("id", id_type)
    if sharding is None:
        sharding = model.HashSharding(id_, ("s0", "s1", "s2", "s3"))
    ids: list[Any] = [1, 2, 3, 4, 5, 6]
    if id_type is ValueType.UUID:
        ids = [uuid.UUID(int=i << 90) for i in ids]
    elif id_type is ValueType.TEXT:
        ids = [f"ü/{i}" for i in ids]
    async with world(cluster, id=id_, sharding=sharding, columns=COLUMNS) as w, w.over_http() as client:
        await w.put(
            *(
                w.document(i, ONES, content=f"text {n}", category="ab"[n % 2], price=1.0, metadata={"n": n})
                for n, i in enumerate(ids)
            )
        )
        body = {
            "set": {
                "price": 3,
                "amount": "1.50",
                "at": "2026-01-31T12:00:00Z",
                "metadata.a.b": {"c": 12345678901234567890123},
            },
            "unset": ["content", "metadata.n"],
        }
        shown = [str(i) for i in ids]
        one = await client.patch(f"/documents/{shown[0].replace('/', '%2F')}", json=body)
        assert (one.status_code, one.json()["matched"], one.json()["patched"]) == (200, 1, 1)
        first = await stored(w, ids[0])
        assert first.pop("shard") in one.json()["shards"]
        assert first == {
            "id": ids[0] if id_type is ValueType.BIGINT else shown[0],
            "content": None,
            "category": "a",
            "price": 3.0,
            "amount": "1.50",
            "at": "2026-01-31T12:00:00Z",
            "metadata": {"a": {"b": {"c": 12345678901234567890123}}},
        }
        assert (await stored(w, ids[1]))["metadata"] == {"n": 1}
        # The vector is what it was, and so is the document's place.
        found = hits(await w.search(ONES, 10, exact=True, include=frozenset({"vector"})))
        assert len(found) == 6 and all(np.allclose(hit["vector"], ONES) for hit in found)

        absent: Any = {ValueType.BIGINT: 99, ValueType.UUID: str(uuid.uuid4())}.get(id_type, "none")
        many = await client.post(
            "/documents/patch",
            json={"ids": [*shown, absent] if id_type is not ValueType.BIGINT else [*ids, absent], **body},
        )
        # The first is as it should be already.
        assert (many.status_code, many.json()["matched"], many.json()["patched"]) == (200, 6, 5)
        assert sum(shard["rows"] for shard in many.json()["shards"].values()) == 5
        gone = await client.patch(f"/documents/{absent}", json=body)
        assert (gone.status_code, gone.json()["detail"]) == (
            404,
            f"no document '{absent}' in collection docs",
        )
        some = await client.post(
            "/documents/patch", json={"filter": {"category": "a"}, "set": {"metadata.a.d": [1, None]}}
        )
        assert (some.json()["matched"], some.json()["patched"]) == (3, 3)
        assert (await stored(w, ids[2]))["metadata"] == {
            "a": {"b": {"c": 12345678901234567890123}, "d": [1, None]}
        }
        assert (await stored(w, ids[3]))["metadata"] == {"a": {"b": {"c": 12345678901234567890123}}}


# Metadata, what is set and unset, and the metadata then; None where nothing may be changed.
NESTED: list[tuple[Any, dict[str, Any], list[str], Any]] = [
    (None, {"metadata.a": 1}, [], {"a": 1}),
    (None, {"metadata.a.b.c": 1}, [], {"a": {"b": {"c": 1}}}),
    (None, {}, ["metadata.a.b"], None),
    ({}, {"metadata.a": None}, [], {"a": None}),
    ({"a": None}, {"metadata.a.b": 1}, [], {"a": {"b": 1}}),
    ({"a": {"x": 1, "b": 2}}, {"metadata.a.b": 3}, ["metadata.a.x"], {"a": {"b": 3}}),
    ({"a": {"x": 1}}, {"metadata.a.b.c": 1, "metadata.a.b.d": 2}, [], {"a": {"x": 1, "b": {"c": 1, "d": 2}}}),
    ({"a": {"b": {"c": 1}}, "z": 0}, {}, ["metadata.a.b.c", "metadata.q.r", "metadata.z.y"],
     {"a": {"b": {}}, "z": 0}),
    ({"a": 1}, {}, ["metadata.a.b", "metadata.a.b2.c"], {"a": 1}),
    ({"a": 1}, {"metadata.c.d": 1}, ["metadata.a.b"], {"a": 1, "c": {"d": 1}}),
    ({"a": {"": 1, "x.y": 2}}, {'metadata.a."x.y"': 3}, ['metadata.a.""'], {"a": {"x.y": 3}}),
    ({"t": {"0": "m"}}, {"metadata.t.0": "n"}, [], {"t": {"0": "n"}}),
    ({"t": ["x"]}, {}, ["metadata.t.name", "metadata.t.5"], {"t": ["x"]}),
    ({"t": [{"n": 1}]}, {}, ["metadata.t.0.m"], {"t": [{"n": 1}]}),
    ({"a": "x"}, {"metadata": {"b": 1}}, [], {"b": 1}),
    ({"a": "x"}, {"metadata": None}, [], None),
    ({"a": "x"}, {}, ["metadata"], None),
    ({"a": "'\"\\"}, {"metadata.'\"\\": "ü🙂"}, [], {"a": "'\"\\", "'\"\\": "ü🙂"}),
]  # fmt: skip


async def test_paths_within_the_metadata_make_their_parents_and_leave_all_else(cluster: Cluster) -> None:
    async with world(cluster) as w, w.over_http() as client:
        await w.put(*(w.document(i, ONES, metadata=before) for i, (before, *_) in enumerate(NESTED)))
        for i, (_, set_, unset, _) in enumerate(NESTED):
            answer = await client.patch(f"/documents/{i}", json={"set": set_, "unset": unset})
            assert (answer.status_code, answer.json().get("matched")) == (200, 1), (i, answer.text)
        read = (await client.post("/documents/get", json={"ids": list(range(len(NESTED)))})).json()
        assert [one["metadata"] for one in read["documents"]] == [after for *_, after in NESTED]
        # What has the values already is no new version of the row.
        for i, (_, set_, unset, _) in enumerate(NESTED):
            again = await client.patch(f"/documents/{i}", json={"set": set_, "unset": unset})
            assert again.json()["patched"] == 0, (i, again.text)
        # Equal for PostgreSQL, and yet not the same.
        raw = await client.patch(
            "/documents/0",
            content=b'{"set": {"metadata.a": 1.0}}',
            headers={"content-type": "application/json"},
        )
        assert raw.json()["patched"] == 1
        assert '"a": 1.0' in (await client.get("/documents/0")).text


async def test_as_many_and_as_deep_paths_as_a_patch_may_have_are_taken(cluster: Cluster) -> None:
    async with world(cluster) as w, w.over_http() as client:
        await w.put(w.document(1, ONES, metadata={"keep": 1}))
        deep = {f"metadata.p{i}" + ".a" * 30: i for i in range(4)}
        wide = {f"metadata.w.x{i}": "v" for i in range(40)}
        answer = await client.patch("/documents/1", json={"set": deep | wide})
        assert (answer.status_code, answer.json()["patched"]) == (200, 1)
        metadata = (await stored(w, 1))["metadata"]
        assert metadata["w"] == {f"x{i}": "v" for i in range(40)} and metadata["keep"] == 1
        for i in range(4):
            value = metadata[f"p{i}"]
            for _ in range(30):
                value = value["a"]
            assert value == i
        gone = await client.patch("/documents/1", json={"unset": [*deep, *wide, "metadata.keep"]})
        assert gone.json()["patched"] == 1
        assert (await client.patch("/documents/1", json={"unset": [*deep, *wide]})).json()["patched"] == 0


IN_THE_WAY: list[tuple[Any, dict[str, Any], list[str], str]] = [
    ({"a": "x"}, {"metadata.a.b": 1}, [], "metadata.a"),
    ({"a": [1]}, {"metadata.a.0": 1}, [], "metadata.a"),
    ({"a": {"b": 0}}, {"metadata.a.b.c": 1, "price": 9}, [], "metadata.a.b"),
    ({"a": ["x", "y"]}, {}, ["metadata.a.0"], "metadata.a"),
    ({"a": [{"b": 1}]}, {}, ["metadata.a.0.b"], "metadata.a"),
    ({"a": {"x": [0]}}, {"metadata.a.y": 1}, ["metadata.a.x.-1"], "metadata.a.x"),
]


@pytest.mark.parametrize(("before", "set_", "unset", "place"), IN_THE_WAY)
async def test_what_is_no_object_is_not_replaced_and_its_shard_changes_nothing(
    cluster: Cluster, before: Any, set_: dict[str, Any], unset: list[str], place: str
) -> None:
    async with world(cluster) as w, w.over_http() as client:
        await w.put(
            *(w.document(i, ONES, category="c", metadata=before if i == 3 else {"n": i}) for i in range(40))
        )
        patch = {"set": set_, "unset": unset}
        alone = await client.patch("/documents/3", json=patch)
        shard = locate(w.collection.sharding, 3)
        assert alone.status_code == 409
        assert alone.json()["errors"] == [
            {
                "path": f"shards.{shard}",
                "message": f"nothing patched: {place} of 1 of 1 documents, such as 3, is no object, so that"
                " nothing within it can be set or unset",
            }
        ]
        for which in ({"ids": list(range(40))}, {"filter": {"category": "c"}}):
            answer = (await client.post("/documents/patch", json=which | patch)).json()
            assert not answer["shards"][shard]["ok"] and answer["shards"][shard]["rows"] == 0
            assert f"{place} of 1 of " in answer["shards"][shard]["error"]
            here = [i for i in range(40) if locate(w.collection.sharding, i) == shard]
            assert answer["matched"] == 40 - len(here)
        read = (
            await client.post(
                "/documents/get", json={"ids": list(range(40)), "include": ["metadata", "price"]}
            )
        ).json()
        for one in read["documents"]:
            if one["shard"] == shard:
                assert one["metadata"] == (before if one["id"] == 3 else {"n": one["id"]})
                assert one["price"] is None


async def test_metadata_that_are_no_object_at_all_are_in_the_way_and_null_is_not(cluster: Cluster) -> None:
    async with world(cluster) as w, w.over_http() as client:
        await w.put(*(w.document(i, ONES) for i in range(4)))
        for i, text in enumerate(["[1]", '"x"', "null"]):
            await w.on_primaries(f"UPDATE {w.collection.table} SET metadata = '{text}' WHERE id = {i}")
        set_ = {"set": {"metadata.a": 1}}
        statuses = [(await client.patch(f"/documents/{i}", json=set_)).status_code for i in range(4)]
        assert statuses == [409, 409, 200, 200]
        unset = {"unset": ["metadata.b"]}
        statuses = [(await client.patch(f"/documents/{i}", json=unset)).status_code for i in range(4)]
        assert statuses == [200, 200, 200, 200]
        assert (await client.patch("/documents/0", json={"set": {"metadata": {}}})).json()["patched"] == 1
        whole = [(await client.get(f"/documents/{i}")).json()["metadata"] for i in range(4)]
        assert whole == [{}, "x", {"a": 1}, {"a": 1}]


async def test_a_column_that_is_unset_gets_its_default_and_one_that_is_set_to_null_is_null(
    cluster: Cluster,
) -> None:
    async with world(cluster) as w, w.over_http() as client:
        await w.on_primaries(f"ALTER TABLE {w.collection.table} ALTER category SET DEFAULT 'new'")
        await w.put(*(w.document(i, ONES, category="old", price=1.0, content="c") for i in range(8)))
        body = {"filter": {"id": {"$lt": 4}}, "unset": ["category", "price", "content"]}
        answer = (await client.post("/documents/patch", json=body)).json()
        assert (answer["matched"], answer["patched"]) == (4, 4)
        body = {"filter": {"id": {"$gte": 4}}, "set": {"category": None, "price": None, "content": None}}
        assert (await client.post("/documents/patch", json=body)).json()["patched"] == 4
        read = (await client.post("/documents/get", json={"ids": list(range(8))})).json()["documents"]
        assert [one["category"] for one in read] == ["new"] * 4 + [None] * 4
        assert {one["price"] for one in read} == {one["content"] for one in read} == {None}


async def test_what_a_constraint_or_a_trigger_refuses_is_a_conflict(cluster: Cluster) -> None:
    async with world(cluster) as w, w.over_http() as client:
        table = w.collection.table
        await w.on_primaries(f"ALTER TABLE {table} ADD CONSTRAINT positive CHECK (price > 0)")
        await w.put(*(w.document(i, ONES, price=1.0) for i in range(4)))
        answer = await client.patch("/documents/1", json={"set": {"price": -1}})
        assert answer.status_code == 409 and "positive" in answer.json()["errors"][0]["message"]
        await w.on_primaries(
            f"CREATE FUNCTION {table}_keep() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN IF NEW.id = 2 THEN RETURN NULL; END IF; RETURN NEW; END $$;"
            f" CREATE TRIGGER keep BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_keep()"
        )
        kept = await client.patch("/documents/2", json={"set": {"price": 2}})
        assert kept.status_code == 409
        assert "a trigger of the table returned NULL for 1 of 1" in kept.json()["errors"][0]["message"]
        assert (await client.patch("/documents/1", json={"set": {"price": 2}})).json()["patched"] == 1
        await w.on_primaries(f"DROP FUNCTION {table}_keep CASCADE")


async def test_searches_see_a_patch_at_once_past_caches_that_knew_better(cluster: Cluster) -> None:
    async with world(cluster, redis=True) as w:
        await w.put(*(w.document(i, ONES, category="a") for i in range(8)))
        everything = frozenset({"category"})

        async def seen() -> dict[int, str]:
            return {hit["id"]: hit["category"] for hit in hits(await w.search(ONES, 10, include=everything))}

        for value in ("b", "c"):
            await seen()
            assert (await w.search(ONES, 10, include=everything)).tier == "l1"
            async with w.over_http() as client:
                await client.post(
                    "/documents/patch", json={"ids": list(range(8)), "set": {"category": value}}
                )
            assert await seen() == dict.fromkeys(range(8), value)


async def test_patches_in_any_order_do_not_deadlock_and_each_path_is_kept(cluster: Cluster) -> None:
    async with world(cluster, sharding=BY_CATEGORY) as w, w.over_http() as client:
        await w.put(*(w.document(i, ONES, category=f"c{i % 7}", metadata={}) for i in range(60)))

        async def one(n: int) -> None:
            ids = list(range(60))[:: 1 if n % 2 else -1]
            body: dict[str, Any] = {"set": {f"metadata.at.w{n}": n}}
            body |= {"ids": ids} if n % 3 else {"filter": {"id": {"$lt": 60}}}
            answer = (await client.post("/documents/patch", json=body)).json()
            assert (answer["matched"], answer["patched"]) == (60, 60)

        await asyncio.gather(*(one(n) for n in range(12)))
        read = (await client.post("/documents/get", json={"ids": list(range(60))})).json()["documents"]
        assert all(one["metadata"] == {"at": {f"w{n}": n for n in range(12)}} for one in read)


async def test_a_patch_that_is_not_done_in_time_says_so_and_nobody_reads_the_old_from_a_cache(
    cluster: Cluster,
) -> None:
    async with world(cluster) as w, w.over_http() as client:
        await w.put(*(w.document(i, ONES, category="old") for i in range(8)))
        primary = next(n for n in cluster.nodes if n.shard == "s0" and n.role == "primary")
        holder = await asyncpg.connect(primary.dsn)
        try:
            await holder.execute(f"BEGIN; LOCK TABLE {w.collection.table} IN SHARE MODE")
            patch = patch_of({"category": msgspec.Raw(b'"new"')}, [], w.collection, 256)
            outcome: PatchOutcome = await w.router.patch(w.collection, list(range(8)), patch, w.soon(0.5))
            late = {write.shard: write for write in outcome.shards}["s0"]
            assert not late.ok and late.unknown
            assert all(write.ok for write in outcome.shards if write.shard != "s0")
        finally:
            await holder.execute("ROLLBACK")
            await holder.close()
        # Sending it again is safe.
        again = (
            await client.post("/documents/patch", json={"ids": list(range(8)), "set": {"category": "new"}})
        ).json()
        assert again["matched"] == 8
        assert {
            hit["category"] for hit in hits(await w.search(ONES, 10, include=frozenset({"category"})))
        } == {"new"}
