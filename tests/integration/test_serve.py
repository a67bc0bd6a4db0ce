"""`pgscatter serve` as its own process over the real cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from deploy.local import Cluster
from deploy.local.router import listening, serve_arguments
from tests.conftest import Serve
from tests.integration.apps import applied_map, collection, pgscatter, write_map


@pytest.fixture(scope="module")
def map_path(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return applied_map(cluster, tmp_path_factory.mktemp("serve"), documents=collection())


@pytest.fixture(scope="module")
def client(cluster: Cluster, map_path: Path, serve: Serve) -> Iterator[httpx.Client]:
    with serve(map_path, redis=cluster.redis_url) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


DOCUMENTS = "/v1/collections/documents/documents"
SEARCH = "/v1/collections/documents/search"


def put(client: httpx.Client, *ids: int, **fields: Any) -> httpx.Response:
    documents = [{"id": i, "vector": [i, 1, 0, 0], "content": f"document {i}", **fields} for i in ids]
    return client.put(DOCUMENTS, json={"documents": documents})


def search(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post(SEARCH, json={"vector": [0, 1, 0, 0], "k": 3, **body})
    assert answer.status_code == 200, answer.text
    decoded: dict[str, Any] = answer.json()
    return decoded


def test_what_was_put_is_found_read_counted_and_deleted(client: httpx.Client) -> None:
    assert put(client, 1, 2, 3, category="a", metadata={"lang": "en"}).json()["stored"] == 3
    found = search(client, include=["content", "metadata", "vector", "category"])
    assert [hit["id"] for hit in found["hits"]] == [1, 2, 3]
    first = found["hits"][0]
    assert first["distance"] == 1.0
    assert first["content"] == "document 1"
    assert (first["metadata"], first["vector"], first["category"]) == ({"lang": "en"}, [1, 1, 0, 0], "a")
    assert found["coverage"] == {
        "full": True,
        "shards": {"total": 4, "queried": 4, "ok": 4, "skipped": 0, "timed_out": 0, "failed": 0},
        "failures": [],
    }
    assert search(client)["cache"] in ("miss", "l1", "l2")
    assert search(client)["cache"] == "l1"
    assert client.get(f"{DOCUMENTS}/2").json()["content"] == "document 2"
    counted = client.get("/v1/collections/documents/count", params={"filter": '{"category":"a"}'})
    assert counted.json()["count"] == 3
    assert client.request("DELETE", f"{DOCUMENTS}/2").status_code in (200, 204)
    assert client.get(f"{DOCUMENTS}/2").status_code == 404
    assert [hit["id"] for hit in search(client)["hits"]] == [1, 3]
    client.post(f"{DOCUMENTS}/delete", json={"ids": [1, 3]})


def test_an_explanation_is_of_this_run_and_not_of_a_cached_one(client: httpx.Client) -> None:
    for _ in range(2):
        found = search(client, explain=True)
        assert found["cache"] == "bypass"
        shards = {report["shard"]: report for report in found["explain"]["shards"]}
        assert set(shards) == {"s0", "s1", "s2", "s3"}
        assert all(report["attempts"] >= 1 and report["total_ms"] > 0 for report in shards.values())
    plan = search(client, explain_plan=True)["explain"]["shards"][0]["plan"]
    assert "Scan" in plan


def test_a_batch_answers_each_search_on_its_own(client: httpx.Client) -> None:
    put(client, 10)
    searches = [{"vector": [10, 1, 0, 0], "k": 1}, {"vector": [1], "k": 1}, {"vector": [0, 1, 0, 0], "k": 0}]
    body = {"searches": searches}
    results = client.post(f"{SEARCH}/batch", json=body).json()["results"]
    assert results[0]["hits"][0]["id"] == 10
    assert [results[i]["error"]["status"] for i in (1, 2)] == [422, 422]
    client.request("DELETE", f"{DOCUMENTS}/10")


def test_a_stream_of_documents_reports_those_that_were_not_stored(client: httpx.Client) -> None:
    lines = [f'{{"id":{i},"vector":[{i},1,0,0]}}' for i in range(100, 700)]
    lines[5] = '{"id":105,"vector":[1]}'
    lines[9] = "not json"
    answer = client.put(DOCUMENTS, content="\n".join(lines), headers={"content-type": "application/x-ndjson"})
    body = answer.json()
    assert (answer.status_code, body["stored"], body["failed"]) == (200, 598, 2)
    assert {failure["index"] for failure in body["failures"]} == {5, 9}
    assert client.post(f"{DOCUMENTS}/delete", json={"filter": {"id": {"$gte": 100}}}).json()["deleted"] == 598


def test_several_workers_never_answer_from_before_a_write(
    cluster: Cluster, map_path: Path, serve: Serve
) -> None:
    with serve(map_path, redis=cluster.redis_url, workers=2) as url:
        # Connections that are closed after each request reach both workers.
        with httpx.Client(base_url=url, timeout=30, headers={"connection": "close"}) as client:
            tiers = set()
            for number in range(30):
                put(client, 1000, category=f"round {number}")
                for _ in range(4):
                    found = search(client, k=1, include=["category"], filter={"id": 1000})
                    assert found["hits"][0]["category"] == f"round {number}"
                    tiers.add(found["cache"])
            assert "l1" in tiers
            metrics = client.get("/metrics").text
            assert "pgscatter_requests_total" in metrics
            client.request("DELETE", f"{DOCUMENTS}/1000")


@pytest.mark.full  # test_shared_cache.py has the arithmetic
def test_answers_grow_old_by_no_routers_clock(cluster: Cluster, tmp_path: Path, serve: Serve) -> None:
    """One router's clock is an hour ahead. An answer is in Redis and then in a memory, for its TTL in all."""
    ttl = 2.0
    documents = collection(cache={"ttl": f"{ttl:g}s"})
    path = applied_map(cluster, tmp_path, documents=documents)
    log = tmp_path / "ahead"
    flags = serve_arguments(path, redis=cluster.redis_url, drain_delay=0)
    command = [sys.executable, "-m", "tests.wrong_clock", "3600", *flags]
    with contextlib.ExitStack() as stack:
        urls = [
            stack.enter_context(serve(path, redis=cluster.redis_url)),
            stack.enter_context(listening(command, log, ready=True)).url,
        ]
        right, ahead = [stack.enter_context(httpx.Client(base_url=url, timeout=30)) for url in urls]
        logged = json.loads(log.read_text().partition("\n")[0])["ts"]
        assert abs(datetime.fromisoformat(logged).timestamp() - time.time() - 3600) < 600

        def asked(client: httpx.Client, of: float) -> tuple[str, set[str]]:
            found = search(client, vector=[of, 0, 0, 0], include=["content"])
            return found["cache"], {hit["content"] for hit in found["hits"]}

        for attempt in range(10):
            put(right, 1, 2, content="old")
            time.sleep(1)  # until the other router's probes have found that
            began, vector = time.monotonic(), attempt / 16
            pairs = [(right, ahead, vector), (ahead, right, vector + 1 / 32)]
            for stores, _, of in pairs:
                asked(stores, of)
            asyncio.run(execute(cluster, f"UPDATE {documents['table']} SET content = 'new'"))
            time.sleep(ttl / 4)
            tiers = [asked(takes, of)[0] for _ in range(2) for _, takes, of in pairs]
            if tiers == ["l2", "l2", "l1", "l1"]:
                break
        assert tiers == ["l2", "l2", "l1", "l1"]
        time.sleep(max(0.0, began + ttl + 0.2 - time.monotonic()))
        for _, takes, of in pairs:
            assert asked(takes, of)[1] == {"new"}


async def execute(cluster: Cluster, statement: str) -> None:
    for node in cluster.nodes:
        if node.name.endswith("-a"):
            connection = await asyncpg.connect(node.dsn)
            try:
                await connection.execute(statement)
            finally:
                await connection.close()


def test_a_stopped_router_finishes_what_it_has_begun(cluster: Cluster, map_path: Path) -> None:
    command = [sys.executable, "-m", "router.cli", "serve", "--map", str(map_path), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = next(line for line in process.stderr if " on http" in line).split(" on ")[1].strip()
    drain = threading.Thread(target=process.stderr.read)
    drain.start()
    table = f"served_{map_path.read_text().split('served_')[1].split()[0]}"
    primary = next(node for node in cluster.nodes if node.role == "primary")
    outcome: list[httpx.Response] = []

    def slow() -> None:
        body = {"vector": [0, 1, 0, 0], "k": 1, "consistency": "strong", "timeout_ms": 30_000}
        outcome.append(httpx.post(f"{url}{SEARCH}", json=body, timeout=60))

    async def hold() -> None:
        connection = await asyncpg.connect(primary.dsn)
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            caller = threading.Thread(target=slow)
            caller.start()
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1"
            async with asyncio.timeout(20):
                while not await connection.fetchval(waits, f"%{table}%"):
                    await connection.execute("SELECT pg_stat_clear_snapshot()")
                    await asyncio.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.7)
            assert process.poll() is None
        await connection.close()
        await asyncio.to_thread(caller.join, 20)

    asyncio.run(hold())
    assert process.wait(20) == 0
    drain.join(5)
    process.stderr.close()
    assert outcome[0].status_code == 200
    assert outcome[0].json()["coverage"]["full"]


def test_a_router_that_cannot_start_says_why(cluster: Cluster, map_path: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("version: x\nshards: []\n")
    done = pgscatter("serve", "--map", bad, check=False)
    assert done.returncode == 1
    assert "bad.yaml:1" in done.stderr
    done = pgscatter("serve", "--map", map_path, "--host", "0.0.0.0", check=False)
    assert done.returncode == 1
    assert "--api-keys" in done.stderr
    assert pgscatter("serve", "--map", map_path, "--port", "x", check=False).returncode == 2


def test_keys_open_what_their_scopes_say(
    cluster: Cluster, map_path: Path, tmp_path: Path, serve: Serve
) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys:\n  - {name: app, key: reader-key-0123456789, scopes: [read]}\n")
    with serve(map_path, api_keys=keys) as base, httpx.Client(base_url=base, timeout=30) as client:
        body = {"vector": [0, 1, 0, 0], "k": 1}
        with_key = {"authorization": "Bearer reader-key-0123456789"}
        assert client.post(SEARCH, json=body).status_code == 401
        assert client.post(SEARCH, json=body, headers={"x-api-key": "wrong"}).status_code == 401
        assert client.post(SEARCH, json=body, headers=with_key).status_code == 200
        assert client.put(DOCUMENTS, json={"documents": []}, headers=with_key).status_code == 403
        assert client.get("/livez").status_code == 200


def test_without_any_node_the_router_starts_and_says_that_it_is_not_ready(
    cluster: Cluster, tmp_path: Path
) -> None:
    path = write_map(cluster, tmp_path / "map.yaml", {"documents": collection()})
    text = path.read_text()
    for number, node in enumerate(cluster.nodes, 1):
        text = text.replace(f":{node.port}/", f":{number}/")
    path.write_text(text)
    command = [sys.executable, "-m", "router.cli", "serve", "--map", str(path), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        url = next(line for line in process.stderr if " on http" in line).split(" on ")[1].strip()
        assert httpx.get(f"{url}/livez", timeout=30).status_code == 200
        assert httpx.get(f"{url}/readyz", timeout=30).status_code == 503
        answer = httpx.post(f"{url}{SEARCH}", json={"vector": [0, 1, 0, 0], "k": 1}, timeout=60)
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        assert len(answer.json()["errors"]) == 4
    finally:
        process.terminate()
        process.stderr.read()
        process.wait(20)
        process.stderr.close()
