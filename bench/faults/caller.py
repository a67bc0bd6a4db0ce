"""A caller of the router who keeps what became of each request."""

from __future__ import annotations

from time import perf_counter
from typing import Any, NamedTuple

import msgspec

from bench.errors import SearchError
from bench.faults.outcomes import Event, Operation, Said, said, unanswered
from bench.http_client import Connections, request_bytes
from bench.world import COLLECTION

__all__ = ["FIRST_ID", "Answer", "Caller"]

# Documents that loads write have ids from here on, those of the data set lower ones.
FIRST_ID = 1_000_000_000


class Answer(NamedTuple):
    """What it says of itself, its body, and when the request was sent and answered."""

    said: Said
    body: dict[str, Any]
    start: float
    end: float


class Caller:
    """Of the router at `url`; what it has not answered after `answer_seconds` has no answer.

    `events` has one of each request that has ended, by the machine's monotonic clock.
    """

    def __init__(self, url: str, answer_seconds: float) -> None:
        self.url = url
        self.events: list[Event] = []
        self._connections = Connections(url, answer_seconds=answer_seconds, headers=True)

    def __repr__(self) -> str:
        return f"<Caller of {self.url}, {len(self.events)} requests>"

    async def ask(
        self,
        operation: Operation,
        method: str,
        path: str,
        body: object = None,
        *,
        intended: float | None = None,
    ) -> Answer:
        """`path` is below the collection's; the event is from when the request was `intended` to start."""
        encoded = b"" if body is None else msgspec.json.encode(body)
        request = request_bytes(f"{self.url}/v1/collections/{COLLECTION}/{path}", encoded, method)
        start, answer, id_ = perf_counter(), {}, ""
        try:
            status, data, headers = await self._connections.ask(request)
            id_ = headers.get("x-request-id", "")
            answer = msgspec.json.decode(data, type=dict[str, Any])
            shown = said(status, headers, answer)
        except SearchError as exc:
            shown = unanswered(str(exc))
        except msgspec.DecodeError:
            shown = Said(f"{status} without JSON", detail=data[:200].decode(errors="replace"))
        end = perf_counter()
        since = start if intended is None else intended
        # That there is no such document is an answer: whoever asked judges it.
        absent = shown.what == "absent" and operation in ("read", "write")
        self.events.append(Event(since, end - since, operation, Said("full") if absent else shown, id_))
        return Answer(shown, answer, start, end)

    def close(self) -> None:
        self._connections.close()
