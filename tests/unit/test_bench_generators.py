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
from bench.simulation.virtual_time import run
from bench.targets import GatherSpec, HttpSpec, ImportedSpec
from bench.workers import Job, measure
from deploy.local import processes


def measured_on(
    target: Target, load: generators.Load, *, queries: int = 5, k: int = 2, heard: list[Event] | None = None
) -> Measured:
    """What a load measures where time is simulated, so that nothing is late but by its own doing."""

    async def main() -> Measured:
        clock = asyncio.get_running_loop().time
        tell = [].append if heard is None else heard.append
        return await generate(target, load, queries=queries, k=k, tell=tell, clock=clock)

    return run(main())


class Fake(Target):
    """Answers after `seconds`; between `stall` and its end, by the loop's clock, it answers nobody."""

    def __init__(self, seconds: float = 0.002, stall: tuple[float, float] = (0, 0), fails: int = 0) -> None:
        self.asked: list[int] = []
        self.under_way = self.most = 0
        self._seconds = seconds
        self._stall = stall
        self._fails = fails

    async def search(self, query: int) -> Sequence[int]:
        self.asked.append(query)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(self._seconds)
            now = asyncio.get_running_loop().time()
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


def test_clients_wait_for_their_answers() -> None:
    target = Fake(0.01)
    heard: list[Event] = []
    load = Closed(clients=5, seconds=0.4, warmup=0.1)
    measured = measured_on(target, load, queries=7, k=3, heard=heard)
    assert heard == ["began", "ended"]
    assert target.most == 5
    assert measured.searches == pytest.approx(5 * 40, abs=5)
    assert measured.rate == pytest.approx(measured.searches / measured.seconds)
    assert measured.at(50) == measured.at(100) == pytest.approx(0.01, rel=0.01)
    assert (measured.failed, measured.shed) == (0, 0)
    asked, found = answers(measured)
    assert set(asked) == set(range(7))
    assert all(row == [query, query + 1, -1] for query, row in zip(asked, found, strict=True))
    assert measured.account["asked"] > measured.searches


def test_a_stall_shows_in_an_open_loops_tail_and_hides_in_a_closed_one() -> None:
    stall = (0.5, 1.5)
    open_loop = Open(rate=200, seconds=3, warmup=0.1, poisson=False)
    measured = measured_on(Fake(stall=stall), open_loop)
    # A third of the searches were to start during the second that stood still.
    assert measured.at(99) == pytest.approx(0.97, abs=0.01)
    assert measured.at(83) == pytest.approx(0.49, abs=0.01)
    assert measured.searches == pytest.approx(600, abs=1)
    closed = measured_on(Fake(stall=stall), Closed(clients=2, seconds=3, warmup=0.1))
    assert closed.at(99) == pytest.approx(0.002, rel=0.01)


def test_arrivals_keep_their_rate() -> None:
    measured = measured_on(Fake(), Open(rate=500, seconds=2, warmup=0.1))
    # By Poisson the number varies by its root.
    assert measured.searches == pytest.approx(1000, abs=100)
    lag = Latencies.decode(measured.lag)
    assert lag.count == pytest.approx(measured.searches, abs=1) and lag.at(100) < 0.001


def test_popular_queries_are_asked_more_often() -> None:
    target = Fake(0.0002)
    measured_on(target, Closed(4, 0.5, 0, zipf=1.0), queries=100)
    counts = sorted((target.asked.count(query) for query in range(100)), reverse=True)
    # The most popular of a hundred has a share of 1 / (1 + 1/2 + … + 1/100), a fifth of it.
    assert counts[0] / len(target.asked) == pytest.approx(0.193, rel=0.1)
    assert counts[0] > 5 * counts[20] > 0


@pytest.mark.parametrize("load", [Closed(2, 0.6, 0.1, slice=0.2), Open(200, 0.6, 0.1, slice=0.2)])
def test_slices_add_up_to_the_run(load: generators.Load) -> None:
    heard: list[Event] = []
    measured = measured_on(Fake(stall=(0.3, 0.4)), load, heard=heard)
    assert (heard[0], heard[-1]) == ("began", "ended")
    slices = [event for event in heard if isinstance(event, Slice)]
    assert len(slices) == len(heard) - 2
    assert [part.at for part in slices] == pytest.approx([0, 0.2, 0.4])
    assert sum(part.searches for part in slices) == pytest.approx(measured.searches, abs=2)
    # The stall is in the slice in which it ended, and in the whole.
    assert max(part.most for part in slices) > 0.05 and measured.at(100) > 0.05
    assert min(part.most for part in slices) < 0.05


class Cached(Fake):
    def tiers(self) -> dict[str, Latencies]:
        found = Latencies()
        found.record(0.003)
        return {"l1": found}


def test_a_target_may_tell_its_tiers() -> None:
    measured = measured_on(Cached(), Closed(1, 0.1, 0), k=3)
    assert Latencies.decode(measured.tiers["l1"]).at(50) == pytest.approx(0.003, rel=0.01)
    assert measured.returned == 2
    assert measured_on(Fake(), Closed(1, 0.1, 0)).tiers == {}


def test_what_cannot_start_is_counted() -> None:
    target = Fake(0.5)
    load = Open(rate=100, seconds=0.5, warmup=0, poisson=False, outstanding=10)
    measured = measured_on(target, load)
    assert target.most == 10
    assert measured.shed == pytest.approx(40, abs=2)
    assert Latencies.decode(measured.latencies).count == 10


@pytest.mark.parametrize("load", [Closed(2, 60, 0), Open(200, 60, 0)])
async def test_a_load_can_be_ended_before_its_time(load: generators.Load) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, stop.set)
    measured = await generate(Fake(), load, queries=5, k=2, stop=stop)
    assert measured.searches > 0 and 0.2 < measured.seconds < 20


@pytest.mark.parametrize("load", [Closed(2, 0.3, 0), Open(200, 0.3, 0)])
def test_failures_are_counted_with_their_reasons(load: generators.Load) -> None:
    measured = measured_on(Fake(fails=3), load)
    assert measured.failed > 3 and measured.reasons == {"as told": measured.failed}
    assert measured.searches > 5


def test_a_search_that_never_ends_has_failed() -> None:
    measured = measured_on(Fake(600), Closed(3, 0.1, 0))
    assert (measured.searches, measured.failed) == (0, 3)
    assert measured.reasons == {"no answer 60 s after the end": 3}


@pytest.mark.parametrize("load", [Closed(2, 30, 0), Open(200, 30, 0)])
async def test_an_unexpected_error_ends_the_load_at_once(load: generators.Load) -> None:
    class Broken(Fake):
        async def search(self, query: int) -> Sequence[int]:
            raise ZeroDivisionError

    async with asyncio.timeout(20):
        with pytest.raises(ZeroDivisionError):
            await generate(Broken(), load, queries=5, k=2)


def job(folder: Path, seconds: float) -> Job:
    np.save(folder / "queries.npy", np.ones((3, 2), np.float32))
    target = HttpSpec(url="http://127.0.0.1:9/none", queries=str(folder / "queries.npy"))
    return Job(target, Open(50, seconds, 0))


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
    assert children and processes.wait_gone(children, 30)


LONG = b"a record" * 50_000  # several times what a pipe holds


class Verbose(Fake):
    def __init__(self, spec: ImportedSpec, queries: np.ndarray) -> None:
        super().__init__()

    def record(self) -> bytes:
        return LONG


def test_a_long_result_arrives_whole_while_the_parent_is_busy(tmp_path: Path) -> None:
    queries = job(tmp_path, 0.1).target.queries
    verbose = Job(ImportedSpec(target=f"{__name__}:Verbose", queries=queries), Closed(1, 0.1, 0))
    # The generator has filled the pipe, and waits, before this reads on.
    measured = measure(verbose, lambda event: time.sleep(0.5 * (event == "ended")))
    assert measured.record == LONG
