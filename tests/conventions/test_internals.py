"""What the router overrides and reads of uvicorn, httptools and httpcore, beyond what they promise to keep.

Their versions are bounded in pyproject.toml. Before a bound is raised, this says what has changed.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpcore
import httptools
import pytest
import uvicorn
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from router.http import protocol, server
from router.http.write_batch import BatchedTransport, WriteBatch

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def connection() -> protocol.BoundedProtocol:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError

    config = uvicorn.Config(app, log_config=None, ws="none")
    config.load()
    made = protocol.BoundedProtocol(config, ServerState(), {}, batch=WriteBatch())
    made.connection_made(SimpleNamespace(get_extra_info=lambda *_: None, is_closing=lambda: True))  # type: ignore[arg-type]
    made._stop_timer()
    return made


def own(cls: type, base: type) -> set[str]:
    """What `cls` and `base` both define, dunders left out."""
    return {name for name in vars(cls) if hasattr(base, name) and not name.startswith("__")}


def test_what_is_overridden_is_there_to_be_overridden() -> None:
    assert own(protocol.BoundedProtocol, httptools_impl.HttpToolsProtocol) == {
        "connection_made",
        "connection_lost",
        "data_received",
        "eof_received",
        "on_message_begin",
        "on_headers_complete",
        "on_body",
        "on_message_complete",
        "_start_asgi_task",
        "shutdown",
    }
    assert own(server._Server, uvicorn.Server) == {"capture_signals", "startup", "on_tick", "shutdown"}


@pytest.mark.parametrize(
    ("cls", "name", "parameters"),
    [
        (httptools_impl.HttpToolsProtocol, "_start_asgi_task", ["self", "cycle", "app"]),
        (httptools_impl.HttpToolsProtocol, "_unset_keepalive_if_required", ["self"]),
        (httptools_impl.HttpToolsProtocol, "on_response_complete", ["self"]),
        (httptools_impl.HttpToolsProtocol, "shutdown", ["self"]),
        (uvicorn.Server, "capture_signals", ["self"]),
        (uvicorn.Server, "on_tick", ["self", "counter"]),
        (uvicorn.Server, "shutdown", ["self", "sockets"]),
        (httptools_impl.RequestResponseCycle, "run_asgi", ["self", "app"]),
        (FlowControl, "resume_reading", ["self"]),
        (uvicorn.Server, "startup", ["self", "sockets"]),
    ],
)
def test_methods_take_what_they_are_given(cls: type, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(cls, name)).parameters)[: len(parameters)] == parameters


async def test_a_connection_has_what_is_read_of_it(connection: protocol.BoundedProtocol) -> None:
    known = "parser flow transport pipeline cycle scope headers loop tasks client timeout_keep_alive_task"
    for name in known.split():
        assert hasattr(connection, name), name
    connection.on_message_begin()
    assert (connection.url, connection.expect_100_continue, connection.headers) == (b"", False, [])
    assert connection.scope["headers"] is connection.headers
    assert connection.flow.read_paused is connection.flow.write_paused is False
    assert connection.server_state.default_headers == [] and connection.tasks is connection.server_state.tasks


def test_a_cycle_has_what_is_read_of_it() -> None:
    given: dict[str, Any] = dict.fromkeys(inspect.signature(httptools_impl.RequestResponseCycle).parameters)
    cycle = httptools_impl.RequestResponseCycle(**given | {"scope": {}, "default_headers": []})
    state = {name: False for name in ("disconnected", "response_started", "response_complete")}
    assert (cycle.body, cycle.more_body) == (b"", True)
    assert {name: getattr(cycle, name) for name in state} == state
    for name in ("keep_alive", "message_event", "waiting_for_100_continue", "on_response", "scope"):
        assert name in vars(cycle), name


def test_a_server_has_what_is_read_and_set_of_it() -> None:
    made = uvicorn.Server(uvicorn.Config("a:b", log_config=None))
    assert (made.started, made.should_exit, made.server_state.connections) == (False, False, set())
    # What `shutdown` closes, and where `serve` looks at what `on_tick` sets.
    assert "self.servers" in inspect.getsource(uvicorn.Server.startup)
    assert "self.lifespan = " in inspect.getsource(uvicorn.Server._serve)
    assert "if not self.should_exit" in inspect.getsource(uvicorn.Server._serve)
    assert httptools_impl.STATUS_LINE[200] == b"HTTP/1.1 200 OK\r\n"


def test_the_parser_says_what_is_asked_of_it() -> None:
    heard: list[object] = []
    target = SimpleNamespace(on_headers_complete=lambda: heard.append(parser.should_upgrade()))
    parser = httptools.HttpRequestParser(target)
    parser.set_dangerous_leniencies(lenient_data_after_close=True, lenient_version=True)
    head = b"POST / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: x\r\ncontent-length: 1\r\n\r\n"
    with pytest.raises(httptools.HttpParserUpgrade) as offered:
        parser.feed_data(head + b"b")
    assert offered.value.args == (len(head),) and heard == [True]
    assert (parser.get_method(), parser.get_http_version()) == (b"POST", "1.1")
    parser.feed_data(memoryview(b"GET / HTTP/1.1\r\n\r\n"))
    assert issubclass(httptools.HttpParserUpgrade, Exception)
    assert not issubclass(httptools.HttpParserUpgrade, httptools.HttpParserError)
    fault = ValueError()

    def refuse() -> None:
        raise fault

    refusing = httptools.HttpRequestParser(SimpleNamespace(on_headers_complete=refuse))
    with pytest.raises(httptools.HttpParserError) as refused:
        refusing.feed_data(b"GET / HTTP/1.1\r\n\r\n")
    assert refused.value.__context__ is fault


def test_every_answer_begins_with_what_may_be_sent_ahead_of_it() -> None:
    from router.http import write_batch

    assert all(line.startswith(write_batch._PREFIX) for line in httptools_impl.STATUS_LINE.values())
    assert "HTTP/1.1 100 Continue" in inspect.getsource(httptools_impl.RequestResponseCycle.receive)
    assert BatchedTransport.write_ahead.__doc__


@pytest.mark.parametrize("name", ["uvicorn", "httptools", "httpcore"])
def test_versions_are_bounded_and_the_lock_is_within(name: str) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (found,) = [re.fullmatch(rf"{name}>=([\d.]+),<([\d.]+)", one) for one in declared if one.startswith(name)]
    assert found is not None
    lower, upper = (tuple(map(int, bound.split("."))) for bound in found.groups())
    assert upper[:2] == (lower[0], lower[1] + 1), "a minor version may change what is internal"
    locked = re.findall(rf"^{name}==([\d.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    for one in (*locked, version(name)):
        assert lower <= tuple(map(int, one.split("."))) < upper
    assert locked


async def test_a_client_s_connection_tells_what_came_behind_an_answer() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokmore"
    stream = httpcore.AsyncMockStream([answer])
    connection = httpcore.AsyncHTTP11Connection(httpcore.Origin(b"http", b"host", 80), stream)
    response = await connection.handle_async_request(
        httpcore.Request("GET", "http://host/", headers=[("host", "host")])
    )
    assert b"".join([part async for part in response.aiter_stream()]) == b"ok"
    assert connection._h11_state.trailing_data[0] == b"more"
    await connection.aclose()
