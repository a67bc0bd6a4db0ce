"""The ASGI application: finds a request's route, reads its body within bounds, and accounts for it.

Whatever happens, a request gets one answer, errors in OpenAI's shape, one line in the log and one count in
the metrics. The server cancels the task of a request whose client has left.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from time import perf_counter

import msgspec
from starlette.requests import ClientDisconnect
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from router.http.identity import request_id
from router.http.life import Life
from router.http.message import CLIENT_LEFT, Reply
from router.http.send import send_reply
from router.logs import AccessLog
from router.model_service.backend import Embedder, Reranker
from router.model_service.errors import (
    BodyTooLargeError,
    BusyError,
    InvalidBodyError,
    NoRouteError,
    NotServingError,
    ServiceError,
    SlowBodyError,
    UnauthorisedError,
    error_body,
)
from router.model_service.limits import Limits
from router.model_service.metrics import Metrics
from router.model_service.service import ModelService

__all__ = ["Edge"]

_logger = logging.getLogger(__name__)

# The status of a request whose client disconnected before the answer, as nginx logs it; it is never sent.
_NO_ANSWER = 499
_LOGGED_PATH = 512
_MODELS = "/v1/models"
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"

_Headers = Mapping[bytes, bytes]


class Edge:
    """Serves the models; `api_key` is what `/v1` and `/rerank` ask for, if it is one."""

    def __init__(
        self,
        embedders: Mapping[str, Embedder],
        rerankers: Mapping[str, Reranker],
        limits: Limits,
        life: Life,
        access_log: AccessLog,
        api_key: str | None = None,
    ) -> None:
        self._embedders = embedders
        self._rerankers = rerankers
        self._limits = limits
        self._life = life
        self._log = access_log
        self._key = None if api_key is None else api_key.encode()
        self._metrics = Metrics()
        self._service: ModelService | None = None  # while the application runs
        self._in_flight = 0  # requests for a model; changed by `_computed` only
        self._lifespan = Router(lifespan=self._run)
        self._posts: dict[str, Callable[[ModelService, bytes], Awaitable[bytes]]] = {
            "/v1/embeddings": ModelService.embeddings,
            "/v1/rerank": ModelService.rerank,
            "/rerank": ModelService.tei_rerank,
        }
        self._gets: dict[str, Callable[[ModelService], Reply]] = {
            _MODELS: lambda service: Reply(service.models()),
            "/livez": lambda service: Reply(b'{"status":"ok"}'),
            "/readyz": self._ready,
            "/metrics": lambda service: Reply(self._metrics.render(service.waiting), content_type=_TEXT),
        }

    def __repr__(self) -> str:
        return f"<Edge of {self._service!r}, {self._in_flight} in flight>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)

    @asynccontextmanager
    async def _run(self, _: object) -> AsyncIterator[None]:
        self._service = service = ModelService(self._embedders, self._rerankers, self._limits, self._metrics)
        try:
            yield
        finally:
            late = await service.close()
            if late:
                _logger.warning("calls of models cut off", extra={"models": late})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        id_, path, method = request_id(headers), scope["path"], scope["method"]
        route, status = "unknown", _NO_ANSWER
        self._metrics.in_flight.inc()
        try:
            try:
                route = self._route(method, path)
                reply = await self._reply(route, path, headers, receive)
            except ServiceError as exc:
                reply = _error_reply(exc)
            except asyncio.CancelledError:
                if CLIENT_LEFT in scope:
                    return
                # The process ends, and the time for what was under way is over.
                reply = _error_reply(NotServingError("the service ends and had no time left for this"))
            except ClientDisconnect:
                return
            except Exception:
                # Whatever it is: nothing of it for the caller, all of it for the log.
                _logger.exception("unexpected error", extra={"request_id": id_, "route": route})
                reply = _error_reply(
                    ServiceError("the service failed to answer; its log says why, by request id")
                )
            await self._send(reply, id_, scope, send)
            status = reply.status
        except (ClientDisconnect, asyncio.CancelledError):
            return
        finally:
            self._metrics.in_flight.dec()
            seconds = perf_counter() - started
            self._metrics.answered(route, status, seconds)
            level = "error" if status == 500 else "warning" if status > 500 else "info"
            self._log.write(
                level,
                {
                    "request_id": id_,
                    "method": method,
                    "route": route,
                    "path": path[:_LOGGED_PATH],
                    "status": status,
                    "took_ms": round(seconds * 1000, 3),
                    "client": scope["client"][0] if scope.get("client") else None,
                },
            )

    def _route(self, method: str, path: str) -> str:
        """The route's path, of which there are a handful.

        Raises:
            NoRouteError
        """
        route = f"{_MODELS}/{{model}}" if path.startswith(f"{_MODELS}/") else path
        allowed = (
            ("POST",)
            if route in self._posts
            else ("GET", "HEAD")
            if route in self._gets or route != path
            else ()
        )
        if method not in allowed:
            detail = (
                f"{path[:_LOGGED_PATH]} takes {' and '.join(allowed)}" if allowed else "there is no such path"
            )
            raise NoRouteError(detail, allowed)
        return route

    async def _reply(self, route: str, path: str, headers: _Headers, receive: Receive) -> Reply:
        service = self._service
        if service is None:
            raise NotServingError("the service has not started yet")
        if route.startswith("/v1") or route in self._posts:
            self._authorise(headers)
        if route in self._posts:
            return Reply(await self._computed(self._posts[route], service, headers, receive))
        if route != path:
            return Reply(service.model(path.removeprefix(f"{_MODELS}/")))
        return self._gets[route](service)

    async def _computed(
        self,
        handler: Callable[[ModelService, bytes], Awaitable[bytes]],
        service: ModelService,
        headers: _Headers,
        receive: Receive,
    ) -> bytes:
        if self._in_flight >= self._limits.max_concurrent:
            self._metrics.rejected.labels("concurrency").inc()
            raise BusyError(f"{self._in_flight} requests are being answered already", retry_after=1)
        self._in_flight += 1
        try:
            return await handler(service, await _body(headers, receive, self._limits))
        except BusyError:
            self._metrics.rejected.labels("queue").inc()
            raise
        finally:
            self._in_flight -= 1

    def _authorise(self, headers: _Headers) -> None:
        if self._key is None:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            given = headers.get(b"api-key", b"")
        if not hmac.compare_digest(given.strip(), self._key):
            raise UnauthorisedError("no key, or a wrong one; send Authorization: Bearer KEY")

    def _ready(self, service: ModelService) -> Reply:
        stuck = service.stuck
        ready = not self._life.ending and not stuck
        told = {"ready": ready, "models": {name: name not in stuck for name in service.waiting}}
        return Reply(msgspec.json.encode(told), 200 if ready else 503)

    async def _send(self, reply: Reply, id_: str, scope: Scope, send: Send) -> None:
        headers = [
            (b"content-type", reply.content_type),
            (b"cache-control", b"no-store"),
            (b"x-request-id", id_.encode()),
            *reply.headers,
        ]
        await send_reply(reply, headers, "identity", scope, send, self._limits.request_timeout)


def _error_reply(error: ServiceError) -> Reply:
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    if isinstance(error, NoRouteError) and error.allowed:
        headers.append((b"allow", ", ".join(error.allowed).encode()))
    if isinstance(error, UnauthorisedError):
        headers.append((b"www-authenticate", b"Bearer"))
    return Reply(error_body(error), error.status, headers=headers)


async def _body(headers: _Headers, receive: Receive, limits: Limits) -> bytes:
    """The whole body within the limits.

    Raises:
        ServiceError
        ClientDisconnect
    """
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise InvalidBodyError("compressed bodies are not read; send it without Content-Encoding")
    most = limits.max_body_bytes
    declared = headers.get(b"content-length", b"0")
    # The server has seen to it that it is a number; zeros may stand before it.
    if int(declared[-20:]) > most:
        raise BodyTooLargeError(f"the body of {int(declared[-20:])} bytes exceeds {most} bytes")
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(limits.request_timeout):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                parts.append(message.get("body", b""))
                more = message.get("more_body", False)
                size += len(parts[-1])
                if size > most:
                    raise BodyTooLargeError(f"the body exceeds {most} bytes")
    except TimeoutError as exc:
        raise SlowBodyError(f"the body was not here after {limits.request_timeout:g} s") from exc
    return b"".join(parts)
