"""Clients of a running router that leave: nothing goes on for them, on PostgreSQL neither."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import yaml

from deploy.local import Cluster
from tests.conftest import Serve
from tests.integration.apps import applied_map, collection
from tests.integration.test_search import locked

V1 = "/v1/collections/documents"
SLOW = {"k": 3, "timeout_ms": 60_000, "consistency": "strong", "cache": False}
REQUESTS: dict[str, tuple[str, str, Any]] = {
    "search": ("POST", f"{V1}/search", {"vector": [1, 2, 3, 4], **SLOW}),
    "batch": (
        "POST",
        f"{V1}/search/batch",
        {"searches": [{"vector": [i, 2, 3, 4], **SLOW} for i in range(600)]},
    ),
    "read": ("GET", f"{V1}/documents/7", None),
    "count": ("GET", f"{V1}/count", None),
    "delete": ("DELETE", f"{V1}/documents/7", None),
    "delete by ids": ("POST", f"{V1}/documents/delete", {"ids": list(range(20))}),
    "delete by filter": ("POST", f"{V1}/documents/delete", {"filter": {"category": "a"}}),
}


class Router:
    """A router over two collections, one of whose tables tests lock."""

    def __init__(self, cluster: Cluster, url: str, table: str) -> None:
        self.cluster = cluster
        self.url = url
        self.table = table
        self.client = httpx.Client(base_url=url, timeout=60)

    def begin(self, method: str, path: str, body: Any) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        client = socket.create_connection((host, int(port)))
        client.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data)
        return client

    async def statements(self) -> int:
        """How many statements of the router on the locked table are under way, on all servers."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE $1"
            " AND application_name LIKE 'pgscatter%'"
        )
        found = 0
        for node in self.cluster.nodes:
            connection = await asyncpg.connect(node.dsn)
            found += await connection.fetchval(query, f"%{self.table}%")
            await connection.close()
        return found

    async def until(self, *, running: bool) -> None:
        async with asyncio.timeout(20):
            while bool(await self.statements()) is not running:
                await asyncio.sleep(0.02)

    def left(self) -> int:
        """Requests that were logged and counted as those of clients that had left."""
        text = self.client.get("/metrics").text
        return sum(int(float(n)) for n in re.findall(r'requests_total\{.*status="499"\} (\S+)', text))

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for node in self.cluster.nodes:
                if node.role == "primary":
                    await stack.enter_async_context(locked(node.dsn, self.table))
            yield


@pytest.fixture(scope="module")
def router(cluster: Cluster, serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    folder = tmp_path_factory.mktemp("disconnects")
    with _running(cluster, serve, folder) as running:
        yield running


@contextmanager
def _running(cluster: Cluster, serve: Serve, folder: Path) -> Iterator[Router]:
    # So long that nothing ends by itself while a test waits for what ends it.
    documents = collection(search={"timeout": "60s"})
    path = applied_map(cluster, folder, documents=documents, others=collection(search={"timeout": "60s"}))
    # Replicas hear of a lock when it pleases the primary.
    replicas = {node.name for node in cluster.nodes if node.role != "primary"}
    tree = yaml.safe_load(path.read_text())
    for shard in tree["shards"].values():
        shard["nodes"] = [node for node in shard["nodes"] if node["name"] not in replicas]
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    # Each node has two connections, so that what an abandoned search holds is missed by the next.
    with serve(path, redis=cluster.redis_url, node_connections=2, write_timeout=60) as url:
        router = Router(cluster, url, documents["table"].split(".")[1])
        for name in ("documents", "others"):
            rows = [{"id": i, "vector": [i, 2, 3, 4], "category": "a"} for i in range(20)]
            answer = router.client.put(f"/v1/collections/{name}/documents", json={"documents": rows})
            assert answer.json()["stored"] == 20
        yield router
        router.client.close()


@pytest.mark.parametrize("name", REQUESTS)
async def test_statements_of_a_client_that_left_are_cancelled(router: Router, name: str) -> None:
    before = router.left()
    async with router.locked():
        clients = [router.begin(*REQUESTS[name]) for _ in range(1 if name == "batch" else 5)]
        await router.until(running=True)
        for client in clients:
            client.close()
        await router.until(running=False)
        async with asyncio.timeout(20):
            while router.left() < before + len(clients):
                await asyncio.sleep(0.02)
    # Nothing was deleted, and nothing that is cached says so.
    assert router.client.get(f"{V1}/count").json()["count"] == 20
    found = router.client.post(f"{V1}/search", json={"vector": [7, 2, 3, 4], "k": 1}).json()
    assert (found["hits"][0]["id"], found["coverage"]["full"]) == (7, True)


async def test_a_search_does_not_wait_for_abandoned_ones(router: Router) -> None:
    search = {"vector": [7, 2, 3, 4], "k": 1, "consistency": "strong"}
    router.client.post("/v1/collections/others/search", json=search)
    async with router.locked():
        clients = [router.begin("POST", f"{V1}/search", {"vector": [i, 9, 9, 9], **SLOW}) for i in range(100)]
        await router.until(running=True)
        await asyncio.sleep(0.3)
        for client in clients:
            client.close()
        answer = await asyncio.to_thread(
            router.client.post, "/v1/collections/others/search", json={**search, "timeout_ms": 40_000}
        )
        assert answer.status_code == 200 and answer.json()["coverage"]["full"]
        # The lock is still held: what it waited for was only that the abandoned were cancelled.
        assert answer.json()["took_ms"] < 20_000


async def test_a_client_that_closed_its_side_gets_what_postgresql_takes_its_time_for(router: Router) -> None:
    async with router.locked():
        client = router.begin(*REQUESTS["search"])
        await router.until(running=True)
        client.shutdown(socket.SHUT_WR)
        await asyncio.sleep(1)
        assert await router.statements()
    received = b""
    client.settimeout(20)
    while part := await asyncio.to_thread(client.recv, 1 << 16):
        received += part
    client.close()
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert len(json.loads(received.partition(b"\r\n\r\n")[2])["hits"]) == 3


async def test_who_waits_for_the_same_search_is_answered(router: Router) -> None:
    search = {"vector": [3, 1, 2, 4], "k": 2, "timeout_ms": 60_000}
    async with router.locked():
        clients = [router.begin("POST", f"{V1}/search", search) for _ in range(3)]
        await router.until(running=True)
        clients.pop(0).close()
        await asyncio.sleep(0.5)
        assert await router.statements()
    for client in clients:
        client.settimeout(20)
        assert (await asyncio.to_thread(client.recv, 1 << 16)).startswith(b"HTTP/1.1 200 OK\r\n")
        client.close()
