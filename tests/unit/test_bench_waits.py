"""A server that takes requests and never answers holds no bench up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from bench.errors import SearchError
from bench.faults import load
from bench.http_client import Connections, request_bytes


@asynccontextmanager
async def silent() -> AsyncIterator[int]:
    """The port of a server that reads and says nothing."""

    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_an_answer_that_does_not_come_in_time_is_given_up() -> None:
    async with silent() as port:
        connections = Connections("127.0.0.1", port, answer_seconds=0.2)
        async with asyncio.timeout(5):
            for _ in range(2):
                with pytest.raises(SearchError, match=r"no answer within 0\.2 s"):
                    await connections.send(request_bytes("router", "/", b"{}"))
        assert "0 idle, 0 busy" in repr(connections)


async def test_a_load_on_a_router_that_is_silent_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_ANSWER_SECONDS", 0.3)
    async with silent() as port, asyncio.timeout(5):
        began = time.monotonic()
        queries, rates = np.ones((2, 3), np.float32), load.Rates(50, 10)
        async with load.traffic(f"http://127.0.0.1:{port}", "docs", queries, rates, 7) as traffic:
            await asyncio.sleep(0.2)
        assert time.monotonic() - began < 2
    assert {event.what for event in traffic.events} == {"search", "write"}
    assert {(event.outcome, event.reason) for event in traffic.events} == {
        ("failed", "no answer within 0.3 s")
    }
    assert traffic.acknowledged == []
