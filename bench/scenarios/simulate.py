"""Up to 1,024 shards, stragglers and replicas, simulated with costs that are measured here first.

The simulation has to reproduce a measured run of four shards within 15 % before larger systems are shown.
In these every node has a host of two cores to itself, and the router one processor. The rates of arrival
are shares of what the router and the nodes can do, so that latency is that of a system in use, not of one
overrun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isnan
from statistics import fmean

import msgspec

from bench.context import Context
from bench.generators import Open
from bench.results import Cell, Figure, Metric, Outcome, Series, Table
from bench.simulation.calibrate import SHARDS, TOLERANCE, calibrate
from bench.simulation.model import Costs, Result, Stragglers, System
from bench.simulation.simulate import simulate
from router.settings import Settings

__all__ = ["run"]

_CLIENTS = 16
_EF_SEARCH = 40
_SHARDS, _QUICK_SHARDS = (1, 4, 16, 64, 256, 1024), (1, 4, 16)
_CORES = 2
_USE = 0.5  # of what there is
_SEARCHES = 300  # measured for each point, fewer of many shards
_PARTS = 150_000  # parts of searches simulated for each point, at most
_STRAGGLERS = Stragglers(share=0.01, factor=10)
_TIMEOUT = 5.0


class Point(msgspec.Struct, frozen=True):
    """One simulated system; `rate` is of arrivals per second."""

    name: str
    shards: int
    rate: float
    result: Result


def run(context: Context) -> Outcome:
    options = context.options
    clients = (options.clients or [_CLIENTS])[0]
    ef_search = (options.ef_search or [_EF_SEARCH])[0]
    found = calibrate(context, ef_search=ef_search, seconds=2 * options.seconds, clients=clients)
    points: list[Point] = []
    if found.valid:
        points = _larger(found.costs, _QUICK_SHARDS if options.quick else _SHARDS, context.say)
    measured, simulated = found.statements
    server, simulated_server = found.server_cpu
    notes = [
        f"{SHARDS} shards, {clients} clients, ef_search {ef_search};"
        f" other processes left {found.cores:.2f} processors.",
        f"With all processors busy, each runs at {found.crowded:.2f} of its speed alone, and"
        f" {found.usable:.0%} of their time is used.",
        f"Statements per search and shard: {measured:.2f} measured, {simulated:.2f} simulated; PostgreSQL's"
        f" processor time per search: {server * 1e6:,.0f} µs and {simulated_server * 1e6:,.0f} µs.",
    ]
    if not found.valid:
        notes.append(
            "The simulation does not reproduce the measured run, so nothing is reported of larger systems."
        )
    return Outcome(
        metrics=[_metric(name, *pair) for name, pair in found.compared.items()],
        tables=[_costs(found.costs), *([_points(points)] if points else [])],
        figures=_figures(points) if points else [],
        notes=notes,
    )


def _metric(name: str, measured: float, simulated: float) -> Metric:
    unit, factor = ("/s", 1.0) if name == "throughput" else ("ms", 1e3)
    note = f"measured {measured * factor:,.2f} {unit}, simulated {simulated * factor:,.2f} {unit}"
    off = abs(simulated / measured - 1) * 100
    return Metric.of(f"{name}: simulated against measured", off, "% off", "lower", 100 * TOLERANCE, note)


def _costs(costs: Costs) -> Table:
    rows: list[list[Cell]] = [
        ["statement, beside its searches", costs.statement * 1e6],
        ["search in a statement, mean", fmean(costs.searches) * 1e6],
        ["router, per search", costs.router_search * 1e6],
        ["router, per shard of a search", costs.router_shard * 1e6],
        ["router, per statement", costs.router_statement * 1e6],
        ["load generator, per search", costs.client_search * 1e6],
    ]
    return Table("Costs", ["processor time", "µs"], rows)


def _points(points: Sequence[Point]) -> Table:
    columns = {
        "shards": lambda point: str(point.shards),
        "system": lambda point: point.name,
        "arrivals/s": lambda point: point.rate,
        "answers/s": lambda point: point.result.rate,
        "p50 ms": lambda point: _known(point.result.p50),
        "p99 ms": lambda point: _known(point.result.p99),
        "coverage %": lambda point: point.result.coverage * 100,
        "router busy %": lambda point: point.result.router_use * 100,
    }
    return Table.of("Larger systems", columns, points)


def _known(seconds: float) -> float | None:
    """In ms; None where no search was answered, which JSON has no number for."""
    return None if isnan(seconds) else seconds * 1e3


def _figures(points: Sequence[Point]) -> list[Figure]:
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    for point in points:
        p99 = _known(point.result.p99)
        if p99 is not None:
            lines.setdefault(point.name, []).append((float(point.shards), p99, p99, p99))
    series = [Series(name, found) for name, found in lines.items()]
    return [Figure("p99", "p99 by shards, simulated", "shards", "ms", series, log_x=True, log_y=True)]


def _larger(costs: Costs, shards: Sequence[int], say: Callable[[str], object]) -> list[Point]:
    """Open loops over systems of so many shards.

    `even`: all nodes are alike. `stragglers`: one node in a hundred, at least one, takes ten times as long.
    `stragglers, 2 replicas`: each shard has two nodes; `no hedges`: none is asked because another is late.
    `stragglers, deadline`: answers go without what has not come after ten times the even median. `nodes
    alone`: the router's processor time is left out.
    """
    points: list[Point] = []
    for count in shards:
        say(f"simulating {count} shards")
        slow = msgspec.structs.replace(_STRAGGLERS, share=max(_STRAGGLERS.share, 1 / count))
        rate = _USE * min(_router_most(costs, count), _node_most(costs))

        def add(name: str, system: System, rate: float, timeout: float = _TIMEOUT) -> Result:
            length = min(_SEARCHES, _PARTS // system.shards) / rate
            result = simulate(system, costs, Open(rate, length, length / 4), timeout=timeout)
            points.append(Point(name, system.shards, rate, result))
            return result

        base = System(shards=count, cores=_CORES)
        even = add("even", base, rate)
        late = msgspec.structs.replace(base, stragglers=slow)
        add("stragglers", late, rate)
        add("stragglers, deadline", late, rate, 10 * even.p50)
        # As many slow nodes among twice as many.
        fewer = msgspec.structs.replace(slow, share=slow.share / 2)
        halved = msgspec.structs.replace(late, replicas=2, stragglers=fewer)
        add("stragglers, 2 replicas", halved, rate)
        unhedged = msgspec.structs.replace(halved, settings=Settings(hedge_quantile=0.0))
        add("stragglers, 2 replicas, no hedges", unhedged, rate)
        alone = msgspec.structs.replace(base, router_cpu=False)
        add("nodes alone", alone, min(_USE * _node_most(costs), 4 * rate))
    return points


def _router_most(costs: Costs, shards: int) -> float:
    """Searches per second of one router without any that go together."""
    return 1 / (costs.router_search + shards * (costs.router_shard + costs.router_statement))


def _node_most(costs: Costs) -> float:
    mean = sum(costs.searches) / len(costs.searches)
    return _CORES / (costs.statement + mean)
