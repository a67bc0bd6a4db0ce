"""What the router makes of the answers of a node's Patroni, and of none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from deploy.local import Cluster
from router.nodes.patroni import Patroni
from router.topology import Parts, Topology
from tests.integration.worlds import execute, patient, shard_map, until

SETTINGS = patient(probe_interval=0.1)


@asynccontextmanager
async def says(answer: bytes | None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers each request so, or never; its URL, and the requests."""
    requests: list[bytes] = []
    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
                await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests
    finally:
        server.close()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)


def status(code: int) -> bytes:
    return b"HTTP/1.0 %d x\r\nServer: BaseHTTP/0.6\r\n\r\n" % code


@pytest.mark.parametrize(
    ("answer", "leads"),
    [
        (status(200), True),
        (status(503), False),
        (status(404), None),
        (status(401), None),
        (b"SSH-2.0-OpenSSH_9.6\r\n", None),
        (b"", None),
        (None, None),
    ],
)
async def test_only_patronis_own_answers_count(
    answer: bytes | None, leads: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if answer is not None:
        monkeypatch.setattr("router.nodes.patroni._SECONDS", 20.0)
    async with says(answer) as (url, requests):
        patroni = Patroni(url + "/")
        started = asyncio.get_running_loop().time()
        for _ in range(3):
            assert await patroni.leads() is leads
        assert asyncio.get_running_loop().time() - started < 15
        assert len(requests) == 3
        assert requests[0].startswith(b"HEAD /leader HTTP/1.1\r\n")
        await patroni.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://127.0.0.1:99999", "http://[::::]"])
async def test_a_patroni_that_is_not_there_says_nothing(url: str) -> None:
    patroni = Patroni(url)
    assert await patroni.leads() is None
    await patroni.close()


@pytest.mark.parametrize(("answer", "deposed"), [(status(200), False), (status(503), True), (None, False)])
async def test_a_primary_that_patroni_denies_is_deposed(
    cluster: Cluster, answer: bytes | None, deposed: bool
) -> None:
    async with says(answer) as (url, _):
        shards = shard_map(cluster)
        first = shards.shards["s0"]
        nodes = tuple(msgspec.structs.replace(node, patroni=url) for node in first.nodes)
        shard = msgspec.structs.replace(first, nodes=nodes)
        await execute(first.nodes[0].dsn, "CREATE EXTENSION IF NOT EXISTS vector")
        shards = msgspec.structs.replace(shards, shards={**shards.shards, "s0": shard})
        topology = Topology(shards, Parts(shards, SETTINGS))
        await topology.open()
        try:

            def shown() -> tuple[str, str | None]:
                node = next(node for node in topology.snapshot.nodes() if node.name == "s0-a")
                return node.state, node.reason

            said = ("deposed", "its Patroni says that it does not lead") if deposed else ("up", None)
            # Of an answer that comes too late nothing is known until the next probe.
            await until(lambda: shown() == said)
        finally:
            await topology.close()
