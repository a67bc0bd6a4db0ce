"""A simulation as Markdown; what is not validated says so before anything else."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import msgspec

from bench.simulation.calibrate import Calibration, Validation
from bench.simulation.scale import Point

__all__ = ["Report", "markdown"]


class Report(msgspec.Struct, frozen=True):
    """`points` are empty where the simulation was not validated and nobody insisted."""

    calibration: Calibration
    validation: Validation
    points: list[Point]


def markdown(report: Report) -> str:
    parts = ["# Simulation", _costs(report.calibration), _validation(report.validation)]
    if report.points:
        parts.append(_points(report.points, valid=report.validation.valid))
    return "\n\n".join(parts) + "\n"


def _costs(calibration: Calibration) -> str:
    costs = calibration.costs
    rows = [
        ["statement, beside its searches", _us(costs.statement)],
        ["search in a statement, mean", _us(fmean(costs.searches))],
        ["router, per search", _us(costs.router_search)],
        ["router, per shard of a search", _us(costs.router_shard)],
        ["router, per statement", _us(costs.router_statement)],
        ["load generator, per search", _us(costs.client_search)],
    ]
    data = calibration.data
    about = (
        f"{data.rows:,} vectors of {data.dimensions} dimensions on four shards, k {calibration.k},"
        f" ef_search {calibration.ef_search}. With all processors busy, each runs at"
        f" {calibration.crowded:.2f} of its speed alone, and {calibration.usable:.0%} of their time is used."
    )
    return f"## Costs\n\n{about}\n\n" + _table(["processor time", "µs"], rows)


def _validation(validation: Validation) -> str:
    rows = []
    for one in validation.comparisons:
        measured, simulated = (
            [f"{value:,.0f} /s" for value in (one.measured, one.simulated)]
            if one.name == "throughput"
            else [f"{value * 1e3:.2f} ms" for value in (one.measured, one.simulated)]
        )
        rows.append([one.name, measured, simulated, f"{one.off:+.0%}", "yes" if one.within else "**no**"])
    verdict = "Valid." if validation.valid else "**Not valid**: figures of larger systems are not to be used."
    about = f"{validation.clients} clients, four shards, {validation.cores:.2f} processors left by others."
    table = _table(["", "measured", "simulated", "off by", "within 15 %"], rows)
    return f"## Measured and simulated\n\n{about}\n\n{table}\n\n{verdict}"


def _points(points: Sequence[Point], *, valid: bool) -> str:
    rows = [
        [
            str(point.shards),
            point.name,
            f"{point.rate:,.1f}",
            f"{point.result.rate:,.1f}",
            f"{point.result.p50 * 1e3:.2f}",
            f"{point.result.p99 * 1e3:.2f}",
            f"{point.result.coverage:.2%}",
            f"{point.result.router_use:.0%}",
        ]
        for point in points
    ]
    head = "## Larger systems" if valid else "## Larger systems (not validated)"
    columns = ["shards", "", "arrivals/s", "answers/s", "p50 ms", "p99 ms", "coverage", "router busy"]
    return f"{head}\n\n" + _table(columns, rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.0f}"
