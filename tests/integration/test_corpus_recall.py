"""The demo's corpus over the real router: what it finds, and how much of the exact answer.

Recall counts a hit that is no further away than the exact answer's last one, because the library
says some things twice and neither of two equal documents is the right one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.corpus import documents as corpus
from deploy.corpus.documents import Entry
from deploy.local import Cluster
from deploy.local.models import ModelService, model_service
from tests.conftest import Serve
from tests.integration.apps import applied_map, collection, pgscatter

pytestmark = pytest.mark.full  # that the corpus is loaded and found is shown by test_readme as well

K = 10
QUERIES = 240
SEARCH = "/v1/collections/stdlib/search"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def prepared(folder: Path) -> corpus.Prepared:
    return corpus.prepare(folder)


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return corpus.entries()


@pytest.fixture(scope="module")
def models(folder: Path) -> Iterator[ModelService]:
    with model_service(log=folder / "models.log") as service:
        yield service


@pytest.fixture(scope="module")
def client(
    cluster: Cluster, serve: Serve, folder: Path, prepared: corpus.Prepared, models: ModelService
) -> Iterator[httpx.Client]:
    stdlib = collection(
        vector={"column": "embedding", "type": "vector", "dimensions": corpus.DIMENSIONS, "metric": "cosine"},
        metadata=None,
        columns={"name": "text", "module": "text", "kind": "text"},
        embedder="wordllama",
    )
    services = {"wordllama": {"url": str(models), "dimensions": corpus.DIMENSIONS}}
    present = {key: value for key, value in stdlib.items() if value is not None}
    map_path = applied_map(cluster, folder, models=services, stdlib=present)
    pgscatter("load", prepared.documents, "--map", map_path, "--collection", "stdlib")
    with (
        serve(map_path, redis=cluster.redis_url) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def questions(entries: list[Entry]) -> list[list[float]]:
    """The first sentences of entries from all over the corpus, as a user might have put them."""
    sentences = [entry.text.partition(".")[0] for entry in entries[:: len(entries) // (2 * QUERIES)]]
    told = [sentence for sentence in sentences if len(sentence.split()) >= 4]
    return [vector.tolist() for vector in corpus.vectors(told)[:QUERIES]]


def search(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post(SEARCH, json={"k": K, "timeout_ms": 30_000, **body})
    assert answer.status_code == 200, answer.text
    decoded: dict[str, Any] = answer.json()
    assert decoded["coverage"]["full"]
    return decoded


def recall(found: list[dict[str, Any]], exact: list[dict[str, Any]]) -> float:
    farthest = exact[-1]["distance"] + 1e-6
    return sum(hit["distance"] <= farthest for hit in found) / len(exact)


def test_every_entry_was_loaded(client: httpx.Client, entries: list[Entry]) -> None:
    counted = client.get("/v1/collections/stdlib/count").json()
    assert counted["count"] == len(entries)


def test_the_cache_decorator_is_found_by_what_it_does_in_all_shards(client: httpx.Client) -> None:
    found = search(client, text="least recently used cache decorator", include=["name", "content"])
    assert "functools.lru_cache" in [hit["name"] for hit in found["hits"][:3]]
    assert found["coverage"]["shards"]["ok"] == found["coverage"]["shards"]["total"] == 4
    assert len({hit["shard"] for hit in found["hits"]}) > 1


def test_recall_at_default_settings_is_at_least_095(
    client: httpx.Client, questions: list[list[float]]
) -> None:
    assert len(questions) >= 200
    recalls = [
        recall(search(client, vector=vector)["hits"], search(client, vector=vector, exact=True)["hits"])
        for vector in questions
    ]
    assert sum(recalls) / len(recalls) >= 0.95


def test_a_filter_that_keeps_one_percent_still_returns_k_rows(
    client: httpx.Client, entries: list[Entry], questions: list[list[float]]
) -> None:
    sizes = Counter(entry.module for entry in entries)
    module, size = min(sizes.items(), key=lambda item: abs(item[1] - len(entries) / 100))
    assert 0.008 < size / len(entries) < 0.012
    recalls = []
    for vector in questions[::4]:
        asked = {"vector": vector, "filter": {"module": module}, "include": ["module"]}
        found = search(client, **asked)
        assert len(found["hits"]) == K
        assert "short" not in found
        assert {hit["module"] for hit in found["hits"]} == {module}
        recalls.append(recall(found["hits"], search(client, **asked, exact=True)["hits"]))
    assert sum(recalls) / len(recalls) >= 0.95
