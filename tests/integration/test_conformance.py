"""The served OpenAPI, asked with generated requests over real shards and a real Redis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis

from deploy.local import Cluster
from router.app import create_app
from router.http.life import Life
from router.serve_config import ServeConfig, export
from tests.http.conformance import assert_conforms
from tests.integration.apps import applied_map, collection

C = "/v1/collections/{collection}"


def test_no_request_finds_a_500_or_an_undocumented_status(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = {"column": "embedding", "type": "halfvec", "dimensions": 3, "metric": "cosine"}
    by_category = {
        "strategy": "list",
        "key": "category",
        "placement": {"s0": ["a", "b"], "s1": ["c"]},
        "default": "s2",
    }
    path = applied_map(
        cluster,
        tmp_path,
        documents=collection(),
        halves=collection(vector=vector, id={"column": "id", "type": "text"}, sharding=by_category),
    )
    env: dict[str, str] = {}
    export(ServeConfig(map_path=str(path), redis_url=cluster.redis_url, log_level="error"), env)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    document = {"id": 1, "vector": [1, 2, 3, 4], "content": "c", "metadata": {"a": 1}, "price": 1.5}
    search = {"vector": [1, 2, 3, 4], "k": 2, "filter": {"metadata.a": {"$gte": 1}}, "explain_plan": True}
    one: dict[str, Any] = {"path_parameters": {"collection": "documents"}, "media_type": "application/json"}
    statuses = assert_conforms(
        create_app(Life()),
        examples=10,
        path_parameters={"collection": ["documents", "halves"], "id": ["1", "a"]},
        samples={
            f"PUT {C}/documents": [{**one, "body": {"documents": [document]}}],
            f"POST {C}/search": [{**one, "body": search}],
            f"POST {C}/search/batch": [{**one, "body": {"searches": [search, {}]}}],
            f"POST {C}/documents/patch": [
                {
                    **one,
                    "body": {"ids": [1], "set": {"metadata.b.c": [1]}, "unset": ["content", "metadata.d"]},
                }
            ],
            f"PATCH {C}/documents/{{id}}": [
                {
                    "path_parameters": {"collection": "documents", "id": "1"},
                    "media_type": "application/json",
                    "body": {"set": {"price": None}},
                }
            ],
            f"POST {C}/documents/get": [{**one, "body": {"ids": [1, 2]}}],
            f"GET {C}/documents": [{"path_parameters": {"collection": "halves"}, "query": {"limit": "3"}}],
            f"POST {C}/facets": [{**one, "body": {"fields": ["price", "metadata.b.c"]}}],
        },
    )
    schemathesis.python.asgi.shutdown_lifespans()
    succeeded = {label for label, status in statuses if status == 200}
    assert {f"PUT {C}/documents", f"POST {C}/search", f"GET {C}/count", "GET /readyz"} <= succeeded
    assert {f"POST {C}/documents/patch", f"POST {C}/documents/get", f"POST {C}/facets"} <= succeeded
    assert {f"GET {C}/documents", f"PATCH {C}/documents/{{id}}"} <= succeeded
    assert not {status for _, status in statuses if status >= 500}
