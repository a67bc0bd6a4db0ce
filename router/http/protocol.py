"""uvicorn's HTTP/1.1 protocol with what it leaves open: bounds for what nobody reads, few writes, heads
that cannot be read in two ways, and clients that leave.

Invariants: a connection that brings no request is closed in bounded time, whatever else it brings, and
what is read from it in vain is bounded, too. Each request gets one answer at most, in their order, and no
byte of a body is ever read as a request. When a client has left, nothing works for it any more.
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
from router.http.message import ABORT, BODY_RECEIVED, CLIENT_LEFT, FIELDS, FINISHED_METHODS, SEND_RESPONSE
from router.http.problems import error_reply
from router.http.write_batch import BatchedTransport, WriteBatch
from router.query.errors import MalformedError, RequestError

__all__ = ["BoundedProtocol"]

_logger = logging.getLogger(__name__)

_HEAD_SECONDS = 20.0
# Chunk sizes, chunk extensions and trailer fields are read for nothing. They are bounded as in Go's net/http:
# in sum, less what the body explains. A body in chunks of one byte has five others around each.
_FRAMING_BYTES = 64 * 1024
_FRAMING_PER_BYTE = 8
# Of a body that is refused before it has come, as much is read as a new connection may be worth.
_SKIPPED_BYTES = 1 << 20
# A connection closed under a client that still sends is reset, often before the client has read why. So the
# router stops writing first, and lets that many bytes come, or seconds pass.
_LINGER_BYTES = 1 << 20
_LINGER_SECONDS = 2.0
_SLOW = Refusal.SLOW.status

# Before the second byte of an answer is sent ahead of it; each later one waits twice as long.
_AHEAD_SECONDS = 0.01
# Between two looks at a connection that is not read, because requests wait on it.
_LOOK_SECONDS = 0.1
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

    def __init__(self, *args: Any, batch: WriteBatch, **named: Any) -> None:
        super().__init__(*args, **named)
        self._batch = batch
        self._renew_parser()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._batched = BatchedTransport(transport, self._batch)
        super().connection_made(self._batched)
        self._in_head = False
        self._head_bytes = 0  # in earlier chunks
        self._host = _NO_HOST  # of the head before, once it was checked
        self._offer: bytes | None = None  # the head, without its offer of another protocol
        self._size = 0  # of this chunk
        self._body_bytes = 0  # in this chunk
        self._framing_bytes = 0  # beyond what the body explains
        self._answering: RequestResponseCycle | None = None
        self._task: asyncio.Task[None] | None = None  # its task
        self._lingering: int | None = None  # bytes that may still come before it is closed
        # A connection that never says anything is as dear as one that stops half-way.
        self._head_timer: asyncio.TimerHandle | None = self.loop.call_later(_HEAD_SECONDS, self._late)
        self._ended = False  # by the client, which may wait for answers still
        self._look_timer: asyncio.TimerHandle | None = None
        self._ahead_seconds = _AHEAD_SECONDS

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self._look_timer is not None:
            self._look_timer.cancel()
        due = self._due()
        super().connection_lost(exc)
        if due is not None:
            self._drop()
        while self.pipeline:
            # Begun only to be counted and logged like the others.
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            self._drop()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Closes the connection, unless a whole request of it is to be answered.

        A client that closes one direction and one that has gone look the same from here; `_look` finds out.
        """
        if self._due() is None or (self.cycle is self._answering and BODY_RECEIVED not in self.cycle.scope):
            # Not left to the loop, which knows nothing of answers that wait in the batch.
            self.transport.close()
            return False
        self._end_after_answers()
        self._ended = True
        self._look()
        return True

    def data_received(self, data: bytes) -> None:
        """Not uvicorn's, for which any byte ends the wait for the next request, one of a line break, too."""
        if self._lingering is not None:
            self._discard(len(data))
            return
        self._size, self._body_bytes = len(data), 0
        scope = self.scope
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as exc:
                self._ignore_offer(memoryview(data)[exc.args[0] :])
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
        self._offer = None
        self._unset_keepalive_if_required()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """What is raised here comes back as the parser's own error's context."""
        self._in_head = False
        if self._head_bytes + self._size > HEAD_BYTES:  # it, and perhaps a body
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > HEAD_BYTES:
                raise too_large(self.url)
        version = self.parser.get_http_version()
        if version != "1.1":
            check_version(version)
            self.expect_100_continue &= version != "1.0"
        fields = dict(self.headers)
        # Most requests of a connection name the same host, and nothing twice.
        if (
            fields.get(b"host") != self._host
            or len(fields) != len(self.headers)
            or b"transfer-encoding" in fields
        ):
            check_fields(version, self.headers)
            self._host = fields.get(b"host", _NO_HOST)
        if self.parser.should_upgrade():
            self._offer = self._head_without_offer(version)
            return
        if self.url[0] != _SLASH or b"#" in self.url:
            self.url = origin_form(self.parser.get_method(), self.url)
        # The answer before this one may have come during the head, and begun the wait for it.
        self._unset_keepalive_if_required()
        super().on_headers_complete()
        # The scope has them; a trailer's go nowhere: as a header it could be anything, a key, another host.
        self.headers = []
        self.scope[FIELDS] = fields  # type: ignore[literal-required]
        respond = partial(self._respond, self.cycle)
        self.scope["extensions"] = {SEND_RESPONSE: respond, ABORT: self.transport.abort}  # type: ignore[dict-item]
        if self.pipeline and self._look_timer is None:
            self._look_timer = self.loop.call_later(_LOOK_SECONDS, self._look)

    def on_body(self, body: bytes) -> None:
        """This and the next are uvicorn's without its looks for an upgrade, which pay for what is added."""
        self._body_bytes += len(body)
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self._offer is not None:
            return
        self.scope[BODY_RECEIVED] = True  # type: ignore[literal-required]
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()
        if self.flow.read_paused and not self.pipeline:
            # By a large body, that is here now; unread, a connection does not tell of its end.
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """uvicorn's, which keeps no task for who wants to cancel it."""
        self._answering = cycle
        self._task = task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        # What follows a request that is the last is not looked at; and versions are `check_version`'s.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True, lenient_version=True)

    def _ignore_offer(self, rest: memoryview) -> None:
        """Go on behind a head that offered another protocol.

        The parser then takes a body for the other protocol's, and what follows for a request. So it gets
        that head once more without the offer, and then the rest.
        """
        while self._offer is not None:
            head = self._offer
            self._renew_parser()
            self._size += len(head)
            self.parser.feed_data(head)
            if rest:
                try:
                    self.parser.feed_data(rest)
                except httptools.HttpParserUpgrade as exc:
                    rest = rest[exc.args[0] :]

    def _head_without_offer(self, version: str) -> bytes:
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
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._late)

    def _count_framing(self) -> None:
        """Part of a body has come, and nothing else."""
        framing = self._size - self._body_bytes
        self._framing_bytes = max(0, self._framing_bytes + framing - _FRAMING_PER_BYTE * self._body_bytes)
        if self._framing_bytes > _FRAMING_BYTES:
            most = f"{_FRAMING_BYTES} bytes beyond what its body explains"
            self._refuse(MalformedError(f"chunk sizes, extensions and trailers take more than {most}"))

    def _due(self) -> RequestResponseCycle | None:
        """The request that is being answered, if it is still to be."""
        cycle = self._answering
        return None if cycle is None or cycle.response_complete or cycle.disconnected else cycle

    def _drop(self) -> None:
        """Nobody waits for the answer under way any more."""
        cycle, task = self._answering, self._task
        assert cycle is not None and task is not None
        cycle.disconnected = True
        cycle.scope.pop("extensions", None)  # which hold the cycle
        cycle.scope[CLIENT_LEFT] = True  # type: ignore[literal-required]
        cycle.message_event.set()
        begun = inspect.getcoroutinestate(task.get_coro()) != inspect.CORO_CREATED  # type: ignore[arg-type]
        # One that has not will see that it need not; cancelled now, it would leave no trace in the log.
        if begun and cycle.scope["method"] not in FINISHED_METHODS:
            task.cancel()

    def _end_after_answers(self) -> None:
        """Answer what has come whole, and nothing behind it."""
        if self.pipeline and BODY_RECEIVED not in self.cycle.scope:
            self.pipeline.popleft()
        last = self.pipeline[0][0] if self.pipeline else self._answering
        assert last is not None
        last.keep_alive = False
        self._lingering = _LINGER_BYTES
        self._stop_timer()

    def _look(self) -> None:
        """See whether a client that sends nothing more is still there, while it is owed an answer.

        Of one that has gone, the system says so when it gets data for it. So the bytes that any answer
        begins with are sent ahead, one by one: who has only closed one direction finds them in their place.
        """
        self._look_timer = None
        cycle = self._due()
        if cycle is None or self.transport.is_closing():
            return
        if self._ended or (self.flow.read_paused and self._has_ended()):
            if not cycle.response_started and not self._batched.write_ahead():
                return
            delay, self._ahead_seconds = self._ahead_seconds, 2 * self._ahead_seconds
        elif self.pipeline:
            delay = _LOOK_SECONDS
        else:
            return
        self._look_timer = self.loop.call_later(delay, self._look)

    def _has_ended(self) -> bool:
        """Whether the client has closed its side, behind what was not read yet, if the system can say so."""
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
        """Write a whole answer, its headers free of line breaks; False where uvicorn has to see to it.

        It writes head and body one after the other, two system calls and two packets that wake the
        client twice, and looks through each header with regular expressions: 10 µs of an L1 hit.
        """
        # It is asked once; kept, the scope would hold the cycle that holds the scope.
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
        """Answer what is no request that the application could; where the next begins is not known."""
        id_ = request_id(dict(self.scope["headers"] if self.scope is not None else ()))
        reply = error_reply(error, id_)
        fields = {"request_id": id_, "client": self.client[0] if self.client else None}
        _logger.warning("request refused", extra={**fields, "status": reply.status, "reason": error.detail})
        if self._due() is not None:
            if self.cycle is not self._answering or BODY_RECEIVED in self.cycle.scope:
                # Requests before it are being answered, and would seem to be answered by this.
                self._end_after_answers()
                return
            self._drop()  # whose body it was
        headers = [
            (b"content-type", reply.content_type),
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-request-id", id_.encode()),
        ]
        self._write(reply.status, headers, reply.body, last=True)
        self._linger()

    def _linger(self) -> None:
        """Close, but not before the client had a chance to read what it was told."""
        self._lingering = _LINGER_BYTES
        self.transport.write_eof()
        self.flow.resume_reading()
        self._stop_timer()
        self._head_timer = self.loop.call_later(_LINGER_SECONDS, self._late)

    def _discard(self, size: int) -> None:
        assert self._lingering is not None
        self._lingering -= size
        if self._lingering < 0 and not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        self._head_timer = None
        if self._due() is not None:
            self._end_after_answers()
        elif not self.transport.is_closing():
            self.transport.close()

    def _fault(self, error: httptools.HttpParserError) -> RequestError:
        """What the parser found wrong, or what stopped it from within `on_headers_complete`."""
        cause = error.__context__
        if isinstance(cause, RequestError):
            return cause
        if self.parser.get_method() == b"PRI":
            return HttpError(Refusal.VERSION, "HTTP/2 is not spoken here, but HTTP/1.1")
        # httptools shows such a target in its message, and it may hold what no log should.
        reason = "its target is no URL" if isinstance(cause, httptools.HttpParserInvalidURLError) else error
        return MalformedError(f"no valid HTTP request: {reason}")


def _may_skip(cycle: RequestResponseCycle, status: int) -> bool:
    """Whether the next request can be expected behind the rest of this one's body."""
    # A client that waits for leave to send its body may send another request instead.
    if status == _SLOW or cycle.waiting_for_100_continue:
        return False
    length = dict(cycle.scope["headers"]).get(b"content-length")
    # The parser takes no more than 64 bits, but any number of zeros before them.
    return length is not None and int(length.rstrip()[-20:]) <= _SKIPPED_BYTES
