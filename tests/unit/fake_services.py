"""Services for texts that tests bring up on real sockets: they speak as others do, and fail as they may.

async with FakeService() as service:
    service.answers.append(Answer(503))     # the next request is answered so, later ones as they should be
    ...
    assert service.requests[0].json["input"] == ["a text"]
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from shard_config.model import EmbeddingService, RerankingService

__all__ = ["Answer", "FakeService", "Received", "vector_of"]

DIMENSIONS = 4


class Received(NamedTuple):
    path: str
    headers: dict[str, str]
    json: Any


class Answer(NamedTuple):
    """What a request gets.

    Attributes:
        body: as it is, if bytes; else as JSON; None for what is right.
        cut: so many bytes of the body are sent, then the connection ends.
        held: the answer waits for this.
        close: the connection ends behind the answer, as one that was idle for too long does.
    """

    status: int = 200
    body: Any = None
    headers: tuple[str, ...] = ()
    cut: int | None = None
    held: asyncio.Event | None = None
    close: bool = False
    reset: bool = False  # instead of an answer
    stray: bytes = b""  # comes behind the answer, and belongs to nothing


def vector_of(text: str) -> list[float]:
    """The vector that every fake service has for `text`."""
    return [float(len(text)), float(sum(text.encode()) % 97), 0.5, -1.0]


def bytes_of(text: str) -> bytes:
    return np.array(vector_of(text), "<f4").tobytes()


class FakeService:
    """`answers` are given first, one to a request; `usual` says how all others are answered."""

    def __init__(
        self, usual: Callable[[Received], Any] | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._tls = tls
        self.answers: deque[Answer] = deque()
        self.requests: list[Received] = []
        self.connections = 0
        self.usual = openai if usual is None else usual
        self.always: Answer | None = None
        self.most_at_once = self.at_once = 0
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[Any]] = set()
        self._port = 0

    async def __aenter__(self) -> FakeService:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """On the port that it had before, if it had one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, ssl=self._tls)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As if it were killed: its connections end at once."""
        assert self._server is not None
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers)

    @property
    def open_connections(self) -> int:
        return len(self._handlers)

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}/v1"

    def model(self, **changes: Any) -> EmbeddingService:
        fields = {"name": "m", "url": self.url, "model": "model", "dimensions": DIMENSIONS, **changes}
        return EmbeddingService(**fields)

    def reranker(self, **changes: Any) -> RerankingService:
        return RerankingService(**{"name": "r", "url": self.url, "model": "model", **changes})

    def texts(self) -> list[list[str]]:
        """Of each request the texts."""
        return [request.json["input"] for request in self.requests]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other end has gone, or `stop` ends it
        finally:
            writer.transport.abort()
            self._handlers.discard(handler)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        body = await reader.readexactly(int(headers["content-length"]))
        received = Received(first.split(" ")[1], headers, json.loads(body))
        self.requests.append(received)
        answer = self.answers.popleft() if self.answers else self.always or Answer()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if answer.held is not None:
                await answer.held.wait()
        finally:
            self.at_once -= 1
        if answer.reset:
            return False
        said = self.usual(received) if answer.body is None and answer.status == 200 else answer.body
        if isinstance(said, Answer):
            answer, said = said, said.body
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        fields = [f"HTTP/1.1 {answer.status} x", f"content-length: {len(data)}", *answer.headers]
        sent = data if answer.cut is None else data[: answer.cut]
        writer.write("\r\n".join([*fields, "", ""]).encode() + sent + answer.stray)
        await writer.drain()
        return answer.cut is None and not answer.close


def openai(request: Received) -> Any:
    """As OpenAI, Azure, vLLM and pgscatter's own service answer."""
    if request.json.get("encoding_format") != "base64":
        return floats(request)
    data = [
        {"object": "embedding", "index": i, "embedding": base64.b64encode(bytes_of(text)).decode()}
        for i, text in enumerate(request.json["input"])
    ]
    return {"object": "list", "data": data, "model": "model", "usage": {"prompt_tokens": 1}}


def floats(request: Received, dimensions: int = DIMENSIONS) -> Any:
    """As services answer that know nothing of base64, such as older releases of Ollama."""
    data = [
        {"object": "embedding", "index": i, "embedding": vector_of(text)[:dimensions]}
        for i, text in enumerate(request.json["input"])
    ]
    return {"object": "list", "data": data, "model": "model"}


def strict(request: Received) -> Any:
    """As Alibaba's answers: it refuses fields that it does not know, and more than ten texts."""
    if "encoding_format" in request.json or len(request.json["input"]) > 10:
        return Answer(400, {"error": {"message": "invalid parameter"}})
    return floats(request)


def cohere(request: Received) -> Any:
    scores = [
        {"index": i, "relevance_score": len(text) / 8} for i, text in enumerate(request.json["documents"])
    ]
    return {"results": sorted(scores, key=lambda one: -one["relevance_score"])}


def tei(request: Received) -> Any:
    return [{"index": i, "score": len(text) / 8} for i, text in enumerate(request.json["texts"])][::-1]
