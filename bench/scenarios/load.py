"""Bulk load: `pgscatter load` against raw parallel COPY into the same tables, and the index by itself.

Either way has as many connections per shard; raw COPY sends streams that were encoded beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.context import Context
from bench.copying import Copying, Loaded
from bench.results import Cell, Metric, Outcome, Table
from bench.summary import against, curve_figure, over

__all__ = ["run"]

_JOBS = [1, 2, 4]
_QUICK_JOBS = [1, 2]
# What `pgscatter load` has by default, and the target is about.
_DEFAULT_JOBS = 2
_TARGET = 85.0
_LOAD, _COPY = "pgscatter load", "raw COPY"


def run(context: Context) -> Outcome:
    # By connections per shard.
    found: dict[int, dict[str, list[Loaded]]] = {}
    with context.world(copied=True, filled=False) as world:
        for jobs in _QUICK_JOBS if context.options.quick else _JOBS:
            copying = Copying(world, jobs)
            variants: dict[str, Callable[[], Loaded]] = {
                _LOAD: partial(copying.loaded, indexed=True),
                _COPY: partial(copying.copied, indexed=True),
            }
            # Whoever is first also fills the system's caches, and raw COPY needs an index to repeat.
            copying.loaded(indexed=True)
            found[jobs] = context.interleave(variants, f"{jobs} connections per shard")
    size, rows = copying.size_bytes, copying.rows
    curves = {name: {jobs: ways[name] for jobs, ways in found.items()} for name in (_LOAD, _COPY)}
    axes = ("connections per shard", "rows/s")
    return Outcome(
        metrics=[metric for jobs, ways in found.items() for metric in _metrics(ways, jobs)],
        tables=[_table(found, size / rows)],
        figures=[curve_figure("rows", "Bulk load, without the index", *axes, curves, "rate")],
        notes=[
            f"{rows:,} rows, {size / 1e6:,.0f} MB as COPY has them, over {context.shards} shards.",
            "Rows/s is until the last row is committed. The index comes afterwards, on all shards at once:"
            " that of pgscatter load with the memory and workers that it asks for, with statistics, checks"
            " and its end, that of raw COPY by a plain CREATE INDEX as the servers are set.",
        ],
    )


def _table(found: dict[int, dict[str, list[Loaded]]], row_bytes: float) -> Table:
    rows: list[list[Cell]] = []
    for jobs, ways in found.items():
        for name, taken in ways.items():
            rate, copied, indexed = (
                over(taken, of).median for of in ("rate", "copy_seconds", "index_seconds")
            )
            rows.append([name, str(jobs), rate, rate * row_bytes / 1e6, copied, indexed, copied + indexed])
    columns = ["", "connections per shard", "rows/s", "MB/s", "rows in after s", "index s", "ready after s"]
    return Table("Loading", columns, rows)


def _metrics(ways: dict[str, list[Loaded]], jobs: int) -> list[Metric]:
    load, copy = ways[_LOAD], ways[_COPY]
    rate, index = (against(load, copy, of, unit) for of, unit in (("rate", 100), ("index_seconds", 1)))
    at = f"{jobs} connections per shard"
    target = _TARGET if jobs == _DEFAULT_JOBS else None
    return [
        Metric.of(f"rows/s of pgscatter load against raw COPY, {at}", rate, "%", target=target),
        Metric.of(f"index of pgscatter load against CREATE INDEX, {at}", index, "x", "lower"),
        Metric.of(f"pgscatter load, {at}", over(load, "rate"), "rows/s"),
        Metric.of(f"raw COPY, {at}", over(copy, "rate"), "rows/s"),
        Metric.of(f"index of pgscatter load, {at}", over(load, "index_seconds"), "s", "lower"),
    ]
