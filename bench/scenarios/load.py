"""Bulk load: `pgscatter load` against raw parallel COPY into the same tables, and the index by itself.

Either way has as many connections per shard; raw COPY sends streams that were encoded beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.context import Context
from bench.copying import Copying, Loaded
from bench.interleave import ratios, spread
from bench.results import Figure, Metric, Outcome, Series, Table

__all__ = ["run"]

_JOBS = [1, 2, 4]
_QUICK_JOBS = [1, 2]
# What `pgscatter load` has by default, and the target is about.
_DEFAULT_JOBS = 2
_TARGET = 85.0
_LOAD, _COPY = "pgscatter load", "raw COPY"

# By connections per shard.
_Found = dict[int, dict[str, list[Loaded]]]


def run(context: Context) -> Outcome:
    found: _Found = {}
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
    return Outcome(
        metrics=[metric for jobs in found for metric in _metrics(found, jobs)],
        tables=[_table(found, size / rows)],
        figures=[_figure(found)],
        notes=[
            f"{rows:,} rows, {size / 1e6:,.0f} MB as COPY has them, over {context.shards} shards.",
            "Rows/s is until the last row is committed. The index comes afterwards, on all shards at once:"
            " that of pgscatter load with the memory and workers that it asks for, with statistics, checks"
            " and its end, that of raw COPY by a plain CREATE INDEX as the servers are set.",
        ],
    )


def _rates(found: list[Loaded]) -> list[float]:
    return [one.rate for one in found]


def _metrics(found: _Found, jobs: int) -> list[Metric]:
    load, copy = found[jobs][_LOAD], found[jobs][_COPY]
    share = ratios(_rates(load), _rates(copy))
    index = ratios([one.index_seconds for one in load], [one.index_seconds for one in copy])
    at = f"{jobs} connections per shard"
    return [
        Metric.of(
            f"rows/s of pgscatter load against raw COPY, {at}",
            None if share is None else share.scaled(100),
            "%",
            target=_TARGET if jobs == _DEFAULT_JOBS else None,
        ),
        Metric.of(f"index of pgscatter load against CREATE INDEX, {at}", index, "x", "lower"),
        Metric.of(f"pgscatter load, {at}", spread(_rates(load)), "rows/s"),
        Metric.of(f"raw COPY, {at}", spread(_rates(copy)), "rows/s"),
        Metric.of(
            f"index of pgscatter load, {at}", spread([one.index_seconds for one in load]), "s", "lower"
        ),
    ]


def _table(found: _Found, row_bytes: float) -> Table:
    rows: list[list[str | float | None]] = []
    for jobs, ways in found.items():
        for name, taken in ways.items():
            rate = spread(_rates(taken)).median
            index = spread([one.index_seconds for one in taken]).median
            seconds = spread([one.copy_seconds for one in taken]).median
            rows.append([name, str(jobs), rate, rate * row_bytes / 1e6, seconds, index, seconds + index])
    columns = ["", "connections per shard", "rows/s", "MB/s", "rows in after s", "index s", "ready after s"]
    return Table("Loading", columns, rows)


def _figure(found: _Found) -> Figure:
    series = []
    for name in (_LOAD, _COPY):
        rates = [(jobs, spread(_rates(ways[name]))) for jobs, ways in found.items()]
        series.append(Series(name, [(jobs, one.median, one.low, one.high) for jobs, one in rates]))
    return Figure(
        "rows", "Bulk load, without the index", "connections per shard", "rows/s", series, log_x=True
    )
