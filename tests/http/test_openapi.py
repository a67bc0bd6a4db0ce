from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx

from router.http.descriptions import FIELDS, TYPES
from router.http.head import HEAD_BYTES
from router.http.keys_file import parse
from tests.http.conformance import assert_conforms
from tests.http.fake import FakeBackend, application
from tests.http.wire import wire

C = "/v1/collections/{collection}"
DOCUMENTS = {"collection": "documents"}
ONE = {**DOCUMENTS, "id": "1"}
SEARCH = {"vector": [1, 2, 3], "k": 2, "explain": True, "filter": {"price": {"$gt": 1}}}
STORED = {"documents": [{"id": 1, "vector": [1, 2, 3], "content": "c", "metadata": {}, "price": 1.5}]}

SAMPLES: dict[str, list[dict[str, Any]]] = {
    f"PUT {C}/documents": [
        {"path_parameters": DOCUMENTS, "body": STORED, "media_type": "application/json"},
    ],
    f"POST {C}/search": [{"path_parameters": DOCUMENTS, "body": SEARCH, "media_type": "application/json"}],
    f"POST {C}/search/batch": [
        {
            "path_parameters": DOCUMENTS,
            "body": {"searches": [SEARCH, {}]},
            "media_type": "application/json",
        }
    ],
    f"GET {C}/documents/{{id}}": [{"path_parameters": ONE}],
    f"GET {C}/count": [{"path_parameters": DOCUMENTS, "query": {"filter": "{}"}}],
    f"GET {C}": [{"path_parameters": DOCUMENTS}],
    f"GET {C}/locate": [{"path_parameters": DOCUMENTS, "query": {"key": "1"}}],
    f"PATCH {C}/documents/{{id}}": [
        {
            "path_parameters": ONE,
            "body": {"set": {"price": 2, "metadata.a.b": [1]}, "unset": ["category"]},
            "media_type": "application/json",
        }
    ],
    f"POST {C}/documents/patch": [
        {
            "path_parameters": DOCUMENTS,
            "body": {"ids": [1], "set": {"content": None}},
            "media_type": "application/json",
        }
    ],
    f"POST {C}/documents/get": [
        {"path_parameters": DOCUMENTS, "body": {"ids": [1, 2]}, "media_type": "application/json"}
    ],
    f"GET {C}/documents": [{"path_parameters": DOCUMENTS, "query": {"limit": "10"}}],
    f"POST {C}/facets": [
        {
            "path_parameters": DOCUMENTS,
            "body": {"fields": ["category", "metadata.a"]},
            "media_type": "application/json",
        }
    ],
    f"POST {C}/documents/delete": [
        {"path_parameters": DOCUMENTS, "body": {"ids": [2]}, "media_type": "application/json"}
    ],
    f"DELETE {C}/documents/{{id}}": [{"path_parameters": ONE}],
}
# Generated clients call operations by these, so they stay.
IDS = [
    "search",
    "search_batch",
    "upsert_documents",
    "list_documents",
    "delete_documents",
    "get_document",
    "delete_document",
    "patch_document",
    "count_documents",
    "patch_documents",
    "get_documents",
    "count_facets",
    "list_collections",
    "get_collection",
    "locate",
    "get_shard_map",
    "list_nodes",
    "livez",
    "readyz",
    "get_health",
    "get_metrics",
    "get_openapi",
    "get_docs",
]
EXISTING = {
    "collection": ["documents", "halves", "coarse", "notes"],
    "id": ["1", "a", "7b7e1a4e-3f0f-4f3f-9a55-0c9f9a3a1e11"],
}


def test_the_application_keeps_the_word_of_its_openapi() -> None:
    statuses = assert_conforms(application(FakeBackend()), path_parameters=EXISTING, samples=SAMPLES)
    labels = {label for label, _ in statuses}
    assert {label for label, status in statuses if status == 200} == labels
    assert len(labels) == 22  # schemathesis leaves out the one that it has asked already


def test_it_does_so_with_keys_as_well() -> None:
    keys = parse("keys: [{name: a, key: secret, scopes: [admin]}]", {}, "keys.yaml")
    app = application(FakeBackend(), keys=keys)
    with_key = {"authorization": "Bearer secret"}
    statuses = assert_conforms(app, examples=3, path_parameters=EXISTING, samples=SAMPLES, headers=with_key)
    assert not {status for _, status in statuses} & {401, 403}
    statuses = assert_conforms(app, examples=3, path_parameters=EXISTING)
    assert {status for label, status in statuses if " /v1/" in label} == {401}


async def test_the_description_is_openapi_3_1_and_closed(client: httpx.AsyncClient) -> None:
    openapi = (await client.get("/openapi.json")).json()
    assert openapi["openapi"] == "3.1.0"
    schemas = openapi["components"]["schemas"]
    referred = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(openapi)))
    assert referred <= schemas.keys()
    search = schemas["SearchBody"]
    assert search["additionalProperties"] is False
    assert search["properties"]["k"]["minimum"] == 1
    assert "/v1/collections/{collection}/documents/{id}" in openapi["paths"]
    # Lists say what they hold; client generators leave out an operation whose body has one that does not.
    assert '"items": {}' not in json.dumps(openapi)
    assert schemas["BatchBody"]["properties"]["searches"]["items"] == {
        "$ref": "#/components/schemas/SearchBody"
    }
    assert "items" in schemas["DeleteBody"]["properties"]["ids"]
    assert "x-ndjson" in openapi["paths"]["/v1/collections/{collection}/documents"]["put"]["description"]


async def test_everything_is_described_where_readers_look(client: httpx.AsyncClient) -> None:
    openapi = (await client.get("/openapi.json")).json()
    for name, schema in openapi["components"]["schemas"].items():
        assert schema["description"], name
        for field, what in schema.get("properties", {}).items():
            assert what.get("description"), f"{name}.{field}"
            assert not any("description" in member for member in what.get("anyOf", ())), f"{name}.{field}"
    for name, fields in FIELDS.items():
        assert fields.keys() <= openapi["components"]["schemas"][name]["properties"].keys(), name
    assert openapi["components"]["schemas"].keys() >= TYPES.keys()
    tags = {tag["name"] for tag in openapi["tags"] if tag["description"]}
    ids: list[str] = []
    for methods in openapi["paths"].values():
        for operation in methods.values():
            ids.append(operation["operationId"])
            assert operation["summary"] and set(operation["tags"]) <= tags and len(operation["tags"]) == 1
            assert all(parameter["description"] for parameter in operation["parameters"])
            assert all(response["description"] for response in operation["responses"].values())
    assert ids == sorted(set(ids), key=ids.index) == IDS


async def test_operations_say_which_scope_they_need(
    backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    keys = parse("keys: [{name: a, key: secret, scopes: [admin]}]", {}, "keys.yaml")
    openapi = (await connect(application(backend, keys=keys)).get("/openapi.json")).json()
    scopes = {
        f"{method.upper()} {path}": operation.get("x-scope", "open")
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    }
    assert [name for name, scope in scopes.items() if scope == "open"] == [
        "GET /livez",
        "GET /readyz",
        "GET /openapi.json",
        "GET /docs",
    ]
    assert scopes["GET /v1/nodes"] == scopes["GET /v1/shard-map"] == scopes["GET /metrics"] == "admin"
    writes = ("PUT", "PATCH", "DELETE")
    assert {scope for name, scope in scopes.items() if name.startswith(writes)} == {"write"}
    assert scopes[f"POST {C}/documents/patch"] == "write"
    assert scopes[f"POST {C}/documents/get"] == scopes[f"POST {C}/facets"] == "read"
    assert scopes[f"POST {C}/documents/delete"] == "write"
    assert openapi["components"]["securitySchemes"].keys() == {"bearer", "header"}


async def test_the_page_shows_everything_and_loads_nothing(client: httpx.AsyncClient) -> None:
    response = await client.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    page = response.text
    openapi = (await client.get("/openapi.json")).json()
    for path in openapi["paths"]:
        assert path in page
    for name in openapi["components"]["schemas"]:
        assert f'id="{name}"' in page
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!#|/openapi.json)[^"]*"', page) == []
    assert "default-src 'none'" in response.headers["content-security-policy"]


async def test_what_a_head_is_refused_with_is_described_at_each_operation() -> None:
    long = b"a" * HEAD_BYTES
    heads = {
        400: b"GET /livez HTTP/1.1\r\n\r\n",
        414: b"GET /livez?" + long + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        431: b"GET /livez HTTP/1.1\r\nhost: a\r\nx: " + long + b"\r\n\r\n",
        501: b"GET /livez HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        505: b"GET /livez HTTP/2.0\r\nhost: a\r\n\r\n",
    }
    async with wire() as router:
        openapi = (await router.say(b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n"))[0][1]
        for status, head in heads.items():
            assert [answer[0] for answer in await router.say(head)] == [status]
    for methods in openapi["paths"].values():
        for operation in methods.values():
            assert {str(status) for status in heads} <= operation["responses"].keys()
