"""The ASGI application: identifies a request, lets it through or not, and accounts for it.

In this order: route, key, limit, handler. Whatever happens, a request gets one answer in one shape, and
leaves one line in the log and one count in the metrics. The catch-all for a request's unexpected
exceptions is here.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from time import perf_counter
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.routing import Router
from starlette.types import Message, Receive, Scope, Send

from router.http.backend import Backend
from router.http.compression import Coding, negotiate
from router.http.cors import Cors
from router.http.errors import HttpError, Refusal
from router.http.identity import request_id, trace_of
from router.http.keys import Keys
from router.http.message import BODY_RECEIVED, CLIENT_LEFT, FIELDS, Reply, Request
from router.http.metrics import Metrics
from router.http.problems import INTERNAL, error_reply
from router.http.routes import Operation, Routes
from router.http.send import send_at_once, send_reply
from router.http.url import path_of, query_of, segment
from router.logs import AccessLog
from router.query.answer import faults_of
from router.query.errors import OverloadedError, RouterError, StartRefusedError, UnavailableError
from router.query.redaction import ShardFault, worst
from router.settings import Settings
from router.stages.answer_memory import MemoryFullError

__all__ = ["Edge"]

_logger = logging.getLogger(__name__)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
# The status of a request whose client disconnected before the answer, as nginx logs it; it is never sent.
_NO_ANSWER = 499
_LOGGED_PATH = 512
# Bytes of an Accept-Encoding header that are read.
_MOST_CODINGS = 4096


class _Exchange:
    """One request and its reply, from arrival to log line."""

    __slots__ = ("caller", "coding", "headers", "id", "inside", "reply", "route", "scope", "trace")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = scope.get(FIELDS) or dict(scope["headers"])
        self.id = request_id(self.headers)
        self.trace = trace_of(self.headers)
        self.route = "unknown"
        self.caller: str | None = None
        self.inside = True  # whether the caller may see the inside of the cluster
        self.coding: Coding = "identity"
        self.reply = Reply(b"", _NO_ANSWER)


class Edge:
    """Serves `routes` over whatever `backend()` returns at the moment a request comes."""

    def __init__(
        self,
        routes: Routes,
        backend: Callable[[], Backend],
        settings: Settings,
        keys: Keys | None,
        metrics: Metrics,
        access_log: AccessLog,
        lifespan: Callable[[Any], AbstractAsyncContextManager[None]],
    ) -> None:
        self.routes = routes
        self._backend = backend
        self._keys = keys
        self._metrics = metrics
        self._log = access_log
        self._max_concurrent = settings.max_concurrent
        self._send_seconds = settings.max_timeout
        self._cors = Cors(settings.cors_origins) if settings.cors_origins else None
        self._in_flight = 0  # changed by `_limited` only
        self._lifespan = Router(lifespan=lifespan)

    def __repr__(self) -> str:
        return f"<Edge {self.routes!r}, {self._in_flight}/{self._max_concurrent} in flight>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, _without_traceback(send))
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        exchange = _Exchange(scope)
        self._metrics.begin()
        try:
            exchange.reply = await self._reply(exchange, receive)
            if self._cors is not None:
                exchange.reply.headers = [*exchange.reply.headers, *self._cors.headers(exchange.headers)]
            await _send(exchange, send, self._send_seconds)
        except ClientDisconnect:
            exchange.reply.status = _NO_ANSWER
        except asyncio.CancelledError:
            if CLIENT_LEFT not in scope:
                # The process ends, and the time for what was under way is over.
                error = UnavailableError(
                    "the router ends, and had no time left for this; what was to be written may have been,"
                    " and sending it again is safe"
                )
                exchange.reply = error_reply(error, exchange.id)
                await _send(exchange, send, self._send_seconds)
        finally:
            if CLIENT_LEFT in scope:
                exchange.reply.status = _NO_ANSWER
            seconds = perf_counter() - started
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.end(method, exchange.route, exchange.reply, seconds)
            self._write_log(exchange, seconds)

    async def _reply(self, exchange: _Exchange, receive: Receive) -> Reply:
        try:
            try:
                return await self._answer(exchange, receive)
            except RouterError as exc:
                return error_reply(exc, exchange.id, inside=exchange.inside)
        except ClientDisconnect:
            raise
        except Exception:
            # Whatever it is: nothing of it for the caller, all of it for the log.
            _logger.exception("unexpected error", extra={"request_id": exchange.id, "route": exchange.route})
            error = HttpError(INTERNAL, "the router failed to answer; its log says why, by the request id")
            return error_reply(error, exchange.id)

    async def _answer(self, exchange: _Exchange, receive: Receive) -> Reply:
        method = exchange.scope["method"]
        announced = None if self._cors is None else self._cors.preflight_method(method, exchange.headers)
        operation, template, params = self.routes.find(announced or method, path_of(exchange.scope))
        exchange.route = template
        _choose_coding(exchange)
        if self._cors is not None and announced is not None:
            return self._cors.preflight_reply()
        request = self._request(exchange, operation, params, receive)
        if not operation.limited:
            return await operation.handler(request)
        if self._in_flight >= self._max_concurrent:
            self._metrics.reject("concurrency")
            raise OverloadedError(f"{self._max_concurrent} requests are being answered already")
        self._in_flight += 1
        try:
            return await operation.handler(request)
        except OverloadedError as exc:
            self._metrics.reject("memory" if isinstance(exc, MemoryFullError) else "nodes")
            raise
        finally:
            self._in_flight -= 1

    def _request(
        self, exchange: _Exchange, operation: Operation, params: Mapping[str, str], receive: Receive
    ) -> Request:
        """The request for the operation's handler.

        Raises:
            HttpError: its key does not allow the operation.
            InvalidError, MalformedError: of its query string.
            ClientDisconnect
        """
        if self._keys is not None:
            exchange.inside = False
            if operation.scope != "open":
                key = self._keys.authorise(exchange.headers, operation.scope)
                exchange.caller, exchange.inside = key.name, "admin" in key.scopes
        if CLIENT_LEFT in exchange.scope:
            raise ClientDisconnect
        return Request(
            self._backend(),
            exchange.headers,
            {name: segment(value) for name, value in params.items()},
            query_of(exchange.scope["query_string"], operation),
            receive,
            exchange.id,
            body_received=BODY_RECEIVED in exchange.scope,
            inside=exchange.inside,
            caller=exchange.caller or "",
        )

    def _write_log(self, exchange: _Exchange, seconds: float) -> None:
        scope, reply = exchange.scope, exchange.reply
        fields: dict[str, object] = {
            "request_id": exchange.id,
            "method": scope["method"],
            "route": exchange.route,
            "path": scope["path"][:_LOGGED_PATH],
            "status": reply.status,
            "took_ms": round(seconds * 1000, 3),
            "client": scope["client"][0] if scope.get("client") else None,
        }
        if exchange.trace is not None:
            fields["trace_id"] = exchange.trace.id
        if exchange.caller is not None:
            fields["caller"] = exchange.caller
        if reply.found:
            fields |= _account(reply)
        if reply.written is not None:
            written = reply.written
            fields |= {"stored": written.stored, "deleted": written.deleted, "failed": dict(written.failed)}
            if written.patched:
                fields["patched"] = written.patched
        if reply.faults or fields.get("coverage") == "partial":
            fields["missing"], more = worst(_faults(reply))
            if more:
                fields["missing_more"] = more
        level = "error" if reply.status == 500 else "warning" if reply.status > 500 else "info"
        self._log.write(level, fields)


def _choose_coding(exchange: _Exchange) -> None:
    """
    Raises:
        HttpError: 406, the client accepts no coding that there is.
    """
    accepted = exchange.headers.get(b"accept-encoding")
    if accepted is None:
        return
    exchange.coding = negotiate(accepted[:_MOST_CODINGS])
    if exchange.coding == "none":
        shown = accepted[:80].decode("latin-1")
        raise HttpError(Refusal.NOT_ACCEPTABLE, f"Accept-Encoding {shown} takes neither gzip nor identity")


def _account(reply: Reply) -> dict[str, object]:
    """How the searches of a request were answered."""
    coverage = "full" if all(found.answer.coverage.full for _, found in reply.found) else "partial"
    if len(reply.found) == 1:
        return {"cache": reply.found[0][1].tier, "coverage": coverage}
    return {"searches": len(reply.found), "coverage": coverage}


def _faults(reply: Reply) -> list[ShardFault]:
    """Of the shards that the answers lack."""
    lacking = [found.answer.coverage for _, found in reply.found if not found.answer.coverage.full]
    return [fault for coverage in lacking for fault in faults_of(coverage)] + list(reply.faults)


async def _send(exchange: _Exchange, send: Send, seconds: float) -> None:
    reply = exchange.reply
    headers = [
        (b"content-type", reply.content_type),
        (b"cache-control", b"no-store"),
        (b"x-request-id", exchange.id.encode()),
        *reply.headers,
    ]
    if exchange.trace is not None:
        headers.append((b"traceparent", exchange.trace.header))
    if exchange.coding == "identity" and send_at_once(reply, headers, exchange.scope):
        return
    await send_reply(reply, headers, exchange.coding, exchange.scope, send, seconds)


def _without_traceback(send: Send) -> Send:
    """Of a start that was refused on purpose, no traceback: the reason has been said."""

    async def told(message: Message) -> None:
        if message["type"] == "lifespan.startup.failed" and isinstance(sys.exception(), StartRefusedError):
            message = {**message, "message": ""}
        await send(message)

    return told
