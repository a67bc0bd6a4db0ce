from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench import generators
from bench.errors import BenchError, SearchError
from bench.generators import Closed, Event, Measured, Open, Slice, Target, generate
from bench.percentiles import Latencies
from bench.targets import GatherSpec, HttpSpec
from bench.workers import Job, measure
from deploy.local import processes


class Fake(Target):
    """Answers after `seconds`; between `stall` and its end it answers nobody."""

    def __init__(self, seconds: float = 0.002, stall: tuple[float, float] = (0, 0), fails: int = 0) -> None:
        self.asked: list[int] = []
        self.under_way = self.most = 0
        self._seconds = seconds
        self._stall = stall
        self._fails = fails
        self._began = time.perf_counter()

    async def search(self, query: int) -> Sequence[int]:
        self.asked.append(query)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(self._seconds)
            now = time.perf_counter() - self._began
            if self._stall[0] <= now < self._stall[1]:
                await asyncio.sleep(self._stall[1] - now)
        finally:
            self.under_way -= 1
        if self._fails and len(self.asked) % self._fails == 0:
            raise SearchError("as told")
        return [query, query + 1]

    def account(self) -> dict[str, int]:
        return {"asked": len(self.asked)}


def answers(measured: Measured) -> tuple[list[int], list[list[int]]]:
    return measured.asked.tolist(), measured.answers.tolist()


async def test_clients_wait_for_their_answers() -> None:
    target = Fake(0.01)
    heard: list[Event] = []
    load = Closed(clients=5, seconds=0.4, warmup=0.1)
    measured = await generate(target, load, queries=7, k=3, tell=heard.append)
    assert heard == ["began", "ended"]
    assert target.most == 5
    assert 50 < measured.searches <= 205
    assert measured.rate == pytest.approx(measured.searches / measured.seconds)
    assert 0.01 <= measured.at(50) < 0.05
    assert (measured.failed, measured.shed) == (0, 0)
    asked, found = answers(measured)
    assert set(asked) == set(range(7))
    assert all(row == [query, query + 1, -1] for query, row in zip(asked, found, strict=True))
    assert measured.account["asked"] > measured.searches


async def test_a_stall_shows_in_an_open_loops_tail_and_hides_in_a_closed_one() -> None:
    stall = (0.5, 1.5)
    open_loop = Open(rate=200, seconds=3, warmup=0.1, poisson=False)
    measured = await generate(Fake(stall=stall), open_loop, queries=5, k=2)
    # A third of the searches were to start during the second that stood still.
    assert measured.at(99) > 0.9
    assert 0.3 < measured.at(83) < 0.8
    assert measured.searches == pytest.approx(600, abs=5)
    closed = await generate(Fake(stall=stall), Closed(clients=2, seconds=3, warmup=0.1), queries=5, k=2)
    assert closed.at(99) < 0.1


async def test_arrivals_keep_their_rate() -> None:
    measured = await generate(Fake(), Open(rate=500, seconds=1, warmup=0.1), queries=5, k=2)
    assert measured.searches == pytest.approx(500, abs=100)
    assert Latencies.decode(measured.lag).count == pytest.approx(500, abs=100)
    assert Latencies.decode(measured.lag).at(50) < 0.01


async def test_popular_queries_are_asked_more_often() -> None:
    target = Fake(0.0002)
    await generate(target, Closed(4, 0.5, 0, zipf=1.0), queries=100, k=2)
    counts = sorted((target.asked.count(query) for query in range(100)), reverse=True)
    # The most popular of a hundred has a share of 1 / (1 + 1/2 + … + 1/100), a fifth of it.
    assert counts[0] / len(target.asked) == pytest.approx(0.193, rel=0.3)
    assert counts[0] > 5 * counts[20] > 0


@pytest.mark.parametrize("load", [Closed(2, 0.6, 0.1, slice=0.2), Open(200, 0.6, 0.1, slice=0.2)])
async def test_slices_add_up_to_the_run(load: generators.Load) -> None:
    heard: list[Event] = []
    measured = await generate(Fake(stall=(0.3, 0.4)), load, queries=5, k=2, tell=heard.append)
    assert (heard[0], heard[-1]) == ("began", "ended")
    slices = [event for event in heard if isinstance(event, Slice)]
    assert len(slices) == len(heard) - 2
    assert [part.at for part in slices[:3]] == pytest.approx([0, 0.2, 0.4], abs=0.05)
    assert sum(part.searches for part in slices) == pytest.approx(measured.searches, abs=5)
    # The stall is in the slice in which it ended, and in the whole.
    assert max(part.most for part in slices) > 0.05 and measured.at(100) > 0.05
    assert min(part.most for part in slices) < 0.05


class Cached(Fake):
    def tiers(self) -> dict[str, Latencies]:
        found = Latencies()
        found.record(0.003)
        return {"l1": found}


async def test_a_target_may_tell_its_tiers() -> None:
    measured = await generate(Cached(), Closed(1, 0.1, 0), queries=5, k=3)
    assert Latencies.decode(measured.tiers["l1"]).at(50) == pytest.approx(0.003, rel=0.01)
    assert measured.returned == 2
    assert (await generate(Fake(), Closed(1, 0.1, 0), queries=5, k=3)).tiers == {}


async def test_what_cannot_start_is_counted() -> None:
    target = Fake(0.5)
    load = Open(rate=100, seconds=0.5, warmup=0, poisson=False, outstanding=10)
    measured = await generate(target, load, queries=5, k=2)
    assert target.most == 10
    assert measured.shed == pytest.approx(40, abs=2)
    assert Latencies.decode(measured.latencies).count == 10


@pytest.mark.parametrize("load", [Closed(2, 60, 0), Open(200, 60, 0)])
async def test_a_load_can_be_ended_before_its_time(load: generators.Load) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, stop.set)
    async with asyncio.timeout(5):
        measured = await generate(Fake(), load, queries=5, k=2, stop=stop)
    assert measured.searches > 5 and measured.seconds == pytest.approx(0.3, abs=0.2)


@pytest.mark.parametrize("load", [Closed(2, 0.3, 0), Open(200, 0.3, 0)])
async def test_failures_are_counted_with_their_reasons(load: generators.Load) -> None:
    measured = await generate(Fake(fails=3), load, queries=5, k=2)
    assert measured.failed > 3 and measured.reasons == {"as told": measured.failed}
    assert measured.searches > 5


async def test_a_search_that_never_ends_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generators, "_GRACE", 0.1)
    measured = await generate(Fake(60), Closed(3, 0.1, 0), queries=5, k=2)
    assert (measured.searches, measured.failed) == (0, 3)
    assert measured.reasons == {"no answer 0.1 s after the end": 3}


@pytest.mark.parametrize("load", [Closed(2, 30, 0), Open(200, 30, 0)])
async def test_an_unexpected_error_ends_the_load_at_once(load: generators.Load) -> None:
    class Broken(Fake):
        async def search(self, query: int) -> Sequence[int]:
            raise ZeroDivisionError

    async with asyncio.timeout(5):
        with pytest.raises(ZeroDivisionError):
            await generate(Broken(), load, queries=5, k=2)


def job(folder: Path, seconds: float) -> Job:
    np.save(folder / "queries.npy", np.ones((3, 2), np.float32))
    target = HttpSpec(url="http://127.0.0.1:9/none", queries=str(folder / "queries.npy"))
    return Job(target, Closed(1, seconds, 0))


def test_a_generator_of_its_own_tells_when_it_measures(tmp_path: Path) -> None:
    heard: list[Event] = []
    measured = measure(job(tmp_path, 0.2), heard.append)
    assert heard == ["began", "ended"]
    assert measured.searches == 0 and measured.failed > 0
    assert all(reason.startswith("no connection") for reason in measured.reasons)


def test_a_generator_that_fails_says_why(tmp_path: Path) -> None:
    good = job(tmp_path, 0.2)
    spec = GatherSpec(
        dsns=["postgresql://postgres@127.0.0.1:9/x"],
        queries=str(tmp_path / "queries.npy"),
        table="t",
        operator="<->",
    )
    with pytest.raises(BenchError, match="the generator failed: ConnectionRefusedError"):
        measure(msgspec.structs.replace(good, target=spec))
    missing = msgspec.structs.replace(spec, queries=str(tmp_path / "none.npy"))
    with pytest.raises(BenchError, match="FileNotFoundError"):
        measure(msgspec.structs.replace(good, target=missing))


PARENT = """
import pickle, sys
from pathlib import Path
from bench.workers import measure
measure(pickle.loads(Path(sys.argv[1]).read_bytes()), lambda event: print(event, flush=True))
"""


def test_a_generator_ends_with_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "job"
    path.write_bytes(pickle.dumps(job(tmp_path, 60)))
    command = [sys.executable, "-c", PARENT, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "began\n"
        children = processes.family(parent.pid)[1:]
        os.kill(parent.pid, signal.SIGKILL)
    assert children and processes.wait_gone(children, 10)


def test_a_long_result_arrives_whole_while_the_parent_is_busy(tmp_path: Path) -> None:
    measured = measure(job(tmp_path, 0.2), lambda event: time.sleep(1.5 * (event == "ended")))
    assert measured.failed > 0
