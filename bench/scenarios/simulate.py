"""Up to 1,024 shards, stragglers and replicas, simulated with costs that are measured here first.

The simulation has to reproduce a measured run of four shards within 15 % before larger systems are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from statistics import fmean

from bench.context import Context
from bench.results import Cell, Figure, Metric, Outcome, Series, Table
from bench.simulation.calibrate import SHARDS, TOLERANCE, calibrate
from bench.simulation.model import Costs
from bench.simulation.scale import LARGER, Point, scale

__all__ = ["run"]

_CLIENTS = 16
_EF_SEARCH = 40
_QUICK_SHARDS = (1, 4, 16)


def run(context: Context) -> Outcome:
    options = context.options
    clients = (options.clients or [_CLIENTS])[0]
    ef_search = (options.ef_search or [_EF_SEARCH])[0]
    found = calibrate(context, ef_search=ef_search, seconds=2 * options.seconds, clients=clients)
    points: list[Point] = []
    if found.valid:
        shards = _QUICK_SHARDS if options.quick else LARGER
        points = scale(found.costs, shards=shards, say=context.say)
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
