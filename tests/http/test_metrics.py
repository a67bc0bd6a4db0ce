from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from router.http import app as app_module
from router.http.message import Reply
from router.http.metrics import Metrics
from router.http.process_metrics import ProcessMetrics
from router.nodes.status import NodeStatus
from router.query.types import Answer, Coverage, Found, Hedge, ShardCounts, ShardReport, ShardState
from router.recall.sampling import RecallSeen
from router.settings import Settings
from shard_config.identity import Disagreement
from tests.http.fake import FakeBackend, application

C = "/v1/collections/documents"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(client: httpx.AsyncClient) -> Samples:
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return samples(response.text)


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labels(**values: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(values.items()))


async def test_requests_are_counted_by_template_and_status(client: httpx.AsyncClient) -> None:
    await client.post(f"{C}/search", json={"vector": [1, 2, 3]})
    await client.post(f"{C}/search", json={"vector": [1]})
    await client.get("/v1/nowhere/at-all")
    await client.request("BREW", "/v1/coffee")
    found = await scrape(client)
    route = "/v1/collections/{collection}/search"
    for status in ("200", "422"):
        key = ("pgscatter_requests_total", labels(method="POST", route=route, status=status))
        assert found[key] == 1
    assert found["pgscatter_requests_total", labels(method="GET", route="unknown", status="404")] == 1
    assert found["pgscatter_requests_total", labels(method="other", route="unknown", status="404")] == 1
    assert found["pgscatter_request_seconds_count", labels(method="POST", route=route)] == 2
    # The scrape itself.
    assert found["pgscatter_requests_in_flight", ()] == 1


async def test_searches_are_accounted_by_tier_coverage_and_shard(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await client.post(f"{C}/search", json={"vector": [1, 2, 3]})
    backend.down, backend.tier = {"s1"}, "bypass"
    await client.post(f"{C}/search/batch", json={"searches": [{"vector": [1, 2, 3]}] * 2})
    found = await scrape(client)
    assert found["pgscatter_searches_total", labels(collection="documents", cache="miss")] == 1
    assert found["pgscatter_searches_total", labels(collection="documents", cache="bypass")] == 2
    assert found["pgscatter_search_coverage_total", labels(collection="documents", coverage="full")] == 1
    assert found["pgscatter_search_coverage_total", labels(collection="documents", coverage="partial")] == 2
    assert found["pgscatter_shard_seconds_count", labels(shard="s0")] == 3
    assert found["pgscatter_shard_results_total", labels(shard="s1", state="failed")] == 2
    assert found["pgscatter_shard_results_total", labels(shard="s1", state="ok")] == 1


async def test_writes_are_counted_by_what_became_of_them(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.conflicts = {2}
    documents = [{"id": i, "vector": [1, 2, 3]} for i in range(4)]
    await client.put(f"{C}/documents", json={"documents": documents})
    await client.delete(f"{C}/documents/1")
    found = await scrape(client)
    assert found["pgscatter_documents_stored_total", labels(collection="documents")] == 3
    assert found["pgscatter_documents_deleted_total", labels(collection="documents")] == 1
    key = ("pgscatter_documents_failed_total", labels(collection="documents", reason="conflict"))
    assert found[key] == 1


async def test_state_is_read_when_it_is_scraped(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    found = await scrape(client)
    assert found["pgscatter_l1_bytes", ()] == 4096
    assert found["pgscatter_l1_entries", ()] == 2
    assert found["pgscatter_map_version", ()] == 12
    assert found["pgscatter_tasks", ()] >= 1
    node = labels(shard="s1", node="s1-a")
    assert found["pgscatter_node_up", node] == found["pgscatter_node_primary", node] == 1
    assert found["pgscatter_node_connections", node] == 2
    assert found["pgscatter_shard_primaries", labels(shard="s1")] == 1
    backend.down = {"s1"}
    found = await scrape(client)
    assert found["pgscatter_node_up", node] == 0
    assert found["pgscatter_shard_primaries", labels(shard="s1")] == 0
    assert found["pgscatter_shard_ready", labels(shard="s1")] == 0


async def test_redis_is_accounted_once_there_is_one(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    on = {use: ("pgscatter_l2_on", labels(use=use)) for use in ("reads", "writes")}
    found = await scrape(client)
    # Without Redis nothing says that it were off.
    assert not any(key in found for key in on.values())
    stats = {"l2_enabled": True, "l2_on": True, "l2_writable": False, "l2_hits": 3, "l2_misses": 2}
    backend.cache_stats = lambda: stats  # type: ignore[method-assign, assignment, return-value]
    found = await scrape(client)
    assert (found[on["reads"]], found[on["writes"]]) == (1, 0)
    stats |= {"l2_on": False, "l2_hits": 5, "l2_unanswered": 1, "l2_errors_timeout": 4}
    for _ in range(2):
        found = await scrape(client)
    assert (found[on["reads"]], found[on["writes"]]) == (0, 0)
    for outcome, count in {"hit": 5, "miss": 2, "unanswered": 1}.items():
        assert found["pgscatter_l2_lookups_total", labels(outcome=outcome)] == count
    assert found["pgscatter_l2_errors_total", labels(cause="timeout")] == 4


async def test_kept_rankings_are_accounted(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    stats = {"rankings": 3, "rankings_bytes": 60_000, "rankings_found_l1": 5, "rankings_found_none": 1}
    backend.cache_stats = lambda: stats  # type: ignore[method-assign, assignment, return-value]
    for _ in range(2):
        found = await scrape(client)
    assert (found["pgscatter_rankings", labels()], found["pgscatter_ranking_bytes", labels()]) == (3, 60_000)
    for outcome, count in {"l1": 5, "none": 1}.items():
        assert found["pgscatter_ranking_lookups_total", labels(outcome=outcome)] == count


async def test_the_process_tells_of_itself_under_the_usual_names(client: httpx.AsyncClient) -> None:
    found = await scrape(client)
    python = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    (build,) = [dict(key[1]) for key in found if key[0] == "pgscatter_build_info"]
    assert build["python"] == python and build["version"] and build["asyncpg"]
    for name, least in {
        "process_cpu_seconds_total": 0.01,
        "process_resident_memory_bytes": 1e7,
        "process_virtual_memory_bytes": 1e7,
        "process_open_fds": 3,
        "process_max_fds": 16,
        "process_start_time_seconds": 1e9,
        "process_threads": 1,
    }.items():
        assert found[name, ()] >= least


async def test_a_loop_that_was_held_up_shows_in_its_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "_LAG_INTERVAL", 0.01)
    metrics = Metrics()
    async with app_module._watching_the_loop(metrics):
        await asyncio.sleep(0)
        time.sleep(0.3)
        await asyncio.sleep(0.05)
    found = samples(metrics.render(FakeBackend()).decode())
    late = found["pgscatter_event_loop_lag_seconds_bucket", labels(le="0.25")]
    assert found["pgscatter_event_loop_lag_seconds_count", ()] >= late + 1


def test_recall_is_the_mean_of_the_last_samples() -> None:
    metrics, documents = Metrics(), labels(collection="documents")
    assert ("pgscatter_recall_at_k", documents) not in samples(metrics.render(FakeBackend()).decode())
    metrics.recall_sampled("documents", RecallSeen(1.0, 1))
    metrics.recall_sampled("documents", RecallSeen(0.9, 2))
    metrics.recall_dropped("budget")
    found = samples(metrics.render(FakeBackend()).decode())
    assert found["pgscatter_recall_at_k", documents] == pytest.approx(0.9)
    assert found["pgscatter_recall_window_samples", documents] == 2
    assert found["pgscatter_recall_samples_total", documents] == 2
    assert found["pgscatter_recall_dropped_total", labels(reason="budget")] == 1


async def test_nodes_that_left_the_map_are_forgotten(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    node = labels(shard="s1", node="s1-a")
    assert ("pgscatter_node_up", node) in await scrape(client)
    nodes = backend.nodes()
    backend.nodes = lambda: nodes[:1]  # type: ignore[method-assign]
    assert ("pgscatter_node_up", node) not in (found := await scrape(client))
    assert not [of for name, of in found if name == "pgscatter_node_state" and set(node) <= set(of)]
    backend.nodes = lambda: nodes  # type: ignore[method-assign]
    assert ("pgscatter_node_up", node) in await scrape(client)


async def test_each_node_is_in_one_state_and_what_shards_differ_in_or_lost_is_counted(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    nodes = backend.nodes()
    for state, primaries in (("deposed", 1), ("foreign", 0), ("up", 1)):
        first = msgspec.structs.replace(nodes[0], state=state, lost_bytes=17)
        backend.nodes = lambda first=first: [first, *nodes[1:]]  # type: ignore[method-assign, misc]
        backend.differing = [("s0", Disagreement("older", "has version 13 of the map"))]
        found = await scrape(client)
        of = {key[1]: value for key, value in found.items() if key[0] == "pgscatter_node_state"}
        node = {"shard": "s0", "node": "s0-a"}
        assert of[labels(**node, state=state)] == 1
        assert sum(value for key, value in of.items() if ("node", "s0-a") in key) == 1
        # A primary of another shard is none of this one.
        assert found["pgscatter_shard_primaries", labels(shard="s0")] == primaries
        assert found["pgscatter_node_primary", labels(**node)] == primaries
        assert found["pgscatter_shard_lost_bytes", labels(shard="s0")] == 17
        assert found["pgscatter_shard_disagreements", labels(shard="s0")] == 1
        assert found["pgscatter_shard_identified", labels(shard="s0")] == 1
    health = (await client.get("/health")).json()
    assert (health["status"], health["lost_bytes"]) == ("degraded", {"s0": 17})
    assert health["disagreements"] == [
        {"shard": "s0", "kind": "older", "reason": "has version 13 of the map", "collection": None}
    ]


def test_what_became_of_hedges_retries_and_ejections_is_counted() -> None:
    metrics, backend = Metrics(), FakeBackend()
    for hedge, attempts in ((Hedge.WON, 2), (Hedge.LOST, 3), (Hedge.DENIED, 1), (None, 3), (None, 0)):
        report = ShardReport(
            "s0",
            ShardState.OK if attempts else ShardState.FAILED,
            node="s0-a" if attempts else None,
            attempts=attempts,
            hedged=hedge in (Hedge.WON, Hedge.LOST),
            hedge=hedge,
        )
        answer = Answer(msgspec.Raw(b"[]"), 0, Coverage(True, ShardCounts(1, 1, 1, 0, 0, 0)), None, (report,))
        metrics.begin()
        metrics.end("POST", "/search", Reply(b"", found=(("documents", Found(answer, "miss")),)), 0.01)
    nodes = backend.nodes()
    for ejections in (1, 1, 3):
        out = msgspec.structs.replace(nodes[0], state="ejected", ejections=ejections, since=1.5e9)
        backend.nodes = lambda out=out: [out, *nodes[1:]]  # type: ignore[method-assign, misc]
        found = samples(metrics.render(backend).decode())
    shard, node = labels(shard="s0"), labels(shard="s0", node="s0-a")
    for outcome in ("won", "lost", "denied"):
        assert found["pgscatter_shard_hedges_total", labels(shard="s0", outcome=outcome)] == 1
    assert found["pgscatter_shard_retries_total", shard] == 1 + 2
    assert found["pgscatter_node_answers_total", node] == 4
    assert found["pgscatter_node_ejections_total", node] == 3
    assert found["pgscatter_node_ejected", node] == 1
    assert found["pgscatter_node_changed_timestamp_seconds", node] == 1.5e9
    # It is left out although it answers probes.
    assert found["pgscatter_node_up", node] == 1


def test_nodes_that_are_as_before_are_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand, once a second, that would hold up searches for 14 ms."""
    metrics, backend = Metrics(), FakeBackend()
    metrics.sample(backend)
    written: list[tuple[str, str]] = []
    write = metrics._node

    def spied(labels: tuple[str, str], node: NodeStatus) -> None:
        written.append(labels)
        write(labels, node)

    monkeypatch.setattr(metrics, "_node", spied)
    metrics.sample(backend)
    assert written == []
    first, *others = backend.nodes()
    backend.nodes = lambda: [msgspec.structs.replace(first, connections=77), *others]  # type: ignore[method-assign]
    found = samples(metrics.render(backend).decode())
    assert written == [(first.shard, first.name)]
    assert found["pgscatter_node_connections", labels(shard=first.shard, node=first.name)] == 77


async def test_refusals_are_counted(
    backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    client = connect(application(backend, Settings(max_concurrent=1)))
    backend.gate = asyncio.Event()
    waiting = asyncio.create_task(client.post(f"{C}/search", json={"vector": [1, 2, 3]}))
    while not backend.queries:
        await asyncio.sleep(0)
    assert (await client.get("/v1/collections")).status_code == 429
    backend.gate.set()
    await waiting
    found = await scrape(client)
    assert found["pgscatter_requests_rejected_total", labels(reason="concurrency")] == 1


WORKER = """
import sys
from router.http.message import Reply
from router.http.message import Reply
from router.http.metrics import Metrics
from router.nodes.status import NodeStatus
from router.recall.sampling import RecallSeen
from tests.http.fake import FakeBackend

metrics = Metrics()
count = int(sys.argv[1])
metrics.recall_sampled("documents", RecallSeen(1 / count, count))
metrics.begin()
metrics.end("GET", "/livez", Reply(b""), 0.01)
sys.stdout.buffer.write(metrics.render(FakeBackend()))
"""


def test_any_worker_answers_a_scrape_for_all(tmp_path: Path) -> None:
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for count in (1, 2):
        done = subprocess.run(
            [sys.executable, "-c", WORKER, str(count)],
            env=env,
            capture_output=True,
            timeout=60,
            check=True,
        )
        found = samples(done.stdout.decode())
        key = ("pgscatter_requests_total", labels(method="GET", route="/livez", status="200"))
        assert found[key] == count
        assert found["pgscatter_l1_bytes", ()] == 4096 * count
        assert found["process_start_time_seconds", ()] > 1e9
        assert found["process_cpu_seconds_total", ()] > 0.01
        assert found["pgscatter_node_up", labels(shard="s0", node="s0-a")] == 1
        # One worker saw 1 in one sample, the other 0.5 in two.
        recall = found["pgscatter_recall_at_k", labels(collection="documents")]
        assert recall == pytest.approx(1.0 if count == 1 else 2 / 3)


async def test_sampling_outlives_an_exception_and_says_it_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app_module, "_SAMPLE_INTERVAL", 0.01)
    calls = 0

    def backend() -> FakeBackend:
        nonlocal calls
        calls += 1
        if calls in (2, 3, 4, 6):
            raise RuntimeError("no snapshot")
        return FakeBackend()

    async with app_module._sampling(Metrics(), backend):
        async with asyncio.timeout(20):
            while calls < 9:
                await asyncio.sleep(0.01)
    failures = [record for record in caplog.records if record.getMessage().startswith("metrics not sampled")]
    assert len(failures) == 2  # one for each time that it began to fail
    assert all(record.exc_info for record in failures)


async def test_sampling_takes_a_small_share_of_the_time_however_long_a_sample_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app_module, "_SAMPLE_INTERVAL", 0.001)
    monkeypatch.setattr(app_module, "_SAMPLE_SHARE", 0.1)
    began: list[float] = []

    def backend() -> FakeBackend:
        began.append(time.perf_counter())
        time.sleep(0.02)  # as with very many nodes
        return FakeBackend()

    async with app_module._sampling(Metrics(), backend):
        async with asyncio.timeout(20):
            while len(began) < 3:
                await asyncio.sleep(0.01)
    assert min(after - before for before, after in itertools.pairwise(began)) > 0.2


def test_processor_time_is_counted_once_however_often_it_is_read() -> None:
    registry = CollectorRegistry()
    process = ProcessMetrics(registry)
    for _ in range(3):
        process.sample()
    counted = registry.get_sample_value("process_cpu_seconds_total")
    assert counted is not None and 0 < counted <= time.process_time()
