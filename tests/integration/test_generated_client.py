"""A client made from the served OpenAPI by openapi-python-client: complete, importable, and usable."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest

from deploy.local import Cluster
from tests.conftest import Serve
from tests.integration.apps import applied_map, collection
from tests.unit.fake_services import FakeService, floats

# The hooks only format what was made.
CONFIG = "post_hooks: []\n"
KEYS = "keys: [{name: tests, key: secret, scopes: [admin]}]"


@pytest.fixture(scope="module")
def url(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, serve: Serve) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("generated")
    documents = collection()
    documents["vector"] |= {"dimensions": 3}
    documents["fulltext"] = {"columns": ["content"]}
    (folder / "keys.yaml").write_text(KEYS)
    documents["embedder"] = "m"
    with embedding_service() as service:
        models = {"m": {"url": service, "dimensions": 3}}
        path = applied_map(cluster, folder, models=models, documents=documents)
        # Nobody listens there: examples are answered all the same, and say so.
        path.write_text(f"{path.read_text()}\nrerankers: {{ce: {{url: 'http://127.0.0.1:9/v1'}}}}\n")
        with serve(path, api_keys=folder / "keys.yaml") as url:
            yield url


@contextlib.contextmanager
def embedding_service() -> Iterator[str]:
    """The URL of a service with vectors of three dimensions, on a loop of its own."""
    service = FakeService(lambda request: floats(request, dimensions=3))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(service.start(), loop).result(10)
        yield service.url
    finally:
        asyncio.run_coroutine_threadsafe(service.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def openapi(url: str) -> dict[str, Any]:
    described: dict[str, Any] = httpx.get(f"{url}/openapi.json").json()
    return described


def operations(openapi: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


@pytest.fixture(scope="module")
def package(openapi: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("client")
    (folder / "openapi.json").write_text(json.dumps(openapi))
    (folder / "config.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning"]
    command += ["--path", "openapi.json", "--config", "config.yaml"]
    command += ["--meta", "none", "--output-path", "generated_client"]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0 and "arning" not in made.stdout + made.stderr, made.stdout + made.stderr
    sys.path.insert(0, str(folder))
    yield "generated_client"
    sys.path.remove(str(folder))


def test_every_operation_is_generated_and_imports(openapi: dict[str, Any], package: str) -> None:
    for _, _, operation in operations(openapi):
        module = importlib.import_module(f"{package}.api.{operation['tags'][0]}.{operation['operationId']}")
        # Without a type for the answer there is no plain `sync`.
        assert hasattr(module, "sync_detailed") and hasattr(module, "asyncio_detailed")


def test_the_generated_client_stores_searches_reads_and_deletes(url: str, package: str) -> None:
    models = importlib.import_module(f"{package}.models")
    made = importlib.import_module(f"{package}.client").AuthenticatedClient(base_url=url, token="secret")

    def call(tag: str, name: str, *args: Any, **named: Any) -> Any:
        module = importlib.import_module(f"{package}.api.{tag}.{name}")
        answer = module.sync(*args, client=client, **named)
        assert answer is not None and not isinstance(answer, models.ProblemBody), answer
        return answer

    with made as client:
        rows = [{"id": i, "vector": [i, 1, 0], "content": f"text {i}", "price": i / 2} for i in range(1, 4)]
        documents = models.DocumentsBody.from_dict({"documents": rows})
        assert call("documents", "upsert_documents", "documents", body=documents).stored == 3
        search = models.SearchBody(vector=[1.0, 1.0, 0.0], k=2, include=["content"])
        found = call("search", "search", "documents", body=search)
        assert [(hit.id, hit["content"]) for hit in found.hits] == [(1, "text 1"), (2, "text 2")]
        batch = call("search", "search_batch", "documents", body=models.BatchBody(searches=[search, search]))
        assert [result.hits[0].id for result in batch.results] == [1, 1]
        assert call("documents", "get_document", "documents", "3")["price"] == 1.5
        assert call("documents", "count_documents", "documents").count == 3
        assert [one.name for one in call("collections", "list_collections").collections] == ["documents"]
        assert call("collections", "locate", "documents", key="1").shard.startswith("s")
        assert call("cluster", "list_nodes").nodes and call("health", "readyz").ready
        deleted = call("documents", "delete_documents", "documents", body=models.DeleteBody(ids=[1, 2]))
        assert deleted.deleted == 2
        assert call("documents", "delete_document", "documents", "3").deleted == 1


def test_examples_keep_to_their_schemas_and_requests_succeed(url: str, openapi: dict[str, Any]) -> None:
    with httpx.Client(base_url=url, headers={"x-api-key": "secret"}) as client:
        for method, path, operation in operations(openapi):
            target = path
            query = {}
            for parameter in operation["parameters"]:
                if parameter["in"] == "path":
                    target = target.replace(f"{{{parameter['name']}}}", parameter["example"])
                else:
                    query[parameter["name"]] = parameter["example"]
            contents = operation.get("requestBody", {}).get("content", {})
            content = contents.get("application/json", {})
            assert not contents or content["examples"]
            for example in content.get("examples", {}).values():
                check(openapi, content["schema"], example["value"])
                answer = client.request(method, target, json=example["value"])
                # Nobody has had the ranking of the example's cursor kept.
                followed = example["value"].get("cursor", "*") != "*"
                assert answer.status_code == (410 if followed else 200), (path, answer.text)
            if not contents and method == "get":
                answer = client.request(method, target, params=query)
                assert answer.status_code == 200, (path, answer.text)
            shown = operation["responses"]["200"]["content"].get("application/json", {})
            if "example" in shown:
                check(openapi, shown["schema"], shown["example"])


def check(openapi: dict[str, Any], schema: dict[str, Any], value: object) -> None:
    jsonschema_rs.validate({**schema, "components": openapi["components"]}, value)
