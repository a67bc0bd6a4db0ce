"""Documents as text on real shards, with a model's service on a real socket that may fail in the middle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from deploy.local import Cluster
from deploy.local.models import model_service
from router.settings import Settings
from shard_config import model
from shard_config.values import ValueType
from tests.conftest import Serve
from tests.http.test_documents import NDJSON, lines
from tests.integration.apps import collection, pgscatter, write_map
from tests.integration.worlds import World, column, patient, world
from tests.unit.fake_services import Answer, FakeService, vector_of

VECTOR = model.Vector("embedding", model.VectorType.VECTOR, 4, model.Metric.L2)
HALFVEC = model.Vector("embedding", model.VectorType.HALFVEC, 4, model.Metric.COSINE)
BY_CATEGORY = model.HashSharding(column("category", ValueType.TEXT), ("s0", "s1", "s2", "s3"))


@asynccontextmanager
async def texts(
    cluster: Cluster, settings: Settings | None = None, *, timeout: float = 20.0, **changes: Any
) -> AsyncIterator[tuple[World, FakeService]]:
    """A collection whose texts are embedded by a service, which is asked again soon after it has failed."""
    settings = settings or patient(model_pause=0.05, model_pause_max=0.05, model_patience=20.0)
    async with FakeService() as service:
        embedder = service.model(timeout=timeout, batch=32, document_prefix="doc: ")
        fields = {"vector": VECTOR, "embedder": embedder, "template": "{category}|{content}", **changes}
        async with world(cluster, settings, **fields) as w:
            yield w, service


def article(id_: int, **fields: Any) -> dict[str, Any]:
    return {"id": id_, "category": f"c{id_ % 5}", "content": f"text {'x' * (id_ % 40)}", **fields}


def wanted(document: dict[str, Any]) -> list[float]:
    given: list[float] | None = document.get("vector")
    return given or vector_of(f"doc: {document['category']}|{document['content']}")


async def stored(cluster: Cluster, table: object) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for node in cluster.nodes:
        if node.role == "primary":
            connection = await asyncpg.connect(node.dsn)
            try:
                rows = await connection.fetch(f"SELECT id, embedding::float4[] AS v FROM {table}")
            finally:
                await connection.close()
            assert not {row["id"] for row in rows} & set(found)
            found |= {row["id"]: row["v"] for row in rows}
    return found


@pytest.mark.parametrize("changes", [{}, {"sharding": BY_CATEGORY}, {"vector": HALFVEC}])
@pytest.mark.parametrize("stream", [False, True])
async def test_texts_are_stored_with_their_vectors_and_found_by_them(
    cluster: Cluster, stream: bool, changes: dict[str, Any]
) -> None:
    async with texts(cluster, redis=True, **changes) as (w, service), w.over_http() as client:
        documents = [article(i, **({"vector": [i, 1, 1, 1]} if i % 3 == 0 else {})) for i in range(600)]
        if stream:
            response = await client.put("/documents", content=lines(*documents), headers=NDJSON)
        else:
            response = await client.put("/documents", json={"documents": documents})
        assert response.status_code == 200, response.text
        body = response.json()
        assert (body["stored"], body["failed"], body["embedded"]) == (600, 0, 400)
        assert await stored(cluster, w.collection.table) == {one["id"]: wanted(one) for one in documents}
        assert max(map(len, service.texts())) == 32
        # A search for the same words has the same vector, but for the prefix.
        search = {"text": "doc: c1|text x", "k": 600, "exact": True}
        hits = (await client.post("/search", json=search)).json()["hits"]
        nearest = {hit["id"] for hit in hits if hit["distance"] < 1e-6}
        assert 1 in nearest
        changed = await client.put("/documents", json={"documents": [article(1, content="another")]})
        assert changed.json()["embedded"] == 1
        hits = (await client.post("/search", json=search)).json()["hits"]
        assert 1 not in {hit["id"] for hit in hits if hit["distance"] < 1e-6}


async def test_a_service_killed_in_the_middle_of_a_stream_leaves_no_row_without_its_vector(
    cluster: Cluster,
) -> None:
    settings = patient(model_pause=0.05, model_pause_max=0.05, model_patience=1.5)
    async with texts(cluster, settings, redis=True) as (w, service), w.over_http() as client:
        documents = [article(i, **({"vector": [i, 1, 1, 1]} if i % 4 == 0 else {})) for i in range(1800)]

        async def pieces() -> AsyncIterator[bytes]:
            for i, document in enumerate(documents):
                if i == 1100:
                    await service.stop()
                yield lines(document)

        body = (await client.put("/documents", content=pieces(), headers=NDJSON)).json()
        kept = await stored(cluster, w.collection.table)
        failed = {failure["id"] for failure in body["failures"]}
        assert {failure["reason"] for failure in body["failures"]} == {"unavailable"}
        assert (len(kept), len(failed)) == (body["stored"], body["failed"])
        assert kept.keys() | failed == set(range(1800)) and not kept.keys() & failed
        assert {0, *range(1000)} <= kept.keys() and all(i % 4 for i in failed) and 1799 in failed
        assert kept == {i: wanted(documents[i]) for i in kept}
        await service.start()
        again = [documents[i] for i in sorted(failed)]
        retried = (await client.put("/documents", json={"documents": again})).json()
        assert retried["stored"] == len(again), retried["failures"][:2]
        assert await stored(cluster, w.collection.table) == {one["id"]: wanted(one) for one in documents}


def half(request: Any) -> Any:
    """Answers to the first half of the texts alone."""
    some = request.json["input"][: len(request.json["input"]) // 2]
    return {"data": [{"index": i, "embedding": vector_of(text)} for i, text in enumerate(some)]}


def too_long(request: Any) -> Any:
    return {"data": [{"index": i, "embedding": [1.0] * 5} for i, _ in enumerate(request.json["input"])]}


@pytest.mark.parametrize(
    ("usual", "status", "reason", "said"),
    [
        (half, 503, "unavailable", "vectors to 9 texts"),
        (too_long, 500, "misconfigured", "5 dimensions, and the map says 4"),
        (lambda _: Answer(429, {}, ("retry-after: 3",)), 503, "unavailable", "too much to do (429)"),
        (lambda _: b"garbage", 503, "unavailable", "is no list of embeddings"),
        (lambda _: Answer(413, {"error": "too long"}), 422, "invalid", "answers 413: too long"),
    ],
)
async def test_what_a_broken_service_answers_is_never_stored(
    cluster: Cluster, usual: Any, status: int, reason: str, said: str
) -> None:
    settings = patient(model_attempts=1, model_patience=0)
    async with texts(cluster, settings) as (w, service), w.over_http() as client:
        service.usual = usual
        documents = [article(i) for i in range(9)]
        for put in (
            client.put("/documents", json={"documents": documents}),
            client.put("/documents", content=lines(*documents), headers=NDJSON),
        ):
            response = await put
            assert response.status_code == status, response.text
            failures = response.json()["failures"]
            assert [failure["index"] for failure in failures] == list(range(9))
            assert {failure["reason"] for failure in failures} == {reason}
            assert "the embedding service m" in failures[0]["message"]
        assert said in failures[0]["message"]
        assert await stored(cluster, w.collection.table) == {}


async def test_a_slow_service_costs_the_texts_and_not_the_vectors(cluster: Cluster) -> None:
    settings = patient(model_attempts=1, model_patience=0)
    async with texts(cluster, settings, timeout=0.2) as (w, service), w.over_http() as client:
        service.always = Answer(held=asyncio.Event())
        documents = [article(1), article(2, vector=[1, 2, 3, 4])]
        body = (await client.put("/documents", json={"documents": documents})).json()
        assert (body["stored"], [failure["id"] for failure in body["failures"]]) == (1, [1])
        assert body["failures"][0]["reason"] == "unavailable"
        assert await stored(cluster, w.collection.table) == {2: [1, 2, 3, 4]}


def map_of(
    cluster: Cluster, folder: Path, url: str, vector: dict[str, Any] | None = None, **more: Any
) -> tuple[Path, str]:
    """A map with an embedder, applied; and the collection's table."""
    docs = collection(embedder="m", template="{category}|{content}", **({"vector": vector} if vector else {}))
    path = write_map(cluster, folder / "map.yaml", {"docs": docs})
    tree = yaml.safe_load(path.read_text())
    service = {"url": url, "dimensions": 4, "batch": 16, "document_prefix": "doc: ", "timeout": "20s", **more}
    path.write_text(yaml.safe_dump({**tree, "models": {"m": service}}))
    pgscatter("schema", "apply", "--map", path)
    return path, docs["table"]


def jsonl(folder: Path, documents: Sequence[dict[str, Any]]) -> Path:
    path = folder / "docs.jsonl"
    path.write_bytes(lines(*documents))
    return path


def parquet(folder: Path, documents: Sequence[dict[str, Any]]) -> Path:
    columns = {name: [one.get(name) for one in documents] for name in ("id", "category", "content", "vector")}
    table = pa.table({**columns, "vector": pa.array(columns["vector"], pa.list_(pa.float32()))})
    path = folder / "docs.parquet"
    pq.write_table(table.drop_columns(["vector"]) if not any(columns["vector"]) else table, path)
    return path


async def load(path: Path, source: Path, *flags: object) -> Any:
    command = ("load", source, "--map", path, "--collection", "docs", *flags)
    return await asyncio.to_thread(pgscatter, *command, check=False)


@pytest.mark.parametrize("form", [jsonl, parquet])
@pytest.mark.parametrize("mixed", [False, True])
async def test_a_file_of_texts_is_loaded_with_their_vectors(
    cluster: Cluster, tmp_path: Path, form: Any, mixed: bool
) -> None:
    async with FakeService() as service:
        path, table = map_of(cluster, tmp_path, service.url)
        documents = [
            article(i, **({"vector": [float(i), 1, 1, 1]} if mixed and i % 2 else {})) for i in range(1500)
        ]
        done = await load(path, form(tmp_path, documents))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("loaded 1,500 rows in ")
        assert await stored(cluster, table) == {one["id"]: wanted(one) for one in documents}
        assert sum(map(len, service.texts())) == (750 if mixed else 1500)


async def test_a_load_whose_service_dies_names_the_row_and_goes_on_from_there(
    cluster: Cluster, tmp_path: Path
) -> None:
    async with FakeService() as service:
        path, table = map_of(cluster, tmp_path, service.url)
        documents = [article(i) for i in range(600)]
        source = jsonl(tmp_path, documents)

        async def kill() -> None:
            while len(service.requests) < 20:
                await asyncio.sleep(0.001)
            await service.stop()

        killer = asyncio.create_task(kill())
        done = await load(path, source, "--chunk-rows", 64, "--embed-timeout", 1)
        await killer
        assert done.returncode == 1
        said = done.stderr.splitlines()
        (first,) = [line for line in said if ": not embedded: the embedding service m (http://" in line]
        assert said[-1] == "what was loaded stays; the same command goes on from there"
        row = int(first.split(", line ")[1].split(":")[0])
        kept = await stored(cluster, table)
        assert kept == {i: wanted(documents[i]) for i in kept}
        assert 0 < len(kept) < 600 and row - 1 not in kept
        asked = sum(map(len, service.texts()))
        await service.start()
        done = await load(path, source, "--chunk-rows", 64)
        assert done.returncode == 0, done.stderr
        assert await stored(cluster, table) == {one["id"]: wanted(one) for one in documents}
        assert sum(map(len, service.texts())) - asked == 600 - len(kept)


async def test_a_load_waits_while_its_service_is_busy_and_leaves_out_what_the_model_refuses(
    cluster: Cluster, tmp_path: Path
) -> None:
    async with FakeService() as service:
        path, table = map_of(cluster, tmp_path, service.url)
        usual = service.usual

        def refusing(request: Any) -> Any:
            if any(text.endswith("|bad") for text in request.json["input"]):
                return Answer(400, {"error": {"message": "too long"}})
            return usual(request)

        service.usual = refusing
        service.answers.extend([Answer(429, {})] * 8)
        documents = [article(i, **({"content": "bad"} if i in (3, 77) else {})) for i in range(100)]
        source = jsonl(tmp_path, documents)
        done = await load(path, source, "--skip-bad", 1)
        assert (done.returncode, await stored(cluster, table)) == (1, {})
        assert "line 4: the embedding service m" in done.stderr and "answers 400: too long" in done.stderr
        done = await load(path, source, "--skip-bad", 2)
        assert done.returncode == 0, done.stderr
        assert "left out 2 bad rows" in done.stdout
        assert await stored(cluster, table) == {
            one["id"]: wanted(one) for one in documents if one["content"] != "bad"
        }


async def test_a_load_of_texts_needs_an_embedder(cluster: Cluster, tmp_path: Path) -> None:
    docs = collection()
    path = write_map(cluster, tmp_path / "map.yaml", {"docs": docs})
    pgscatter("schema", "apply", "--map", path)
    done = await load(path, jsonl(tmp_path, [article(1)]))
    assert done.returncode == 1
    assert "line 1: vector: required, but missing; collection docs has no embedder" in done.stderr
    done = await load(path, parquet(tmp_path, [article(1)]))
    assert "expected one, since docs has no embedder to make vectors of texts" in done.stderr
    assert json.dumps(await stored(cluster, docs["table"])) == "{}"


async def test_texts_stored_and_loaded_by_the_real_service_are_found_by_their_meaning(
    cluster: Cluster, tmp_path: Path, serve: Serve
) -> None:
    vector = {"column": "embedding", "type": "vector", "dimensions": 256, "metric": "cosine"}
    with model_service() as url:
        path, _ = map_of(cluster, tmp_path, str(url), vector, model="wordllama", dimensions=256)
        told = [
            "a cache that drops what was least recently used",
            "wait for a task of the event loop to finish",
            "sort a list of numbers in ascending order",
            "read the lines of a text file",
        ]
        documents = [{"id": i, "content": text} for i, text in enumerate(told)]
        done = await load(path, jsonl(tmp_path, documents[:2]))
        assert done.returncode == 0, done.stderr
        with serve(path, redis=cluster.redis_url) as router:
            async with httpx.AsyncClient(base_url=f"{router}/v1/collections/docs", timeout=60) as client:
                body = (await client.put("/documents", json={"documents": documents[2:]})).json()
                assert (body["stored"], body["embedded"]) == (2, 2)
                for text, id_ in (
                    ("asynchronous task awaiting completion", 1),
                    ("ordering numbers from small to large", 2),
                    ("file reading, line by line", 3),
                    ("evicting the least recently used entries of a cache", 0),
                ):
                    hits = (await client.post("/search", json={"text": text, "k": 1})).json()["hits"]
                    assert hits[0]["id"] == id_, text
