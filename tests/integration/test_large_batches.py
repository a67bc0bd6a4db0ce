"""One small request for very much: the router stays small, awake and fair to others."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deploy.local import Cluster
from tests.conftest import Serve
from tests.integration.apps import collection, pgscatter, write_map
from tests.integration.caller import calling

DIMENSIONS = 1536
ROWS = 1200
PATH = "/v1/collections/wide"


def resident(pid: int, what: str) -> int:
    """`VmRSS` or its peak `VmHWM`, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(what))) * 1024


@pytest.fixture(scope="module")
def vectors() -> Any:
    return np.random.default_rng(0).normal(size=(ROWS, DIMENSIONS)).astype("<f4")


@pytest.fixture(scope="module")
def map_path(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    wide = collection()
    wide["vector"] |= {"dimensions": DIMENSIONS}
    wide["search"] = {"timeout": "60s", "max_k": 1000}
    path = write_map(cluster, tmp_path_factory.mktemp("wide") / "map.yaml", {"wide": wide})
    # To put so long vectors into an index takes longer than all that is measured here.
    pgscatter("schema", "apply", "--map", path, "--no-index")
    return path


def test_a_batch_for_gigabytes_takes_little_memory_and_hardly_any_time_of_others(
    cluster: Cluster, map_path: Path, serve: Serve, vectors: Any
) -> None:
    def encoded(i: int) -> str:
        return base64.b64encode(vectors[i].tobytes()).decode()

    with serve(map_path, recall_sample_rate=0) as url, httpx.Client(base_url=url, timeout=90) as client:
        for start in range(0, ROWS, 300):
            documents = [{"id": i, "vector": encoded(i)} for i in range(start, start + 300)]
            stored = client.put(f"{PATH}/documents", json={"documents": documents})
            assert stored.json()["stored"] == 300
        usual = [{"vector": encoded(i), "k": 10, "cache": False} for i in range(100)]
        for body in usual[:20]:
            client.post(f"{PATH}/search", json=body)
        idle = resident(url.pid, "VmRSS")
        with calling(url, "POST", f"{PATH}/search", usual) as before:
            time.sleep(2)
        large = [{"vector": encoded(i), "k": 1000, "include": ["vector"], "cache": False} for i in range(24)]
        with (
            calling(url, "GET", "/livez") as probes,
            calling(url, "POST", f"{PATH}/search", usual) as meanwhile,
        ):
            answer = client.post(f"{PATH}/search/batch", json={"searches": large})
        peak = resident(url.pid, "VmHWM")

        assert answer.status_code == 200 and len(answer.content) <= 64 << 20
        results = answer.json()["results"]
        full = [result for result in results if "hits" in result]
        errors = [result["error"] for result in results if "error" in result]
        # 19 MB each.
        assert len(full) == 3 and all(len(result["hits"]) == 1000 for result in full)
        assert {error["type"] for error in errors} == {"urn:pgscatter:problem:answer-too-large"}
        for hit in full[-1]["hits"][:5]:
            assert np.array_equal(np.array(hit["vector"], "<f4"), vectors[hit["id"]])
        assert peak - idle < 300e6
        # Each of 24 results would hold the router up. The slack is for a machine that others use, too.
        assert sorted(probes)[-4] < 0.3
        assert np.quantile(meanwhile, 0.9) < 2 * np.quantile(before, 0.9) + 0.05
