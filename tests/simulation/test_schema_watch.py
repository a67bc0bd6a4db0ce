"""How often shards are looked at, hundreds of them, on a clock that only the looks move."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

import msgspec
import pytest

from bench.simulation.virtual_time import run
from router.freshness.worker_counters import WorkerCounters
from router.nodes.node import Node
from router.policy.limit import Limit
from router.policy.selection import Health, NodeState
from router.postgres.connection import ErrorKind, NodeError
from router.schema.findings import Finding, NodeFacts, Severity, Versions
from router.schema.watch import SchemaState, SchemaWatch, _unsearchable
from router.settings import Settings
from shard_config import model
from tests.unit.test_schema_shape import collection, table

INTERVAL = 300.0
SETTINGS = Settings(schema_check_interval=INTERVAL)
FITTING = table()


class World:
    """Shards of one node each; `broken` have no table, `constrained` a constraint. Looks take 5 ms."""

    def __init__(self, shards: int) -> None:
        names = [f"s{i}" for i in range(shards)]
        buckets = tuple(names)
        held = msgspec.structs.replace(
            collection(), sharding=model.HashSharding(collection().sharding.key, buckets)
        )
        configs = {name: model.Node(f"{name}-a", f"postgresql://{name}/x") for name in names}
        self.map = model.ShardMap(
            1, {name: model.Shard(name, (node,)) for name, node in configs.items()}, {"documents": held}
        )
        self.nodes = [Node(node, name, SETTINGS, Limit(1, 1)) for name, node in configs.items()]
        for node in self.nodes:
            node.state = NodeState(Health.UP)
        self.broken: set[str] = set()
        self.constrained: set[str] = set()
        self.looks: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.watch = SchemaWatch(self.nodes, self.map, SETTINGS, WorkerCounters(self.map), ask=self.ask)

    async def ask(self, node: Node, collections: list[model.Collection]) -> NodeFacts:
        self.looks[node.shard] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0.005)
        finally:
            self.at_once -= 1
        gone = node.shard in self.broken
        found = table(kind=None, columns={}, indexes=()) if gone else FITTING
        if node.shard in self.constrained:
            found = msgspec.structs.replace(found, constraints=("CHECK (price > 0)",))
        return NodeFacts(
            node.config.name, False, Versions(180000, "0.8.5", "0.8.5"), {"documents": found}, {}
        )

    async def close(self) -> SchemaState:
        state = self.watch.state
        await self.watch.close()
        for node in self.nodes:
            await node.close()
        return state


def test_what_differs_between_shards_is_part_of_the_state_until_it_does_not() -> None:
    noted: list[str] = []

    async def hour() -> tuple[list[str], SchemaState]:
        world = World(3)
        world.watch._counters.note_schema = noted.append  # type: ignore[method-assign]
        world.constrained = {"s1"}
        await world.watch.start()
        before = [f"{one.shard}: {one}" for one in world.watch.state.findings]
        world.constrained = set()
        await asyncio.sleep(2 * INTERVAL)
        return before, await world.close()

    before, after = run(hour())
    said = "s1: warning: documents: has the constraint CHECK (price > 0), which s0 and s2 lack"
    assert (before, after.findings) == ([said], ())
    assert noted == ["s1"]  # for the other workers, when it changed


def test_a_node_that_was_deposed_is_not_looked_at() -> None:
    async def start() -> Counter[str]:
        world = World(2)
        world.nodes[1].state = NodeState(Health.UP, deposed=True)
        await world.watch.start()
        await world.close()
        return world.looks

    assert run(start()) == {"s0": 1}


def test_a_shard_that_could_not_be_looked_at_is_tried_again_soon() -> None:
    async def life() -> SchemaState:
        world = World(2)
        world.nodes[1].state = NodeState(Health.DOWN)
        world.broken = {"s1"}
        await world.watch.start()
        assert world.watch.state.findings == ()
        world.nodes[1].state = NodeState(Health.UP)
        await asyncio.sleep(5.0)
        return await world.close()

    assert set(run(life()).unsearchable["documents"]) == {"s1"}


def test_what_one_node_of_a_shard_lacks_leaves_it_searchable() -> None:
    lacks = Finding("s0", Severity.ERROR, "lacks table", "documents", searchable=False)
    told = [lacks, msgspec.structs.replace(lacks, shard="s1", nodes=("s1-b",))]
    assert _unsearchable([[one] for one in told]) == {"documents": {"s0": "lacks table"}}


def test_hundreds_of_shards_are_looked_at_a_few_at_a_time_and_spread() -> None:
    async def hour() -> World:
        world = World(300)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await world.watch.start()
        assert loop.time() - began < 3.0
        world.looks.clear()
        busiest = 0
        for _ in range(360):
            before = world.looks.total()
            await asyncio.sleep(10.0)
            busiest = max(busiest, world.looks.total() - before)
        assert busiest <= 30  # of 10 on average
        await world.close()
        return world

    world = run(hour())
    assert world.most_at_once == 4
    assert 10 <= min(world.looks.values()) <= max(world.looks.values()) <= 14


def test_shards_that_are_broken_everywhere_are_looked_at_soon_but_not_without_bound() -> None:
    async def minutes() -> tuple[World, SchemaState]:
        world = World(300)
        world.broken = set(world.map.shards)
        await world.watch.start()
        await asyncio.sleep(60.0)
        world.looks.clear()
        for _ in range(100):
            for shard in world.map.shards:
                world.watch.suspect(shard)
            await asyncio.sleep(1.0)
        return world, await world.close()

    world, state = run(minutes())
    assert len(state.unsearchable["documents"]) == 300
    assert world.looks.total() / 100 <= 20  # a second, each of some milliseconds


def test_a_shard_is_looked_at_at_once_and_ever_less_while_its_failures_show_nothing() -> None:
    async def life() -> tuple[list[int], float, float]:
        world = World(4)
        loop = asyncio.get_running_loop()
        await world.watch.start()
        world.looks.clear()
        # Requests that fail for good, on tables as the map says.
        spent: list[int] = []
        for _ in range(3):
            before = world.looks["s1"]
            for _ in range(40):
                world.watch.suspect("s1")
                await asyncio.sleep(0.5)
            spent.append(world.looks["s1"] - before)
        await asyncio.sleep(400)
        world.broken = {"s2"}
        broke = loop.time()
        while not world.watch.state.unsearchable and loop.time() - broke < 10:
            world.watch.suspect("s2")
            await asyncio.sleep(0.01)
        noticed = loop.time() - broke
        world.broken = set()
        mended = loop.time()
        while world.watch.state.unsearchable and loop.time() - mended < 10:
            await asyncio.sleep(0.01)
        recovered = loop.time() - mended
        await world.close()
        return spent, noticed, recovered

    spent, noticed, recovered = run(life())
    assert spent[0] <= 6 and spent[-1] <= 2
    assert noticed <= 1.2
    assert recovered <= 2.5


def test_a_node_that_cannot_be_looked_at_leaves_what_was_known() -> None:
    async def life() -> tuple[SchemaState, SchemaState]:
        world = World(2)
        world.broken = {"s1"}
        await world.watch.start()
        known = world.watch.state

        async def refuse(node: Node, collections: list[model.Collection]) -> NodeFacts:
            raise NodeError(ErrorKind.LOST, "the connection was lost")

        world.watch._ask = refuse  # type: ignore[method-assign,assignment]
        await asyncio.sleep(30.0)
        return known, await world.close()

    known, later = run(life())
    assert known == later
    assert set(known.unsearchable["documents"]) == {"s1"}


def test_why_a_node_cannot_be_asked_is_said_once_until_it_can_be(caplog: pytest.LogCaptureFixture) -> None:
    async def minutes() -> list[int]:
        world = World(1)
        said: list[int] = []
        why: list[str | None] = []

        async def ask(node: Node, collections: list[model.Collection]) -> NodeFacts:
            if (reason := why[-1]) is not None:
                raise NodeError(ErrorKind.FATAL, reason)
            return await world.ask(node, collections)

        world.watch._ask = ask  # type: ignore[method-assign,assignment]
        for reason in ("refused", "refused", "full", None, "full"):
            why.append(reason)
            world.watch.suspect("s0")
            caplog.clear()
            if not said:
                await world.watch.start()
            await asyncio.sleep(2 * INTERVAL)
            said.append([record.getMessage() for record in caplog.records].count("schema not checked"))
        await world.close()
        return said

    caplog.set_level(logging.INFO, logger="router.schema.watch")
    assert run(minutes()) == [1, 0, 1, 0, 1]
