"""The bench's parts on a real cluster and a real router."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
import psutil
import pytest

from bench.datasets import open_dataset
from bench.errors import SearchError
from bench.generators import Closed, Measured, Open
from bench.http_client import Connections, request_bytes
from bench.percentiles import Latencies
from bench.resources import usage
from bench.targets import TargetSpec, opened
from bench.truth import Truth, exact
from bench.workers import Job, measure
from bench.world import SINGLE, Router, World, open_world

DATASET = open_dataset("clustered:n=12000,d=32,seed=3,q=60,c=20")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with open_world(DATASET, 2, spread={SINGLE: 1}) as made:
        yield made


@pytest.fixture(scope="module")
def router(world: World) -> Iterator[Router]:
    with world.serve() as serving:
        yield serving


@pytest.fixture(scope="module")
def truth() -> Truth:
    return exact(DATASET, 10)


def recall(truth: Truth, measured: Measured) -> float:
    return truth.recall(DATASET, measured.asked, measured.answers)


def run(spec: TargetSpec, load: Closed | Open | None = None) -> Measured:
    return measure(Job(spec, load or Closed(4, 0.6, 0.2)))


async def ask(spec: TargetSpec) -> list[list[int]]:
    async with opened(spec) as target:
        return [list(await target.search(i)) for i in range(10)]


async def test_all_targets_find_the_same(world: World, router: Router, truth: Truth) -> None:
    expected = truth.ids[:10].tolist()
    assert await ask(world.http(router, ef_search=1000)) == expected
    assert await ask(world.http(router, SINGLE, ef_search=1000)) == expected
    assert await ask(world.gather(ef_search=1000)) == expected
    assert await ask(world.gather(SINGLE, ef_search=1000)) == expected
    assert await ask(world.gather(ef_search=1000, pooled=False)) == expected


def test_a_measured_run_knows_its_recall_and_who_answered(world: World, router: Router, truth: Truth) -> None:
    measured = run(world.http(router, ef_search=400))
    assert measured.failed == 0 and measured.searches > 0
    assert set(measured.account) == {"bypass"}
    assert recall(truth, measured) > 0.99
    # The most popular query is most of them.
    assert set(run(world.http(router, cache=True), Closed(4, 0.6, 0.2, zipf=2)).account) == {"miss", "l1"}
    explained = run(world.http(router, explained=5)).account
    together = {name: count for name, count in explained.items() if name.startswith("together ")}
    # Of every fifth search both shards.
    assert sum(together.values()) == 2 * (explained["bypass"] // 5)
    assert recall(truth, run(world.gather(ef_search=400))) > 0.99
    narrow = run(world.gather(ef_search=10))
    assert recall(truth, narrow) < recall(truth, measured)
    steady = run(world.http(router, ef_search=400), Open(100, 1, 0.2, poisson=False))
    # Those that arrived, whenever they were answered.
    assert 10 < Latencies.decode(steady.latencies).count <= 102


async def test_errors_of_the_server_are_errors_of_searches(world: World, router: Router) -> None:
    for spec, said in (
        (world.http(router, "none"), "status 404"),
        (msgspec.structs.replace(world.http(router), url=f"{router.url}/livez"), "status 405"),
        (world.http(router, extra={"vectors": 1}), "status 422"),
        (world.gather("none"), "UndefinedTableError"),
    ):
        with pytest.raises(SearchError, match=said):
            await ask(spec)


async def test_a_connection_is_kept_and_a_cancelled_one_is_not(router: Router) -> None:
    connections = Connections(router.url)
    livez = request_bytes(f"{router.url}/livez", method="GET")
    for _ in range(3):
        assert (await connections.send(livez))[0] == 200
    assert repr(connections).endswith("1 idle, 0 busy>")
    answers = await asyncio.gather(*(connections.send(livez) for _ in range(5)))
    assert {status for status, _ in answers} == {200}
    assert repr(connections).endswith("5 idle, 0 busy>")
    task = asyncio.create_task(connections.send(livez))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert repr(connections).endswith("4 idle, 0 busy>")
    large = await connections.send(request_bytes(f"{router.url}/openapi.json", method="GET"))
    assert large[0] == 200 and len(large[1]) > 10_000
    connections.close()
    nowhere = Connections("http://127.0.0.1:9")
    with pytest.raises(SearchError, match="no connection"):
        await nowhere.send(livez)


def test_processor_time_goes_to_whom_it_belongs(world: World, router: Router) -> None:
    both = ([router.pid], world.server_pids)
    before = [usage(pids) for pids in both]
    measured = run(world.http(router))
    cpu = [usage(pids).since(earlier) for pids, earlier in zip(both, before, strict=True)]
    assert all(0 < seconds < 30 for seconds in cpu)
    assert before[0].rss_bytes > 20 << 20
    assert measured.cpu_seconds > 0


def test_nothing_stays_behind() -> None:
    with open_world(DATASET.head(100), 1) as world:
        folder, servers = world.folder, world.server_pids
        with world.serve() as router:
            assert all(psutil.pid_exists(pid) for pid in (*servers, router.pid))
        assert not psutil.pid_exists(router.pid)
    assert not any(psutil.pid_exists(pid) for pid in servers)
    assert not folder.exists()
