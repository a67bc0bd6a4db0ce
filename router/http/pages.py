"""What describes the router itself: metrics, OpenAPI, and a page made of it."""

from __future__ import annotations

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST

from router.http.message import Reply, Request
from router.http.metrics import Metrics

__all__ = ["Pages"]

# The page brings its own style and nothing else; nobody may frame it.
_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
)


class Pages:
    """The handlers; `describe` is called once, when there is a table of operations to describe."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._openapi = b""
        self._docs = b""

    def describe(self, openapi: dict[str, object], docs: str) -> None:
        self._openapi = msgspec.json.encode(openapi)
        self._docs = docs.encode()

    async def metrics(self, request: Request) -> Reply:
        text = self._metrics.render(request.backend)
        return Reply(text, content_type=CONTENT_TYPE_LATEST.encode())

    async def openapi(self, request: Request) -> Reply:
        return Reply(self._openapi)

    async def docs(self, request: Request) -> Reply:
        return Reply(self._docs, content_type=b"text/html; charset=utf-8", headers=[_POLICY])
