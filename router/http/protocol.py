"""uvicorn's HTTP/1.1 protocol, with four additions: bounds on what a connection may send that is not the
request or body of an answer to come; one write per answer; heads that two parsers could understand
differently are refused; and the work for a client that has disconnected is cancelled.

Invariants: a connection without a request is closed in bounded time, whatever it sends, and the bytes read
from it and thrown away are bounded. Each request gets at most one answer, in the order of the requests, and
no byte of a body is ever read as a request. When a client has disconnected, no task works for it any more,
except a store.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from router.http.errors import HttpError, Refusal
from router.http.head import HEAD_BYTES, check_fields, check_version, origin_form, too_large
from router.http.identity import request_id
from router.http.life import Life
from router.http.message import ABORT, BODY_RECEIVED, CLIENT_LEFT, FIELDS, FINISHED_METHODS, SEND_RESPONSE
from router.http.problems import error_reply
from router.http.write_batch import BatchedTransport, WriteBatch
from router.query.errors import MalformedError, RequestError

__all__ = ["BoundedProtocol"]

_logger = logging.getLogger(__name__)

# For the head of a request, from the connection's start or the head's first byte.
_HEAD_SECONDS = 20.0
# Chunk sizes, chunk extensions and trailer fields are read and thrown away. Their sum is bounded as in Go's
# net/http, after some bytes for each byte of the body: one in chunks of one byte has five others around each.
_FRAMING_BYTES = 64 * 1024
_FRAMING_PER_BYTE = 8
# When a request is answered before its body has come, this much of the body is read and thrown away to keep
# the connection; one with more to come is closed, which costs the client a new connection.
_SKIPPED_BYTES = 1 << 20
# A connection that is closed while its client still sends is reset, often before the client has read the
# answer. So the router ends its own direction first, and closes after this many further bytes or seconds.
_LINGER_BYTES = 1 << 20
_LINGER_SECONDS = 2.0
_SLOW = Refusal.SLOW.status
# Once the router takes no more connections: the first request of one that it has just taken is on its way.
_FIRST_REQUEST_SECONDS = 0.5

# Between the bytes that `_probe_client` sends; doubled after each.
_AHEAD_SECONDS = 0.01
# Between two looks at the state of a connection that is not read while pipelined requests wait.
_PROBE_SECONDS = 0.1
_TCP_INFO: int | None = getattr(socket, "TCP_INFO", None)
_ESTABLISHED = 1  # the first byte of Linux's tcp_info
_SLASH = ord("/")
_NO_HOST = b"\0"  # which no head can have


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request line and headers are too long, or do not come to an end, and one
    whose request was answered with much of its body to come.

    It adds to a request's scope what `router.http.message` names and explains: `FIELDS`, `BODY_RECEIVED`,
    `CLIENT_LEFT`, and the extensions `SEND_RESPONSE` and `ABORT`.
    """

    def __init__(self, *args: Any, batch: WriteBatch, life: Life | None = None, **named: Any) -> None:
        super().__init__(*args, **named)
        self._batch = batch
        self._life = Life() if life is None else life
        self._renew_parser()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._batched = BatchedTransport(transport, self._batch)
        super().connection_made(self._batched)
        self._in_head = False
        self._head_bytes = 0  # in earlier chunks
        self._host = _NO_HOST  # of the head before, once it was checked
        self._plain_head: bytes | None = None  # of a request with an Upgrade header, without that header
        self._size = 0  # of what the last read has brought
        self._body_bytes = 0  # of a body, in that
        self._framing_bytes = 0  # of chunks and trailers, beyond `_FRAMING_PER_BYTE`
        self._answering: RequestResponseCycle | None = None
        self._task: asyncio.Task[None] | None = None  # the one that runs `_answering`
        self._lingering: int | None = None  # bytes that may still come before it is closed
        # Also for a connection that never sends anything: it occupies as much as one that stops half-way.
        self._head_timer: asyncio.TimerHandle | None = self.loop.call_later(_HEAD_SECONDS, self._time_is_up)
        self._half_closed = False  # the client has ended its direction; it may still read answers
        self._probe_timer: asyncio.TimerHandle | None = None
        self._ahead_seconds = _AHEAD_SECONDS

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        due = self._unanswered()
        super().connection_lost(exc)
        if due is not None:
            self._cancel_request()
        while self.pipeline:
            # Started only to be counted and logged like all requests; `_cancel_request` ends it at once.
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            self._cancel_request()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Close the connection, unless a request that has come completely is still to be answered.

        A client that has ended only its own direction and one that is gone look the same here:
        `_probe_client` tells them apart.
        """
        if self._unanswered() is None or (
            self.cycle is self._answering and BODY_RECEIVED not in self.cycle.scope
        ):
            # Not by returning False alone: the loop would close it before the batch has been written.
            self.transport.close()
            return False
        self._end_after_answers()
        self._half_closed = True
        self._probe_client()
        return True

    def data_received(self, data: bytes) -> None:
        """In place of uvicorn's, which stops the keep-alive timer at any byte, so that line breaks sent now
        and then would keep a connection open for ever.
        """
        if self._lingering is not None:
            self._discard(len(data))
            return
        self._size, self._body_bytes = len(data), 0
        scope = self.scope
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as exc:
                self._ignore_upgrade(memoryview(data)[exc.args[0] :])
        except httptools.HttpParserError as exc:
            self._refuse(self._fault(exc))
            return
        if self._in_head:
            self._wait_for_head()
        elif self.scope is scope is not None and BODY_RECEIVED not in scope:
            self._count_framing()
        elif self._head_timer is not None and self.cycle is not None:
            self._stop_timer()

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = self._framing_bytes = 0
        self._plain_head = None
        self._unset_keepalive_if_required()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Check the head; what is raised here reaches `_fault` as the context of httptools' own error."""
        self._in_head = False
        version = self.parser.get_http_version()
        fields = self._checked_fields(version)
        if self.parser.should_upgrade():
            self._plain_head = self._head_without_upgrade(version)
            return
        if self.url[0] != _SLASH or b"#" in self.url:
            self.url = origin_form(self.parser.get_method(), self.url)
        # The previous answer may have been sent while this head was coming, which started the timer again.
        self._unset_keepalive_if_required()
        super().on_headers_complete()
        if self._life.ending:
            self.cycle.keep_alive = False
        # The scope has them. A new list, so that the fields of a trailer, which uvicorn adds to this one,
        # do not become headers of the request: a trailer could then set a key, or another host.
        self.headers = []
        self.scope[FIELDS] = fields  # type: ignore[literal-required]
        respond = partial(self._respond, self.cycle)
        self.scope["extensions"] = {SEND_RESPONSE: respond, ABORT: self.transport.abort}  # type: ignore[dict-item]
        if self.pipeline and self._probe_timer is None:
            self._probe_timer = self.loop.call_later(_PROBE_SECONDS, self._probe_client)

    def _checked_fields(self, version: str) -> dict[bytes, bytes]:
        """The head's fields by name.

        Raises:
            RequestError: the head is too large, or must not be read.
        """
        if self._head_bytes + self._size > HEAD_BYTES:  # which may be the head and part of a body
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > HEAD_BYTES:
                raise too_large(self.url)
        if version != "1.1":
            check_version(version)
            self.expect_100_continue &= version != "1.0"
        fields = dict(self.headers)
        host = fields.get(b"host")
        # Most requests of a connection name the same host, and nothing twice: they need no check. One without
        # a host always does.
        if host != self._host or len(fields) != len(self.headers) or b"transfer-encoding" in fields:
            check_fields(version, self.headers)
            self._host = _NO_HOST if host is None else host
        return fields

    def announce_end(self) -> None:
        """The router ends: let the answer under way say `Connection: close`, as all later ones do.

        Not one whose head has gone: its client may send the next request, which is then told.
        """
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Close the connection now, or behind the answer to what has begun to come.

        In place of uvicorn's, which closes also where a head is half here, or not yet here. `Life` is ending,
        so whatever request comes is the last one.
        """
        if self._lingering is not None or self._in_head:
            return
        if self.cycle is None:
            self.loop.call_later(_FIRST_REQUEST_SECONDS, self._close_without_request)
        elif self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _close_without_request(self) -> None:
        if self.cycle is None and not self._in_head and not self.transport.is_closing():
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        """As uvicorn's, less its checks for an upgrade; so is `on_message_complete`."""
        self._body_bytes += len(body)
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self._plain_head is not None:
            return
        self.scope[BODY_RECEIVED] = True  # type: ignore[literal-required]
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()
        if self.flow.read_paused and not self.pipeline:
            # Reading was paused by a large body, which is here now. Unless the connection is read, the loop
            # does not notice that its client has closed it.
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """As uvicorn's, but the task is kept, so that `_cancel_request` can cancel it."""
        self._answering = cycle
        self._task = task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        # What follows the last request is thrown away unparsed, and `check_version` checks the version.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True, lenient_version=True)

    def _ignore_upgrade(self, rest: memoryview) -> None:
        """Parse a request that has an Upgrade header as if it had none; `rest` is what came behind its head.

        After such a head, httptools takes the body for data of the other protocol and stops, and would read
        the body as a request if it went on. So a new parser gets the head without the header, and then the
        rest.
        """
        while self._plain_head is not None:
            head = self._plain_head
            self._renew_parser()
            self._size += len(head)
            self.parser.feed_data(head)
            if rest:
                try:
                    self.parser.feed_data(rest)
                except httptools.HttpParserUpgrade as exc:
                    rest = rest[exc.args[0] :]

    def _head_without_upgrade(self, version: str) -> bytes:
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise HttpError(Refusal.NOT_IMPLEMENTED, "CONNECT is for proxies, and this is none")
        fields = [b"%s: %s\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version.encode(), b"".join(fields))

    def _wait_for_head(self) -> None:
        """Part of a head has come."""
        self._head_bytes += self._size
        if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self._refuse(too_large(self.url))
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._time_is_up)

    def _count_framing(self) -> None:
        """Part of a body has come, and nothing else."""
        framing = self._size - self._body_bytes
        self._framing_bytes = max(0, self._framing_bytes + framing - _FRAMING_PER_BYTE * self._body_bytes)
        if self._framing_bytes > _FRAMING_BYTES:
            most = f"{_FRAMING_BYTES} bytes beyond what its body explains"
            self._refuse(MalformedError(f"chunk sizes, extensions and trailers take more than {most}"))

    def _unanswered(self) -> RequestResponseCycle | None:
        """The request under way whose answer is not complete and whose client is there, if there is one."""
        cycle = self._answering
        return None if cycle is None or cycle.response_complete or cycle.disconnected else cycle

    def _cancel_request(self) -> None:
        """Tell the request under way that its client has disconnected, and cancel its task."""
        cycle, task = self._answering, self._task
        assert cycle is not None and task is not None
        cycle.disconnected = True
        cycle.scope.pop("extensions", None)  # they hold the cycle, which holds the scope
        cycle.scope[CLIENT_LEFT] = True  # type: ignore[literal-required]
        cycle.message_event.set()
        begun = inspect.getcoroutinestate(task.get_coro()) != inspect.CORO_CREATED  # type: ignore[arg-type]
        # A task that has not started sees CLIENT_LEFT when it does, and is counted and logged; cancelled
        # before, it would not run at all.
        if begun and cycle.scope["method"] not in FINISHED_METHODS:
            task.cancel()

    def _end_after_answers(self) -> None:
        """Answer the requests that have come completely, read nothing more, and close."""
        if self.pipeline and BODY_RECEIVED not in self.cycle.scope:
            self.pipeline.popleft()
        last = self.pipeline[0][0] if self.pipeline else self._answering
        assert last is not None
        last.keep_alive = False
        self._lingering = _LINGER_BYTES
        self._stop_timer()

    def _probe_client(self) -> None:
        """Find out whether a client that has ended its direction is still there, while its answer is made.

        If it is gone, its system answers our next bytes with a reset, which ends the connection here. So the
        first bytes of the answer, which are the same for any answer, are sent ahead one by one; a client that
        still reads gets the rest of the answer behind them.
        """
        self._probe_timer = None
        cycle = self._unanswered()
        if cycle is None or self.transport.is_closing():
            return
        if self._half_closed or (self.flow.read_paused and self._client_has_closed()):
            if not cycle.response_started and not self._batched.write_ahead():
                return
            delay, self._ahead_seconds = self._ahead_seconds, 2 * self._ahead_seconds
        elif self.pipeline:
            delay = _PROBE_SECONDS
        else:
            return
        self._probe_timer = self.loop.call_later(delay, self._probe_client)

    def _client_has_closed(self) -> bool:
        """Whether the client has ended its direction, behind bytes not read yet; False if unknown."""
        if _TCP_INFO is None:
            return False
        info: bytes = self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)
        return info[0] != _ESTABLISHED

    def _respond(
        self,
        cycle: RequestResponseCycle,
        status: int,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
    ) -> bool:
        """Write an answer in one piece and return True, or False if it must be sent by ASGI's messages.

        No header may contain a line break. uvicorn writes head and body one after the other, two system calls
        and two packets that wake the client twice, and checks each header by regular expressions: 10 µs of
        an L1 hit.
        """
        # Called once. The extensions hold the cycle, which holds the scope: kept, they would make a circle.
        cycle.scope.pop("extensions", None)
        plain = cycle.keep_alive and cycle.scope["method"] != "HEAD"
        last = BODY_RECEIVED not in cycle.scope and not _may_skip(cycle, status)
        if last:
            cycle.keep_alive = False
        if not plain or cycle.disconnected or cycle.response_started or self.flow.write_paused:
            return False
        cycle.waiting_for_100_continue = False
        cycle.response_started = cycle.response_complete = True
        self._write(status, headers, body, last=last)
        cycle.message_event.set()
        if last:
            self._linger()
        cycle.on_response()
        return True

    def _write(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes, *, last: bool) -> None:
        parts = [STATUS_LINE[status]]
        for name, value in (*self.server_state.default_headers, *headers):
            parts += (name, b": ", value, b"\r\n")
        if last:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", body)
        self.transport.write(b"".join(parts))

    def _refuse(self, error: RequestError) -> None:
        """Answer what is no readable request, and close: where the next one begins is not known."""
        id_ = request_id(dict(self.scope["headers"] if self.scope is not None else ()))
        reply = error_reply(error, id_)
        fields = {"request_id": id_, "client": self.client[0] if self.client else None}
        _logger.warning("request refused", extra={**fields, "status": reply.status, "reason": error.detail})
        if self._unanswered() is not None:
            if self.cycle is not self._answering or BODY_RECEIVED in self.cycle.scope:
                # The client would take the refusal for the answer to a request before it.
                self._end_after_answers()
                return
            self._cancel_request()  # it was the body of this request that could not be read
        headers = [
            (b"content-type", reply.content_type),
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-request-id", id_.encode()),
        ]
        self._write(reply.status, headers, reply.body, last=True)
        self._linger()

    def _linger(self) -> None:
        """End our direction now, and close when the client has had time to read the answer."""
        self._lingering = _LINGER_BYTES
        self.transport.write_eof()
        self.flow.resume_reading()
        self._stop_timer()
        self._head_timer = self.loop.call_later(_LINGER_SECONDS, self._time_is_up)

    def _discard(self, size: int) -> None:
        assert self._lingering is not None
        self._lingering -= size
        if self._lingering < 0 and not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _time_is_up(self) -> None:
        self._head_timer = None
        if self._unanswered() is not None:
            self._end_after_answers()
        elif not self.transport.is_closing():
            self.transport.close()

    def _fault(self, error: httptools.HttpParserError) -> RequestError:
        """The refusal that `on_headers_complete` has raised, or what the parser itself found wrong."""
        cause = error.__context__
        if isinstance(cause, RequestError):
            return cause
        if self.parser.get_method() == b"PRI":
            return HttpError(Refusal.VERSION, "HTTP/2 is not spoken here, but HTTP/1.1")
        # httptools puts the target into its message, and a target may hold secrets.
        reason = "its target is no URL" if isinstance(cause, httptools.HttpParserInvalidURLError) else error
        return MalformedError(f"no valid HTTP request: {reason}")


def _may_skip(cycle: RequestResponseCycle, status: int) -> bool:
    """Whether the next request can be expected behind the rest of this one's body."""
    # A client that waits for 100 Continue need not send the body: its next bytes may be another request.
    if status == _SLOW or cycle.waiting_for_100_continue:
        return False
    length = dict(cycle.scope["headers"]).get(b"content-length")
    # The parser takes no more than 64 bits, but any number of zeros before them.
    return length is not None and int(length.rstrip()[-20:]) <= _SKIPPED_BYTES
