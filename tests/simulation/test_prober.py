"""How often a node is probed, by a clock that only the probes themselves move."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from math import inf
from types import SimpleNamespace

import pytest

from bench.simulation.virtual_time import run
from router.nodes.node import Node
from router.nodes.prober import Prober
from router.policy.limit import Limit
from router.policy.selection import Health, NodeState
from router.postgres.connection import ErrorKind, NodeError
from router.settings import Settings
from shard_config import model

SETTINGS = Settings(probe_interval=0.3, probe_timeout=1.0, probe_connect_timeout=2.0, reconnect_max=3.0)
# Jitter, the probe's own time, and the loop's tick.
BOUND = 1.2 * SETTINGS.probe_interval + SETTINGS.probe_timeout + 0.01
# The shard has no other node, so that this one is tried again soon.
DOWN_BOUND = 1.2 * 2 * SETTINGS.probe_interval + SETTINGS.probe_connect_timeout + 0.01


class Server:
    """A replica that stays where it is, or that answers nothing when `frozen`."""

    frozen = False
    process = 1
    expires = inf
    way = SimpleNamespace(moved=False)

    def get_server_pid(self) -> int:
        return self.process

    async def fetchrow(self, statement: str) -> dict[str, object]:
        if self.frozen:
            await asyncio.sleep(3600)
        return {
            **{"standby": True, "lsn": 50, "timeline": None, "started": 1.0, "age": 0.0, "vector": True},
            **{"system": 1, "database": "x", "readable": False, "written": None, "recovered": None},
            **{"synchronous": False, "clock": 0.0, "receiving": True, "process": self.process},
        }

    def terminate(self) -> None:
        pass


def judged(
    seconds: float, monkeypatch: pytest.MonkeyPatch, *, expect: int = 0, freeze: bool = False
) -> tuple[Node, list[float]]:
    """A node after so many seconds of probes, and the times between two verdicts on it."""
    server = Server()

    async def open_connection(dsn: str, *, connect_timeout: float, **options: object) -> Server:
        if server.frozen:
            await asyncio.sleep(connect_timeout)
            raise NodeError(ErrorKind.UNREACHABLE, "timed out")
        return server

    monkeypatch.setattr("router.nodes.prober.open_connection", open_connection)

    async def probes() -> tuple[Node, list[float]]:
        async with probed() as (node, prober, moments):
            if expect:
                prober.expect("s0", expect)
            server.frozen = freeze
            await asyncio.sleep(seconds)
        return node, gaps(moments)

    return run(probes())


@asynccontextmanager
async def probed(settings: Settings = SETTINGS) -> AsyncIterator[tuple[Node, Prober, list[float]]]:
    """A node after its first probe, the prober, and the moments of all its verdicts."""
    loop = asyncio.get_running_loop()
    node = Node(model.Node("a", "postgresql://a/x"), "s0", settings, Limit(1, 1))
    observe, moments = node.observe, list[float]()

    def observed(state: NodeState) -> None:
        moments.append(loop.time())
        observe(state)

    node.observe = observed  # type: ignore[method-assign]
    prober = Prober([node], settings)
    await prober.start()
    yield node, prober, moments
    await prober.close()
    await node.close()


def gaps(moments: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(moments)]


@pytest.mark.parametrize(("expect", "freeze"), [(0, False), (100, False), (0, True), (100, True)])
def test_a_node_is_judged_anew_within_the_bound_whatever_it_does(
    expect: int, freeze: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, between = judged(60.0, monkeypatch, expect=expect, freeze=freeze)
    assert node.state.health is (Health.DOWN if freeze else Health.UP)
    answers_at_once = BOUND - SETTINGS.probe_timeout
    if freeze:
        assert len(between) > 20
        assert between[0] <= BOUND
        assert max(between) <= DOWN_BOUND, max(between)
    else:
        assert len(between) > 100
        # Many routers do not ask at the same moments.
        assert expect or max(between) - min(between) > 0.1 * SETTINGS.probe_interval
        assert max(between) <= answers_at_once, max(between)
    # What is expected of a replica is looked for at once, and ever less eagerly.
    assert (min(between) < 0.01) == (expect > 0 and not freeze)


class Breaking(Server):
    """A connection that is lost so long after it was asked, once that is set."""

    def __init__(self) -> None:
        self.lost_after: float | None = None
        self.answers: asyncio.Event | None = None  # when it does
        self.closed = False

    async def fetchrow(self, statement: str) -> dict[str, object]:
        if self.answers is not None:
            await self.answers.wait()
        if self.lost_after is not None:
            await asyncio.sleep(self.lost_after)
            raise NodeError(ErrorKind.LOST, "the connection was lost")
        return await super().fetchrow(statement)

    def terminate(self) -> None:
        self.closed = True


class Opened:
    """The connections that were opened, each of which took so long."""

    def __init__(self) -> None:
        self.all: list[Breaking] = []
        self.takes = 0.0
        self.then: Callable[[], None] = lambda: None

    async def open_connection(self, dsn: str, *, connect_timeout: float, **options: object) -> Breaking:
        await asyncio.sleep(min(self.takes, connect_timeout))
        if self.takes > connect_timeout:
            raise NodeError(ErrorKind.UNREACHABLE, "timed out")
        self.all.append(Breaking())
        self.then()
        return self.all[-1]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    made = Opened()
    monkeypatch.setattr("router.nodes.prober.open_connection", made.open_connection)
    return made


def test_a_probe_opens_one_connection_in_place_of_the_one_that_it_lost(opened: Opened) -> None:
    """Also where half of its time ends while that one is being opened."""

    async def probes() -> None:
        async with probed() as (node, *_):
            opened.all[0].lost_after, opened.takes = 0.3, 0.4
            await asyncio.sleep(5)
            assert (len(opened.all), node.state.health) == (2, Health.UP)
        assert all(one.closed for one in opened.all)

    run(probes())


def test_of_two_connections_that_answer_in_the_same_moment_one_is_kept(opened: Opened) -> None:
    async def probes() -> None:
        async with probed():
            opened.all[0].answers = answer = asyncio.Event()
            opened.then = answer.set
            await asyncio.sleep(3)
            assert [one.closed for one in opened.all] in ([False, True], [True, False])

    run(probes())


def test_a_connection_that_is_replaced_for_its_age_delays_no_verdict(opened: Opened) -> None:
    async def probes() -> list[float]:
        async with probed() as (node, _, moments):
            opened.all[0].expires, opened.takes = 0.0, 3600.0
            await asyncio.sleep(5)
            assert (len(opened.all), opened.all[0].closed, node.state.health) == (1, False, Health.UP)
            opened.takes = 0.1
            await asyncio.sleep(5)
            assert (len(opened.all), opened.all[0].closed, opened.all[1].closed) == (2, True, False)
        return gaps(moments)

    between = run(probes())
    assert len(between) > 25
    assert max(between) <= BOUND - SETTINGS.probe_timeout


def test_a_node_whose_connection_was_lost_and_is_not_opened_anew_in_time_says_so(opened: Opened) -> None:
    """Its turn to be opened may not have come: that is no word from the node."""

    async def probes() -> None:
        async with probed() as (node, *_):
            opened.all[0].lost_after, opened.takes = 0.0, 1.0
            await asyncio.sleep(1.2)
            assert (node.state.reason, node.state.cause) == ("the connection was lost", "unreachable")
            assert not node.doubtful

    run(probes())


def test_a_node_that_takes_long_to_let_in_is_found_at_the_second_attempt(opened: Opened) -> None:
    """The first is short, because nothing is known of the node and it may keep others waiting."""
    settings = Settings()
    opened.takes = 0.9 * settings.probe_connect_timeout
    assert opened.takes > 2 * settings.probe_timeout

    async def probes() -> None:
        async with probed(settings) as (node, *_):
            assert node.state.reason == "no connection within the probe's time"
            await asyncio.sleep(2 * settings.probe_timeout)
            assert (node.state.health, node.state.reason, node.doubtful) == (Health.DOWN, "timed out", True)
            await asyncio.sleep(opened.takes + 1.2 * settings.probe_interval)
            assert node.state.health is Health.UP

    run(probes())
