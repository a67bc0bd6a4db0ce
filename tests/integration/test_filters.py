"""Filters on the real cluster: random ones match what their documented meaning says, and nothing else."""

from __future__ import annotations

import json
import random
from typing import Any

from deploy.local import Cluster
from router.query.errors import InvalidError
from router.query.filter import parse
from router.settings import Settings
from shard_config import model
from shard_config.values import ValueType
from tests.integration.filter_semantics import matches
from tests.integration.worlds import World, column, world

ONES = [1.0] * 8
ID = column("id", ValueType.TEXT)
SHARDING = model.HashSharding(ID, ("s0", "s1", "s2", "s3"))
NAMES = ["a", "a.b", "", "0", "-1", " 1", '"', 'a"b', "\\", "$in", "ä", "metadata", "x y"]
TEXTS = ["", "a", "B", "b", "Ähre", "ähre", "ÄHRE", "z", "ß", "İ", "i", "ı", "Σ", "σ", "ς", "a%", "a_c", "\\"]
SCALARS: list[Any] = [*TEXTS, 0, 1, 1.0, -1, 2, 0.5, 10**20, True, False]
PATTERNS = ["%", "_", "a%", "%B%", "ähre", "Ä%", "i", "σ", "%\\%", "a\\_c", "\\\\", "", "__"]
FIELDS = ["id", "category", "price", "content"]


def value(rng: random.Random, depth: int) -> Any:
    kind = rng.random()
    if depth == 0 or kind < 0.5:
        return rng.choice([*SCALARS, None])
    if kind < 0.75:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {rng.choice(NAMES): value(rng, depth - 1) for _ in range(rng.randrange(4))}


def document(rng: random.Random, id_: str) -> dict[str, Any]:
    return {
        "id": id_,
        "category": rng.choice([*TEXTS, None]),
        "price": rng.choice([0.5, 1.0, 2.0, None]),
        "content": rng.choice([*TEXTS, None]),
        "metadata": rng.choice([None, {rng.choice(NAMES): value(rng, 3) for _ in range(6)}]),
    }


def paths(found: Any, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Of all that is in a document's metadata, elements of arrays counted from either end."""
    inner: list[tuple[str, Any]] = list(found.items()) if isinstance(found, dict) else []
    if isinstance(found, list):
        inner = [(str(i), one) for i, one in enumerate(found)]
        inner += [(str(i - len(found)), one) for i, one in enumerate(found)]
    own = [before] if before else []
    return own + [path for name, one in inner for path in paths(one, (*before, name))]


def named(rng: random.Random, path: tuple[str, ...]) -> str:
    def written(step: str) -> str:
        must = not step or "." in step or step.startswith('"')
        return json.dumps(step) if must or rng.random() < 0.3 else step

    return ".".join(["metadata", *map(written, path)])


def condition(rng: random.Random, field: str) -> dict[str, Any]:
    values: list[Any] = SCALARS if field.startswith("metadata") else TEXTS
    operators = ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$between"]
    if field == "price":
        values = [0.5, 1.0, 2.0, 3.0]
    else:
        operators += ["$like", "$ilike"]
    if field.startswith("metadata"):
        operators += ["$contains", "$containsAny", "$containsAll"] * 2
    op = rng.choice(operators)
    match op:
        case "$in" | "$nin" | "$containsAny" | "$containsAll":
            nothing = [] if op.startswith("$contains") else [None]
            some = rng.choice([1, 2, 3, 20])
            listed = [rng.choice([*values, *nothing]) for _ in range(some)]
            return {op: listed}
        case "$between":
            return {op: [rng.choice(values), rng.choice(values)]}
        case "$exists":
            return {op: rng.random() < 0.5}
        case "$like" | "$ilike":
            return {op: rng.choice(PATTERNS)}
        case "$contains" if rng.random() < 0.3:
            return {op: {rng.choice(NAMES): value(rng, 1)}}
        case "$eq" | "$ne":
            return {op: rng.choice([*values, None])}
    return {op: rng.choice(values)}


def filter_(rng: random.Random, known: list[tuple[str, ...]], depth: int) -> dict[str, Any]:
    if depth and rng.random() < 0.4:
        combinator = rng.choice(["$and", "$or", "$not"])
        parts = [filter_(rng, known, depth - 1) for _ in range(rng.randrange(1, 4))]
        return {"$not": parts[0]} if combinator == "$not" else {combinator: parts}
    field = rng.choice(FIELDS) if rng.random() < 0.3 else named(rng, rng.choice(known))
    return {field: condition(rng, field)}


def taken(w: World, raw: dict[str, Any]) -> bool:
    try:
        parse(w.collection, raw, Settings())
    except InvalidError:
        return False
    return True


async def stored(w: World, rng: random.Random, count: int) -> list[dict[str, Any]]:
    documents = [document(rng, f"{rng.choice(TEXTS)}{n}") for n in range(count)]
    await w.put(*(w.document(d["id"], ONES, **{k: v for k, v in d.items() if k != "id"}) for d in documents))
    return documents


async def test_random_filters_match_what_their_meaning_says_and_their_negation_the_rest(
    cluster: Cluster,
) -> None:
    rng = random.Random(11)
    async with world(cluster, id=ID, sharding=SHARDING) as w:
        documents = await stored(w, rng, 250)
        every = {d["id"] for d in documents}
        # As often as they occur: a path that few documents have tells little.
        known = [path for d in documents for path in paths(d["metadata"])]
        tried = some = 0
        while tried < 400:
            raw = filter_(rng, known, 2)
            if not taken(w, raw):
                # It is refused for what a condition of it can match.
                continue
            tried += 1
            right = {d["id"] for d in documents if matches(raw, d)}
            some += 0 < len(right) < len(every)
            found = await w.ids(ONES, 250, filter=raw, exact=True)
            assert set(found) == right, (raw, set(found) ^ right)
            if tried % 4 == 0:
                rest = await w.ids(ONES, 250, filter={"$not": raw}, exact=True)
                assert set(rest) == every - right, raw
        assert some > 150, "many filters tell documents apart"


async def test_every_value_of_a_document_is_found_by_the_path_to_it(cluster: Cluster) -> None:
    rng = random.Random(12)
    async with world(cluster, id=ID, sharding=SHARDING) as w:
        for d in await stored(w, rng, 40):
            for path in paths(d["metadata"])[:8]:
                found = await w.ids(ONES, 40, filter={named(rng, path): {"$exists": True}}, exact=True)
                reached: Any = d["metadata"]
                for step in path:
                    reached = reached[int(step) if isinstance(reached, list) else step]
                assert (d["id"] in found) is (reached is not None), path


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
        for raw, right in [
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
            for exact in (True, False):
                assert sorted(await w.ids(ONES, filter=raw, exact=exact)) == right, raw
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
