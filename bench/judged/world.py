"""Judged collections behind a router as an application has them: texts go in, and searches are in words.

The model service, the servers and the router are those that the commands start, and the router has documents
and queries embedded. Invariant, as of `bench.world`: whatever ends the bench, nothing that it started stays.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import yaml

from bench.errors import BenchError
from bench.judged.types import Judged
from bench.sql import execute
from deploy.local import Cluster
from deploy.local.models import model_service
from deploy.local.router import serve_arguments, serving
from router.client import Client, ClientError
from router.schema.apply import apply
from router.terminal import Display
from shard_config import load as load_map

__all__ = ["RERANKER", "JudgedWorld", "Models", "collection_name", "open_judged"]

_ASK_SECONDS = 60.0
# The router takes a body of up to 16 MiB.
_BATCH = 200
# What the map calls its services.
_EMBEDDER, RERANKER = "embedder", "reranker"


class Models(msgspec.Struct, frozen=True):
    """What `pgscatter models serve` is told to make vectors with, and to rank again with, if at all."""

    embedder: str
    reranker: str | None = None


class JudgedWorld:
    """Made by `open_judged`; `reranks` says whether a model can rank hits again."""

    def __init__(self, url: str, cluster: Cluster, reranks: bool) -> None:
        self.cluster = cluster
        self.reranks = reranks
        self._client = Client(url, timeout=_ASK_SECONDS)

    def search(self, judged: Judged, text: str, k: int, mode: str, **fields: Any) -> list[int]:
        """Ids of the hits, best first; `fields` are further ones of the search.

        Raises:
            BenchError: the search failed, or its answer is not what was asked for.
        """
        body = {"text": text, "k": k, "mode": mode, "cache": False, "timeout_ms": 30_000, **fields}
        answer = self._call("POST", f"{_path(judged)}/search", body)
        if not answer["coverage"]["full"]:
            raise BenchError(f"a shard is missing: {answer['coverage']['failures']}")
        if "rerank" in fields and not answer["rerank"]["done"]:
            raise BenchError(f"hits were not ranked again: {answer['rerank'].get('reason')}")
        return [hit["id"] for hit in answer["hits"]]

    def store(self, judged: Judged, begin: int, end: int) -> None:
        """Documents from `begin` up to `end`, as texts."""
        documents = [{"id": i, "content": judged.documents[i]} for i in range(begin, end)]
        stored = self._call("PUT", f"{_path(judged)}/documents", {"documents": documents})
        if stored.get("failed"):
            raise BenchError(f"documents of {judged.name} were not stored: {stored['failed'][0]}")

    def _call(self, method: str, path: str, body: object) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = msgspec.json.decode(self._client.call(method, path, body))
        except ClientError as exc:
            raise BenchError(f"{method} {path} failed: {exc}") from exc
        return answer


@contextmanager
def open_judged(
    sets: Sequence[Judged], models: Models, shards: int, display: Display
) -> Iterator[JudgedWorld]:
    """A temporary cluster with a collection for each of `sets`, ids being the documents' places."""
    with tempfile.TemporaryDirectory(prefix="pgscatter-bench-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # PostgreSQL may have to run as another user
        flags = ["--embedder", f"{_EMBEDDER}={models.embedder}"]
        if reranks := models.reranker is not None:
            flags += ["--reranker", f"{RERANKER}={models.reranker}"]
        display.say(f"starting the model service, and {shards} shards")
        with model_service(*flags, log=folder / "models.log") as service:
            collections = folder / "collections.yaml"
            collections.write_text(yaml.safe_dump(_map_part(sets, str(service), reranks), sort_keys=False))
            with Cluster.temporary(shards, 0, collections, folder / "cluster") as cluster:
                _apply(cluster, display, with_index=False)
                serve = serve_arguments(cluster.map_path)
                with serving(serve, folder / "serve.log") as router:
                    world = JudgedWorld(router.url, cluster, reranks)
                    for judged in sets:
                        _store(world, judged, display)
                    _apply(cluster, display, with_index=True)
                    primaries = [node.dsn for node in cluster.nodes]
                    asyncio.run(execute("VACUUM ANALYZE", *primaries))
                    yield world


def collection_name(judged: Judged) -> str:
    return judged.name.replace(" ", "_")


def _path(judged: Judged) -> str:
    return f"/v1/collections/{collection_name(judged)}"


def _map_part(sets: Sequence[Judged], service: str, reranks: bool) -> dict[str, Any]:
    """Collections and services, as a map has them."""
    dimensions = _dimensions(service)
    # A re-ranker may be a model of some size, on a machine without an accelerator.
    part: dict[str, Any] = {
        "models": {_EMBEDDER: {"url": service, "dimensions": dimensions, "timeout": "30s"}},
        "collections": {collection_name(judged): _map_entry(judged, dimensions) for judged in sets},
    }
    if reranks:
        part["rerankers"] = {RERANKER: {"url": service, "timeout": "30s"}}
    return part


def _dimensions(service: str) -> int:
    """Of the embedder's vectors, by one of them.

    Raises:
        BenchError: the service refused, or did not answer.
    """
    body = {"model": _EMBEDDER, "input": "dimensions"}
    try:
        answer = Client(service, timeout=_ASK_SECONDS).call("POST", "/embeddings", body)
    except ClientError as exc:
        raise BenchError(f"a text was not embedded: {exc}") from exc
    return len(msgspec.json.decode(answer)["data"][0]["embedding"])


def _map_entry(judged: Judged, dimensions: int) -> dict[str, Any]:
    """Everything that decides what is found is left to its default."""
    return {
        "table": f"public.{collection_name(judged)}",
        "id": {"column": "id", "type": "bigint"},
        "vector": {"dimensions": dimensions, "metric": "cosine"},
        "content": "content",
        "embedder": _EMBEDDER,
        "fulltext": {"columns": ["content"], "language": "english"},
        "sharding": {"strategy": "hash", "key": "id", "buckets": 64},
    }


def _apply(cluster: Cluster, display: Display, *, with_index: bool) -> None:
    shard_map = load_map(cluster.map_path)
    results = asyncio.run(
        apply(shard_map, list(shard_map.collections.values()), display, with_index=with_index)
    )
    if errors := [f"{result.shard}: {error}" for result in results for error in result.errors]:
        raise BenchError("; ".join(errors))


def _store(world: JudgedWorld, judged: Judged, display: Display) -> None:
    count = len(judged.documents)
    with display.meter(f"storing {judged.name}", count, "documents") as meter:
        for begin in range(0, count, _BATCH):
            end = min(begin + _BATCH, count)
            world.store(judged, begin, end)
            meter.reach(end)
