"""The application behind its real protocol, and sockets to say to it what no client library would."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from router.http import protocol
from router.http.server import listen
from router.http.write_batch import WriteBatch
from router.settings import Settings
from tests.http.fake import FakeBackend, LogLines, application

# Of waits for what comes in milliseconds where nothing else uses the processor.
SECONDS = 15.0


class Wire:
    """A running server; `port` is where it listens on 127.0.0.1."""

    def __init__(self, port: int, backend: FakeBackend, log: LogLines, state: ServerState) -> None:
        self.port = port
        self.backend = backend
        self.log = log
        self.state = state

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def say(self, *packets: bytes) -> list[tuple[int, Any]]:
        """Send `packets` one after the other, then end; the status and body of each answer."""
        return answers(await self.exchange(*packets))

    async def exchange(self, *packets: bytes) -> bytes:
        reader, writer = await self.connect()
        try:
            for packet in packets:
                writer.write(packet)
                await writer.drain()
                await asyncio.sleep(0.02 if len(packets) < 10 else 0.001)
            writer.write_eof()
            return await asyncio.wait_for(reader.read(), SECONDS)
        finally:
            writer.close()

    async def requests(self, count: int) -> list[dict[str, Any]]:
        """The log's lines of the first `count` requests, in time or not at all."""
        async with asyncio.timeout(SECONDS):
            while len(lines := [one for one in await self.log.lines() if one["event"] == "request"]) < count:
                await asyncio.sleep(0.01)
        return lines

    async def deserted(self) -> None:
        """Return when no connection is open and nothing works for one that was."""
        async with asyncio.timeout(SECONDS):
            while self.state.tasks or self.state.connections:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def wire(
    settings: Settings = Settings(),  # noqa: B008 - frozen
    *,
    keep_alive: int = 5,
    app: Any = None,
) -> AsyncIterator[Wire]:
    """A server in this loop, over a router in memory or whatever `app` is."""
    backend, log = FakeBackend(), LogLines()
    config = uvicorn.Config(
        app or application(backend, settings, log=log),
        timeout_keep_alive=keep_alive,
        lifespan="off",
        ws="none",
        log_config=None,
    )
    config.load()
    state, batch, listener = ServerState(), WriteBatch(), listen("127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: protocol.BoundedProtocol(config, state, {}, batch=batch), sock=listener
    )
    running = Wire(listener.getsockname()[1], backend, log, state)
    try:
        yield running
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        await running.deserted()


def answers(received: bytes) -> list[tuple[int, Any]]:
    """All that stands in `received`, to its last byte; interim answers are left out."""
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
        assert status is not None, head
        if status[1] == b"100":
            continue
        length = int(re.findall(rb"\r\ncontent-length: (\d+)", head)[0])
        assert len(received) >= length, received
        body, received = received[:length], received[length:]
        found.append((int(status[1]), json.loads(body) if body else None))
    return found
