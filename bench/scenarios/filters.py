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
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec
import numpy as np
import yaml
from numpy.typing import NDArray
from pgvector.asyncpg import register_vector

from bench.attributes import COLUMNS, HAND_MADE, METADATA_INDEXES, Attributes, Case, cases
from bench.context import Context
from bench.errors import BenchError
from bench.http_client import Connections, request_bytes
from bench.interleave import ratios
from bench.results import Metric, Outcome, Table
from bench.sample import Sample
from bench.summary import values
from bench.truth import Truth, exact
from bench.world import COLLECTION, Router, World
from router.postgres.driver import connect
from router.postgres.sql import distance_operator

__all__ = ["run"]

_QUERIES, _QUICK_QUERIES = 60, 12
_SECONDS, _QUICK_SECONDS = 4.0, 1.0  # for one case, after which no further query is asked
_WARM_UP = 6  # PostgreSQL makes its mind up about a prepared statement's plan after five
_CLIENTS = 64
_RECALL, _EACH, _MEAN = 0.97, 1.3, 1.1
_CROWDED, _QUICK_SHARE = ("range", "equality", "metadata"), 0.01
_BATCH = 150
_BATCH_SHARES = (0.001, 0.01, 0.1)
_TABLE = f"public.{COLLECTION}"
_OURS, _EXACT, _SCAN, _READ = "pgscatter", "exact: true", "gather, scan", "gather, read"
# What an index on the columns is worth; a range, an equality and a metadata path show it.
_UNINDEXED = ("range", "range, near", "equality", "equality, near", "metadata")

Search = Callable[[int], Awaitable[list[int]]]


class _Found(msgspec.Struct):
    """A case by each variant: median seconds and recall; the way that each shard took."""

    case: Case
    seconds: dict[str, float]
    recall: dict[str, float]
    ways: str
    queries: int

    @property
    def best(self) -> str:
        rivals = [name for name in self.seconds if name != _OURS]
        good = [name for name in rivals if self.recall[name] >= _RECALL] or rivals
        return min(good, key=lambda name: self.seconds[name])

    @property
    def ratio(self) -> float:
        return self.seconds[_OURS] / self.seconds[self.best]


def run(context: Context) -> Outcome:
    made = Attributes.of(context.dataset)
    every = list(cases(made))
    if context.options.quick:
        every = [case for case in every if case.share in (0.001, 0.01, 0.1)]
    outcome = Outcome()
    with context.world(columns=COLUMNS, metadata=True, filled=False) as world:
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
        found = asyncio.run(_singles(context, world, router, every))
        outcome.tables.append(_table(found, f"One client, {how}"))
        outcome.metrics.extend(_metrics(found, how))
        batches = [case for case in every if case.name == "range" and case.share in _BATCH_SHARES]
        rows = [asyncio.run(_batch(context, router, case)) for case in batches]
        outcome.tables.append(
            Table(
                f"A batch of {_BATCH} searches, {how}",
                ["share", "batch s", "singles s", "ratio", "failed in the batch", "failed singles"],
                rows,
            )
        )
        crowd = [one for one in found if one.case.name in _CROWDED]
        if context.options.quick:
            crowd = [one for one in crowd if one.case.share == _QUICK_SHARE]
        outcome.tables.append(_crowd(context, world, router, crowd, how, outcome))


async def _singles(context: Context, world: World, router: Router, every: list[Case]) -> list[_Found]:
    meter = context.display.meter("filters", len(every), "cases")
    url = urlsplit(router.url)
    connections = Connections(str(url.hostname), url.port or 80)
    found = []
    try:
        async with _Gather(world, context.options.k) as gather:
            for done, case in enumerate(every):
                found.append(await _single(context, connections, gather, case))
                meter.reach(done + 1)
    finally:
        connections.close()
        meter.end()
    return found


async def _single(context: Context, connections: Connections, gather: _Gather, case: Case) -> _Found:
    options = context.options
    queries = min(_QUICK_QUERIES if options.quick else _QUERIES, len(context.dataset.queries))
    ids = np.flatnonzero(case.mask)
    if not len(ids):
        raise BenchError(f"no row matches {case.filter}")
    part = msgspec.structs.replace(
        context.dataset, base=context.dataset.base[ids], queries=context.dataset.queries[:queries]
    )
    truth = exact(part, min(options.k, len(ids)))
    truth = Truth(ids[truth.ids], truth.distances)
    http = partial(_ask, connections, context, case.filter)
    variants: dict[str, Search] = {
        _OURS: http,
        _EXACT: partial(http, exact=True),
        _SCAN: await gather.prepared(case.where, scan=True),
        _READ: await gather.prepared(case.where, scan=False),
    }
    answers: dict[str, list[list[int]]] = {name: [] for name in variants}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for query in range(_WARM_UP):
        for search in variants.values():
            await search(query % queries)
    names, began = list(variants), perf_counter()
    for query in range(queries):
        if query >= _WARM_UP and perf_counter() - began > (_QUICK_SECONDS if options.quick else _SECONDS):
            break
        for name in names[query % len(names) :] + names[: query % len(names)]:
            started = perf_counter()
            answer = await variants[name](query)
            seconds[name].append(perf_counter() - started)
            answers[name].append(answer)
    explained = await _send(connections, context, case.filter, 0, explain=True)
    return _Found(
        case,
        {name: statistics.median(taken) for name, taken in seconds.items()},
        {name: _recall(context, truth, given) for name, given in answers.items()},
        _ways(explained),
        len(seconds[_OURS]),
    )


class _Gather:
    """An application's own fan-out: a connection per shard, and plans made for each search."""

    def __init__(self, world: World, k: int) -> None:
        self._dsns = [node.dsn for node in world.primaries]
        self._operator = distance_operator(world.dataset.metric)
        self._queries = world.dataset.queries
        self._k = k
        self._connections: list[asyncpg.Connection] = []

    async def __aenter__(self) -> _Gather:
        settings = {"plan_cache_mode": "force_custom_plan", "hnsw.iterative_scan": "relaxed_order"}
        for dsn in self._dsns:
            connection = await connect(dsn, timeout=10.0, server_settings=settings)
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


async def _ask(
    connections: Connections, context: Context, filter: Mapping[str, Any], query: int, **fields: Any
) -> list[int]:
    answer = await _send(connections, context, filter, query, **fields)
    return [hit["id"] for hit in answer["hits"]]


async def _send(
    connections: Connections, context: Context, filter: Mapping[str, Any], query: int, **fields: Any
) -> dict[str, Any]:
    body = json.dumps(_body(context, filter, query, **fields)).encode()
    request = request_bytes("localhost", f"/v1/collections/{COLLECTION}/search", body)
    status, data = await connections.send(request)
    if status != 200:
        raise BenchError(f"{filter}: status {status}: {data[:300]!r}")
    answer: dict[str, Any] = msgspec.json.decode(data)
    return answer


def _body(context: Context, filter: Mapping[str, Any], query: int, **fields: Any) -> dict[str, Any]:
    vector = context.dataset.queries[query % len(context.dataset.queries)].tolist()
    return {"vector": vector, "k": context.options.k, "filter": filter, "cache": False, **fields}


async def _batch(context: Context, router: Router, case: Case) -> list[str | float | None]:
    """A batch and as many singles by 16 clients, in turn, three times each."""
    url = urlsplit(router.url)
    connections = Connections(str(url.hostname), url.port or 80)
    path = f"/v1/collections/{COLLECTION}/search"
    bodies = [_body(context, case.filter, query) for query in range(_BATCH)]
    batch = request_bytes("localhost", f"{path}/batch", json.dumps({"searches": bodies}).encode())
    singles = [request_bytes("localhost", path, json.dumps(body).encode()) for body in bodies]
    taken: dict[str, list[float]] = {"batch": [], "singles": []}
    failed = {"batch": 0, "singles": 0}
    try:
        for _ in range(3):
            started = perf_counter()
            status, data = await connections.send(batch)
            taken["batch"].append(perf_counter() - started)
            results = msgspec.json.decode(data).get("results", []) if status == 200 else []
            failed["batch"] += _BATCH - sum("hits" in result for result in results)
            places = asyncio.Semaphore(16)

            async def one(request: bytes, places: asyncio.Semaphore = places) -> bool:
                async with places:
                    return (await connections.send(request))[0] == 200

            started = perf_counter()
            answered = await asyncio.gather(*map(one, singles))
            taken["singles"].append(perf_counter() - started)
            failed["singles"] += _BATCH - sum(answered)
    finally:
        connections.close()
    together, alone = (statistics.median(taken[name]) for name in ("batch", "singles"))
    return [
        _percent(case.share),
        together,
        alone,
        together / alone,
        str(failed["batch"]),
        str(failed["singles"]),
    ]


def _crowd(
    context: Context, world: World, router: Router, found: list[_Found], how: str, outcome: Outcome
) -> Table:
    """The same under load, against the better of the direct gathers."""
    rows: list[list[str | float | None]] = []
    clients = (context.options.clients or [_CLIENTS])[0]
    load = context.closed(clients)
    for one in found:
        case = one.case
        ids = np.flatnonzero(case.mask)
        part = msgspec.structs.replace(context.dataset, base=context.dataset.base[ids])
        truth = exact(part, min(context.options.k, len(ids)))
        truth = Truth(ids[truth.ids], truth.distances)
        settings = {"plan_cache_mode": "force_custom_plan", "hnsw.iterative_scan": "relaxed_order"}
        ours = world.http(router, extra={"filter": case.filter})
        theirs = world.gather(where=case.where, settings=settings, exact=one.best != _SCAN)
        taken: dict[str, list[Sample]] = context.interleave(
            {
                _OURS: partial(context.sample, world, ours, load, router, truth=truth),
                "direct gather": partial(context.sample, world, theirs, load, truth=truth),
            },
            f"{case.name}, {_percent(case.share)}",
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
        outcome.metrics.append(
            Metric.of(
                f"searches/s against the gather, {case.name}, {_percent(case.share)}, {how}", ratio, "x"
            )
        )
    columns = ["filter", "share", "searches/s", "gather", "ratio", "recall", "failed"]
    return Table(f"{clients} clients, {how}", columns, rows)


def _recall(context: Context, truth: Truth, answers: list[list[int]]) -> float:
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
    rows: list[list[str | float | None]] = [
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
        note=f"{worst.case.name}, {_percent(worst.case.share)}",
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
        note=f"{least.case.name}, {_percent(least.case.share)}",
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
