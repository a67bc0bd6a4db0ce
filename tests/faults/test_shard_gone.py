"""Nodes die and freeze: searches answer in time, say what is missing, and become whole by themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from deploy.local import Cluster
from router.query.errors import DeadlineError, RouterError, UnavailableError
from router.query.types import Found
from router.settings import Settings
from router.topology import Parts, Topology
from tests.faults.lateness import lateness
from tests.integration.worlds import World, hits, world

# A server that was killed refuses at once; that another has not run for a second means nothing.
SETTINGS = Settings(probe_interval=0.2, probe_timeout=15.0, connect_timeout=15.0)
# Where no probe is to find a frozen server before the test is over.
UNPROBED = Settings(probe_interval=20, probe_timeout=20, connect_timeout=20)
ROWS = 80
SOON = 20.0


@pytest.fixture
def fragile(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster of all tests, whose nodes run again after each of these."""
    yield cluster
    for node in ("s1-a", "s1-b"):
        cluster.start(node)
        cluster.resume(node)


@asynccontextmanager
async def healing(cluster: Cluster, settings: Settings = SETTINGS) -> AsyncIterator[World]:
    """A filled world; whatever a test broke is whole again before its table goes."""
    before = asyncio.all_tasks()
    async with world(cluster, settings) as w:
        await w.put(*(w.document(i, [float(i)] * 8) for i in range(ROWS)))
        try:
            # No replica is behind when its primary is lost.
            await until(w, lambda: all(one.replay_lag_bytes in (None, 0) for one in w.router.nodes()))
            yield w
        finally:
            for node in ("s1-a", "s1-b"):
                await asyncio.to_thread(cluster.start, node)
                cluster.resume(node)
    assert asyncio.all_tasks() == before


async def until(w: World, true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not true():
            await asyncio.sleep(0.01)


def states(w: World) -> dict[str, str]:
    return {status.name: status.state for status in w.router.nodes()}


async def timed(w: World, within: float = 10.0, **options: object) -> tuple[Found, float]:
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with lateness() as late:
        found = await w.search([0.0] * 8, ROWS, exact=True, cache=False, within=within, **options)
        took = loop.time() - started
        assert took < within + 0.2 + late.seconds
    return found, took


def lacks_s1(found: Found) -> None:
    coverage = found.answer.coverage
    assert not coverage.full
    assert (coverage.shards.ok, coverage.shards.failed + coverage.shards.timed_out) == (3, 1)
    assert [failure.shard for failure in coverage.failures] == ["s1"]
    assert "s1" not in {hit["shard"] for hit in hits(found)}
    assert found.answer.short is not None
    assert found.answer.short.reason == "coverage"
    assert not found.answer.cacheable


async def whole_again(w: World) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + SOON
    while not (found := (await timed(w, within=1.0))[0]).answer.coverage.full:
        assert loop.time() < end, found.answer.coverage
        await asyncio.sleep(0.02)
    assert [hit["id"] for hit in hits(found)] == list(range(ROWS))


async def all_up(w: World) -> None:
    """Searches find out that what was left out is well."""
    loop = asyncio.get_running_loop()
    end = loop.time() + SOON
    while set(states(w).values()) != {"up"}:
        assert loop.time() < end, w.router.nodes()
        assert (await timed(w))[0].answer.coverage.full
        await asyncio.sleep(0.01)


async def test_a_shard_without_nodes_is_named_in_every_answer_until_it_is_back(fragile: Cluster) -> None:
    async with healing(fragile) as w:
        searching = asyncio.create_task(steady(w, 60))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(fragile.kill, "s1-a")
        await asyncio.to_thread(fragile.kill, "s1-b")
        for found in await searching:
            if not found.answer.coverage.full:
                lacks_s1(found)
        for _ in range(20):
            lacks_s1((await timed(w))[0])
        with pytest.raises(UnavailableError) as caught:
            await w.search([0.0] * 8, 5, allow_partial=False)
        assert [problem.path for problem in caught.value.problems] == ["shards.s1"]
        # A search that needs other shards alone is whole.
        elsewhere = next(hit["id"] for hit in hits((await timed(w))[0]))
        assert (await timed(w, filter={"id": elsewhere}))[0].answer.coverage.full
        readable = {"s0": True, "s1": False, "s2": True, "s3": True}
        await until(w, lambda: w.router.ready() == (True, readable))

        for node in ("s1-a", "s1-b"):
            await asyncio.to_thread(fragile.start, node)
        await whole_again(w)


async def steady(w: World, searches: int) -> list[Found]:
    """One search after the other, each of which must answer in its time."""
    answers = []
    for _ in range(searches):
        answers.append((await timed(w))[0])
        await asyncio.sleep(0.01)
    return answers


@pytest.mark.parametrize("node", ["s1-a", "s1-b"])
async def test_no_search_fails_when_one_node_of_a_set_dies(fragile: Cluster, node: str) -> None:
    async with healing(fragile) as w:
        searching = [asyncio.create_task(steady(w, 60)) for _ in range(4)]
        await asyncio.sleep(0.15)
        await asyncio.to_thread(fragile.kill, node)
        for task in searching:
            for found in await task:
                assert found.answer.coverage.full, found.answer.coverage
                # Replicas of a dead primary have all that was written: nothing is stale.
                assert not found.answer.coverage.stale
        await until(w, lambda: states(w)[node] == "down")
        assert {state for name, state in states(w).items() if name != node} == {"up"}
        await asyncio.to_thread(fragile.start, node)
        again = [asyncio.create_task(steady(w, 60)) for _ in range(2)]
        for task in again:
            assert all(found.answer.coverage.full for found in await task)
        await all_up(w)


async def test_a_frozen_shard_costs_a_deadline_once_and_then_nothing(fragile: Cluster) -> None:
    async with healing(fragile, Settings(probe_interval=0.2, probe_timeout=2.5)) as w:
        await timed(w)
        for node in ("s1-a", "s1-b"):
            fragile.pause(node)
        found, took = await timed(w, within=1.0)
        lacks_s1(found)
        assert took > 0.5
        assert found.answer.coverage.shards.timed_out == 1
        with pytest.raises((DeadlineError, UnavailableError)):
            await w.search([0.0] * 8, 5, allow_partial=False, within=0.5)
        await until(w, lambda: states(w)["s1-a"] == states(w)["s1-b"] == "down")
        for _ in range(10):
            found, took = await timed(w, within=20.0)
            lacks_s1(found)
            assert took < 5
        for node in ("s1-a", "s1-b"):
            fragile.resume(node)
        await whole_again(w)


async def test_one_frozen_node_of_a_set_loses_nothing(fragile: Cluster) -> None:
    """Whatever is asked: no read waits for a probe, let alone to its deadline."""
    async with healing(fragile, UNPROBED) as w:
        fragile.pause("s1-b")
        for _ in range(20):
            found, took = await timed(w, within=20.0)
            assert found.answer.coverage.full, found.answer.coverage
            assert took < 5
            async with asyncio.timeout(5):
                counted = await w.router.count(w.collection, None, w.soon(20))
            assert (counted.count, counted.coverage.full) == (ROWS, True)
            async with asyncio.timeout(5):
                for id_ in range(8):
                    assert await w.router.read(w.collection, id_, frozenset(), w.soon(20)) is not None
        searches = [w.search([float(n)] * 8, ROWS, exact=True) for n in range(40)]
        for found in await asyncio.gather(*searches):
            assert found.answer.coverage.full, found.answer.coverage
        fragile.resume("s1-b")


async def test_hedges_hide_a_frozen_node_long_before_a_probe_finds_it(fragile: Cluster) -> None:
    async with healing(fragile, UNPROBED) as w:
        loop = asyncio.get_running_loop()

        async def searches(count: int) -> list[float]:
            times = []
            for i in range(count):
                started = loop.time()
                found = await w.search([float(i % ROWS)] * 8, 5, cache=False, within=20.0)
                times.append(loop.time() - started)
                assert found.answer.coverage.full, found.answer.coverage
            return sorted(times)

        usual = await searches(300)
        fragile.pause("s1-b")
        frozen = await searches(300)
        for _ in range(10):
            left_out = {status.name: status for status in w.router.nodes()}["s1-b"]
            if left_out.state == "ejected":
                break
            # What the lot has given to the other node says nothing of this one.
            await searches(100)
        assert left_out.state == "ejected"
        assert left_out.reason is not None
        assert 0 < time.time() - left_out.since < 100
        assert frozen[-10] < 10 * usual[-10] + 0.1
        assert frozen[-1] < 5
        fragile.resume("s1-b")
        await all_up(w)
        back = {status.name: status for status in w.router.nodes()}["s1-b"]
        assert back.since > left_out.since


async def test_writes_to_a_frozen_primary_end_in_time_and_know_what_they_do_not_know(
    fragile: Cluster,
) -> None:
    async with healing(fragile, UNPROBED) as w:
        fragile.pause("s1-a")
        loop = asyncio.get_running_loop()
        documents = [w.document(i, [float(i)] * 8, content="again") for i in range(ROWS)]
        async with lateness() as late:
            started = loop.time()
            outcome = await w.router.upsert(w.collection, documents, w.soon(1.5))
            assert loop.time() - started < 1.9 + late.seconds
        assert [shard.shard for shard in outcome.shards if not shard.ok] == ["s1"]
        assert {failure.reason for failure in outcome.failures} == {"unknown"}
        fragile.resume("s1-a")
        await whole_again(w)


async def test_a_router_closes_in_time_while_nodes_are_frozen(fragile: Cluster) -> None:
    before = asyncio.all_tasks()
    async with healing(fragile) as w:
        for node in ("s1-a", "s1-b"):
            fragile.pause(node)
        searches = [
            asyncio.create_task(w.search([float(n)] * 8, ROWS, exact=True, within=0.3)) for n in range(30)
        ]
        await asyncio.sleep(0.1)
        for task in searches[:10]:
            task.cancel()
        outcomes = await asyncio.gather(*searches, return_exceptions=True)
        for outcome in outcomes[10:]:
            assert isinstance(outcome, Found | RouterError), outcome
        loop = asyncio.get_running_loop()
        started = loop.time()
        await w.topology.close()
        assert loop.time() - started < SOON
        assert asyncio.all_tasks() == before
        for node in ("s1-a", "s1-b"):
            fragile.resume(node)


async def test_a_router_opens_while_a_shard_is_frozen_and_finds_it_later(fragile: Cluster) -> None:
    async with healing(fragile) as w:
        for node in ("s1-a", "s1-b"):
            fragile.pause(node)
        probed = Settings(probe_interval=0.2, probe_timeout=1.0)
        late = Topology(w.router.shard_map, Parts(w.router.shard_map, probed))
        loop = asyncio.get_running_loop()
        started = loop.time()
        await late.open()
        try:
            assert loop.time() - started < 10
            other = World(fragile, late)
            lacks_s1((await timed(other))[0])
            for node in ("s1-a", "s1-b"):
                fragile.resume(node)
            await whole_again(other)
        finally:
            await late.close()
