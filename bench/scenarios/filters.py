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
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import asyncpg
import msgspec
import numpy as np
import yaml
from numpy.typing import NDArray
from pgvector.asyncpg import register_vector

from bench.attributes import COLUMNS, HAND_MADE, METADATA_INDEXES, Attributes, Case, cases
from bench.context import Context
from bench.errors import BenchError, SearchError
from bench.http_client import Connections, request_bytes
from bench.interleave import ratios
from bench.results import Cell, Metric, Outcome, Table
from bench.sample import Sample
from bench.summary import values
from bench.targets import HttpSpec, make, search_body
from bench.truth import Truth, exact
from bench.world import COLLECTION, Router, World
from router.postgres.driver import connect
from router.postgres.sql import distance_operator

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
    "share",
    "searches",
    "batch s",
    "singles s",
    "ratio",
    "failed in the batch",
    "failed singles",
]
_TABLE = f"public.{COLLECTION}"
# Of the gather's connections: plans for each search, and the scan that goes on until k rows match.
_SETTINGS = {"plan_cache_mode": "force_custom_plan", "hnsw.iterative_scan": "relaxed_order"}
_OURS, _EXACT, _SCAN, _READ = "pgscatter", "exact: true", "gather, scan", "gather, read"
# What an index on the columns is worth; a range, an equality and a metadata path show it.
_UNINDEXED = ("range", "range, near", "equality", "equality, near", "metadata")

Search = Callable[[int], Awaitable[Sequence[int]]]


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
        world.command("schema", "apply", "--map", indexed, listen=world.say)
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
    target = make(msgspec.structs.replace(spec, cache=True))
    taken = []
    try:
        for _ in range(1 + _HITS):
            started = perf_counter()
            await target.search(0)
            taken.append(perf_counter() - started)
    finally:
        await target.close()
    if target.account().get("l1") != _HITS:
        raise BenchError(f"L1 was to answer all but the first of {len(taken)} equal searches")
    return statistics.median(taken[1:])


async def _singles(context: Context, world: World, router: Router, every: list[Case]) -> list[_Found]:
    found = []
    with context.display.meter("filters", len(every), "cases") as meter:
        async with _Gather(world) as gather:
            for case in every:
                found.append(await _single(context, world, router, gather, case))
                context.say(str(found[-1]))
                meter.add(1)
    return found


async def _single(context: Context, world: World, router: Router, gather: _Gather, case: Case) -> _Found:
    options = context.options
    queries = min(_QUICK_QUERIES if options.quick else _QUERIES, len(context.dataset.queries))
    truth = _truth(context, case, queries)
    targets = [make(_spec(world, router, case, **more)) for more in ({}, {"exact": True})]
    variants: dict[str, Search] = {
        **{name: target.search for name, target in zip((_OURS, _EXACT), targets, strict=True)},
        _SCAN: await gather.prepared(case.where, scan=True),
        _READ: await gather.prepared(case.where, scan=False),
    }
    answers: dict[str, list[Sequence[int]]] = {name: [] for name in variants}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    try:
        for query in range(_WARM_UP):
            for search in variants.values():
                await search(query % queries)
        names, began = list(variants), perf_counter()
        for query in range(queries):
            if query >= _WARM_UP and perf_counter() - began > options.seconds:
                break
            # Whoever comes after a read of everything finds the processor's caches cold: not always the same.
            turn = names[query % len(names) :] + names[: query % len(names)]
            for name in turn if query % 2 else reversed(turn):
                started = perf_counter()
                answer = await variants[name](query)
                seconds[name].append(perf_counter() - started)
                answers[name].append(answer)
    finally:
        for target in targets:
            await target.close()
    asked = partial(world.ask, router, 0, filter=case.filter, explain=True)
    _, explained = await asyncio.to_thread(asked)
    return _Found(
        case,
        {name: statistics.median(taken) for name, taken in seconds.items()},
        {name: _recall(context, truth, given) for name, given in answers.items()},
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


class _Gather:
    """An application's own fan-out: a connection per shard, and plans made for each search."""

    def __init__(self, world: World) -> None:
        self._dsns = [node.dsn for node in world.primaries]
        self._operator = distance_operator(world.dataset.metric)
        self._queries = world.dataset.queries
        self._k = world.k
        self._connections: list[asyncpg.Connection] = []

    async def __aenter__(self) -> _Gather:
        for dsn in self._dsns:
            connection = await connect(dsn, timeout=10.0, server_settings=_SETTINGS)
            await register_vector(connection)
            self._connections.append(connection)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for connection in self._connections:
            connection.terminate()

    async def prepared(self, where: str, *, scan: bool) -> Search:
        distance = f"embedding {self._operator} $1"
        order = distance if scan else f"({distance}) + 0"
        sql = f"SELECT id, {distance} AS d FROM {_TABLE} WHERE {where} ORDER BY {order} LIMIT {self._k}"
        statements = [await connection.prepare(sql) for connection in self._connections]

        async def search(query: int) -> list[int]:
            vector = self._queries[query]
            parts = await asyncio.gather(*(statement.fetch(vector) for statement in statements))
            rows = sorted((row for part in parts for row in part), key=lambda row: (row["d"], row["id"]))
            return [row["id"] for row in rows[: self._k]]

        return search


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
    failed = {"batch": 0, "singles": 0}

    async def single(request: bytes) -> bool:
        async with places:
            return (await connections.send(request))[0] == 200

    try:
        for _ in range(3):
            started = perf_counter()
            status, data = await connections.send(batch)
            taken["batch"].append(perf_counter() - started)
            results = msgspec.json.decode(data).get("results", []) if status == 200 else []
            failed["batch"] += count - sum("hits" in result for result in results)
            started = perf_counter()
            answered = await asyncio.gather(*map(single, singles))
            taken["singles"].append(perf_counter() - started)
            failed["singles"] += count - sum(answered)
    finally:
        connections.close()
    together, alone = (statistics.median(taken[name]) for name in ("batch", "singles"))
    context.say(f"{one.title}: batch of {count} {together:.3g} s, singles {alone:.3g} s")
    ratio = together / alone
    return [_percent(one.case.share), str(count), together, alone, ratio, *map(str, failed.values())]


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
        ours = _spec(world, router, case)
        theirs = world.gather(where=case.where, settings=_SETTINGS, exact=one.best != _SCAN)
        taken: dict[str, list[Sample]] = context.interleave(
            {
                _OURS: partial(context.sample, world, ours, load, router, truth=truth),
                "direct gather": partial(context.sample, world, theirs, load, truth=truth),
            },
            one.title,
        )
        rates = {name: values(samples, lambda s: s.rate) for name, samples in taken.items()}
        failed = sum(sample.failed + sample.shed for sample in taken[_OURS])
        recall = statistics.median(sample.recall or 0.0 for sample in taken[_OURS])
        ratio = ratios(rates[_OURS], rates["direct gather"])
        rows.append(
            [
                *(case.name, _percent(case.share)),
                *(statistics.median(rates[name]) for name in (_OURS, "direct gather")),
                None if ratio is None else ratio.median,
                f"{recall:.4f}",
                str(failed),
            ]
        )
        outcome.metrics.append(Metric.of(f"searches/s against the gather, {one.title}, {how}", ratio, "x"))
    columns = ["filter", "share", "searches/s", "gather", "ratio", "recall", "failed"]
    return Table(f"{clients} clients, {how}", columns, rows)


def _recall(context: Context, truth: Truth, answers: list[Sequence[int]]) -> float:
    k = context.options.k
    padded = np.full((len(answers), k), -1, dtype=np.int64)
    for row, answer in zip(padded, answers, strict=True):
        row[: len(answer)] = answer[:k]
    asked: NDArray[np.int64] = np.arange(len(answers), dtype=np.int64)
    return truth.recall(context.dataset, asked, padded)


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
    yield Metric(
        name=f"time against the best other way, worst, {how}",
        value=worst.ratio,
        unit="x",
        better="lower",
        target=_EACH,
        note=worst.title,
    )
    yield Metric(
        name=f"time against the best other way, mean, {how}",
        value=mean,
        unit="x",
        better="lower",
        target=_MEAN,
    )
    yield Metric(
        name=f"recall, least, {how}",
        value=least.recall[_OURS],
        target=_RECALL,
        note=least.title,
    )


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _indexed(world: World) -> Path:
    """The map with indexes on everything that is filtered by."""
    path = world.map_path.with_name("indexed.yaml")
    tree = yaml.safe_load(world.map_path.read_text())
    collection = tree["collections"][COLLECTION]
    collection["columns"] = {name: {"type": type_, "index": True} for name, type_ in COLUMNS.items()}
    collection["metadata"] = {"column": "metadata", "indexes": METADATA_INDEXES}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def _load(world: World, made: Attributes) -> None:
    """The rows with their attributes, by the command that a user has."""
    import pyarrow as pa
    from pyarrow import parquet

    base = world.dataset.base
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(base.reshape(-1), pa.float32()), base.shape[1])
    columns = {name: pa.array(getattr(made, name).tolist()) for name in COLUMNS}
    metadata = pa.array([json.dumps(made.metadata(row)) for row in range(len(base))])
    ids = pa.array(np.arange(len(base), dtype=np.int64))
    path = Path(world.folder) / "rows.parquet"
    parquet.write_table(pa.table({"id": ids, "vector": vectors, "metadata": metadata, **columns}), path)
    world.command("load", path, "--map", world.map_path, "--collection", COLLECTION, listen=world.say)
