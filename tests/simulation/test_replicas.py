"""Replica sets whose nodes fail, freeze and dawdle by a seed: their promises hold in every world."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import pytest

from bench.simulation.virtual_time import run
from router.nodes.node import Node
from router.policy.budget import Budget
from router.policy.limit import Limit
from router.policy.selection import Health, NodeState, Reads, Role
from router.postgres.connection import ErrorKind, NodeError
from router.query.errors import OverloadedError
from router.query.types import Hedge, Probe, Row, Shape, ShardRows, ShardState, Work
from router.settings import Settings
from router.stages.fanout import Fanout
from router.stages.replicas import ReplicaSet
from shard_config import model

SETTINGS = Settings(node_connections=1000, node_statements=1000, node_together=1)
USUAL = {Work.NEAREST: 0.002, Work.SCAN: 1.2}


class Server:
    """Answers after a while; frozen, it never does."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.slow = 0.0
        self.failing = 0.0
        self.kinds = [ErrorKind.LOST, ErrorKind.TRANSIENT]
        self.asked = self.running = self.cancelled = 0
        self._frozen = False
        self._stuck: list[asyncio.Future[None]] = []

    async def __call__(self, probes: Sequence[Probe]) -> list[tuple[Sequence[Row], str | None]]:
        loop = asyncio.get_running_loop()
        self.asked += 1
        self.running += 1
        session = loop.create_future()
        seconds = self.slow + USUAL[probes[0].work] * self.rng.lognormvariate(0, 0.2)
        timer = loop.call_at(loop.time() + seconds, self._finish, session)
        try:
            await session
            if self.rng.random() < self.failing:
                raise NodeError(self.rng.choice(self.kinds), "by chance")
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            timer.cancel()
            self.running -= 1
        return [([(1, 0.5)], None) for _ in probes]

    def freeze(self) -> None:
        self._frozen = True

    def thaw(self) -> None:
        self._frozen = False
        stuck, self._stuck = self._stuck, []
        for session in stuck:
            self._finish(session)

    def _finish(self, session: asyncio.Future[None]) -> None:
        if self._frozen:
            self._stuck.append(session)
        elif not session.done():
            session.set_result(None)


class SimulatedNode(Node):
    """A node whose connections lead to `server`."""

    def __init__(self, name: str, server: Server) -> None:
        clock = asyncio.get_running_loop().time
        config = model.Node(name, "")
        super().__init__(config, "s0", SETTINGS, Limit(1000, 1000), execute=server, clock=clock)
        self.server = server


class Shard:
    """A replica set of so many nodes, asked one search after the other or many at once."""

    def __init__(self, nodes: int, seed: int, budget: float = 0.05, retries: Budget | None = None) -> None:
        rng = Random(seed)
        clock = asyncio.get_running_loop().time
        self.servers = [Server(Random(rng.random())) for _ in range(nodes)]
        self.nodes = [SimulatedNode(f"n{i}", server) for i, server in enumerate(self.servers)]
        for i, node in enumerate(self.nodes):
            node.observe(NodeState(Health.UP, Role.REPLICA if i else Role.PRIMARY))
        self.hedges = Budget(budget)
        self.set = ReplicaSet(
            "s0", self.nodes, hedges=self.hedges, retries=retries, rng=rng.random, clock=clock
        )
        self.fanout = Fanout({"s0": self.set})
        self.asked = 0

    async def search(self, work: Work = Work.NEAREST, *, within: float = 1.0) -> tuple[ShardRows, float]:
        clock = asyncio.get_running_loop().time
        started = clock()
        self.asked += 1
        found = await self.fanout.fetch(
            {"s0": Probe(Shape("one", "many"), (), 10, 10, key="k", work=work)}, started + within
        )
        took = clock() - started
        assert took <= within + 1e-6
        assert sum(node.ejected for node in self.nodes) <= len(self.nodes) / 2
        return found["s0"], took

    async def steadily(
        self, count: int, gap: float = 0.001, *, work: Work = Work.NEAREST, within: float = 1.0
    ) -> list[tuple[ShardRows, float]]:
        """Searches that arrive at a rate, whatever becomes of them."""
        tasks = []
        for _ in range(count):
            tasks.append(asyncio.create_task(self.search(work, within=within)))
            await asyncio.sleep(gap)
        return list(await asyncio.gather(*tasks))

    @property
    def extra(self) -> int:
        """Statements beyond one per search."""
        return sum(server.asked for server in self.servers) - self.asked

    async def close(self) -> None:
        await asyncio.gather(*(node.close() for node in self.nodes))


def p99(answers: list[tuple[ShardRows, float]]) -> float:
    return float(np.percentile([took for _, took in answers], 99))


def whole(answers: list[tuple[ShardRows, float]]) -> bool:
    return all(part.report.state is ShardState.OK for part, _ in answers)


async def two_sets() -> None:
    """As while a new map's snapshot is in use and the old one's requests are not over."""
    shard = Shard(3, 1)
    first, nodes = shard.set, shard.nodes
    nodes[0].observe(NodeState(Health.DOWN))
    second = ReplicaSet("s0", nodes)
    waiting = [asyncio.create_task(replicas.primary_within(5)) for replicas in (first, second)]
    lost: list[str] = []
    with first.relying_on(nodes[1], lambda: lost.append("first")):
        with second.relying_on(nodes[1], lambda: lost.append("second")):
            await asyncio.sleep(0)
            nodes[2].observe(NodeState(Health.UP, Role.PRIMARY))
    assert [await task for task in waiting] == [nodes[2], nodes[2]]
    assert sorted(lost) == ["first", "second"]
    pair = ReplicaSet("s0", nodes[1:], reads=Reads(max_ejected=0.0))
    assert not nodes[1].ejection.out
    for _ in range(10):
        nodes[1].refused(NodeError(ErrorKind.LOST, "by order"), asyncio.get_running_loop().time())
    assert not nodes[1].ejected, "no set that it belongs to may lose one node more than it can do without"
    pair.close()
    for _ in range(10):
        nodes[1].refused(NodeError(ErrorKind.LOST, "by order"), asyncio.get_running_loop().time())
    assert nodes[1].ejected
    second.close()
    assert nodes[1].sets == [first]
    pumps = nodes[1].dispatcher.limit.pumps
    await shard.close()
    assert pumps == [], "a limit outlives the nodes that share it"


async def broken_for_good() -> None:
    """As a replica whose server lacks pgvector's library: nothing there will ever be answered."""
    shard = Shard(2, 1, budget=0.0, retries=Budget(0.2, 1000.0))
    replica = shard.servers[1]
    replica.failing, replica.kinds = 1.0, [ErrorKind.FATAL]
    answers = await shard.steadily(300)
    assert whole(answers)
    assert shard.nodes[1].ejected and not shard.nodes[0].ejected
    assert replica.asked < 30
    # What fails everywhere is the request's fault, or the table's: nobody is left out for it.
    shard.nodes[1].answered(Work.NEAREST, 0.001, asyncio.get_running_loop().time())
    shard.servers[0].failing, shard.servers[0].kinds = 1.0, [ErrorKind.FATAL]
    answers = await shard.steadily(100)
    assert all(part.report.fault == "server" and part.report.error for part, _ in answers)
    assert not any(node.ejected for node in shard.nodes)
    shard.servers[0].kinds = [ErrorKind.TRANSIENT]
    part, _ = await shard.search()
    assert part.report.state is ShardState.FAILED and part.report.fault is None
    await shard.close()


def test_a_node_that_fails_for_good_is_left_out_if_another_answers() -> None:
    run(broken_for_good())


async def named_causes() -> None:
    for kinds, causes in (
        ((ErrorKind.FATAL, ErrorKind.FATAL), {"misconfigured"}),
        ((ErrorKind.DATA, ErrorKind.DATA), {"invalid"}),
        ((ErrorKind.FATAL, ErrorKind.DATA), {"misconfigured", "invalid"}),
        ((ErrorKind.TRANSIENT, ErrorKind.TRANSIENT), {"busy"}),
        ((ErrorKind.LOST, ErrorKind.LOST), {"unreachable"}),
    ):
        shard = Shard(2, 1)
        for server, kind in zip(shard.servers, kinds, strict=True):
            server.failing, server.kinds = 1.0, [kind]
        found = set()
        for _ in range(20):
            report = (await shard.search())[0].report
            assert report.cause is not None and report.error is not None
            found.add(report.cause)
            # What anybody may read names no node.
            names = any(node.config.name in report.error for node in shard.nodes)
            assert not (names and report.cause == "invalid")
        assert found <= causes and (len(causes) > 1 or found == causes)
        for node in shard.nodes:
            node.failed(NodeError(ErrorKind.UNREACHABLE, "by order"))
        assert (await shard.search())[0].report.cause == "no_node"
        await shard.close()


def test_failures_are_named_by_a_cause_and_those_that_anybody_may_read_name_no_node() -> None:
    run(named_causes())


def test_two_sets_of_the_same_nodes_are_both_told() -> None:
    run(two_sets())


def test_a_frozen_node_costs_some_searches_a_hedge_and_the_rest_nothing() -> None:
    async def main() -> None:
        shard = Shard(2, 1)
        healthy = await shard.steadily(1000)
        shard.servers[1].freeze()
        frozen = await shard.steadily(1000)
        assert whole(frozen)
        assert max(took for _, took in frozen) < 0.1
        assert p99(frozen) <= 2 * p99(healthy) + shard.set.hedge_delay(Work.NEAREST)
        assert shard.nodes[1].ejected
        shard.servers[1].thaw()
        while shard.nodes[1].ejected:
            await shard.search()
        asked = shard.servers[1].asked
        await shard.steadily(300)
        assert 10 < shard.servers[1].asked - asked < 100, "what comes back is given little at first"
        await asyncio.sleep(5)
        asked = shard.servers[1].asked
        await shard.steadily(300)
        assert shard.servers[1].asked > asked + 100
        await shard.close()

    run(main())


def test_a_node_that_nobody_asks_any_more_is_not_left_out_for_ever() -> None:
    async def main() -> None:
        shard = Shard(2, 1)
        await shard.steadily(200)
        shard.servers[1].freeze()
        await shard.steadily(200)
        shard.servers[1].thaw()
        node = shard.nodes[1]
        for _ in range(5):
            assert node.ejected
            node.tend()  # as the prober does after each probe that is answered
            await asyncio.sleep(1)
        await asyncio.sleep(10)
        node.tend()
        assert not node.ejected
        assert node.share(asyncio.get_running_loop().time()) < 1, "what comes back is given little at first"
        await shard.close()

    run(main())


def test_what_takes_long_by_nature_is_hedged_when_it_takes_longer_than_that() -> None:
    async def main() -> None:
        shard = Shard(2, 8)
        await shard.steadily(500)
        await shard.steadily(100, gap=0.05, work=Work.SCAN, within=10.0)
        before = shard.extra
        scans = shard.steadily(200, gap=0.05, work=Work.SCAN, within=10.0)
        searches = shard.steadily(500, gap=0.02)
        healthy, _ = await asyncio.gather(scans, searches)
        assert shard.extra - before < 0.05 * 700 + 10
        assert not any(node.ejection.count for node in shard.nodes)
        assert shard.set.hedge_delay(Work.NEAREST) < 0.01
        assert 1.2 < shard.set.hedge_delay(Work.SCAN) < 2.0
        shard.servers[1].freeze()
        frozen = await shard.steadily(200, gap=0.05, work=Work.SCAN, within=10.0)
        assert whole(frozen)
        assert max(took for _, took in frozen) < 9
        assert p99(frozen[160:]) <= 2 * p99(healthy)
        # Nothing but scans comes, which last longer than trials do else: it is readmitted all the same.
        shard.servers[1].thaw()
        await shard.steadily(200, gap=0.05, work=Work.SCAN, within=10.0)
        assert not shard.nodes[1].ejected
        await shard.close()

    run(main())


def test_a_node_that_has_become_slow_is_asked_less() -> None:
    async def main() -> None:
        shard = Shard(2, 2)
        healthy = await shard.steadily(1000)
        shard.servers[0].slow = 0.1
        await shard.steadily(300)
        slow = await shard.steadily(2000)
        assert whole(slow)
        assert p99(slow) <= 1.5 * p99(healthy) + shard.set.hedge_delay(Work.NEAREST)
        await shard.close()

    run(main())


def test_a_node_that_stays_slow_costs_few_hedges() -> None:
    async def main() -> None:
        shard = Shard(2, 6)
        await shard.steadily(1000)
        shard.servers[0].slow = 0.1
        slow = await shard.steadily(5000, gap=0.004)
        assert whole(slow)
        assert sum(part.report.hedge is Hedge.WON for part, _ in slow) < 13
        await shard.close()

    run(main())


def test_a_clock_of_whole_milliseconds_calls_no_search_late_that_is_not() -> None:
    async def main() -> None:
        shard = Shard(2, 10)
        await shard.steadily(1000)
        loop = asyncio.get_running_loop()
        exactly = loop.call_later

        def roughly(delay: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
            """Early, as with uvloop, which counts whole milliseconds from the beginning of its turn."""
            return exactly(0.6 * delay, callback, *args)

        loop.call_later = roughly  # type: ignore[method-assign, assignment]
        late = sum(part.report.hedge is not None for part, _ in await shard.steadily(2000))
        assert 0.02 < late / 2000 < 0.1
        await shard.close()

    run(main())


def test_retries_stay_within_their_budget_and_say_so() -> None:
    async def main() -> None:
        shard = Shard(2, 7, budget=0.0, retries=Budget(0.1, 5.0))
        for server in shard.servers:
            server.failing = 1.0
        answers = await shard.steadily(500)
        assert 0 < shard.extra <= 0.1 * 500 + 5
        refused = [
            part for part, _ in answers if "too many searches are tried again" in (part.report.error or "")
        ]
        assert len(refused) > 400
        await shard.close()

    run(main())


def test_hedges_stay_within_their_budget_when_everything_is_slow() -> None:
    async def main() -> None:
        shard = Shard(2, 3)
        await shard.steadily(500)
        for server in shard.servers:
            server.slow = 0.05
        before, asked = shard.extra, shard.asked
        await shard.steadily(2000)
        assert 0 < shard.extra - before <= 0.05 * (shard.asked - asked) + 10
        assert shard.hedges.denied > 0
        await shard.close()

    run(main())


def test_one_node_alone_is_never_hedged_nor_ejected() -> None:
    async def main() -> None:
        shard = Shard(1, 4)
        shard.servers[0].slow = 0.3
        answers = await shard.steadily(100)
        assert whole(answers)
        assert shard.extra == 0
        assert not shard.nodes[0].ejected
        await shard.close()

    run(main())


def test_an_error_of_full_queues_is_freed_with_its_last_reference() -> None:
    async def world() -> None:
        shard = Shard(2, seed=5)
        probe = Probe(Shape("one"), (), 10, 10)

        def full(*args: object) -> None:
            raise OverloadedError("512 searches wait")

        for node in shard.nodes:
            node.submit = full  # type: ignore[method-assign, assignment]

        async def refused() -> weakref.ref[OverloadedError]:
            try:
                await shard.fanout.fetch({"s0": probe}, asyncio.get_running_loop().time() + 1)
            except OverloadedError as exc:
                return weakref.ref(exc)
            raise AssertionError("it was not refused")

        gc.collect()
        gc.disable()
        try:
            failure = await refused()
            assert failure() is None
        finally:
            gc.enable()
        await shard.close()

    run(world())


def test_one_that_returns_while_another_is_left_out_is_not_left_out_as_well() -> None:
    async def main() -> None:
        shard = Shard(2, 9)
        await shard.steadily(200)
        shard.servers[0].freeze()
        await shard.steadily(200)
        assert [node.ejected for node in shard.nodes] == [True, False]
        shard.nodes[0].observe(NodeState(Health.DOWN, Role.PRIMARY))
        assert not shard.nodes[0].ejected
        shard.servers[1].failing = 1.0
        await shard.steadily(20)
        assert [node.ejected for node in shard.nodes] == [False, True]
        shard.nodes[0].observe(NodeState(Health.UP, Role.PRIMARY))
        assert [node.ejected for node in shard.nodes] == [False, True]
        await shard.close()

    run(main())


def test_when_all_keep_silent_all_are_still_asked() -> None:
    async def main() -> None:
        shard = Shard(2, 5)
        await shard.steadily(200)
        for server in shard.servers:
            server.freeze()
        for part, _ in await shard.steadily(200, gap=0.01):
            assert part.report.state is not ShardState.OK
        for server in shard.servers:
            server.thaw()
        await asyncio.sleep(2)
        assert whole(await shard.steadily(100))
        await shard.close()

    run(main())


async def chaos(seed: int, faults: int, most: int) -> None:
    """A shard of one to three nodes, up to so many faults, and up to so many searches after each."""
    rng = Random(seed)
    shard = Shard(rng.choice([1, 2, 3]), seed, budget=rng.choice([0.0, 0.05, 0.5]))
    share = shard.hedges._share
    answers: list[tuple[ShardRows, float]] = []
    for _ in range(rng.randint(1, faults)):
        server = rng.choice(shard.servers)
        fault = rng.choice(["freeze", "thaw", "slow", "fast", "fail", "work", "down", "up"])
        if fault in ("freeze", "thaw"):
            (server.freeze if fault == "freeze" else server.thaw)()
        elif fault in ("slow", "fast"):
            server.slow = rng.choice([0.01, 0.1, 0.5]) if fault == "slow" else 0.0
        elif fault in ("fail", "work"):
            server.failing = 0.3 if fault == "fail" else 0.0
        else:
            node = rng.choice(shard.nodes)
            health = Health.UP if fault == "up" else Health.DOWN
            node.observe(NodeState(health, node.state.role))
        work = rng.choice([Work.NEAREST, Work.NEAREST, Work.SCAN])
        answers += await shard.steadily(rng.randint(1, most), rng.choice([0.0, 0.0005, 0.01]), work=work)
        hedged = sum(part.report.hedged for part, _ in answers)
        assert hedged <= share * shard.asked + (10 if share else 0) + 1e-9
        # Whoever lost has been told to stop: nothing runs on for an answer that nobody wants.
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        for server, node in zip(shard.servers, shard.nodes, strict=True):
            assert server.running <= node.ejected, "of an ejected node, a trial may be under way"
    for part, _ in answers:
        if part.report.state is ShardState.OK:
            assert part.rows == [(1, 0.5)]
            assert part.report.node is not None
        else:
            assert part.report.error
    await shard.close()


def test_each_position_that_a_node_lacks_is_told_once() -> None:
    async def told() -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        nodes = [SimulatedNode(f"n{i}", Server(Random(i))) for i in range(2)]
        nodes[0].observe(NodeState(Health.UP, Role.PRIMARY, 10))
        nodes[1].observe(NodeState(Health.UP, Role.REPLICA, 10))
        replicas = ReplicaSet("s0", nodes, behind=lambda shard, lsn: found.append((shard, lsn)))
        for min_lsn in (0, 10, 20, 20, 15, 30):
            order = replicas.order(Probe(Shape("one", "many"), (), 10, 10, min_lsn=min_lsn), 0.0)
            assert [stale for _, stale in order] == [False, min_lsn > 10]
        for node in nodes:
            await node.close()
        return found

    assert run(told()) == [("s0", 20), ("s0", 30)]


@pytest.mark.parametrize(
    ("first", "count", "faults", "most"),
    [
        *((i, 50, 8, 60) for i in range(0, 200, 50)),
        (1000, 2500, 2, 4),
        pytest.param(3500, 7500, 2, 4, marks=pytest.mark.full),
    ],
)
def test_promises_hold_in_every_world(first: int, count: int, faults: int, most: int) -> None:
    for seed in range(first, first + count):
        try:
            run(chaos(seed, faults, most))
        except BaseException as exc:
            exc.add_note(f"seed {seed}")
            raise
