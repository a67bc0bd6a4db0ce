"""Filtered searches, from a ten-thousandth of the rows to all: time, recall and the way that was taken.

Three ways stand beside the router: `exact: true`, and by an application of its own, with plans made for
every value (`force_custom_plan`), the scan that pgvector documents for filters, and an exact read. What is
compared with is the fastest of them whose recall is no worse than the target. All are asked the same query in
turn, by one client; then 64 clients at once, where the rate counts.
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
import yaml

from bench.attributes import COLUMNS, HAND_MADE, METADATA_INDEXES, Attributes, Case, cases
from bench.context import Context
from bench.errors import BenchError, SearchError
from bench.http_client import Connections, request_bytes
from bench.results import Cell, Metric, Outcome, Table
from bench.summary import against, over
from bench.targets import HttpSpec, TargetSpec, opened, search_body
from bench.truth import Truth, exact
from bench.world import COLLECTION, Router, World

__all__ = ["run"]

_QUERIES, _QUICK_QUERIES = 60, 12
_WARM_UP = 6  # PostgreSQL makes its mind up about a prepared statement's plan after five
_CLIENTS = 64
_RECALL, _EACH, _MEAN = 0.97, 1.3, 1.1
_CROWDED, _QUICK_SHARE = ("range", "equality", "metadata"), 0.01
_HITS = 200
_BATCH, _LEAST_BATCH = 150, 16
# A batch and as many singles are to take no longer; exact reads of many rows get fewer searches for it.
_BATCH_SECONDS = 20.0
_BATCH_SHARES = (0.001, 0.01, 0.1)
_BATCH_COLUMNS = [
    *("share", "searches", "batch s", "singles s", "ratio", "failed in the batch", "failed singles"),
]
_TABLE = f"public.{COLLECTION}"
# Of the gather's connections: plans for each search, and the scan that goes on until k rows match.
_SETTINGS = {"plan_cache_mode": "force_custom_plan", "hnsw.iterative_scan": "relaxed_order"}
_OURS, _EXACT, _SCAN, _READ = "pgscatter", "exact: true", "gather, scan", "gather, read"
_GATHER = "direct gather"
_TIME = "time against the best other way"
# What an index on the columns is worth; a range, an equality and a metadata path show it.
_UNINDEXED = ("range", "range, near", "equality", "equality, near", "metadata")


class _Found(msgspec.Struct):
    """A case by each variant: median seconds and recall; the way that each shard took."""

    case: Case
    seconds: dict[str, float]
    recall: dict[str, float]
    ways: str

    @property
    def title(self) -> str:
        return f"{self.case.name}, {_percent(self.case.share)}"

    @property
    def best(self) -> str:
        rivals = [name for name in self.seconds if name != _OURS]
        good = [name for name in rivals if self.recall[name] >= _RECALL] or rivals
        return min(good, key=lambda name: self.seconds[name])

    @property
    def ratio(self) -> float:
        return self.seconds[_OURS] / self.seconds[self.best]

    def __str__(self) -> str:
        times = "; ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in self.seconds.items())
        return f"{self.title}: {self.ways}; {times}; ratio {self.ratio:.2f}, recall {self.recall[_OURS]:.4f}"


def run(context: Context) -> Outcome:
    made = Attributes.of(context.dataset)
    every = list(cases(made))
    if context.options.quick:
        every = [case for case in every if case.share in (0.001, 0.01, 0.1)]
    outcome = Outcome()
    with context.world(fields={"columns": COLUMNS, "metadata": "metadata"}, filled=False) as world:
        _load(world, made)
        plain = [case for case in every if case.name in _UNINDEXED]
        _measure(context, world, world.map_path, plain, "without indexes", outcome)
        indexed = _indexed(world)
        world.apply_schema(COLLECTION, indexed)
        world.sql(HAND_MADE.format(table=_TABLE))
        _measure(context, world, indexed, every, "with indexes", outcome)
    return outcome


def _measure(
    context: Context, world: World, map_path: Path, every: list[Case], how: str, outcome: Outcome
) -> None:
    with world.serve(map_path=map_path) as router:
        context.say(f"{how}: {len(every)} filters, one client")
        try:
            hit = asyncio.run(_l1_seconds(_spec(world, router, every[0])))
            context.say(f"{how}: {hit * 1e3:.3g} ms for a search that L1 answers")
            found = asyncio.run(_singles(context, world, router, every))
            batched = [one for one in found if one.case.name == "range" and one.case.share in _BATCH_SHARES]
            batches = [asyncio.run(_batch(context, world, router, one)) for one in batched]
        except SearchError as exc:
            raise BenchError(f"a search failed while none may: {exc}") from exc
        outcome.tables.extend(
            [
                Table(f"Floor of HTTP, {how}", ["ms of a search that L1 answers"], [[hit * 1e3]]),
                _table(found, f"One client, {how}"),
                Table(f"A batch of searches, {how}", _BATCH_COLUMNS, batches),
            ]
        )
        outcome.metrics.extend(_metrics(found, how))
        crowd = [one for one in found if one.case.name in _CROWDED]
        if context.options.quick:
            crowd = [one for one in crowd if one.case.share == _QUICK_SHARE]
        outcome.tables.append(_crowd(context, world, router, crowd, how, outcome))


def _spec(world: World, router: Router, case: Case, **fields: Any) -> HttpSpec:
    return world.http(router, extra={"filter": case.filter, **fields})


async def _l1_seconds(spec: HttpSpec) -> float:
    """Median of one search that L1 answers again and again: what HTTP and both its ends take."""
    taken = []
    async with opened(msgspec.structs.replace(spec, cache=True)) as target:
        for _ in range(1 + _HITS):
            started = perf_counter()
            await target.search(0)
            taken.append(perf_counter() - started)
    if target.account().get("l1") != _HITS:
        raise BenchError(f"L1 was to answer all but the first of {len(taken)} equal searches")
    return statistics.median(taken[1:])


async def _singles(context: Context, world: World, router: Router, every: list[Case]) -> list[_Found]:
    found = []
    with context.display.meter("filters", len(every), "cases") as meter:
        for case in every:
            found.append(await _single(context, world, router, case))
            context.say(str(found[-1]))
            meter.add(1)
    return found


async def _single(context: Context, world: World, router: Router, case: Case) -> _Found:
    options = context.options
    queries = min(_QUICK_QUERIES if options.quick else _QUERIES, len(context.dataset.queries))
    truth = _truth(context, case, queries)
    specs: dict[str, TargetSpec] = {
        _OURS: _spec(world, router, case),
        _EXACT: _spec(world, router, case, exact=True),
        _SCAN: world.gather(where=case.where, settings=_SETTINGS, pooled=False),
        _READ: world.gather(where=case.where, settings=_SETTINGS, pooled=False, exact=True),
    }
    answers: dict[str, list[Sequence[int]]] = {name: [] for name in specs}
    seconds: dict[str, list[float]] = {name: [] for name in specs}
    async with AsyncExitStack() as stack:
        variants = {name: await stack.enter_async_context(opened(spec)) for name, spec in specs.items()}
        for query in range(_WARM_UP):
            for target in variants.values():
                await target.search(query % queries)
        names, began = list(variants), perf_counter()
        for query in range(queries):
            if query >= _WARM_UP and perf_counter() - began > options.seconds:
                break
            # Whoever comes after a read of everything finds the processor's caches cold: not always the same.
            turn = names[query % len(names) :] + names[: query % len(names)]
            for name in turn if query % 2 else reversed(turn):
                started = perf_counter()
                answer = await variants[name].search(query)
                seconds[name].append(perf_counter() - started)
                answers[name].append(answer)
    asked = partial(world.ask, router, 0, filter=case.filter, explain=True)
    _, explained = await asyncio.to_thread(asked)
    return _Found(
        case,
        {name: statistics.median(taken) for name, taken in seconds.items()},
        {name: truth.recall_of_each(context.dataset, given) for name, given in answers.items()},
        _ways(explained),
    )


def _truth(context: Context, case: Case, queries: int) -> Truth:
    """The nearest of the rows that match, of the first so many queries."""
    ids = np.flatnonzero(case.mask)
    if not len(ids):
        raise BenchError(f"no row matches {case.filter}")
    dataset = context.dataset
    part = msgspec.structs.replace(dataset, base=dataset.base[ids], queries=dataset.queries[:queries])
    truth = exact(part, min(context.options.k, len(ids)))
    return Truth(ids[truth.ids], truth.distances)


async def _batch(context: Context, world: World, router: Router, one: _Found) -> list[Cell]:
    """A batch and as many singles by 16 clients, in turn, three times each."""
    count = int(_BATCH_SECONDS / (2 * one.seconds[_OURS]))
    count = min(max(count, _LEAST_BATCH), _BATCH)
    spec = _spec(world, router, one.case)
    connections = Connections(spec.url)
    vectors = np.resize(context.dataset.queries, (count, context.dataset.dimensions))
    bodies = [search_body(spec, vector) for vector in vectors]
    batch = request_bytes(f"{spec.url}/batch", msgspec.json.encode({"searches": bodies}))
    singles = [request_bytes(spec.url, msgspec.json.encode(body)) for body in bodies]
    places = asyncio.Semaphore(16)
    taken: dict[str, list[float]] = {"batch": [], "singles": []}
    answered = {"batch": 0, "singles": 0}

    async def together() -> int:
        status, data = await connections.send(batch)
        results = msgspec.json.decode(data).get("results", []) if status == 200 else []
        return sum("hits" in result for result in results)

    async def single(request: bytes) -> bool:
        async with places:
            return (await connections.send(request))[0] == 200

    async def apart() -> int:
        return sum(await asyncio.gather(*map(single, singles)))

    try:
        for _ in range(3):
            for name, ask in (("batch", together), ("singles", apart)):
                started = perf_counter()
                answered[name] += await ask()
                taken[name].append(perf_counter() - started)
    finally:
        connections.close()
    medians = [statistics.median(seconds) for seconds in taken.values()]
    context.say("{}: batch of {} {:.3g} s, singles {:.3g} s".format(one.title, count, *medians))
    failed = (str(3 * count - number) for number in answered.values())
    return [_percent(one.case.share), str(count), *medians, medians[0] / medians[1], *failed]


def _crowd(
    context: Context, world: World, router: Router, found: list[_Found], how: str, outcome: Outcome
) -> Table:
    """The same under load, against the better of the direct gathers."""
    rows: list[list[Cell]] = []
    clients = (context.options.clients or [_CLIENTS])[0]
    load = context.closed(clients)
    for one in found:
        case = one.case
        truth = _truth(context, case, len(context.dataset.queries))
        theirs = world.gather(where=case.where, settings=_SETTINGS, exact=one.best != _SCAN)
        specs: dict[str, TargetSpec] = {_OURS: _spec(world, router, case), _GATHER: theirs}
        taken = context.compare(world, specs, load, one.title, truth=truth)
        ours = taken[_OURS]
        ratio = against(ours, taken[_GATHER], "rate")
        rows.append(
            [
                *(case.name, _percent(case.share)),
                *(over(samples, "rate").median for samples in taken.values()),
                None if ratio is None else ratio.median,
                f"{over(ours, 'recall').median:.4f}",
                str(sum(sample.lost for sample in ours)),
            ]
        )
        outcome.metrics.append(Metric.of(f"searches/s against the gather, {one.title}, {how}", ratio, "x"))
    columns = ["filter", "share", "searches/s", "gather", "ratio", "recall", "failed"]
    return Table(f"{clients} clients, {how}", columns, rows)


def _ways(answer: dict[str, Any]) -> str:
    """How many shards took each way."""
    taken = [shard["choice"]["way"] for shard in answer["explain"]["shards"]]
    return ", ".join(f"{taken.count(way)} {way}" for way in dict.fromkeys(taken))


def _table(found: list[_Found], title: str) -> Table:
    ways = (_OURS, _EXACT, _SCAN, _READ)
    columns = ["filter", "share", "rows", "way", *ways, "ratio", "recall", "scan's recall"]
    rows: list[list[Cell]] = [
        [
            *(one.case.name, _percent(one.case.share), f"{int(one.case.mask.sum()):,}", one.ways),
            *(one.seconds[name] * 1e3 for name in ways),
            *(one.ratio, f"{one.recall[_OURS]:.4f}", f"{one.recall[_SCAN]:.4f}"),
        ]
        for one in found
    ]
    return Table(f"{title}, median ms of a search", columns, rows)


def _metrics(found: list[_Found], how: str) -> Iterator[Metric]:
    worst = max(found, key=lambda one: one.ratio)
    least = min(found, key=lambda one: one.recall[_OURS])
    mean = statistics.fmean([one.ratio for one in found])
    yield Metric.of(f"{_TIME}, worst, {how}", worst.ratio, "x", "lower", _EACH, worst.title)
    yield Metric.of(f"{_TIME}, mean, {how}", mean, "x", "lower", _MEAN)
    yield Metric.of(f"recall, least, {how}", least.recall[_OURS], target=_RECALL, note=least.title)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _indexed(world: World) -> Path:
    """The map with indexes on everything that is filtered by."""
    path = world.map_path.with_name("indexed.yaml")
    tree = yaml.safe_load(world.map_path.read_text())
    tree["version"] += 1
    collection = tree["collections"][COLLECTION]
    collection["columns"] = {name: {"type": type_, "index": True} for name, type_ in COLUMNS.items()}
    collection["metadata"] = {"column": "metadata", "indexes": METADATA_INDEXES}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def _load(world: World, made: Attributes) -> None:
    """The rows with their attributes."""
    import pyarrow as pa
    from pyarrow import parquet

    base = world.dataset.base
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(base.reshape(-1), pa.float32()), base.shape[1])
    columns = {name: pa.array(getattr(made, name).tolist()) for name in COLUMNS}
    metadata = pa.array([json.dumps(made.metadata(row)) for row in range(len(base))])
    ids = pa.array(np.arange(len(base), dtype=np.int64))
    path = Path(world.folder) / "rows.parquet"
    parquet.write_table(pa.table({"id": ids, "vector": vectors, "metadata": metadata, **columns}), path)
    world.load(COLLECTION, path)
