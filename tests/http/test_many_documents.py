"""Patches, reads of many documents, pages and facets at the edge: what is taken, refused, and answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from router.query.filter import And, Compare
from router.settings import Settings
from tests.http.fake import FakeBackend, application

C = "/v1/collections/documents"
DOCUMENTS = f"{C}/documents"


@pytest.fixture
async def three(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """A client of a collection that holds documents 1, 2 and 3."""
    documents = [{"id": i, "vector": [1, 2, 3]} for i in (1, 2, 3)]
    assert (await client.put(DOCUMENTS, json={"documents": documents})).status_code == 200
    return client


async def test_a_patch_says_what_it_found_and_changed(three: httpx.AsyncClient, backend: FakeBackend) -> None:
    answer = await three.patch(f"{DOCUMENTS}/1", json={"set": {"price": 2}, "unset": ["metadata.a"]})
    assert answer.json() == {
        "matched": 1,
        "patched": 1,
        "shards": {"s0": {"ok": True, "rows": 1, "error": None}},
    }
    assert backend.patches[-1].values == {"price": 2.0}
    several = await three.post(f"{DOCUMENTS}/patch", json={"ids": [1, 2, 2, 9], "set": {"content": "x"}})
    assert several.json()["matched"] == 2
    matching = {"filter": {"price": {"$gt": 1.25}}, "unset": ["content"]}
    answer = await three.post(f"{DOCUMENTS}/patch", json=matching)
    assert (answer.json()["matched"], answer.json()["patched"]) == (3, 2)
    assert isinstance(backend.filters[-1], Compare)
    missing = await three.patch(f"{DOCUMENTS}/9", json={"set": {"price": 2}})
    assert (missing.status_code, missing.json()["detail"]) == (404, "no document '9' in collection documents")


async def test_a_patch_that_no_shard_has_made_is_an_error_that_says_whether_it_may_have(
    three: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.down = {"s0"}
    answer = await three.patch(f"{DOCUMENTS}/1", json={"set": {"price": 2}})
    assert answer.status_code == 503
    assert answer.json()["detail"] == "1 of 2 shards could not be written; nothing was patched"
    backend.down, backend.silent = set(), {"s0"}
    answer = await three.post(f"{DOCUMENTS}/patch", json={"ids": [1], "set": {"price": 2}})
    assert answer.status_code == 503
    assert answer.json()["detail"] == (
        "1 of 1 shards did not confirm the patch; on 1 of them documents may have been patched"
    )


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        ({}, ["", ""]),
        ({"ids": [1], "filter": {}, "set": {"price": 1}}, [""]),
        ({"ids": ["1", 2, 1.5], "set": {"price": "x"}}, ["ids[0]", "ids[2]", "set.price"]),
        ({"filter": {}, "set": {"price": 1}}, ["filter"]),
        ({"filter": {"id": {"$not": 1}}, "set": {"id": 1}}, ["filter.id.$not", "set.id"]),
        ({"ids": [1], "set": [1]}, ["set"]),
        ({"ids": [1], "unset": [1]}, ["unset[0]"]),
        ({"ids": [1], "unset": "price"}, ["unset"]),
        ({"ids": [1], "put": {}, "set": {"price": 1}}, ["put"]),
        ({"ids": [1] * 10_001, "set": {"price": 1}}, ["ids"]),
        ({"ids": [1], "set": {"metadata." + "x" * 500: "\0"}}, ["set.metadata." + "x" * 191]),
    ],
)
async def test_what_is_wrong_with_a_patch_is_told_with_its_place(
    three: httpx.AsyncClient, backend: FakeBackend, body: dict[str, Any], paths: list[str]
) -> None:
    answer = await three.post(f"{DOCUMENTS}/patch", json=body)
    assert (answer.status_code, [error["path"] for error in answer.json()["errors"]]) == (422, paths)
    assert not backend.patches


async def test_numbers_that_json_has_not_are_named_where_they_stand(three: httpx.AsyncClient) -> None:
    for text, path in [
        ('{"set": {"price": NaN}}', "set.price"),
        ('{"set": {"metadata.a": [1, Infinity]}}', "set.metadata.a[1]"),
    ]:
        answer = await three.patch(
            f"{DOCUMENTS}/1", content=text, headers={"content-type": "application/json"}
        )
        assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, path)
    null = await three.patch(f"{DOCUMENTS}/1", json={"set": {"price": None}, "unset": None})
    assert null.status_code == 200


async def test_documents_of_many_ids_are_found_missing_or_unread(
    three: httpx.AsyncClient, backend: FakeBackend
) -> None:
    answer = await three.post(f"{DOCUMENTS}/get", json={"ids": [3, 9, 1, 3]})
    body = answer.json()
    assert [one["id"] for one in body["documents"]] == [3, 1]
    assert (body["missing"], body["coverage"]["full"], "unread" in body) == ([9], True, False)
    backend.down = {"s1"}
    body = (await three.post(f"{DOCUMENTS}/get", json={"ids": [3, 9]})).json()
    assert (body["missing"], body["unread"], body["coverage"]["full"]) == ([], [9], False)


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        ({}, ["ids"]),
        ({"ids": 1}, ["ids"]),
        ({"ids": ["1"], "include": ["colour"]}, ["ids[0]", "include"]),
        ({"ids": [1], "vector_format": "hex"}, ["vector_format"]),
        ({"ids": [1], "fields": []}, ["fields"]),
    ],
)
async def test_what_is_wrong_with_a_list_of_ids_is_told(
    three: httpx.AsyncClient, body: dict[str, Any], paths: list[str]
) -> None:
    answer = await three.post(f"{DOCUMENTS}/get", json=body)
    assert (answer.status_code, [error["path"] for error in answer.json()["errors"]]) == (422, paths)


async def test_pages_follow_each_other_by_their_cursors(
    three: httpx.AsyncClient, backend: FakeBackend
) -> None:
    query: dict[str, str] = {"limit": "2", "filter": '{"price": {"$lt": 2.5}, "category": "a"}'}
    first = (await three.get(DOCUMENTS, params=query)).json()
    assert [one["id"] for one in first["documents"]] == [1, 2]
    assert isinstance(backend.filters[-1], And)
    again = {"category": "a", "price": {"$lt": 2.5}}
    query |= {"cursor": first["cursor"], "filter": json.dumps(again)}
    second = (await three.get(DOCUMENTS, params=query)).json()
    assert [one["id"] for one in second["documents"]] == [3] and second["cursor"] is None
    assert backend.pages == [(None, 2), (2, 2)]
    for changed in ({"filter": '{"category": "b"}'}, {"filter": "{}"}):
        refused = await three.get(DOCUMENTS, params=query | changed)
        assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "cursor")
    foreign = await three.get("/v1/collections/coarse/documents", params={"cursor": first["cursor"]})
    assert (foreign.status_code, foreign.json()["errors"][0]["path"]) == (422, "cursor")
    # A document of this id can be read all the same.
    assert (await three.get(f"{DOCUMENTS}/1")).json()["id"] == 1
    assert (await three.get(f"{DOCUMENTS}/get")).json()["errors"][0]["path"] == "id"


async def test_a_page_of_lines_has_its_cursor_in_the_header(three: httpx.AsyncClient) -> None:
    headers = {"accept": "application/x-ndjson"}
    first = await three.get(DOCUMENTS, params={"limit": "2"}, headers=headers)
    assert first.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["id"] for line in first.text.splitlines()] == [1, 2]
    query = {"limit": "2", "cursor": first.headers["x-next-cursor"]}
    second = await three.get(DOCUMENTS, params=query, headers=headers)
    assert [json.loads(line)["id"] for line in second.text.splitlines()] == [3]
    assert "x-next-cursor" not in second.headers
    empty = await three.get("/v1/collections/coarse/documents", headers=headers)
    assert (empty.status_code, empty.content) == (200, b"")


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=1e2", "limit"),
        ("limit=", "limit"),
        ("limit=" + "9" * 40, "limit"),
        ("cursor=", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=bnVsbA", "cursor"),
        ("filter=[]", "filter"),
        ('filter={"colour":1}', "filter.colour"),
        ("include=colour", "include"),
        ("vector_format=hex", "vector_format"),
        ("consistency=maybe", "consistency"),
        ("offset=3", "offset"),
    ],
)
async def test_what_is_wrong_with_a_page_is_told(three: httpx.AsyncClient, query: str, path: str) -> None:
    answer = await three.get(f"{DOCUMENTS}?{query}")
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, path)


async def test_facets_are_of_one_field_or_of_several(three: httpx.AsyncClient, backend: FakeBackend) -> None:
    answer = (await three.post(f"{C}/facets", json={"field": "category"})).json()
    one = {
        "field": "category",
        "values": [{"value": "a", "count": 2}],
        "missing": 1,
        "exact": True,
        "more": 0,
    }
    assert answer["facets"] == [one] and answer["coverage"]["full"]
    body = {"fields": ["price", 'metadata.a."b.c"'], "filter": {"price": {"$gt": 0.1}}}
    answer = (await three.post(f"{C}/facets", json=body)).json()
    assert [facet["field"] for facet in answer["facets"]] == body["fields"]
    assert isinstance(backend.filters[-1], Compare)


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        ({}, [""]),
        ({"field": "price", "fields": ["price"]}, [""]),
        ({"fields": []}, ["fields"]),
        ({"fields": ["price"] * 17}, ["fields"]),
        (
            {"fields": ["price", "id", "content", "metadata", "metadata.", "vector"], "limit": 0},
            ["limit", *(f"fields[{i}]" for i in range(1, 6))],
        ),
        ({"field": "price", "limit": 10_001}, ["limit"]),
        ({"field": 3}, ["field"]),
        ({"field": "price", "filter": {"colour": 1}, "timeout_ms": 0}, ["filter.colour", "timeout_ms"]),
    ],
)
async def test_what_is_wrong_with_facets_is_told(
    three: httpx.AsyncClient, body: dict[str, Any], paths: list[str]
) -> None:
    answer = await three.post(f"{C}/facets", json=body)
    assert (answer.status_code, [error["path"] for error in answer.json()["errors"]]) == (422, paths)


async def test_settings_bound_pages_and_patches(
    backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    client = connect(application(backend, Settings(max_page=5, max_patch_fields=2, max_facet_values=3)))
    assert (await client.get(DOCUMENTS)).status_code == 200
    assert backend.pages == [(None, 5)]
    page = await client.get(DOCUMENTS, params={"limit": "6"})
    assert page.json()["detail"] == "limit: limit=6 is not a whole number from 1 to 5 (--max-page)"
    patch = await client.patch(f"{DOCUMENTS}/1", json={"set": {"metadata.a.b": 1}})
    assert "more than 2 fields in one patch (--max-patch-fields)" in patch.json()["detail"]
    facets = await client.post(f"{C}/facets", json={"field": "price", "limit": 4})
    assert facets.status_code == 422
    assert (await client.post(f"{C}/facets", json={"field": "price"})).status_code == 200
