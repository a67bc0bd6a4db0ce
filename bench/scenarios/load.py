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
    items = [(name, jobs, taken) for jobs, ways in found.items() for name, taken in ways.items()]
    series = [
        Series.of(name, {jobs: spread(_rates(ways[name])) for jobs, ways in found.items()})
        for name in (_LOAD, _COPY)
    ]
    return Outcome(
        metrics=[metric for jobs, ways in found.items() for metric in _metrics(ways, jobs)],
        tables=[
            Table.of(
                "Loading",
                {
                    "": lambda item: item[0],
                    "connections per shard": lambda item: str(item[1]),
                    "rows/s": lambda item: spread(_rates(item[2])).median,
                    "MB/s": lambda item: spread(_rates(item[2])).median * size / rows / 1e6,
                    "rows in after s": lambda item: _median(item[2], "copy_seconds"),
                    "index s": lambda item: _median(item[2], "index_seconds"),
                    "ready after s": lambda item: (
                        _median(item[2], "copy_seconds") + _median(item[2], "index_seconds")
                    ),
                },
                items,
            )
        ],
        figures=[
            Figure(
                *("rows", "Bulk load, without the index", "connections per shard", "rows/s"),
                series,
                log_x=True,
            )
        ],
        notes=[
            f"{rows:,} rows, {size / 1e6:,.0f} MB as COPY has them, over {context.shards} shards.",
            "Rows/s is until the last row is committed. The index comes afterwards, on all shards at once:"
            " that of pgscatter load with the memory and workers that it asks for, with statistics, checks"
            " and its end, that of raw COPY by a plain CREATE INDEX as the servers are set.",
        ],
    )


def _rates(found: list[Loaded]) -> list[float]:
    return [one.rate for one in found]


def _median(found: list[Loaded], of: str) -> float:
    return spread([getattr(one, of) for one in found]).median


def _metrics(ways: dict[str, list[Loaded]], jobs: int) -> list[Metric]:
    load, copy = ways[_LOAD], ways[_COPY]
    loaded, copied = ([one.index_seconds for one in taken] for taken in (load, copy))
    at = f"{jobs} connections per shard"
    return [
        Metric.of(
            f"rows/s of pgscatter load against raw COPY, {at}",
            ratios(_rates(load), _rates(copy), 100),
            "%",
            target=_TARGET if jobs == _DEFAULT_JOBS else None,
        ),
        Metric.of(
            f"index of pgscatter load against CREATE INDEX, {at}", ratios(loaded, copied), "x", "lower"
        ),
        Metric.of(f"pgscatter load, {at}", spread(_rates(load)), "rows/s"),
        Metric.of(f"raw COPY, {at}", spread(_rates(copy)), "rows/s"),
        Metric.of(f"index of pgscatter load, {at}", spread(loaded), "s", "lower"),
    ]
