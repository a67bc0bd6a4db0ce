"""Searches by text over real shards, by the real model service, and what is left when that service goes."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.local import Cluster, processes
from deploy.local.models import model_service
from tests.conftest import Serve
from tests.integration.apps import applied_map, collection, pgscatter

TEXTS = [
    "a cache that drops what was least recently used",
    "wait for a task of the event loop to finish",
    "sort a list of numbers in ascending order",
    "read the lines of a text file",
]
SEARCH = "/v1/collections/docs/search"
DIMENSIONS = 256


def until(true: Callable[[], bool]) -> None:
    assert processes.until(true, 60.0)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def map_path(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map whose model is at a port where nothing listens yet."""
    folder = tmp_path_factory.mktemp("texts")
    vector = {"column": "embedding", "type": "vector", "dimensions": DIMENSIONS, "metric": "cosine"}
    path = applied_map(cluster, folder, docs=collection(vector=vector))
    tree = yaml.safe_load(path.read_text())
    tree["models"] = {"words": {"url": f"http://127.0.0.1:{free_port()}/v1", "dimensions": DIMENSIONS}}
    tree["models"]["words"] |= {"model": "wordllama", "timeout": "20s"}
    tree["collections"]["docs"]["embedder"] = "words"
    tree["version"] += 1
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    pgscatter("schema", "apply", "--map", path)
    return path


@pytest.fixture(scope="module")
def port(map_path: Path) -> int:
    url = yaml.safe_load(map_path.read_text())["models"]["words"]["url"]
    return int(url.split(":")[2].split("/")[0])


def test_a_search_by_text_follows_the_service_down_and_up_again(
    cluster: Cluster, map_path: Path, port: int, serve: Serve
) -> None:
    with (
        serve(
            map_path, redis=cluster.redis_url, model_failures=2, model_pause=0.1, model_pause_max=0.1
        ) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):

        def search(text: str, **body: Any) -> httpx.Response:
            return client.post(SEARCH, json={"text": text, "k": 1, "include": ["content"], **body})

        refused = search("anything")
        assert refused.status_code == 503
        assert "embedding service words" in refused.json()["detail"]
        with model_service(port=port) as service:
            until(lambda: search("is it there?").status_code == 200)
            made = httpx.post(f"{service}/embeddings", json={"input": TEXTS}, timeout=60).json()["data"]
            documents = [
                {"id": i, "vector": made[i]["embedding"], "content": text} for i, text in enumerate(TEXTS)
            ]
            stored = client.put("/v1/collections/docs/documents", json={"documents": documents})
            assert stored.json()["stored"] == len(TEXTS), stored.text
            answer = search("least recently used cache").json()
            assert answer["hits"][0]["content"] == TEXTS[0]
            assert (answer["embedding"]["model"], answer["embedding"]["cached"]) == ("words", False)
            batch = {"searches": [{"text": text, "k": 1} for text in (*TEXTS, TEXTS[0])]}
            results = client.post(f"{SEARCH}/batch", json=batch).json()["results"]
            assert [one["hits"][0]["id"] for one in results] == [0, 1, 2, 3, 0]
            assert results[0]["hits"][0]["distance"] < 1e-6
            os.kill(service.pid, signal.SIGKILL)
            until(lambda: search("a text that nobody sought").status_code == 503)
            until(lambda: client.get("/health").json()["services"][0]["circuit"] == "open")
            assert client.get("/readyz").status_code == 200
            known = search("least recently used cache", cache=False)
            assert known.json()["hits"] == answer["hits"]
            assert known.json()["embedding"]["cached"] is True
        with model_service(port=port):
            until(lambda: search("and back again").status_code == 200)
            assert client.get("/health").json()["services"][0]["circuit"] == "closed"
