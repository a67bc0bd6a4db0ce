"""Clients that leave, and clients that only have nothing more to say."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
import uvloop

from router.documents.types import Document
from router.http import protocol
from router.settings import Settings
from tests.http.wire import SECONDS, Wire, answers, wire

C = b"/v1/collections/documents"
QUERY = json.dumps({"vector": [1, 0, 0], "k": 1}).encode()


def on_each_loop(test: Callable[..., Coroutine[None, None, None]]) -> Any:
    """Run a test on uvloop, which serves, and on asyncio's: their transports tell of an end differently."""

    @functools.wraps(test)
    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], **named: Any) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(test(**named))

    signature = inspect.signature(test)
    extra = inspect.Parameter("loop_factory", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [extra, *signature.parameters.values()]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    factories = [asyncio.new_event_loop, uvloop.new_event_loop]
    return pytest.mark.parametrize("loop_factory", factories, ids=["asyncio", "uvloop"])(run)


def request(line: bytes, body: bytes = b"") -> bytes:
    head = line + b" HTTP/1.1\r\nhost: router\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


SEARCH = request(b"POST " + C + b"/search", QUERY)
BATCH = request(b"POST " + C + b"/search/batch", b'{"searches":[' + b",".join([QUERY] * 600) + b"]}")
LIVE = b"GET /livez HTTP/1.1\r\nhost: router\r\n\r\n"
ALL = {
    "search": SEARCH,
    "batch": BATCH,
    "read": request(b"GET " + C + b"/documents/1"),
    "count": request(b"GET " + C + b"/count"),
    "delete": request(b"DELETE " + C + b"/documents/1"),
    "delete_many": request(b"POST " + C + b"/documents/delete", b'{"ids": [1]}'),
}


class Held:
    """Holds whatever is asked of a backend until told otherwise, and counts what was begun and cancelled."""

    def __init__(self, router: Wire) -> None:
        self.begun = self.cancelled = 0
        self._open = asyncio.Event()
        router.backend._pass = self._pass  # type: ignore[method-assign]

    async def _pass(self) -> None:
        self.begun += 1
        try:
            await self._open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def go_on(self) -> None:
        self._open.set()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not true():
                await asyncio.sleep(0.005)


def close(client: socket.socket) -> None:
    client.close()


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def client_of(router: Wire, *packets: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", router.port))
    for packet in packets:
        client.sendall(packet)
    return client


async def read_all(client: socket.socket) -> bytes:
    client.setblocking(False)
    received = b""
    async with asyncio.timeout(SECONDS):
        while part := await asyncio.get_running_loop().sock_recv(client, 1 << 16):
            received += part
    client.close()
    return received


@pytest.mark.parametrize("leave", [close, reset])
@pytest.mark.parametrize("name", ALL)
@on_each_loop
async def test_what_runs_for_a_client_that_leaves_is_cancelled_and_logged(
    name: str, leave: Callable[[socket.socket], None]
) -> None:
    async with wire() as router:
        held = Held(router)
        client = client_of(router, ALL[name])
        await held.until(lambda: held.begun == (4 if name == "batch" else 1))
        leave(client)
        await held.until(lambda: held.cancelled == held.begun)
        (line,) = await router.requests(1)
        assert (line["status"], line["level"]) == (499, "info")
        ready = await router.say(LIVE.replace(b"livez", b"readyz"))
        assert ready[0][0] == 200
        assert len(await router.requests(2)) == 2


@on_each_loop
async def test_it_is_counted_as_499() -> None:
    async with wire() as router:
        held = Held(router)
        client = client_of(router, SEARCH)
        await held.until(lambda: held.begun == 1)
        client.close()
        await router.requests(1)
        text = (await router.exchange(LIVE.replace(b"livez", b"metrics"))).decode()
        route = 'method="POST",route="/v1/collections/{collection}/search"'
        assert f'pgscatter_requests_total{{{route},status="499"}} 1.0' in text
        assert "\npgscatter_requests_in_flight 1.0\n" in text


@pytest.mark.parametrize("name", ALL)
@on_each_loop
async def test_a_client_that_only_closes_its_side_gets_its_answer(name: str) -> None:
    async with wire() as router:
        vector = np.array([1, 0, 0], "<f4").tobytes()
        router.backend.documents["documents"][1] = Document(0, 1, vector, None, None, {})
        held = Held(router)
        client = client_of(router, ALL[name])
        await held.until(lambda: held.begun > 0)
        client.shutdown(socket.SHUT_WR)
        # Long enough for several bytes of the answer to be sent ahead of it.
        await asyncio.sleep(0.3)
        assert held.cancelled == 0
        held.go_on()
        ((status, body),) = answers(await read_all(client))
        assert status == 200 and body is not None
        (line,) = await router.requests(1)
        assert line["status"] == 200


@on_each_loop
async def test_all_answers_due_to_a_client_that_closed_its_side_come_in_order() -> None:
    async with wire() as router:
        held = Held(router)
        client = client_of(router, SEARCH + LIVE + ALL["count"] + b"GET /li")
        await held.until(lambda: held.begun == 1)
        client.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.3)
        held.go_on()
        found = answers(await read_all(client))
        assert [next(iter(body)) for _, body in found] == ["hits", "status", "count"]
        assert [line["status"] for line in await router.requests(3)] == [200, 200, 200]


@on_each_loop
async def test_the_bytes_sent_ahead_end_and_the_answer_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_AHEAD_SECONDS", 0.0001)
    async with wire() as router:
        held = Held(router)
        client = client_of(router, SEARCH)
        await held.until(lambda: held.begun == 1)
        client.shutdown(socket.SHUT_WR)
        client.setblocking(False)
        ahead = b""
        async with asyncio.timeout(SECONDS):
            while len(ahead) < len(b"HTTP/1.1 "):
                ahead += await asyncio.get_running_loop().sock_recv(client, 100)
        # Whatever else was sent ahead would stand before the status.
        await asyncio.sleep(0.1)
        held.go_on()
        assert ahead == b"HTTP/1.1 "
        assert (await read_all(client)).startswith(b"200 OK\r\ncontent-type: application/json\r\n")


@pytest.mark.parametrize("leave", [close, reset])
@on_each_loop
async def test_what_waits_behind_is_not_begun_for_a_client_that_left(
    leave: Callable[[socket.socket], None],
) -> None:
    async with wire() as router:
        held = Held(router)
        client = client_of(router, SEARCH + ALL["delete"] + ALL["count"])
        await held.until(lambda: held.begun == 1)
        leave(client)
        await held.until(lambda: held.cancelled == 1)
        lines = await router.requests(3)
        assert [line["status"] for line in lines] == [499, 499, 499]
        assert held.begun == 1


@on_each_loop
async def test_a_client_that_left_behind_what_is_not_read_is_noticed() -> None:
    """The connection is not read while requests wait on it, and its end stands behind what is not."""
    async with wire() as router:
        held = Held(router)
        client = client_of(router, SEARCH)
        await held.until(lambda: held.begun == 1)
        for _ in range(2):
            client.sendall(request(b"POST " + C + b"/search", b" " * 20_000 + QUERY))
            await asyncio.sleep(0.05)
        client.close()
        await held.until(lambda: held.cancelled == 1)


@on_each_loop
async def test_a_client_that_leaves_after_a_large_body_is_noticed() -> None:
    async with wire() as router:
        held = Held(router)
        client = client_of(router, request(b"POST " + C + b"/search", b" " * 900_000 + QUERY))
        await held.until(lambda: held.begun == 1)
        client.close()
        await held.until(lambda: held.cancelled == 1)


@on_each_loop
async def test_a_client_that_leaves_at_once_or_within_its_request_leaves_nothing() -> None:
    async with wire() as router:
        held = Held(router)
        for packet in (b"", SEARCH[:20], SEARCH[:-5], BATCH[:-5], SEARCH + SEARCH[:-5]):
            for leave in (close, reset):
                client = client_of(router, packet)
                await asyncio.sleep(0.02)
                leave(client)
        for leave in (close, reset):
            leave(client_of(router, SEARCH))
        lines = await router.requests(4)
        await router.deserted()
        assert held.cancelled == held.begun
        assert {line["status"] for line in lines} == {499}


@on_each_loop
async def test_stores_go_on_without_their_client_and_say_so_in_the_log() -> None:
    document = b'{"documents": [{"id": 5, "vector": [1, 0, 0]}]}'
    async with wire() as router:
        held = Held(router)
        client = client_of(router, request(b"PUT " + C + b"/documents", document))
        await held.until(lambda: held.begun == 1)
        client.close()
        await held.until(lambda: not router.state.connections)
        await asyncio.sleep(0.05)
        assert held.cancelled == 0
        held.go_on()
        (line,) = await router.requests(1)
        assert line["status"] == 499
        assert 5 in router.backend.documents["documents"]


@on_each_loop
async def test_a_store_whose_body_has_not_come_whole_is_none() -> None:
    document = b'{"documents": [{"id": 5, "vector": [1, 0, 0]}]}'
    async with wire() as router:
        client = client_of(router, request(b"PUT " + C + b"/documents", document)[:-1])
        await asyncio.sleep(0.05)
        client.close()
        (line,) = await router.requests(1)
        assert line["status"] == 499 and not router.backend.upserts


@on_each_loop
async def test_others_who_ask_the_same_are_not_disturbed() -> None:
    async with wire() as router:
        held = Held(router)
        leaving, staying = client_of(router, SEARCH), client_of(router, SEARCH)
        await held.until(lambda: held.begun == 2)
        leaving.close()
        await held.until(lambda: held.cancelled == 1)
        held.go_on()
        staying.shutdown(socket.SHUT_WR)
        assert answers(await read_all(staying))[0][0] == 200


@on_each_loop
async def test_an_answer_that_is_ready_when_its_client_closes_its_side_is_sent() -> None:
    async with wire() as router:
        for _ in range(30):
            held = Held(router)
            client = client_of(router, SEARCH)
            await held.until(lambda held=held: held.begun == 1)  # type: ignore[misc]
            held.go_on()
            client.shutdown(socket.SHUT_WR)
            assert answers(await read_all(client))[0][0] == 200


@on_each_loop
async def test_a_place_among_those_answered_is_free_again() -> None:
    async with wire(Settings(max_concurrent=3)) as router:
        held = Held(router)
        clients = [client_of(router, SEARCH) for _ in range(3)]
        await held.until(lambda: held.begun == 3)
        assert [status for status, _ in await router.say(SEARCH)] == [429]
        for client in clients:
            client.close()
        await held.until(lambda: held.cancelled == 3)
        held.go_on()
        assert [status for status, _ in await router.say(SEARCH)] == [200]


@on_each_loop
async def test_a_task_that_ends_slowly_is_cancelled_once() -> None:
    """A second cancel would end its cleaning up."""
    begun, cancelled, left = asyncio.Event(), asyncio.Event(), asyncio.Event()
    ends: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            await left.wait()
            await asyncio.sleep(0.05)
            ends.append("clean")

    async with wire(app=app) as router, asyncio.timeout(SECONDS):
        # The body is broken, of which the client is told; and then it goes, too.
        client = client_of(router, LIVE[:-2].replace(b"GET", b"POST") + b"transfer-encoding: chunked\r\n\r\n")
        await begun.wait()
        client.sendall(b"none\r\n")
        await cancelled.wait()
        reset(client)
        while router.state.connections:
            await asyncio.sleep(0.005)
        left.set()
    assert ends == ["clean"]
