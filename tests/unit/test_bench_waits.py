"""A server that takes requests and never answers holds no bench up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest

from bench.errors import SearchError
from bench.faults import health, load
from bench.faults.broken import Broken
from bench.faults.caller import Caller
from bench.faults.health import Seen
from bench.faults.outcomes import Said
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


class Mumbling(asyncio.Protocol):
    """Answers each request, but not in JSON."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"HTTP/1.1 500 Error\r\nContent-Length: 5\r\n\r\nsorry")


async def test_an_answer_without_json_is_an_outcome_and_ends_no_client() -> None:
    async with await asyncio.get_running_loop().create_server(Mumbling, "127.0.0.1", 0) as server:
        caller = Caller(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", 5.0)
        began = time.perf_counter()
        answer = await caller.ask("search", "POST", "search", {}, intended=began - 3.0)
        caller.close()
    assert answer.said == Said("500 without JSON", detail="sorry") and answer.body == {}
    assert answer.start >= began
    (event,) = caller.events
    assert event.name == "search:500 without JSON"
    assert event.at == began - 3.0 and event.seconds >= 3.0  # late by what held it up


@pytest.mark.parametrize(
    ("ills", "well"), [("o" * 8, 1.0), ("oooooooxoooooooo", 9.0), ("ooooooox" * 3, None)]
)
async def test_all_is_well_from_the_first_of_eight_good_answers_in_a_row(
    monkeypatch: pytest.MonkeyPatch, ills: str, well: float | None
) -> None:
    made = health.Health(cast(Broken, None))
    answers = [Seen(float(i), {}, "" if ill == "o" else "s0-a down") for i, ill in enumerate(ills, 1)]

    async def look() -> Seen:
        return answers.pop(0) if answers else Seen(99.0, {}, "s0-a down")

    monkeypatch.setattr(made, "look", look)
    monkeypatch.setattr(health, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(health, "WELL_SECONDS", 0.5)
    assert await made.well() == well


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
    kinds = [event.operation for event in found.events]
    assert len(kinds) == pytest.approx(60, abs=2) and kinds.count("write") == pytest.approx(10, abs=1)
    assert {event.said for event in found.events} == {Said("silent", detail="no answer within 0.3 s")}
    assert found.acknowledged == []
