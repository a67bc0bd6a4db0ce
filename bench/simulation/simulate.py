"""One run: the router's own stages over simulated servers, on a virtual clock.

Planning, scattering, selection of replicas, dispatching and limits are the router's classes as they are;
only what speaks to PostgreSQL is replaced, and what takes processor time is charged to a simulated
processor. The stages above `Scatter` (caches, coalescing) are left out, since every search differs.

Invariant: equal arguments give equal results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import cycle
from math import ceil
from random import Random

import msgspec
import numpy as np

from bench.simulation.hosts import Host, Process
from bench.simulation.model import Costs, Load, Result, Stragglers, System
from bench.simulation.nodes import Server
from bench.simulation.virtual_time import run
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
from shard_config import model
from shard_config.values import ValueType

__all__ = ["World", "build_map", "simulate"]

_SAMPLE_EVERY = 0.05


def simulate(system: System, costs: Costs, load: Load, *, seed: int = 1) -> Result:
    """The figures of one run.

    Raises:
        ValueError: `load` is neither a closed loop nor an open one.
    """
    if bool(load.clients) == bool(load.rate):
        raise ValueError("a load has either clients or a rate")
    return run(_run(system, costs, load, seed))


async def _run(system: System, costs: Costs, load: Load, seed: int) -> Result:
    world = World(system, costs, seed)
    measured = _Measured(world, load)
    beside = [asyncio.create_task(measured.watch())]
    if system.others:
        beside.append(asyncio.create_task(_replay(world)))
    try:
        await (_closed if load.clients else _open)(world, load, measured)
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
    result = measured.result()
    await world.close()
    return result


class World:
    """A router and its nodes; must be made on the loop that it runs on.

    Attributes:
        scatter: the router, as far as it is simulated.
        nodes, servers: in the map's order, one of each per node.
        limits: one per host.
    """

    def __init__(self, system: System, costs: Costs, seed: int = 1) -> None:
        self.system = system
        self.costs = costs
        self.rng = Random(seed)
        self.clock: Callable[[], float] = asyncio.get_running_loop().time
        self.shard_map = build_map(system)
        self.collection = self.shard_map.collections["items"]
        per_host = system.nodes_per_host or system.nodes
        self.hosts = [Host(system.cores, crowded=system.crowded) for _ in range(-(-system.nodes // per_host))]
        shared = self.hosts[0] if system.together_on_host else None
        self.router, self.client = Process(shared), Process(shared)
        self.limits = [_limit(system, per_host) for _ in self.hosts]
        self._servers_and_nodes(per_host)
        self.hedges = Budget(system.settings.hedge_budget) if system.settings.hedge_quantile else None
        sets = {
            name: ReplicaSet(
                name,
                self._of_shard[name],
                hedges=self.hedges,
                rng=Random(f"{seed} {name}").random,
                clock=self.clock,
            )
            for name in self.shard_map.shards
        }
        self.scatter = Scatter(
            self.shard_map, Fanout(sets), Freshness(self.shard_map), Ways(lambda collection, shard: None)
        )

    def __repr__(self) -> str:
        return f"<World {self.scatter!r} on {len(self.hosts)} hosts>"

    def query(self, number: int, *, k: int = 10, ef_search: int = 40, caller: object = None) -> SearchQuery:
        vector = np.full(self.collection.vector.dimensions, number, dtype="<f4").tobytes()
        return SearchQuery(self.collection, vector, k, ef_search=ef_search, cache=False, caller=caller)

    async def search(self, query: SearchQuery, deadline: float) -> tuple[float, bool]:
        """The share of shards in the answer, and whether it is full; the router's time included.

        Raises:
            RouterError
        """
        per_search = self._router_seconds(self.costs.router_search)
        await self.router.work(
            per_search / 2 + self._router_seconds(self.costs.router_shard) * self.system.shards / 2
        )
        found = await self.scatter.search(query, deadline)
        await self.router.work(per_search / 2)
        coverage = found.coverage
        return coverage.shards.ok / coverage.shards.total, coverage.full

    async def close(self) -> None:
        await asyncio.gather(*(node.close() for node in self.nodes))

    def _router_seconds(self, seconds: float) -> float:
        return seconds if self.system.router_cpu else 0.0

    def _servers_and_nodes(self, per_host: int) -> None:
        system, costs = self.system, self.costs
        if not system.router_cpu:
            costs = msgspec.structs.replace(costs, router_shard=0.0, router_statement=0.0)
        slow = self._slow()
        self.servers: list[Server] = []
        self.nodes: list[Node] = []
        self._of_shard: dict[str, list[Node]] = {}
        for name, shard in self.shard_map.shards.items():
            for replica, config in enumerate(shard.nodes):
                number = len(self.nodes)
                server = Server(
                    number,
                    self.hosts[number // per_host],
                    self.router,
                    costs,
                    Random(self.rng.random()),
                    slow.get(number),
                )
                limit = self.limits[number // per_host]
                node = Node(config, name, system.settings, limit, execute=server, clock=self.clock)
                role = Role.REPLICA if replica else Role.PRIMARY
                node.observe(NodeState(health=Health.UP, role=role))
                self.servers.append(server)
                self.nodes.append(node)
                self._of_shard.setdefault(name, []).append(node)

    def _slow(self) -> dict[int, Stragglers]:
        stragglers = self.system.stragglers
        if stragglers is None:
            return {}
        chosen = self.rng.sample(range(self.system.nodes), round(stragglers.share * self.system.nodes))
        return dict.fromkeys(chosen, stragglers)


def _limit(system: System, nodes: int) -> Limit:
    """As `router.topology` makes it for each host."""
    if system.fixed_limit is not None:
        return Limit(system.fixed_limit, system.fixed_limit, nodes)
    settings = system.settings
    return Limit(min(settings.node_statements, settings.node_connections), settings.node_connections, nodes)


def build_map(system: System) -> model.ShardMap:
    """One collection `items`, hashed over all shards."""
    names = [f"s{i}" for i in range(system.shards)]
    shards = {
        name: model.Shard(
            name,
            tuple(
                model.Node(f"{name}-{j}", f"postgresql://simulated/{name}") for j in range(system.replicas)
            ),
        )
        for name in names
    }
    id_ = model.Column("id", "id", ValueType.BIGINT)
    items = model.Collection(
        name="items",
        table=model.Table("public", "items"),
        id=id_,
        vector=model.Vector("embedding", model.VectorType.VECTOR, 4, model.Metric.L2),
        content=None,
        metadata=None,
        columns={},
        sharding=model.HashSharding(id_, tuple(names)),
        index=model.Index(16, 64, model.Quantization.NONE),
        search=model.SearchDefaults(40, 2.0, 5.0, 1000),
        cache=model.Cache(0.0),
    )
    return model.ShardMap(1, shards, {"items": items})


class _Measured:
    """Takes down what ends between the end of the warm-up and the end of the run."""

    def __init__(self, world: World, load: Load) -> None:
        self._world = world
        self._load = load
        self.begin = world.clock() + load.warm
        self.end = self.begin + load.seconds
        self._latencies: list[float] = []
        self._coverage: list[float] = []
        self._full = self._refused = self._failed = 0
        self._limits: list[list[int]] = [[] for _ in world.limits]
        self._before: tuple[int, int, float, float] = (0, 0, 0.0, 0.0)

    async def ask(self, number: int, intended: float) -> None:
        """One search from the client's side."""
        world, load = self._world, self._load
        await world.client.work(world.costs.client_search / 2)
        coverage, full, error = 0.0, False, None
        try:
            coverage, full = await world.search(
                world.query(number, k=load.k, ef_search=load.ef_search), world.clock() + load.timeout
            )
        except RouterError as exc:
            error = exc
        await world.client.work(world.costs.client_search / 2)
        now = world.clock()
        if not self.begin <= now < self.end:
            return
        if isinstance(error, OverloadedError):
            self._refused += 1
        elif error is not None:
            self._failed += 1
        else:
            self._latencies.append(now - intended)
            self._coverage.append(coverage)
            self._full += full

    async def watch(self) -> None:
        await asyncio.sleep(self._load.warm)
        self._before = self._counts()
        while True:
            for values, limit in zip(self._limits, self._world.limits, strict=True):
                values.append(limit.value)
            await asyncio.sleep(_SAMPLE_EVERY)

    def result(self) -> Result:
        world = self._world
        counts = [now - before for now, before in zip(self._counts(), self._before, strict=True)]
        statements, searches, host_busy, router_busy = counts
        elapsed = world.clock() - self.begin
        latencies = np.array(self._latencies or [float("nan")])
        p50, p95, p99 = (float(x) for x in np.percentile(latencies, [50, 95, 99]))
        limits = [float(np.mean(values)) for values in self._limits]
        return Result(
            answered=len(self._latencies),
            refused=self._refused,
            failed=self._failed,
            rate=len(self._latencies) / self._load.seconds,
            mean=float(latencies.mean()),
            p50=p50,
            p95=p95,
            p99=p99,
            coverage=_mean(self._coverage),
            full=self._full / max(len(self._latencies), 1),
            together=searches / max(statements, 1),
            limits=(min(limits), _mean(limits), max(limits)),
            host_use=host_busy / (elapsed * sum(self._world.system.cores for _ in world.hosts)),
            router_use=router_busy / elapsed,
            loop="closed" if self._load.clients else "open",
        )

    def _counts(self) -> tuple[int, int, float, float]:
        servers = self._world.servers
        return (
            sum(server.statements for server in servers),
            sum(server.searches for server in servers),
            sum(host.busy_seconds for host in self._world.hosts),
            self._world.router.busy_seconds,
        )


async def _replay(world: World) -> None:
    """As many jobs as others must have had to take what they took, each with a share like anybody's."""
    loop, system, rng = asyncio.get_running_loop(), world.system, Random(0)
    for cores in cycle(system.others):
        jobs = ceil(cores)
        for _ in range(jobs):
            work = cores / jobs * system.step
            loop.call_later(rng.random() * (system.step - work), world.hosts[0].start, work, lambda: None)
        await asyncio.sleep(system.step)


async def _closed(world: World, load: Load, measured: _Measured) -> None:
    async def client(number: int) -> None:
        asked = number
        while world.clock() < measured.end:
            await measured.ask(asked, world.clock())
            asked += load.clients

    await asyncio.gather(*(client(i) for i in range(load.clients)))


async def _open(world: World, load: Load, measured: _Measured) -> None:
    under_way: set[asyncio.Task[None]] = set()
    at, number = world.clock(), 0
    while True:
        at += world.rng.expovariate(load.rate)
        if at >= measured.end:
            break
        await asyncio.sleep(at - world.clock())
        task = asyncio.create_task(measured.ask(number, at))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        number += 1
    await asyncio.gather(*under_way)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
