"""Patroni decides who leads; the router follows it, and callers lose nothing."""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import yaml

from tests.conftest import Serve
from tests.faults.patroni import TTL, Members, etcd_binary, members
from tests.integration.apps import collection, pgscatter

# Most of its minute is the time to live of Patroni's leader key.
pytestmark = [pytest.mark.timeout(240), pytest.mark.full]


@pytest.fixture
def patroni() -> Iterator[Members]:
    """Two members, of which `a` leads and `b` has all that it acknowledges."""
    with tempfile.TemporaryDirectory(prefix="pgscatter-patroni-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        etcd = etcd_binary(folder)
        if etcd is None:
            pytest.skip("needs etcd (package etcd-server of Debian)")
        with members(folder, etcd) as running:
            running.start("a")
            running.until("a", role="primary", state="running")
            running.start("b")
            running.until("b", role="replica", replication_state="streaming", sync_standby=True)
            yield running


class Load:
    """Writes one after the other, each repeated until it is acknowledged; and searches beside them."""

    def __init__(self, url: str) -> None:
        self.acknowledged: list[tuple[float, int]] = []  # when, and which
        self.searches = 0
        self.incomplete: list[Any] = []
        self._client = httpx.AsyncClient(base_url=url + "/v1/collections/docs", timeout=60)

    async def write(self) -> None:
        for number in itertools.count():
            document = {"id": number, "vector": [float(number), 0, 0, 0], "content": str(number)}
            while (answer := await self._client.put("/documents", json={"documents": [document]})).is_error:
                assert answer.status_code == 503, answer.text
                await asyncio.sleep(0.02)
            self.acknowledged.append((time.monotonic(), number))

    async def search(self) -> None:
        while True:
            body = {"vector": [0.0, 0, 0, 0], "k": 5, "cache": False}
            answer = await self._client.post("/search", json=body)
            self.searches += 1
            if answer.status_code != 200 or answer.json()["coverage"]["shards"]["ok"] != 1:
                self.incomplete.append(answer.json())
            await asyncio.sleep(0.01)

    async def first_write_after(self, moment: float, within: float) -> float:
        """When the first write was acknowledged that came `moment` or later."""
        while not self.acknowledged or self.acknowledged[-1][0] < moment:
            assert time.monotonic() < moment + within, self.acknowledged[-3:]
            await asyncio.sleep(0.005)
        return next(when for when, _ in self.acknowledged if when >= moment)

    async def close(self) -> None:
        await self._client.aclose()


@asynccontextmanager
async def load(url: str) -> AsyncIterator[Load]:
    running = Load(url)
    tasks = [asyncio.create_task(running.write()), asyncio.create_task(running.search())]
    try:
        yield running
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        await running.close()
    assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended


async def ids(dsn: str, table: str) -> list[int]:
    connection = await asyncpg.connect(dsn)
    try:
        return [row[0] for row in await connection.fetch(f"SELECT id FROM {table} ORDER BY id")]
    finally:
        await connection.close()


async def promoted(dsn: str) -> float:
    """When the server has become a primary."""
    connection = await asyncpg.connect(dsn)
    try:
        while await connection.fetchval("SELECT pg_is_in_recovery()"):
            await asyncio.sleep(0.01)
        return time.monotonic()
    finally:
        await connection.close()


async def shown(url: str, **wanted: dict[str, str]) -> None:
    """Wait until the router says so of its nodes."""
    end = time.monotonic() + 10
    async with httpx.AsyncClient() as client:
        while True:
            nodes = {node["name"]: node for node in (await client.get(url + "/v1/nodes")).json()["nodes"]}
            if all(nodes[name][field] == value for name in wanted for field, value in wanted[name].items()):
                return
            assert time.monotonic() < end, nodes
            await asyncio.sleep(0.02)


async def test_the_router_follows_patroni(
    patroni: Members, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [{"name": name, "dsn": patroni.dsn(name), "patroni": patroni.api(name)} for name in ("a", "b")]
    docs = collection()
    docs["sharding"]["placement"] = {"s0": ["0-15"]}
    map_path = tmp_path / "map.yaml"
    document = {"version": 1, "shards": {"s0": {"nodes": nodes}}, "collections": {"docs": docs}}
    map_path.write_text(yaml.safe_dump(document))
    pgscatter("schema", "apply", "--map", map_path)
    up = {"state": "up"}
    with serve(map_path) as url:
        await shown(url, a={**up, "role": "primary"}, b={**up, "role": "replica"})
        async with load(url) as running:
            await asyncio.sleep(1)
            watch = asyncio.create_task(promoted(patroni.dsn("b")))
            await asyncio.sleep(0.2)
            patroni.kill("a")
            killed = time.monotonic()
            async with asyncio.timeout(TTL + 30):
                led = await watch
            # What was acknowledged in the moment of the kill has been stored before.
            assert running.acknowledged[-1][0] < killed + 1
            wrote = await running.first_write_after(killed + 1, TTL + 40)
            assert wrote - led < 2
            await asyncio.sleep(1)

            await asyncio.to_thread(patroni.start, "a")
            await asyncio.to_thread(
                patroni.until, "a", role="replica", replication_state="streaming", sync_standby=True
            )
            await shown(url, a={**up, "role": "replica"}, b={**up, "role": "primary"})
            await asyncio.sleep(1)

            watch = asyncio.create_task(promoted(patroni.dsn("a")))
            asked = time.monotonic()
            order = {"leader": "b", "candidate": "a"}
            said = await asyncio.to_thread(patroni.ask, "b", "/switchover", order)
            assert said == 'Successfully switched over to "a"'
            async with asyncio.timeout(30):
                switched = await watch
            back = await running.first_write_after(switched, 20)
            assert back - switched < 2
            await shown(url, a={**up, "role": "primary"}, b={**up, "role": "replica"})
            await asyncio.sleep(0.5)
        assert not running.incomplete, running.incomplete[:3]
        assert running.searches > 100
    stored = await ids(patroni.dsn("a"), docs["table"])
    # One more may have been under way when the writer was stopped.
    written = [number for _, number in running.acknowledged]
    assert stored[: len(written)] == written
    assert len(stored) <= len(written) + 1
    with capsys.disabled():
        sys.stdout.write(
            f"\n  leader killed: promoted after {led - killed:.1f} s (its lock lasts {TTL} s), first write"
            f" {wrote - led:.2f} s later; switchover: promoted after {switched - asked:.1f} s, first write"
            f" {back - switched:.2f} s later; {running.searches} searches, none failed or incomplete;"
            f" {len(written)} writes, none lost\n"
        )
