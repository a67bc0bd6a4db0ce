"""What is done with the best rows of a ranked list: a model orders them anew, or they are made to differ.

What a step needs of the documents is read by id. Invariant: a step that cannot be done leaves the order as it
was, and its account says why; it never fails the search.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from router.postgres import sql
from router.query.composition import Diversity, Rerank, StepAccount
from router.query.diversity import diversified, unit_rows
from router.query.errors import RouterError
from router.query.fusion import Fused, scaled
from router.query.types import Row, SearchQuery, ShardReport, ShardState
from router.query.wire import from_wire_bytes
from router.stages.columns import ColumnReader
from shard_config.model import Collection, RerankingService
from shard_config.template import TemplateField, parts_of

__all__ = ["Reranker", "Step", "diversify", "rerank"]

# Of multiplications: 1 ms on one core. What takes longer runs in a thread.
_IN_LOOP = 2_000_000


class Reranker(Protocol):
    """Asks a re-ranking service."""

    async def scores(
        self, service: RerankingService, query: str, texts: Sequence[str], deadline: float
    ) -> list[float]:
        """How well each of `texts` answers `query`; the larger, the better.

        Raises:
            RouterError: the service is late, down, or answers what it should not.
        """
        ...


class Step(NamedTuple):
    """All rows in their order after a step, what it says of itself, and reports of the shards it asked."""

    rows: list[Fused]
    account: StepAccount
    asked: Mapping[str, ShardReport] = {}


async def rerank(
    service: RerankingService | None,
    reranker: Reranker | None,
    columns: ColumnReader,
    query: SearchQuery,
    wanted: Rerank,
    rows: list[Fused],
    reports: Mapping[str, ShardReport],
    characters: int,
    end: float,
) -> Step:
    """The best candidates as the service orders them, those without text behind the others, then the rest.

    Args:
        characters: of each text; what is longer is cut off.
        end: when it has to be done.
    """
    best, rest = rows[: wanted.candidates], rows[wanted.candidates :]
    undone = partial(_undone, rows)
    if service is None or reranker is None:
        return undone(f"this router has no client for the re-ranker {wanted.model}")
    if not best:
        return Step(rows, StepAccount(True))
    parts = parts_of(query.collection)
    fields = [part for part in parts if isinstance(part, TemplateField)]
    try:
        statement = partial(sql.texts_by_ids, query.collection, fields, characters)
        found, asked = await columns.look_up(statement, query, _places(best), reports, end)
        if late := _missing(asked):
            return undone(f"the texts could not be read from {late}")
        texts = {
            id_: _text(parts, row[1:])[:characters]
            for id_, row in found.items()
            # Services refuse blank texts, and others with them.
            if any(value and not value.isspace() for value in row[1:])
        }
        with_text = [row for row in best if row.id in texts]
        scores: list[float] = []
        if with_text:
            async with asyncio.timeout_at(end):
                scores = await reranker.scores(
                    service, wanted.text, [texts[row.id] for row in with_text], end
                )
    except TimeoutError:
        return undone(f"the reranking service {wanted.model} did not answer in time")
    except RouterError as exc:
        return undone(exc.told(inside=False)[0])
    if len(scores) != len(with_text):
        return undone(
            f"the reranking service {wanted.model} gave {len(scores)} scores for {len(with_text)} texts"
        )
    if not all(map(math.isfinite, scores)):
        return undone(f"the reranking service {wanted.model} gave a score that is not a finite number")
    order = sorted(range(len(with_text)), key=lambda i: (-scores[i], i))
    ordered = [with_text[i]._replace(model_score=float(scores[i])) for i in order]
    ordered += [row for row in best if row.id not in texts]
    return Step(ordered + rest, StepAccount(True, len(best)), asked)


async def diversify(
    columns: ColumnReader,
    query: SearchQuery,
    wanted: Diversity,
    count: int,
    rows: list[Fused],
    reports: Mapping[str, ShardReport],
    end: float,
) -> Step:
    """`count` of the best candidates as maximal marginal relevance chooses them, then the others."""
    best, rest = rows[: wanted.candidates], rows[wanted.candidates :]
    undone = partial(_undone, rows)
    if not best:
        return Step(rows, StepAccount(True))
    try:
        statement = partial(sql.select_by_ids, query.collection, include=frozenset({"vector"}))
        found, asked = await columns.look_up(statement, query, _places(best), reports, end)
        if late := _missing(asked):
            return undone(f"the vectors could not be read from {late}")
        choose = partial(_choose, query.collection, best, found, wanted.weight, count)
        if len(best) * query.collection.vector.dimensions * min(count, len(best)) <= _IN_LOOP:
            chosen = choose()
        else:
            async with asyncio.timeout_at(end):
                chosen = await asyncio.to_thread(choose)
    except TimeoutError:
        return undone("the time was over before hits were chosen")
    except RouterError as exc:
        return undone(exc.told(inside=False)[0])
    taken = set(chosen)
    others = [row for i, row in enumerate(best) if i not in taken]
    return Step([*(best[i] for i in chosen), *others, *rest], StepAccount(True, len(best)), asked)


def _text(parts: Sequence[str | TemplateField], values: Sequence[str | None]) -> str:
    given = iter(values)
    return "".join([part if isinstance(part, str) else next(given) or "" for part in parts])


def _choose(
    collection: Collection, best: Sequence[Fused], found: dict[object, Row], weight: float, count: int
) -> list[int]:
    vectors: list[bytes | None] = []
    for row in best:
        data = found[row.id][1] if row.id in found else None
        vectors.append(None if data is None else from_wire_bytes(data, collection.vector.type))
    units = unit_rows(vectors, collection.vector.dimensions)
    return diversified(_relevance(best), units, weight, count)


def _relevance(rows: Sequence[Fused]) -> list[float]:
    """By what the rows are in their order, scaled to 0..1; a row that a model has not scored counts 0."""
    if all(row.model_score is None for row in rows):
        return scaled([row.score for row in rows])
    values = iter(scaled([row.model_score for row in rows if row.model_score is not None]))
    return [0.0 if row.model_score is None else next(values) for row in rows]


def _undone(rows: list[Fused], reason: str) -> Step:
    return Step(rows, StepAccount(False, reason=reason))


def _places(rows: Sequence[Fused]) -> list[tuple[object, str]]:
    return [(row.id, row.shard) for row in rows]


def _missing(reports: Mapping[str, ShardReport]) -> str:
    """The names of the shards that have not answered."""
    return ", ".join([name for name, report in reports.items() if report.state is not ShardState.OK])
