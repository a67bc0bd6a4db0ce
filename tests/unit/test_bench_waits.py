"""A server that takes requests and never answers holds no bench up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench.errors import SearchError
from bench.faults import load
from bench.generators import Open, generate
from bench.http_client import Connections, request_bytes
from bench.targets import ImportedSpec, make


@asynccontextmanager
async def silent() -> AsyncIterator[str]:
    """The address of a server that reads and says nothing."""

    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_an_answer_that_does_not_come_in_time_is_given_up() -> None:
    async with silent() as url:
        connections = Connections(url, answer_seconds=0.2)
        async with asyncio.timeout(20):
            for _ in range(2):
                with pytest.raises(SearchError, match=r"no answer within 0\.2 s"):
                    await connections.send(request_bytes(f"{url}/", b"{}"))
        assert "0 idle, 0 busy" in repr(connections)


async def test_a_load_on_a_router_that_is_silent_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(load, "_ANSWER_SECONDS", 0.3)
    np.save(tmp_path / "queries.npy", np.ones((2, 3), np.float32))
    async with silent() as url, asyncio.timeout(40):
        spec = ImportedSpec(
            target="bench.faults.load:Traffic",
            queries=str(tmp_path / "queries.npy"),
            options={"url": url, "first_id": 7},
        )
        began = time.monotonic()
        target = make(spec)
        await target.open()
        arrivals = Open(120, 0.5, 0.0, poisson=False)
        record = (await generate(target, arrivals, queries=2, k=10)).record
        await target.close()
        # What is still under way at the end would be given a minute.
        assert time.monotonic() - began < 30
    found = msgspec.json.decode(record, type=load.Record)
    kinds = [event.what for event in found.events]
    assert len(kinds) == pytest.approx(60, abs=2) and kinds.count("write") == pytest.approx(10, abs=1)
    assert {(event.outcome, event.reason) for event in found.events} == {("failed", "no answer within 0.3 s")}
    assert found.acknowledged == []
