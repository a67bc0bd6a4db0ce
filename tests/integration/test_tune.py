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
from tests.integration.test_search import execute, no_sequential_scans, value

D = 64
COMMENT = "# which nobody but us knows"
SET = (b"version", b"ef_search", b"target_recall", b"tuned")


@pytest.fixture(scope="module")
def tuned_map(cluster: Cluster, serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors without any order, which a narrow scan finds hard; some of them twice."""
    vector = {"column": "embedding", "type": "vector", "dimensions": D, "metric": "l2"}
    path = applied_map(
        cluster,
        tmp_path_factory.mktemp("tune"),
        docs=collection(vector=vector, search={"ef_search": 1, "target_recall": 0.9}),
        tiny=collection(vector=vector),
        empty=collection(),
    )
    path.write_text(f"{COMMENT}\n{path.read_text()}")
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(2000, D)).round(4)
    rows[1000:1100] = rows[:100]
    with serve(path) as url:
        documents = [
            {"id": i, "vector": row.tolist(), "category": f"c{i % 10}", "price": float(i)}
            for i, row in enumerate(rows)
        ]
        answer = httpx.put(f"{url}/v1/collections/docs/documents", json={"documents": documents}, timeout=60)
        assert answer.json()["stored"] == 2000
        httpx.put(f"{url}/v1/collections/tiny/documents", json={"documents": documents[:40]}, timeout=60)
    return path


async def test_the_map_gets_an_ef_search_that_reaches_the_target_with_filters_and_without(
    cluster: Cluster, tuned_map: Path
) -> None:
    filters = ["--filter", '{"price": {"$lt": 700}}']
    version = yaml.safe_load(tuned_map.read_text())["version"]
    async with no_sequential_scans(cluster):
        done = pgscatter("tune", "--map", tuned_map, "--collection", "docs", "--queries", 60, *filters)
    found = re.search(r"docs: ef_search (\d+), written", done.stdout)
    assert found, done.stdout
    cases = re.findall(r"recall@10 ([\d.]+), at least ([\d.]+) with .* queries, (.*)", done.stdout)
    assert all(float(recall) >= float(bound) >= 0.9 for recall, bound, _ in cases)
    names = [name for *_, name in cases]
    assert {"no filter", 'filter {"price":{"$lt":700}}'} < set(names)
    assert sum("category" in name for name in names) >= 1
    assert len(names) == 5
    written = yaml.safe_load(tuned_map.read_text())
    assert written["version"] == version + 1
    assert tuned_map.read_text().startswith(COMMENT)
    search = written["collections"]["docs"]["search"]
    assert search["ef_search"] == int(found[1]) >= 12
    assert search["target_recall"] == search["tuned"]["target_recall"] == 0.9
    assert (search["tuned"]["filters"], search["tuned"]["shards"], search["tuned"]["k"]) == (4, 4, 10)
    assert search["tuned"]["lower_bound"] == min(float(bound) for _, bound, _ in cases)


@pytest.mark.full
async def test_without_a_collection_those_that_can_be_tuned_are(cluster: Cluster, tuned_map: Path) -> None:
    before = yaml.safe_load(tuned_map.read_text())
    command = ["tune", "--map", tuned_map, "--target-recall", 0.95, "--queries", 100]
    async with no_sequential_scans(cluster):
        done = pgscatter(*command, check=False)
    assert done.returncode == 1
    assert "empty holds too few rows: 0" in done.stderr
    after = yaml.safe_load(tuned_map.read_text())
    assert after["collections"]["docs"]["search"]["target_recall"] == 0.95
    assert "tiny holds too few rows: 40" in done.stderr
    assert after["collections"]["empty"] == before["collections"]["empty"]
    assert after["version"] == before["version"] + 1


@pytest.mark.full
async def test_the_map_keeps_its_mode_its_link_and_its_line_ends(
    cluster: Cluster, tuned_map: Path, tmp_path: Path
) -> None:
    own, link = tmp_path / "own" / "map.yaml", tmp_path / "map.yaml"
    own.parent.mkdir()
    own.write_bytes(b"\xef\xbb\xbf" + tuned_map.read_bytes().rstrip(b"\n").replace(b"\n", b"\r\n"))
    own.chmod(0o600)
    link.symlink_to("own/map.yaml")
    before = own.read_bytes()
    async with no_sequential_scans(cluster):
        pgscatter("tune", "--map", link, "--collection", "docs", "--target-recall", 0.8, "--queries", 60)
    after = own.read_bytes()
    assert (link.is_symlink(), own.stat().st_mode & 0o777) == (True, 0o600)
    assert [one.name for one in own.parent.iterdir()] == ["map.yaml"]
    assert after.startswith(b"\xef\xbb\xbf" + COMMENT.encode() + b"\r\n")
    assert not after.endswith(b"\n")
    assert b"\n" not in after.replace(b"\r\n", b"")
    assert untouched(after) == untouched(before)


def untouched(text: bytes) -> list[bytes]:
    """The lines that tuning has no business with."""
    return [line for line in text.split(b"\r\n") if line.split(b":")[0].strip() not in SET]


async def test_where_all_rows_are_read_the_width_stays_as_it_is(cluster: Cluster, tuned_map: Path) -> None:
    docs = yaml.safe_load(tuned_map.read_text())["collections"]["docs"]
    before, table = docs["search"]["ef_search"], docs["table"].split(".")[1]
    command = ["tune", "--map", tuned_map, "--collection", "docs", "--target-recall", 0.95, "--queries", 60]
    # As long as there is a vector index, searches use it.
    primaries = [node.dsn for node in cluster.nodes if node.role == "primary"]
    found = f"SELECT indexdef FROM pg_indexes WHERE tablename = '{table}' AND indexdef LIKE '%hnsw%'"
    definition = await value(primaries[0], found)
    for dsn in primaries:
        await execute(dsn, f"DROP INDEX {definition.split()[2]}")
    try:
        done = pgscatter(*command)
    finally:
        for dsn in primaries:
            await execute(dsn, definition)
    assert "docs: PostgreSQL reads all rows for a search and not the index" in done.stderr
    assert f"docs: ef_search {max(before, 11)}, written" in done.stdout
    search = yaml.safe_load(tuned_map.read_text())["collections"]["docs"]["search"]
    assert (search["ef_search"], search["tuned"]["recall"]) == (max(before, 11), 1.0)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--collection", "nope", "--target-recall", 0.9], 1, "no collection nope"),
        (["--collection", "empty"], 1, "empty has no search.target_recall"),
        (["--collection", "docs", "--target-recall", 2], 2, "expected a number from 0.5 to 0.9999, got '2'"),
        (["--collection", "docs", "--filter", "[]"], 2, "not a JSON object"),
        (["--collection", "docs", "--filter", '{"colour": 1}'], 1, "unknown field 'colour'"),
        (
            ["--target-recall", 0.99, "--queries", 50],
            1,
            "50 queries cannot show a recall of 0.99; it takes 299",
        ),
    ],
)
def test_what_cannot_be_tuned_leaves_the_map_alone(
    tuned_map: Path, arguments: list[object], status: int, message: str
) -> None:
    before = tuned_map.read_text()
    done = pgscatter("tune", "--map", tuned_map, *arguments, check=False)
    assert (done.returncode, tuned_map.read_text()) == (status, before)
    assert message in done.stderr


async def test_a_filter_that_keeps_nothing_says_nothing(cluster: Cluster, tuned_map: Path) -> None:
    command = ["tune", "--map", tuned_map, "--collection", "docs", "--filter", '{"price": -1}']
    async with no_sequential_scans(cluster):
        done = pgscatter(*command, check=False)
    assert done.returncode == 1
    assert 'docs holds nothing that matches: filter {"price":-1}' in done.stderr


async def test_a_target_out_of_reach_says_how_far_it_came(
    cluster: Cluster, serve: Serve, tmp_path: Path
) -> None:
    """A scan over signs alone cannot tell neighbours apart that lie within one orthant."""
    vector = {"column": "embedding", "type": "vector", "dimensions": 4, "metric": "l2"}
    path = applied_map(
        cluster,
        tmp_path,
        docs=collection(vector=vector, index={"quantization": "binary"}, columns={}, search={"overfetch": 1}),
    )
    rng = np.random.default_rng(3)
    rows = (1 + rng.random(size=(6000, 4))).round(4)
    with serve(path) as url:
        documents = [{"id": i, "vector": row.tolist()} for i, row in enumerate(rows)]
        answer = httpx.put(f"{url}/v1/collections/docs/documents", json={"documents": documents}, timeout=60)
        assert answer.json()["stored"] == 6000
    before = path.read_text()
    async with no_sequential_scans(cluster):
        done = pgscatter("tune", "--map", path, "--target-recall", 0.95, "--queries", 60, check=False)
    assert (done.returncode, path.read_text()) == (1, before)
    assert re.search(r"docs: recall at 10 is 0\.\d+, .* even at ef_search 1000", done.stderr), done.stderr
    # Measured: the nearest by signs, without any graph between, are no better.
    limit = re.search(
        r"the first 1000 in the order of the binary index give no more than (0\.\d+)", done.stderr
    )
    assert limit and 0.05 < float(limit[1]) < 0.95, done.stderr
    assert "set index.quantization to halfvec or none" in done.stderr
    assert "larger m" not in done.stderr
