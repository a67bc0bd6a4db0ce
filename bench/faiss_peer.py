"""faiss as a peer: the same rows in an HNSW graph within the process that asks, without any server.

It is the floor of what a search can cost: no network, no transactions, no filters, and nothing survives
the process. Each answer holds Python's lock while it is computed, as it would in an application.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.datasets import Vectors
from bench.errors import NotHere
from bench.generators import Target
from bench.targets import ImportedSpec
from bench.world import World
from shard_config.model import Metric

__all__ = ["FaissTarget", "peer"]

# pgvector's defaults, so that the graphs are alike.
_M = 16
_EF_CONSTRUCTION = 64
_METRICS = {Metric.L2: "METRIC_L2", Metric.COSINE: "METRIC_INNER_PRODUCT"}
_METRICS[Metric.INNER_PRODUCT] = "METRIC_INNER_PRODUCT"


@contextmanager
def peer(world: World) -> Iterator[ImportedSpec]:
    """
    Raises:
        NotHere: faiss is not installed, or has no such metric.
    """
    metric = world.dataset.metric
    try:
        faiss = importlib.import_module("faiss")
    except ImportError as exc:
        raise NotHere("the Python package faiss-cpu is not installed") from exc
    if metric not in _METRICS:
        raise NotHere(f"faiss has no HNSW index for the metric {metric}")
    index = faiss.IndexHNSWFlat(world.dataset.dimensions, _M, getattr(faiss, _METRICS[metric]))
    index.hnsw.efConstruction = _EF_CONSTRUCTION
    index.add(_prepared(world.dataset.base, metric))
    path = world.folder / "faiss.index"
    faiss.write_index(index, str(path))
    yield ImportedSpec(
        target=f"{__name__}:FaissTarget",
        queries=str(world.queries_path),
        k=world.k,
        options={"index": str(path), "metric": str(metric)},
    )


class FaissTarget(Target):
    def __init__(self, spec: ImportedSpec, queries: Vectors) -> None:
        metric = Metric(spec.options["metric"])
        self._queries = _prepared(np.asarray(queries), metric)
        self._k = spec.k
        self._faiss: Any = importlib.import_module("faiss")
        # A search is one query's; threads would only wait for each other.
        self._faiss.omp_set_num_threads(1)
        self._index = self._faiss.read_index(str(Path(spec.options["index"])))
        if spec.ef_search is not None:
            self._index.hnsw.efSearch = spec.ef_search

    def __repr__(self) -> str:
        return f"<FaissTarget {self._index.ntotal} rows, efSearch {self._index.hnsw.efSearch}>"

    async def search(self, query: int) -> Sequence[int]:
        # Nothing here waits, and without this the clients would leave the event loop to nobody else.
        await asyncio.sleep(0)
        _, ids = self._index.search(self._queries[query : query + 1], self._k)
        found: list[int] = ids[0].tolist()
        return [one for one in found if one >= 0]


def _prepared(vectors: Vectors, metric: Metric) -> Vectors:
    """Of length 1 where the metric is the angle, which inner products then have."""
    if metric is not Metric.COSINE:
        return np.ascontiguousarray(vectors, np.float32)
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
