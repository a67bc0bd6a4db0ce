"""What searches in words find of judged queries: by meaning, by words, hybrid, and re-ranked.

Every mode is asked through the router, which has the texts embedded, with default settings. Beside them stand
searches for any of the words, and hybrid ones with these, fused by ranks and by scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec

from bench.context import Context
from bench.errors import NotHere
from bench.interleave import Spread
from bench.judged import debian, library
from bench.judged.measures import difference, ndcg, recall, reciprocal_rank
from bench.judged.types import Judged, Query
from bench.judged.world import RERANKER, JudgedWorld, Models, open_judged
from bench.results import Cell, Metric, Outcome, Table
from bench.world import server_record

__all__ = ["OWN_DATA", "run"]

OWN_DATA = "judged queries"

_QUERIES, _QUICK_QUERIES = 600, 60
_DOCUMENTS, _QUICK_DOCUMENTS = 10_000, 1000
_DEPTH, _RECALL_DEPTH = 10, 100
_CLIENTS = 4
_VECTOR, _FULLTEXT, _HYBRID = "vector", "fulltext", "hybrid"
_ANY, _HYBRID_ANY = "fulltext, any word", "hybrid, any word"
_SCALED, _RERANKED = "hybrid, any word, by scores", "hybrid, re-ranked"
_COLUMNS = ["queries", "mode", "nDCG@10", "MRR@10", "recall@100", "no hit", "hybrid's nDCG more by, 95 %"]


class Found(msgspec.Struct, frozen=True):
    """What one mode found: a figure for each query.

    Attributes:
        empty: the share of queries that nothing was found for.
    """

    ndcg: list[float]
    reciprocal_rank: list[float]
    recall: list[float]
    empty: float


def run(context: Context) -> Outcome:
    quick, options = context.options.quick, context.options
    sets, notes = _sets(
        _QUICK_QUERIES if quick else min(options.queries, _QUERIES),
        _QUICK_DOCUMENTS if quick else _DOCUMENTS,
    )
    models = Models(options.embedder, options.reranker)
    found: dict[str, dict[str, Found]] = {}
    with open_judged(sets, models, context.shards, context.display) as world:
        context.servers |= server_record(world.cluster)
        for judged in sets:
            found[judged.name] = _measured(context, world, judged)
    if options.reranker is None:
        notes.append("Nothing ranks again: --reranker cross-encoder:PATH names what does.")
    return Outcome(
        metrics=[metric for name, modes in found.items() for metric in _metrics(name, modes)],
        tables=[_table(found)],
        notes=[
            f"Vectors by {options.embedder}, {context.shards} shards.",
            *(f"{one.name}: {one.about}; {_sizes(one)}" for one in sets),
            *notes,
        ],
    )


def _sets(queries: int, documents: int) -> tuple[list[Judged], list[str]]:
    """What this machine has, and a note for what it has not."""
    sets = [library.summaries(queries), library.names(queries)]
    try:
        return [*sets, debian.judged(queries, documents)], []
    except NotHere as exc:
        return sets, [f"debian names: {exc}"]


def _measured(context: Context, world: JudgedWorld, judged: Judged) -> dict[str, Found]:
    """By mode."""
    modes: dict[str, Callable[[str, int], list[int]]] = {
        mode: partial(_ask, world, judged, mode) for mode in (_VECTOR, _FULLTEXT, _HYBRID)
    }
    modes[_ANY] = partial(_ask, world, judged, _FULLTEXT, match="any")
    modes[_HYBRID_ANY] = partial(_ask, world, judged, _HYBRID, match="any")
    modes[_SCALED] = partial(_ask, world, judged, _HYBRID, match="any", fusion={"method": "scores"})
    if world.reranks:
        modes[_RERANKED] = partial(_ask, world, judged, _HYBRID, rerank={"model": RERANKER})
    found = {}
    total = 2 * len(modes) * len(judged.queries)
    with (
        context.display.meter(judged.name, total, "searches") as meter,
        ThreadPoolExecutor(_CLIENTS) as pool,
    ):

        def asked(ask: Callable[[str, int], list[int]], query: Query) -> tuple[list[int], list[int]]:
            # A list of ten is not the beginning of one of a hundred: how deep legs go is part of the mode.
            answers = ask(query.text, _DEPTH), ask(query.text, _RECALL_DEPTH)
            meter.add(2)
            return answers

        for name, ask in modes.items():
            found[name] = judge(judged.queries, list(pool.map(partial(asked, ask), judged.queries)))
    return found


def _ask(world: JudgedWorld, judged: Judged, mode: str, text: str, k: int, **fields: object) -> list[int]:
    return world.search(judged, text, k, mode, **fields)


def judge(queries: Sequence[Query], answers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Found:
    """Of each query's answers of 10 and of 100 hits."""
    pairs = list(zip(queries, answers, strict=True))
    return Found(
        ndcg=[ndcg(short, query.relevant, _DEPTH) for query, (short, _) in pairs],
        reciprocal_rank=[reciprocal_rank(short, query.relevant, _DEPTH) for query, (short, _) in pairs],
        recall=[recall(long, query.relevant, _RECALL_DEPTH) for query, (_, long) in pairs],
        empty=_mean([float(not long) for _, (_, long) in pairs]),
    )


def _metrics(name: str, modes: Mapping[str, Found]) -> list[Metric]:
    """What has a target: hybrid is at least as good as either leg, and ranking again makes it no worse."""
    pairs = [(_HYBRID, leg) for leg in (_VECTOR, _FULLTEXT, _ANY)]
    if _RERANKED in modes:
        pairs.append((_RERANKED, _HYBRID))
    metrics = [
        Metric.of(
            f"{name}: nDCG@10 of {ours} less that of {theirs}",
            difference(modes[ours].ndcg, modes[theirs].ndcg),
            target=0.0,
        )
        for ours, theirs in pairs
    ]
    metrics += [Metric(name=f"{name}: nDCG@10, {mode}", value=_mean(one.ndcg)) for mode, one in modes.items()]
    return metrics


def _table(found: Mapping[str, Mapping[str, Found]]) -> Table:
    rows: list[list[Cell]] = []
    for name, modes in found.items():
        for mode, one in modes.items():
            beside = "" if mode == _HYBRID else _shown(difference(modes[_HYBRID].ndcg, one.ndcg))
            means: list[Cell] = [_mean(one.ndcg), _mean(one.reciprocal_rank), _mean(one.recall), one.empty]
            rows.append([name, mode, *means, beside])
    return Table("By queries and mode", _COLUMNS, rows)


def _shown(spread: Spread) -> str:
    return f"{spread.median:+.3f} ({spread.low:+.3f} to {spread.high:+.3f})"


def _sizes(judged: Judged) -> str:
    return f"{len(judged.queries):,} queries, {len(judged.documents):,} documents"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
