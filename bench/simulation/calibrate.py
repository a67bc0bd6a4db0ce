"""From a real cluster of four shards to `Costs`, and from both to whether a simulation may be believed.

Processor times, not wall times, are measured wherever there is a choice, since other processes use the
machine, too. The run that a simulation is compared with takes no part in the calibration.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.context import Context
from bench.errors import BenchError
from bench.generators import Closed, Slice
from bench.resources import Others
from bench.sample import Sample
from bench.simulation.model import Costs, System
from bench.simulation.simulate import simulate
from bench.targets import HttpSpec
from bench.world import COLLECTION, World
from router.postgres.connection import Connection, open_connection
from router.postgres.search import SearchStatement, arrays

__all__ = ["SHARDS", "TOLERANCE", "Calibration", "calibrate"]

SHARDS = 4
# The same router, fewer shards: what a search costs it by their number.
_NARROW = {f"narrow{n}": n for n in (1, 2)}
_NARROW_PART = 20  # of all rows one in so many
_STEP = 0.2  # twenty of the ticks that Linux counts in
_EXPLAINED = 20
TOLERANCE = 0.15
_BATCHES = (1, 2, 4, 8, 16)
# A backend that has just answered may still run; what it does then is counted when it sleeps.
_SETTLE = 0.0004
_OTHER_CLIENTS = (1, 6, 40)  # of those that the router's costs come from
_WARM = 3.0
_SETTLED = 17.0  # past the limit's next look at the time alone, in the circumstances of the run


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and what a simulation makes of it; pairs are measured and simulated.

    Attributes:
        crowded: speed of a server's processor while all of the machine's are busy, relative to one alone.
        usable: the share of the processors' time that the busiest other run got: some stay idle for moments
            although work waits for others.
        cores: processors that other processes left to the run that is simulated.
        compared: of that run, by name; rates per second, times in seconds.
        statements: per search and shard.
        server_cpu: processor seconds of the servers per search.
    """

    costs: Costs
    crowded: float
    usable: float
    cores: float
    compared: dict[str, tuple[float, float]]
    statements: tuple[float, float]
    server_cpu: tuple[float, float]

    @property
    def valid(self) -> bool:
        return all(abs(found / measured - 1) <= TOLERANCE for measured, found in self.compared.values())


def calibrate(context: Context, *, ef_search: int, seconds: float, clients: int) -> Calibration:
    """Measure a cluster of four shards, and compare a run of it with a simulation of that run."""
    with context.world(shards=SHARDS, spread=_NARROW, filled=False) as world:
        world.load(COLLECTION)
        for name in _NARROW:
            world.load(name, limit=max(1, len(context.dataset.base) // _NARROW_PART))
        context.say("measuring statements")
        statements = asyncio.run(_statements(world, ef_search))
        with world.serve() as router:
            context.say("measuring the router")
            runs: list[tuple[int, Taken]] = []

            def take(collection: str, count: int, length: float, warm: float = _WARM) -> Taken:
                spec = world.http(router, collection, ef_search=ef_search, explained=_EXPLAINED)
                load = Closed(count, length, warm, slice=_STEP)
                return _taken(context, world, spec, load)

            runs += [(SHARDS, take(COLLECTION, count, seconds / 2)) for count in _OTHER_CLIENTS]
            for name, shards in _NARROW.items():
                runs += [(shards, take(name, count, seconds / 2)) for count in (1, _OTHER_CLIENTS[-1])]
            context.say(f"measuring {clients} clients")
            target = take(COLLECTION, clients, seconds, _SETTLED)
    crowded, usable = _busy(statements, runs[1][1], runs[2][1])
    costs = _with_router(statements, runs, crowded)
    return _compared(costs, crowded, usable, target, clients)


class Taken(msgspec.Struct, frozen=True):
    """A measured run: `statements` is their mean number per search and shard.

    `others` is how many processors other processes took in each `_STEP` seconds.
    """

    sample: Sample
    statements: float
    others: list[float]


def _taken(context: Context, world: World, spec: HttpSpec, load: Closed) -> Taken:
    others: list[Others] = []

    def tick(_: Slice) -> None:
        # From the first on: before it, the generator's process may not have been there.
        if others:
            others[0].note()
        else:
            others.append(Others())

    sample = context.sample(world, spec, load, judged=False, tick=tick)
    if not sample.searches or sample.failed:
        raise BenchError(f"{sample.failed} searches failed, {sample.searches} did not: {sample.reasons}")
    if not (sample.server_cpu and sample.router_cpu):
        raise BenchError(f"{load.seconds:g} s are too short to see what a search costs: raise --seconds")
    together = {
        int(name.removeprefix("together ")): count
        for name, count in sample.account.items()
        if name.startswith("together ")
    }
    shares = sum(count / searches for searches, count in together.items())
    return Taken(sample, shares / max(sum(together.values()), 1) or 1.0, others[0].found)


class _Statements(msgspec.Struct):
    """Seconds: of each statement by the searches in it, and `wire` that nobody is busy in a round trip."""

    taken: dict[int, list[float]]
    wire: float


async def _statements(world: World, ef_search: int) -> _Statements:
    made = world.statements(ef_search)
    connections = [
        await open_connection(node.dsn, connect_timeout=5, statement_timeout=30) for node in world.primaries
    ]
    try:
        for connection in connections:
            await connection.set_ef_search(world.effective(ef_search))
            for count in _BATCHES:
                for _ in range(20):  # past PostgreSQL's custom plans, and with warm caches
                    await _send(connection, made[:count])
            for i in range(0, len(made), 16):
                await _send(connection, made[i : i + 16])
        one = connections[0]
        pid = one.get_server_pid()
        taken: dict[int, list[float]] = {count: [] for count in _BATCHES}
        idle: list[float] = []
        for start in range(0, 700):
            for count in _BATCHES:
                if count > 1 and start % 7:
                    continue
                first = (start * 31) % (len(made) - count)
                wall, own, server = await _timed(one, pid, made[first : first + count])
                taken[count].append(server)
                if count == 1:
                    idle.append(wall - own - server)
    finally:
        for connection in connections:
            connection.terminate()
    return _Statements(taken, max(median(idle), 0.0))


async def _send(connection: Connection, members: Sequence[SearchStatement]) -> None:
    shape = members[0].shape
    if len(members) == 1:
        await connection.fetch(shape.single, *members[0].args)
    else:
        assert shape.together is not None
        await connection.fetch(shape.together, *arrays(shape, [member.args for member in members]))


def _ran_seconds(pid: int) -> float:
    """Processor time of a process of one thread, to the nanosecond where it is not running just now."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def _timed(
    connection: Connection, pid: int, members: Sequence[SearchStatement]
) -> tuple[float, float, float]:
    """Wall time, own processor time and the server's, of one statement."""
    before = _ran_seconds(pid)
    started, own = time.perf_counter(), time.process_time()
    await _send(connection, members)
    wall, own = time.perf_counter() - started, time.process_time() - own
    time.sleep(_SETTLE)  # noqa: ASYNC251 - nothing else runs on this loop
    return wall, own, _ran_seconds(pid) - before


def _line(statements: _Statements) -> tuple[float, float]:
    """Seconds of a statement and of each search in it; each mean weighs by what it says of one search."""
    sizes = np.array(list(statements.taken), dtype=float)
    means = [np.mean(taken) for taken in statements.taken.values()]
    slope, fixed = np.polyfit(sizes, means, 1, w=1 / sizes)
    return max(float(fixed), 0.0), float(slope)


def _busy(statements: _Statements, some: Taken, most: Taken) -> tuple[float, float]:
    """`Calibration.crowded` and `usable`, from runs over four shards that keep the machine busy."""
    fixed, each = _line(statements)
    speeds = [
        SHARDS * (fixed * taken.statements + each) / taken.sample.server_cpu_per_search
        for taken in (some, most)
    ]
    sample = most.sample
    ours = (sample.generator_cpu + sample.router_cpu + sample.server_cpu) / sample.seconds
    left = (os.cpu_count() or 1) - float(np.mean(most.others))
    return min(float(np.mean(speeds)), 1.0), min(ours / left, 1.0)


def _with_router(statements: _Statements, runs: Sequence[tuple[int, Taken]], crowded: float) -> Costs:
    """Least squares: a statement's cost over the searches in it, the router's over shards and statements."""
    fixed, slope = _line(statements)
    single = np.array(statements.taken[1])
    searches = single * slope / float(single.mean())
    rows, router, client = [], [], []
    for shards, taken in runs:
        rows.append([1.0, shards, shards * taken.statements])
        router.append(taken.sample.router_cpu_per_search)
        client.append(taken.sample.generator_cpu / taken.sample.searches)
    search, shard, statement = _not_negative(np.array(rows), np.array(router))
    # These were measured with all processors busy; costs are those of one that is alone.
    return Costs(
        statement=fixed,
        searches=tuple(float(x) for x in searches),
        wire=statements.wire,
        router_search=search * crowded,
        router_shard=shard * crowded,
        router_statement=statement * crowded,
        client_search=float(np.mean(client)) * crowded,
    )


def _not_negative(rows: NDArray[np.float64], values: NDArray[np.float64]) -> list[float]:
    """Least squares over relative errors; what comes out below zero is left out, the least first."""
    kept = list(range(rows.shape[1]))
    while True:
        found = np.linalg.lstsq(rows[:, kept] / values[:, None], np.ones(len(values)), rcond=None)[0]
        if found.min() >= 0:
            known = dict(zip(kept, found, strict=True))
            return [float(known.get(place, 0.0)) for place in range(rows.shape[1])]
        kept.pop(int(found.argmin()))


def _compared(costs: Costs, crowded: float, usable: float, target: Taken, clients: int) -> Calibration:
    """The run that `target` is, simulated with the processors that others left to it."""
    all_cores = os.cpu_count() or 1
    system = System(
        shards=SHARDS,
        nodes_per_host=0,
        cores=all_cores * usable,
        others=tuple(target.others),
        step=_STEP,
        crowded=crowded,
        together_on_host=True,
    )
    sample = target.sample
    found = simulate(system, costs, Closed(clients, sample.seconds, _SETTLED))
    per_search = SHARDS * (costs.statement / found.together + float(np.mean(costs.searches)))
    return Calibration(
        costs=costs,
        crowded=crowded,
        usable=usable,
        cores=all_cores - float(np.mean(target.others)),
        compared={
            "throughput": (sample.rate, found.rate),
            "p50": (sample.p50, found.p50),
            "p99": (sample.p99, found.p99),
        },
        statements=(target.statements, 1 / found.together),
        server_cpu=(sample.server_cpu_per_search, per_search / crowded),
    )
