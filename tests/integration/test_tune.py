from __future__ import annotations

import re
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from deploy.local import Cluster
from tests.conftest import Serve
from tests.integration.apps import applied_map, collection, pgscatter


@pytest.fixture(scope="module")
def tuned_map(cluster: Cluster, serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clustered vectors, which a narrow scan finds hard."""
    vector = {"column": "embedding", "type": "vector", "dimensions": 16, "metric": "l2"}
    path = applied_map(
        cluster, tmp_path_factory.mktemp("tune"), docs=collection(vector=vector, search={"ef_search": 1})
    )
    rng = np.random.default_rng(5)
    rows = (rng.normal(size=(30, 16))[rng.integers(0, 30, 2000)] + 0.3 * rng.normal(size=(2000, 16))).round(4)
    with serve(path) as url:
        documents = [{"id": i, "vector": row.tolist()} for i, row in enumerate(rows)]
        answer = httpx.put(f"{url}/v1/collections/docs/documents", json={"documents": documents}, timeout=60)
        assert answer.json()["stored"] == 2000
    return path


def test_the_map_gets_an_ef_search_that_reaches_the_target(tuned_map: Path) -> None:
    command = ["tune", "--map", tuned_map, "--collection", "docs", "--target-recall", 0.95, "--queries", 200]
    done = pgscatter(*command)
    found = re.search(r"ef_search (\d+) \(recall@10 ([\d.]+), at least ([\d.]+)", done.stdout)
    assert found, done.stdout
    assert float(found[2]) >= float(found[3]) >= 0.95
    text = tuned_map.read_text()
    written = yaml.safe_load(text)
    assert written["collections"]["docs"]["search"]["ef_search"] == int(found[1])
    assert written["version"] == 2
    search = written["collections"]["docs"]["search"]
    assert (search["target_recall"], search["tuned"]["queries"], search["tuned"]["shards"]) == (0.95, 200, 4)


def test_what_cannot_be_tuned_leaves_the_map_alone(tuned_map: Path) -> None:
    before = tuned_map.read_text()
    done = pgscatter("tune", "--map", tuned_map, "--collection", "nope", "--target-recall", 0.9, check=False)
    assert (done.returncode, tuned_map.read_text()) == (1, before)
    assert "no collection nope" in done.stderr
    wrong = pgscatter("tune", "--map", tuned_map, "--collection", "docs", "--target-recall", 2, check=False)
    assert wrong.returncode == 2
