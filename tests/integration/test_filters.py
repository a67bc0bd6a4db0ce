"""Filters on the real cluster: random ones match what their documented meaning says, and nothing else."""

from __future__ import annotations

import asyncio
import random

from deploy.local import Cluster
from router.postgres.filter_indexes import filter_indexes
from router.schema import ddl
from shard_config import model
from shard_config.values import ValueType
from tests.integration.random_filters import ONES, agree, named, places, stored
from tests.integration.worlds import column, world

ID = column("id", ValueType.TEXT)
SHARDING = model.HashSharding(ID, ("s0", "s1", "s2", "s3"))


async def test_random_filters_match_what_their_meaning_says_and_their_negation_the_rest(
    cluster: Cluster,
) -> None:
    rng = random.Random(11)
    async with world(cluster, id=ID, sharding=SHARDING) as w:
        documents = await stored(w, rng, 250)
        assert await agree(w, rng, documents, 400) > 150, "many filters tell documents apart"


INDEXED = {
    ("a",): model.MetadataType.TEXT,
    ("a.b",): model.MetadataType.NUMBER,
    ("",): model.MetadataType.ARRAY,
    ("0",): model.MetadataType.TEXT,
    ('"',): model.MetadataType.NUMBER,
    ('a"b',): model.MetadataType.TEXT,
    ("\\",): model.MetadataType.ARRAY,
    ("x y",): model.MetadataType.TEXT,
    ("ä", "a"): model.MetadataType.TEXT,
    ("$in", "0"): model.MetadataType.NUMBER,
}


async def test_indexes_in_the_map_change_no_filter_s_meaning(cluster: Cluster) -> None:
    rng = random.Random(13)
    columns = {
        "category": model.Column("category", "category", ValueType.TEXT, index=True),
        "price": model.Column("price", "price", ValueType.FLOAT8, index=True),
    }
    async with world(cluster, id=ID, sharding=SHARDING, columns=columns, metadata_indexes=INDEXED) as w:
        for number, index in enumerate(filter_indexes(w.collection)):
            await w.on_primaries(
                ddl.create_filter_index(w.collection, index, f"{w.collection.table.name}_{number}_filter")
            )
        documents = await stored(w, rng, 250)
        await w.on_primaries(f"ANALYZE {w.collection.table}")
        # Whatever reads them: tables so small are read through, unless that is forbidden.
        await w.on_primaries("ALTER DATABASE postgres SET enable_seqscan = off")
        try:
            w.router.discard_plans()
            assert await agree(w, rng, documents, 300) > 110
        finally:
            await w.on_primaries("ALTER DATABASE postgres RESET enable_seqscan")


async def test_every_value_of_a_document_is_found_by_the_path_to_it(cluster: Cluster) -> None:
    rng = random.Random(12)
    async with world(cluster, id=ID, sharding=SHARDING) as w:
        for d in await stored(w, rng, 40):
            for path, value in places(d["metadata"])[:8]:
                found = await w.ids(ONES, 40, filter={named(rng, path): {"$exists": True}}, exact=True)
                assert (d["id"] in found) is (value is not None), path


async def test_elements_of_arrays_are_found_counted_and_deleted(cluster: Cluster) -> None:
    async with world(cluster) as w:
        await w.put(
            w.document(
                1, ONES, content="Grün", metadata={"tags": ["x", "y"], "by": [{"name": "Eva", "n": 1}]}
            ),
            w.document(2, ONES, content="blau", metadata={"tags": ["y"], "by": {"name": "Eva"}}),
            w.document(3, ONES, metadata={"tags": "x", "a.b": 1}),
            w.document(4, ONES),
        )
        await w.build_index()
        many = [*range(20), "x"]
        for raw, right in [
            ({"metadata.tags": {"$in": many}}, [1, 3]),
            ({"metadata.tags": {"$nin": many}}, [2, 4]),
            ({"metadata.tags": {"$containsAny": many}}, [1]),
            ({"metadata.by": {"$containsAny": [*many, {"name": "Eva"}]}}, [1]),
            ({"metadata.tags": "x"}, [1, 3]),
            ({"metadata.tags": {"$ne": "x"}}, [2, 4]),
            ({"metadata.tags": {"$in": ["x", "z"]}}, [1, 3]),
            ({"metadata.tags": {"$contains": "x"}}, [1]),
            ({"metadata.tags": {"$containsAny": ["x", "y"]}}, [1, 2]),
            ({"metadata.tags": {"$containsAll": ["y", "x", "y"]}}, [1]),
            ({"metadata.tags.0": "x"}, [1]),
            ({"metadata.tags.-1": "y"}, [1, 2]),
            ({"metadata.by": {"$contains": {"name": "Eva"}}}, [1]),
            ({"metadata.by.0.name": "Eva"}, [1]),
            ({'metadata."a.b"': 1}, [3]),
            ({"content": {"$ilike": "gRÜN"}}, [1]),
            ({"content": {"$in": ["blau", None]}}, [2, 3, 4]),
            ({"content": {"$gt": "a"}}, [2]),
        ]:
            assert sorted(await w.ids(ONES, filter=raw, exact=True)) == right, raw
            # Those that wait for a node share a statement.
            same = await asyncio.gather(*(w.ids(ONES, 9 + n, filter=raw, cache=False) for n in range(8)))
            assert [sorted(ids) for ids in same] == [right] * 8, raw
        async with w.over_http() as http:
            assert (await http.get("/count", params={"filter": '{"metadata.tags": "y"}'})).json()[
                "count"
            ] == 2
            gone = {"filter": {"$not": {"metadata.tags": {"$contains": "x"}}, "content": None}}
            assert (await http.post("/documents/delete", json=gone)).json()["deleted"] == 2
            assert sorted(await w.ids(ONES)) == [1, 2]
            refused = await http.post(
                "/search", json={"vector": ONES, "filter": {"id": {"$between": [9, 1]}}}
            )
            assert refused.status_code == 422
            assert refused.json()["errors"] == [
                {
                    "path": "filter.id.$between",
                    "message": "can match nothing: no value is at least 9 and at most 1",
                }
            ]
            every = await http.post("/documents/delete", json={"filter": {"id": {"$exists": True}}})
            assert every.status_code == 422
