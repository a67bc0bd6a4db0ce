"""The whole router below the caches over simulated servers."""

from __future__ import annotations

import asyncio
from random import Random
from statistics import median

import msgspec
import pytest

from bench.generators import Closed, Open
from bench.results import Figure, Table
from bench.scenarios import simulate as scenario
from bench.simulation.hosts import Host, Process
from bench.simulation.model import Costs, Stragglers, System
from bench.simulation.simulate import World, simulate
from bench.simulation.virtual_time import run
from router.settings import Settings

_RNG = Random(7)
COSTS = Costs(
    statement=0.0008,
    searches=tuple(0.001 * _RNG.lognormvariate(0, 0.4) for _ in range(500)),
    wire=0.00005,
    router_search=0.0003,
    router_shard=0.00001,
    router_statement=0.0001,
)


def test_a_host_shares_its_cores_and_nobody_gets_two() -> None:
    async def main() -> list[float]:
        loop, host = asyncio.get_running_loop(), Host(2)
        ends: list[float] = []

        async def job(start: float, work: float) -> None:
            await asyncio.sleep(start)
            await host.run(work)
            ends.append(round(loop.time(), 9))

        # 0..1: two jobs at full speed; 1..: three at two thirds until the short one has its one second.
        await asyncio.gather(job(0, 3), job(0, 3), job(1, 1))
        return ends

    assert run(main()) == [2.5, 3.5, 3.5]


def test_a_process_does_one_thing_after_another() -> None:
    async def main() -> list[tuple[int, float]]:
        loop, process = asyncio.get_running_loop(), Process()
        ends: list[tuple[int, float]] = []

        async def job(number: int) -> None:
            await process.work(0.5)
            ends.append((number, loop.time()))

        await asyncio.gather(*map(job, range(3)))
        return ends

    assert run(main()) == [(0, 0.5), (1, 1.0), (2, 1.5)]


def test_a_cancelled_statement_leaves_its_host_to_the_others() -> None:
    async def main() -> float:
        loop, host = asyncio.get_running_loop(), Host(1)
        first, second = (asyncio.create_task(host.run(1)) for _ in range(2))
        await asyncio.sleep(1)
        first.cancel()
        await asyncio.wait([first])
        assert host.running == 1
        await second
        return loop.time()

    assert run(main()) == 1.5


def test_equal_seeds_give_equal_results_and_others_do_not() -> None:
    system = System(shards=4, nodes_per_host=2, stragglers=Stragglers(share=0.25, factor=3))
    load = Open(100, seconds=1, warmup=0.2)
    first, again, other = (simulate(system, COSTS, load, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_closed_loop_obeys_littles_law() -> None:
    found = simulate(System(shards=4), COSTS, Closed(8, seconds=2, warmup=0.5))
    assert found.rate * found.mean == pytest.approx(8, rel=0.03)
    assert (found.coverage, found.full, found.failed, found.refused) == (1, 1, 0, 0)


def test_an_idle_system_takes_as_long_as_its_parts() -> None:
    costs = msgspec.structs.replace(COSTS, searches=(0.001,))
    found = simulate(System(shards=1), costs, Closed(1, seconds=1))
    parts = 0.0008 + 0.001 + 0.00005 + 0.0003 + 0.00001 + 0.0001
    # A histogram has three digits.
    assert found.mean == pytest.approx(parts, rel=1e-3)
    assert found.p50 == found.p99 == pytest.approx(parts, rel=1e-3)


def test_replicas_hide_stragglers() -> None:
    slow = Stragglers(share=0.1, factor=20)
    load = Open(60, seconds=3)
    alone, replicated = (
        simulate(System(shards=10, replicas=replicas, stragglers=slow, router_cpu=False), COSTS, load)
        for replicas in (1, 3)
    )
    assert alone.p50 > 20 * 0.0018 > replicated.p50


def test_the_deadline_leaves_stragglers_out_of_the_answer() -> None:
    slow = Stragglers(share=0.1, factor=1000)
    found = simulate(System(shards=10, stragglers=slow), COSTS, Closed(2, seconds=3, warmup=0), timeout=0.1)
    assert found.coverage == pytest.approx(0.9)
    assert found.p99 < 0.11


def test_a_system_that_answers_nothing_has_no_percentiles_and_can_be_saved() -> None:
    system = System(shards=1, stragglers=Stragglers(share=1.0, factor=1000.0))
    nothing = simulate(system, COSTS, Open(20.0, seconds=2.0), timeout=0.01)
    assert nothing.answered == 0
    point = scenario.Point("stragglers, deadline", 1, 20.0, nothing)
    other = scenario.Point("even", 1, 20.0, msgspec.structs.replace(nothing, p50=0.001, p99=0.002))
    made = (scenario._points([point, other]), scenario._figures([point, other]))
    assert msgspec.json.decode(msgspec.json.encode(made), type=tuple[Table, list[Figure]]) == made
    assert [row[4:6] for row in made[0].rows] == [[None, None], [1.0, 2.0]]
    assert [series.name for series in made[1][0].series] == ["even"]


def test_overload_is_refused_rather_than_answered_late() -> None:
    settings = Settings(node_queue=64, node_queue_wait=0.2)
    found = simulate(
        System(shards=2, cores=1, settings=settings, router_cpu=False),
        COSTS,
        Open(3000, seconds=2),
    )
    assert found.refused > 100
    assert found.failed == 0
    assert found.p99 < 0.3


async def _singles_beside(batch: int) -> float:
    """Median seconds of single searches, with or without a batch that goes on all the time."""
    world = World(System(shards=4, nodes_per_host=0, cores=2, router_cpu=False), COSTS)
    end = world.clock() + 3
    taken: list[float] = []

    async def single() -> None:
        number = 0
        while world.clock() < end:
            started = world.clock()
            await world.search(world.query(number), started + 5)
            taken.append(world.clock() - started)
            number += 1
            await asyncio.sleep(0.005)

    async def batches() -> None:
        while world.clock() < end:
            members, caller = iter(range(batch)), object()

            async def member(members: object = members, caller: object = caller) -> None:
                for number in members:  # type: ignore[attr-defined]
                    await world.search(world.query(number, caller=caller), world.clock() + 5)

            # As many at a time as router.http.search has of a batch.
            await asyncio.gather(*(member() for _ in range(64)))

    await asyncio.gather(single(), *([batches()] if batch else []))
    await world.close()
    return median(taken)


def test_a_batch_lets_single_searches_by() -> None:
    alone, beside = run(_singles_beside(0)), run(_singles_beside(1000))
    # The statement under way cannot be stopped, and sixteen go along in their own: half a core for each.
    statement = (0.0008 + 16 * 0.0011) / 0.5
    assert beside < alone + 2.2 * statement


@pytest.mark.parametrize(
    ("cores", "nodes"),
    [
        pytest.param(cores, nodes, marks=() if (cores, nodes) in ((1, 1), (4, 4)) else pytest.mark.full)
        for cores in (1, 2, 4, 16)
        for nodes in (1, 4)
    ],
)
def test_the_limit_comes_near_the_best_fixed_one(cores: int, nodes: int) -> None:
    def found(fixed: int | None) -> tuple[float, float]:
        load = Closed(24, seconds=1.0, warmup=0.5 if fixed else 5.0)
        system = System(shards=nodes, nodes_per_host=0, cores=cores, router_cpu=False, fixed_limit=fixed)
        result = simulate(system, COSTS, load)
        return result.rate, result.limit

    fixed = sorted({1, max(cores // nodes, 1), min(2 * max(cores // nodes, 1), 16)})
    best = max(found(one)[0] for one in fixed)
    rate, limit = found(None)
    assert rate >= 0.93 * best
    # Every node may always have one.
    assert max(cores, nodes) * 0.7 <= limit <= max(cores, nodes) * 2
