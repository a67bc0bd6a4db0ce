"""One run: the router's own stages over simulated servers, on a virtual clock.

Planning, scattering, selection of replicas, dispatching and limits are the router's classes as they are;
only what speaks to PostgreSQL is replaced, and what takes processor time is charged to a simulated
processor. The stages above `Scatter` (caches, coalescing) are left out, since every search differs.

Invariant: equal arguments give equal results.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from itertools import cycle
from math import ceil
from random import Random

import msgspec
import numpy as np

from bench.errors import SearchError
from bench.generators import Event, Load, Measured, Open, Target, generate
from bench.percentiles import Latencies
from bench.simulation.hosts import Host, Process
from bench.simulation.model import Costs, Result, System
from bench.simulation.nodes import Server
from bench.simulation.virtual_time import run
from bench.world import COLLECTION, map_entry
from router.freshness.freshness import Freshness
from router.nodes.node import Node
from router.policy.budget import Budget
from router.policy.limit import Limit
from router.policy.selection import Health, NodeState, Role
from router.policy.ways import Ways
from router.query.errors import OverloadedError, RouterError
from router.query.types import SearchQuery
from router.stages.fanout import Fanout
from router.stages.replicas import ReplicaSet
from router.stages.scatter import Scatter
from shard_config import ShardMap, parse
from shard_config.model import Metric
from shard_config.model import Node as NodeConfig

__all__ = ["World", "build_map", "simulate"]

_SAMPLE_EVERY = 0.05
_QUERIES = 10_000  # that differ; what a search costs does not depend on which it is
_REFUSED = "refused"
# The router refuses what is too much; the generator holds nothing back.
_MOST_OUTSTANDING = 1_000_000


def simulate(system: System, costs: Costs, load: Load, *, timeout: float = 5.0, seed: int = 1) -> Result:
    """The figures of one run, whose searches may take `timeout` seconds."""
    load = msgspec.structs.replace(load, seed=seed)
    if isinstance(load, Open):
        load = msgspec.structs.replace(load, outstanding=_MOST_OUTSTANDING)
    return run(_run(system, costs, load, timeout, seed))


async def _run(system: System, costs: Costs, load: Load, timeout: float, seed: int) -> Result:
    world = World(system, costs, seed)
    target = _Simulated(world, timeout)
    beside = [asyncio.create_task(target.watch())]
    if system.others:
        beside.append(asyncio.create_task(_replay(world)))
    try:
        measured = await generate(target, load, queries=_QUERIES, k=0, tell=target.hear, clock=world.clock)
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
    await world.close()
    return target.result(measured)


class World:
    """A router and its nodes; must be made on the loop that it runs on.

    Attributes:
        scatter: the router, as far as it is simulated.
        nodes, servers: in the map's order, one of each per node.
        limits: one per host.
    """

    def __init__(self, system: System, costs: Costs, seed: int = 1) -> None:
        if not system.router_cpu:
            costs = msgspec.structs.replace(costs, router_search=0.0, router_shard=0.0, router_statement=0.0)
        self.system = system
        self.costs = costs
        self.rng = Random(seed)
        self.clock: Callable[[], float] = asyncio.get_running_loop().time
        self.shard_map = build_map(system)
        self.collection = self.shard_map.collections[COLLECTION]
        per_host = system.nodes_per_host or system.nodes
        self.hosts = [Host(system.cores, crowded=system.crowded) for _ in range(-(-system.nodes // per_host))]
        shared = self.hosts[0] if system.together_on_host else None
        self.router, self.client = Process(shared), Process(shared)
        self.limits = [_limit(system, per_host) for _ in self.hosts]
        self.servers: list[Server] = []
        self.nodes: list[Node] = []
        slow = self._slow()
        hedges = Budget(system.settings.hedge_budget) if system.settings.hedge_quantile else None
        sets = {}
        for name, shard in self.shard_map.shards.items():
            nodes = [
                self._node(config, name, per_host, slow, Role.REPLICA if replica else Role.PRIMARY)
                for replica, config in enumerate(shard.nodes)
            ]
            rng = Random(f"{seed} {name}").random
            sets[name] = ReplicaSet(name, nodes, hedges=hedges, rng=rng, clock=self.clock)
        ways = Ways(lambda collection, shard: None)
        self.scatter = Scatter(self.shard_map, Fanout(sets), Freshness(self.shard_map), ways)

    def __repr__(self) -> str:
        return f"<World {self.scatter!r} on {len(self.hosts)} hosts>"

    def query(self, number: int, *, caller: object = None) -> SearchQuery:
        vector = np.full(self.collection.vector.dimensions, number, dtype="<f4").tobytes()
        return SearchQuery(self.collection, vector, 10, ef_search=40, cache=False, caller=caller)

    async def search(self, query: SearchQuery, deadline: float) -> tuple[float, bool]:
        """The share of shards in the answer, and whether it is full; the router's time included.

        Raises:
            RouterError
        """
        costs = self.costs
        await self.router.work((costs.router_search + costs.router_shard * self.system.shards) / 2)
        found = await self.scatter.search(query, deadline)
        await self.router.work(costs.router_search / 2)
        coverage = found.coverage
        return coverage.shards.ok / coverage.shards.total, coverage.full

    async def close(self) -> None:
        await asyncio.gather(*(node.close() for node in self.nodes))

    def _node(
        self, config: NodeConfig, shard: str, per_host: int, slow: dict[int, float], role: Role
    ) -> Node:
        """The next one, which is up, with its server."""
        number = len(self.nodes)
        host, limit = self.hosts[number // per_host], self.limits[number // per_host]
        rng = Random(self.rng.random())
        server = Server(number, host, self.router, self.costs, rng, slow.get(number, 1.0))
        node = Node(config, shard, self.system.settings, limit, execute=server, clock=self.clock)
        node.observe(NodeState(health=Health.UP, role=role))
        self.servers.append(server)
        self.nodes.append(node)
        return node

    def _slow(self) -> dict[int, float]:
        """The numbers of the nodes that fall behind, and by what factor."""
        nodes, stragglers = self.system.nodes, self.system.stragglers
        if stragglers is None:
            return {}
        return dict.fromkeys(
            self.rng.sample(range(nodes), round(stragglers.share * nodes)), stragglers.factor
        )


def _limit(system: System, nodes: int) -> Limit:
    """As `router.topology` makes it for each host."""
    if system.fixed_limit is not None:
        return Limit(system.fixed_limit, system.fixed_limit, nodes)
    settings = system.settings
    return Limit(min(settings.node_statements, settings.node_connections), settings.node_connections, nodes)


def build_map(system: System) -> ShardMap:
    """One collection `items`, hashed over all shards."""
    dsn = "postgresql://simulated/{}"
    nodes = {
        f"s{i}": [{"name": f"s{i}-{j}", "dsn": dsn.format(f"s{i}-{j}")} for j in range(system.replicas)]
        for i in range(system.shards)
    }
    items = map_entry(COLLECTION, 4, Metric.L2, system.shards)
    shards = {name: {"nodes": of_shard} for name, of_shard in nodes.items()}
    return parse(json.dumps({"version": 1, "shards": shards, "collections": {COLLECTION: items}}))


class _Simulated(Target):
    """The router as the target of a generator; what it counts is of the measured time."""

    def __init__(self, world: World, timeout: float) -> None:
        self._world = world
        self._timeout = timeout
        self._coverage: list[float] = []
        self._full = 0
        self._limits: list[float] = []
        self._before = self._after = self._counts()

    async def search(self, query: int) -> Sequence[int]:
        """One search from the client's side."""
        world = self._world
        await world.client.work(world.costs.client_search / 2)
        try:
            coverage, full = await world.search(world.query(query), world.clock() + self._timeout)
        except RouterError as exc:
            raise SearchError(_REFUSED if isinstance(exc, OverloadedError) else type(exc).__name__) from exc
        finally:
            await world.client.work(world.costs.client_search / 2)
        self._coverage.append(coverage)
        self._full += full
        return []

    def hear(self, event: Event) -> None:
        if event == "began":
            self._coverage.clear()
            self._full = 0
            self._limits.clear()
            self._before = self._counts()
        elif event == "ended":
            self._after = self._counts()

    async def watch(self) -> None:
        while True:
            self._limits.append(_mean([limit.value for limit in self._world.limits]))
            await asyncio.sleep(_SAMPLE_EVERY)

    def result(self, measured: Measured) -> Result:
        statements, searches, router_busy = (
            after - before for after, before in zip(self._after, self._before, strict=True)
        )
        latencies = Latencies.decode(measured.latencies)
        mean, p50, p99 = latencies.mean, latencies.at(50), latencies.at(99)
        if not latencies.count:
            mean = p50 = p99 = float("nan")
        refused = measured.reasons.get(_REFUSED, 0)
        return Result(
            answered=measured.searches,
            refused=refused,
            failed=measured.failed - refused,
            rate=measured.rate,
            mean=mean,
            p50=p50,
            p99=p99,
            coverage=_mean(self._coverage),
            full=self._full / max(len(self._coverage), 1),
            together=searches / max(statements, 1),
            limit=_mean(self._limits),
            router_use=router_busy / measured.seconds,
        )

    def _counts(self) -> tuple[int, int, float]:
        servers = self._world.servers
        return (
            sum(server.statements for server in servers),
            sum(server.searches for server in servers),
            self._world.router.busy_seconds,
        )


async def _replay(world: World) -> None:
    """As many jobs as others must have had to take what they took, each with a share like anybody's."""
    system, rng = world.system, Random(0)

    async def one(delay: float, work: float) -> None:
        await asyncio.sleep(delay)
        await world.hosts[0].run(work)

    async with asyncio.TaskGroup() as jobs:
        for cores in cycle(system.others):
            for _ in range(ceil(cores)):
                work = cores / ceil(cores) * system.step
                jobs.create_task(one(rng.random() * (system.step - work), work))
            await asyncio.sleep(system.step)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
