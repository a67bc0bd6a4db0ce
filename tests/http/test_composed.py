"""What bodies of searches in several lists and steps become, and what is refused, with its place."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from router.query.composition import Fusion, FusionMethod, GroupBy, Mode, Rerank
from router.query.errors import DeadlineError, InvalidError
from router.query.filter import Compare
from router.query.types import SearchQuery
from router.settings import Settings
from shard_config.model import Collection
from tests.http.fake import Embedded, FakeBackend, application, embed

SEARCH = "/v1/collections/documents/search"
VECTOR = [1.0, 2.0, 3.0]
HYBRID: dict[str, Any] = {"mode": "hybrid", "text": "cat"}


async def asked(client: httpx.AsyncClient, backend: FakeBackend, **body: Any) -> SearchQuery:
    response = await client.post(SEARCH, json=body)
    assert response.status_code == 200, response.text
    return backend.queries[-1]


async def test_a_search_for_words_is_a_plain_one(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    query = await asked(client, backend, mode="fulltext", text="cat")
    assert (query.words, query.vector, query.composition) == ("cat", b"", None)


async def test_a_hybrid_search_is_of_two_lists(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    query = await asked(
        client,
        backend,
        **HYBRID,
        k=4,
        fusion={"method": "scores", "k": 10, "weights": {"fulltext": 0.5}},
        max_distance=0.3,
    )
    composition = query.composition
    assert composition is not None and query.vector == b"" and query.words is None
    near, words = composition.legs
    assert near.vector == np.array([3, 1, np.pi], "<f4").tobytes() and near.mode is Mode.VECTOR
    assert (words.words, words.mode, words.weight) == ("cat", Mode.FULLTEXT, 0.5)
    assert (composition.candidates, composition.fusion) == (50, Fusion(FusionMethod.SCORES, 10))
    query = await asked(client, backend, **HYBRID, vector=VECTOR, k=60, offset=7, candidates=10)
    assert query.composition is not None and query.composition.candidates == 67
    assert query.composition.legs[0].vector == np.array(VECTOR, "<f4").tobytes()


async def test_queries_have_names_weights_and_filters_of_their_own(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await client.put(
        "/v1/collections/documents/documents", json={"documents": [{"id": 5, "vector": [0, 0, 2]}]}
    )
    query = await asked(
        client,
        backend,
        queries=[
            {"text": "a"},
            {"vector": VECTOR, "weight": 0},
            {"text": "b", "mode": "fulltext", "filter": {"category": "x"}, "name": "vector2"},
            {"like": {"ids": [5]}},
        ],
        rerank={"model": "ce", "candidates": 70, "text": "what"},
        diversity={"lambda": 0.25, "candidates": 80},
        group_by={"field": "metadata.doc", "size": 2},
    )
    composition = query.composition
    assert composition is not None
    assert [leg.name for leg in composition.legs] == ["vector", "vector3", "vector2", "vector4"]
    assert [leg.weight for leg in composition.legs] == [1, 0, 1, 1]
    assert isinstance(composition.legs[2].filter, Compare)
    assert composition.legs[3].vector == np.array([0, 0, 2], "<f4").tobytes()
    assert composition.legs[3].without == (5,)
    assert composition.candidates == 80 and composition.rerank == Rerank("ce", "what", 70)
    assert composition.diversity is not None and composition.diversity.weight == 0.25
    assert isinstance(composition.group_by, GroupBy) and composition.group_by.field.path == ("doc",)


async def test_more_like_some_and_unlike_others_is_one_vector(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    documents = [
        {"id": 1, "vector": [2, 0, 0]},
        {"id": 2, "vector": [0, 3, 0]},
        {"id": 3, "vector": [0, 0, 1]},
    ]
    await client.put("/v1/collections/documents/documents", json={"documents": documents})
    query = await asked(client, backend, like={"ids": [1, 2], "not": [3]}, k=3)
    assert query.composition is not None
    (leg,) = query.composition.legs
    # Under cosine each counts with length 1: twice the mean of the likes, less the other.
    assert np.frombuffer(leg.vector, "<f4").tolist() == [1, 1, -1]
    assert leg.without == (1, 2, 3) and query.composition.candidates == 3
    response = await client.post(SEARCH, json={"like": {"ids": [1, 8], "not": [9]}})
    assert response.status_code == 422
    assert {one["path"]: one["message"] for one in response.json()["errors"]} == {
        "like.ids[1]": "the document 8 does not exist",
        "like.not[0]": "the document 9 does not exist",
    }
    # What moves as far away as it came is no direction.
    response = await client.post(SEARCH, json={"like": {"ids": [1], "not": [1]}})
    assert response.status_code == 200
    response = await client.post(SEARCH, json={"like": {"ids": [1, 1], "not": [1, 4]}})
    assert response.status_code == 422


WRONG: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {""}),
    ({"text": "a", "vector": VECTOR}, {"text"}),
    ({"like": {"ids": [1]}, "vector": VECTOR}, {"like"}),
    ({"queries": [{"text": "a"}], "text": "a"}, {"queries"}),
    ({"mode": "hybrid"}, {"text"}),
    ({"mode": "hybrid", "like": {"ids": [1]}}, {"text"}),
    ({"mode": "hybrid", "queries": [{"text": "a"}]}, {"mode"}),
    ({"mode": "fulltext", "text": "a", "max_distance": 1, "ef_search": 9}, {"max_distance", "ef_search"}),
    ({"queries": [{"text": "a", "mode": "fulltext"}], "max_distance": 1}, {"max_distance"}),
    ({**HYBRID, "text": "  "}, {"text"}),
    ({**HYBRID, "text": "a\0"}, {"text"}),
    ({**HYBRID, "vector": [1.0]}, {"vector"}),
    ({"vector": VECTOR, "candidates": 5}, {"candidates"}),
    ({**HYBRID, "candidates": 0}, {"candidates"}),
    ({**HYBRID, "candidates": 1001}, {"candidates"}),
    ({**HYBRID, "k": 100, "offset": 901}, {"offset"}),
    ({"vector": VECTOR, "fusion": {}}, {"fusion"}),
    ({**HYBRID, "fusion": {"k": -1}}, {"fusion.k"}),
    ({**HYBRID, "fusion": {"weights": {"other": 1}}}, {"fusion.weights.other"}),
    ({**HYBRID, "fusion": {"weights": {"vector": -1}}}, {"fusion.weights.vector"}),
    ({**HYBRID, "fusion": {"weights": {"vector": 0, "fulltext": 0}}}, {"fusion.weights"}),
    ({"queries": [{"text": "a"}], "fusion": {"weights": {"vector": 1}}}, {"fusion", "fusion.weights"}),
    ({"queries": []}, {"queries"}),
    ({"queries": [{"text": "a"}] * 9}, {"queries"}),
    ({"queries": [{}]}, {"queries[0]"}),
    ({"queries": [{"text": "a", "vector": VECTOR}]}, {"queries[0]"}),
    ({"queries": [{"vector": VECTOR, "mode": "fulltext"}]}, {"queries[0].mode"}),
    (
        {"queries": [{"text": "a", "weight": -1}, {"text": ""}]},
        {"queries[0].weight", "queries[1].text"},
    ),
    ({"queries": [{"text": "a", "name": "x"}, {"text": "b", "name": "x"}]}, {"queries[1].name"}),
    ({"queries": [{"text": "a", "name": ""}]}, {"queries[0].name"}),
    ({"queries": [{"text": "a", "filter": {"none": 1}}]}, {"queries[0].filter.none"}),
    ({"queries": [{"vector": [1.0]}]}, {"queries[0].vector"}),
    ({"queries": [{"text": "a", "k": 1}]}, {"queries[0].k"}),
    ({"vector": VECTOR, "rerank": {"model": "ce"}}, {"rerank.text"}),
    ({"queries": [{"text": "a"}, {"text": "b"}], "rerank": {"model": "ce"}}, {"rerank.text"}),
    ({**HYBRID, "rerank": {"model": "none", "candidates": 201}}, {"rerank.model", "rerank.candidates"}),
    (
        {"vector": VECTOR, "diversity": {"lambda": 1.5, "candidates": 0}},
        {"diversity.lambda", "diversity.candidates"},
    ),
    ({"vector": VECTOR, "group_by": {"field": "none"}}, {"group_by.field"}),
    ({"vector": VECTOR, "group_by": {"field": "content"}}, {"group_by.field"}),
    ({"vector": VECTOR, "group_by": {"field": "category", "size": 0}}, {"group_by.size"}),
    ({"vector": VECTOR, "k": 500, "group_by": {"field": "category", "size": 3}}, {"group_by.size"}),
    ({"vector": VECTOR, "group_by": {"field": "category", "size": 10**4000}}, {"group_by.size"}),
    ({"like": {"ids": []}}, {"like.ids"}),
    ({"like": {"ids": ["x"], "not": [1.5]}}, {"like.ids[0]", "like.not[0]"}),
    ({"like": {"ids": list(range(101))}}, {"like"}),
    ({"like": {}}, {"like.ids"}),
    (
        {"k": 0, "mode": "hybrid", "text": "a", "offset": -1, "rerank": {"model": "x"}},
        {"k", "offset", "rerank.model"},
    ),
]


def name_of(value: object) -> str:
    """The same in every process, in which sets have orders of their own: tests are spread by their names."""
    return str(sorted(value) if isinstance(value, set) else value)[:60]


@pytest.mark.parametrize(("body", "paths"), WRONG, ids=name_of)
async def test_all_that_is_wrong_is_refused_with_its_place(
    client: httpx.AsyncClient, backend: FakeBackend, body: dict[str, Any], paths: set[str]
) -> None:
    response = await client.post(SEARCH, json=body)
    assert response.status_code == 422, response.text
    assert {one["path"] for one in response.json()["errors"]} == paths, response.text
    assert not backend.queries
    batch = await client.post(f"{SEARCH}/batch", json={"searches": [{"vector": VECTOR}]})
    assert batch.status_code == 200


async def test_what_a_collection_lacks_is_refused(client: httpx.AsyncClient) -> None:
    where = "/v1/collections/coarse/search"
    for body, path in (
        ({"mode": "fulltext", "text": "a"}, "mode"),
        ({"queries": [{"mode": "fulltext", "text": "a"}]}, "queries[0].mode"),
        ({"vector": VECTOR, "rerank": {"model": "ce", "text": "a"}}, "rerank"),
        ({"text": "a"}, "text"),
        ({"queries": [{"vector": VECTOR}, {"text": "a"}]}, "queries[1].text"),
    ):
        response = await client.post(where, json=body)
        assert response.status_code == 422, response.text
        assert [one["path"] for one in response.json()["errors"]] == [path]


async def test_in_a_batch_places_are_those_of_the_search(client: httpx.AsyncClient) -> None:
    searches = [{**HYBRID}, {"queries": [{"text": ""}], "like": {"ids": []}}, {"queries": [{"text": ""}]}]
    response = await client.post(f"{SEARCH}/batch", json={"searches": searches})
    results = response.json()["results"]
    assert "hits" in results[0]
    assert [one["path"] for one in results[1]["error"]["errors"]] == ["searches[1].queries"]
    assert [one["path"] for one in results[2]["error"]["errors"]] == ["searches[2].queries[0].text"]


async def test_a_body_without_texts_and_examples_is_decoded_once(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    for body, again in (
        ({"mode": "fulltext", "text": "cat"}, True),
        ({**HYBRID, "vector": VECTOR}, True),
        ({"queries": [{"vector": VECTOR}], "diversity": {}}, True),
        (HYBRID, False),
        ({"text": "cat"}, False),
    ):
        first = await asked(client, backend, **body)
        assert (await asked(client, backend, **body) is first) is again, body


async def test_a_list_whose_text_has_no_vector_is_missing_or_the_search_fails(backend: FakeBackend) -> None:
    async def away(collection: Collection, text: str, deadline: float) -> Embedded:
        if text == "refused":
            raise InvalidError.at("text", "too long for the model")
        if text == "known":
            return await embed(collection, text, deadline)
        raise DeadlineError("the model minilm did not answer in time")

    app = application(backend, Settings(), embed=away)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router") as client:
        query = await asked(client, backend, **HYBRID)
        assert query.composition is not None
        assert [leg.missing for leg in query.composition.legs] == [
            "the model minilm did not answer in time",
            None,
        ]
        for body, status in (
            ({**HYBRID, "allow_partial": False}, 504),
            ({"text": "cat"}, 504),
            ({"queries": [{"text": "a"}, {"text": "b"}]}, 504),
            ({"queries": [{"text": "a"}, {"text": "known"}]}, 200),
            ({"queries": [{"text": "refused"}, {"text": "known"}]}, 422),
        ):
            response = await client.post(SEARCH, json=body)
            assert response.status_code == status, (body, response.text)
        assert response.json()["errors"][0]["path"] == "queries[0].text"


async def test_a_model_leaves_time_to_lists_that_do_without_it(backend: FakeBackend) -> None:
    left: list[float] = []

    async def asked_until(collection: Collection, text: str, deadline: float) -> Embedded:
        left.append(deadline - asyncio.get_running_loop().time())
        return await embed(collection, text, deadline)

    app = application(backend, Settings(), embed=asked_until)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router") as client:
        for body in (HYBRID, {**HYBRID, "allow_partial": False}, {"text": "cat"}):
            assert (await client.post(SEARCH, json={**body, "timeout_ms": 30_000})).status_code == 200
    shared, whole, single = left
    assert shared <= 20
    assert min(whole, single) > 20


async def test_answers_say_what_was_done(client: httpx.AsyncClient) -> None:
    response = await client.post(
        SEARCH,
        json={**HYBRID, "rerank": {"model": "ce"}, "diversity": {}, "group_by": {"field": "category"}},
    )
    answer = response.json()
    assert [leg["name"] for leg in answer["legs"]] == ["vector", "fulltext"]
    assert answer["rerank"] == answer["diversity"] == {"done": True, "candidates": 1}
    assert answer["groups"] == [{"value": "tech", "hits": 1, "full": True}]
    plain = (await client.post(SEARCH, json={"vector": VECTOR})).json()
    assert not plain.keys() & {"legs", "rerank", "diversity", "groups"}


def test_whatever_changes_a_composed_answer_is_another_entry_of_a_cache() -> None:
    from router.query.composition import Composition, Diversity, Leg
    from tests.unit.queries import collection, query

    base = Composition((Leg("vector", Mode.VECTOR, b"x"),))
    leg = base.legs[0]
    replace = msgspec.structs.replace
    tenant = GroupBy(_field(collection()))
    changed = [
        replace(base, candidates=51),
        replace(base, fusion=Fusion(FusionMethod.SCORES)),
        replace(base, rerank=Rerank("ce", "a")),
        replace(base, rerank=Rerank("ce", "b")),
        replace(base, diversity=Diversity()),
        replace(base, group_by=tenant),
        replace(base, group_by=replace(tenant, size=2)),
        *(
            replace(base, legs=(replace(leg, **{name: value}),))
            for name, value in (
                ("vector", b"y"),
                ("weight", 2.0),
                ("name", "other"),
                ("without", (1,)),
                ("missing", "away"),
                ("filter", Compare(_field(collection()), "=", "x")),
            )
        ),
    ]
    digests = {query(composition=one).digest for one in (None, base, *changed)}
    assert len(digests) == len(changed) + 2


def _field(documents: Collection) -> Any:
    from router.query.filter import Field

    return Field(documents.columns["tenant"])
