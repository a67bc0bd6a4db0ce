"""Hundreds of nodes that are opened at once, lost at once, or refuse, on one processor."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Coroutine
from math import inf
from types import SimpleNamespace

import pytest

from bench.simulation.virtual_time import run
from router.nodes.node import Node
from router.nodes.opening import Turns
from router.nodes.prober import Prober
from router.policy.limit import Limit
from router.policy.selection import Health
from router.postgres.connection import ErrorKind, NodeError
from router.settings import Settings
from shard_config import model

NODES = 400
# Of the one processor, per connection. A thousand with 6 ms each, twice what the router was measured to take,
# would be as much work.
COST = 0.015
PARTS = 3  # round trips


class Network:
    """What all servers are behind of; which refuse connections, and which say nothing."""

    def __init__(self) -> None:
        self.processor = asyncio.Lock()
        self.refusing: Callable[[str], bool] = lambda dsn: False
        self.silent: set[str] = set()
        self.frozen: set[str] = set()  # whose open connections say nothing either
        self.attempts: list[float] = []
        self.probes: list[float] = []

    async def open_connection(self, dsn: str, *, connect_timeout: float, **options: object) -> Server:
        self.attempts.append(asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(connect_timeout):
                while dsn in self.silent:
                    await asyncio.sleep(0.5)
                for _ in range(PARTS):
                    if self.refusing(dsn):
                        raise NodeError(ErrorKind.UNREACHABLE, "connection refused")
                    async with self.processor:
                        await asyncio.sleep(COST / PARTS)
        except TimeoutError:
            raise NodeError(ErrorKind.UNREACHABLE, "timed out") from None
        return Server(self, dsn)


class Server:
    process = 1
    expires = inf
    way = SimpleNamespace(moved=False)

    def get_server_pid(self) -> int:
        return self.process

    def __init__(self, network: Network, dsn: str) -> None:
        self._network = network
        self._dsn = dsn
        self._closed = False

    async def fetchrow(self, statement: str) -> dict[str, object]:
        self._network.probes.append(asyncio.get_running_loop().time())
        while self._dsn in self._network.frozen and not self._closed:
            await asyncio.sleep(0.05)
        if self._closed or self._network.refusing(self._dsn):
            self._closed = True
            raise NodeError(ErrorKind.LOST, "the connection was lost")
        replica = self._dsn.endswith("b")
        shard = zlib.crc32(self._dsn[:-1].encode())
        return {
            **{"standby": replica, "lsn": 50, "timeline": None if replica else 1, "vector": True},
            # Every server was started at another time, and the two of a shard are of one system.
            **{"started": float(shard + replica), "age": 0.0 if replica else None, "system": shard},
            **{"database": "x", "readable": False, "written": 50, "recovered": None, "process": 1},
            **{"synchronous": False, "clock": 0.0, "receiving": replica},
        }

    def terminate(self) -> None:
        self._closed = True


def simulate(
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    story: Callable[[Network, list[Node]], Coroutine[None, None, None]],
    count: int = NODES,
) -> None:
    async def world() -> None:
        network, turns = Network(), Turns(settings.node_opens)
        monkeypatch.setattr("router.nodes.prober.open_connection", network.open_connection)
        nodes = [
            Node(
                model.Node(f"s{number // 2}-{at}", f"postgresql://s{number // 2}/{at}"),
                f"s{number // 2}",
                settings,
                Limit(1, 1),
                turns=turns,
            )
            for number in range(count)
            for at in "ab"[number % 2]
        ]
        prober = Prober(nodes, settings)
        starting = asyncio.create_task(prober.start())
        await story(network, nodes)
        await starting
        await prober.close()
        await asyncio.gather(*(node.close() for node in nodes))

    run(world())


def up(nodes: list[Node]) -> int:
    return sum(node.state.health is Health.UP for node in nodes)


async def all_up(nodes: list[Node], within: float) -> float:
    """How long that took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while up(nodes) < len(nodes):
        assert loop.time() - began < within, f"{up(nodes)} of {len(nodes)} are up"
        await asyncio.sleep(0.05)
    return loop.time() - began


def test_all_nodes_come_up_and_back_after_a_blip(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(network: Network, nodes: list[Node]) -> None:
        while up(nodes) < NODES // 2:
            await asyncio.sleep(0.05)
        # A shard's first node comes before another's second.
        shards = {node.shard for node in nodes if node.state.health is Health.UP}
        assert len(shards) > 0.9 * NODES // 2
        await all_up(nodes, 15.0)
        network.refusing = lambda dsn: True
        await asyncio.sleep(2.5)
        assert up(nodes) < 0.6 * NODES  # the others have not been probed meanwhile
        network.refusing = lambda dsn: False
        await all_up(nodes, 10.0)

    simulate(monkeypatch, Settings(), story)


def test_nodes_that_refuse_are_asked_seldom_and_one_that_is_back_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(network: Network, nodes: list[Node]) -> None:
        await all_up(nodes, 15.0)
        network.refusing = lambda dsn: int(dsn.split("/")[2][1:]) < 128
        await asyncio.sleep(20)
        assert up(nodes) == len(nodes) - 256
        network.attempts.clear()
        await asyncio.sleep(5)
        # Half a millisecond each.
        assert 250 < len(network.attempts) < 650
        network.refusing = lambda dsn: 0 < int(dsn.split("/")[2][1:]) < 128
        await all_up([node for node in nodes if node.shard == "s0"], 8.0)

    simulate(monkeypatch, Settings(), story, 300)


def test_nodes_that_say_nothing_keep_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(network: Network, nodes: list[Node]) -> None:
        silent = {node.config.dsn for number, node in enumerate(nodes) if number % 5 < 2}
        network.silent = silent
        well = [node for node in nodes if node.config.dsn not in silent]
        await all_up(well, 15.0)
        assert up(nodes) == len(well)
        await asyncio.sleep(20)
        network.refusing = lambda dsn: dsn not in silent
        await asyncio.sleep(2.5)
        network.refusing = lambda dsn: False
        await all_up(well, 10.0)
        network.silent = set()
        await all_up(nodes, 30.0)

    simulate(monkeypatch, Settings(), story, 250)


def test_a_node_that_is_restarted_while_many_have_frozen_waits_for_none_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(network: Network, nodes: list[Node]) -> None:
        await all_up(nodes, 15.0)
        network.silent = network.frozen = {node.config.dsn for node in nodes[:160]}
        # They are known to be down by now, and the first attempts to reach them again are under way.
        await asyncio.sleep(2.0)
        restarted = nodes[-1]
        network.refusing = lambda dsn: dsn == restarted.config.dsn
        while restarted.state.health is Health.UP:
            await asyncio.sleep(0.05)
        network.refusing = lambda dsn: False
        await all_up([restarted], 1.0)
        network.silent = network.frozen = set()
        await all_up(nodes, 10.0)

    simulate(monkeypatch, Settings(), story, 300)


def test_many_nodes_are_probed_at_a_bounded_rate_and_several_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(network: Network, nodes: list[Node]) -> None:
        await all_up(nodes, 15.0)
        await asyncio.sleep(5)
        network.probes.clear()
        await asyncio.sleep(20)
        assert 80 < len(network.probes) / 20 < 110
        # To wake up costs more than a probe.
        assert len(set(network.probes)) <= 10 * 20 + 1

    simulate(monkeypatch, Settings(probe_rate=100), story, 200)
