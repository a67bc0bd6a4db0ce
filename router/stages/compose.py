"""Searches of several ranked lists and steps: fused, re-ranked, diversified, grouped, in this order.

A plain search passes through to the stage that it is for. A composed one is answered with the rows of its
page, without columns, which are read by whoever writes them.

Invariants: all is done under one deadline, of which each step leaves a share to those behind it; a list or a
step that is missing is named in the answer, which no cache keeps then; nothing is left running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import msgspec

from router.policy.deadline import ends_of
from router.query.answer import coverage_of, joined, raise_if_unanswered
from router.query.composition import Account, Composition, GroupBy, Mode, StepAccount
from router.query.errors import RouterError
from router.query.fusion import Fused
from router.query.grouping import Grouped, GroupKey, grouped
from router.query.hits import json_number, words_score
from router.query.ranked import Ranked, RankedAnswer
from router.query.sizes import Layout
from router.query.types import SearchQuery, ShardReport, ShardState
from router.settings import Settings
from router.stages import groups as filling
from router.stages import steps
from router.stages.columns import ColumnReader
from router.stages.legs import Legs, LegStages, run_legs
from router.stages.stage import Figures, Stage
from router.stages.steps import Reranker
from shard_config.model import ShardMap

__all__ = ["Composed", "Reranker"]

_NO_COLUMNS = Layout(frozenset())
_encoder = msgspec.json.Encoder()

# How much deeper lists go that hold too few groups.
_DEEPER = 4
# Of the time that is left, by what it is for; a model takes longest.
_LISTS, _VALUES, _RERANK, _DIVERSITY, _FILL, _COLUMNS = 6.0, 1.0, 4.0, 1.0, 2.0, 1.0


class Composed:
    """Stands between what ranks and what writes."""

    def __init__(
        self,
        shard_map: ShardMap,
        *,
        vector: Stage[SearchQuery, RankedAnswer],
        fulltext: Stage[SearchQuery, RankedAnswer],
        columns: ColumnReader,
        rerank: Reranker | None,
        settings: Settings,
    ) -> None:
        """`rerank` is None for a router that can ask no re-ranking service."""
        self._map = shard_map
        self._stages: LegStages = {Mode.VECTOR: vector, Mode.FULLTEXT: fulltext}
        self._vector = vector
        self._fulltext = fulltext
        self._columns = columns
        self._rerank = rerank
        self._settings = settings

    def __repr__(self) -> str:
        return f"<Composed of {self._vector!r}, {self._fulltext!r}>"

    async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
        """
        Raises:
            RouterError: what a list raises that the answer cannot do without.
            InvalidError: documents have values that are too large to group by.
        """
        if query.composition is None:
            stage = self._vector if query.words is None else self._fulltext
            return await stage.search(query, deadline)
        return await _Search(self, query, query.composition, deadline).answer()

    def describe(self) -> Figures:
        return self._vector.describe() | self._fulltext.describe()


class _Search:
    """One composed search; its attributes are what has been found so far."""

    def __init__(
        self, owner: Composed, query: SearchQuery, composition: Composition, deadline: float
    ) -> None:
        self.query = query
        self.composition = composition
        self.settled = True
        self._stages = owner._stages
        self._columns = owner._columns
        self._reranker = owner._rerank
        self._services = owner._map.rerankers
        self._settings = owner._settings
        self._times = _times(query, composition, deadline)
        self._reports: dict[str, ShardReport] = {}
        self._keys: dict[object, GroupKey] = {}

    async def answer(self) -> RankedAnswer:
        composition, query = self.composition, self.query
        end = query.offset + query.k
        legs = await self._legs(end)
        rows = legs.fused
        rerank = diversity = None
        if composition.rerank is not None:
            wanted = composition.rerank
            step = await steps.rerank(
                self._services.get(wanted.model),
                self._reranker,
                self._columns,
                query,
                wanted,
                rows,
                self._reports,
                self._settings.rerank_characters,
                self._times["rerank"],
            )
            rows, rerank = self._took(step), step.account
        if composition.diversity is not None:
            count = end if composition.group_by is None else len(rows)
            step = await steps.diversify(
                self._columns,
                query,
                composition.diversity,
                count,
                rows,
                self._reports,
                self._times["diversity"],
            )
            rows, diversity = self._took(step), step.account
        groups: list[Grouped] | None = None
        if composition.group_by is None:
            rows = rows[query.offset : end]
        else:
            groups = await self._groups(composition.group_by, legs, rows)
            rows = [row for group in groups for row in group.rows]
        return self._answer(legs, rows, groups, rerank, diversity)

    async def _legs(self, end: int) -> Legs:
        """The fused lists, deep enough for as many groups as are wanted, if that can be."""
        group_by, depth = self.composition.group_by, max(self.composition.candidates, end)
        legs = await self._at(depth)
        while group_by is not None:
            await self._read_keys(group_by, legs)
            found = len({self._keys[row.id].same for row in legs.fused if row.id in self._keys})
            if found >= end or legs.exhausted or depth >= self._settings.max_candidates:
                break
            depth = min(depth * _DEEPER, self._settings.max_candidates)
            try:
                legs = await self._at(depth)
            except RouterError:
                # What was found will do.
                self.settled = False
                break
        return legs

    async def _at(self, depth: int) -> Legs:
        legs = await run_legs(self._stages, self.query, self.composition, depth, self._times["lists"])
        self._join(legs.reports)
        return legs

    async def _read_keys(self, group_by: GroupBy, legs: Legs) -> None:
        """What rows are grouped by; those of a shard that does not answer are lost."""
        new = [row for row in legs.fused if row.id not in self._keys]
        keys, asked = await filling.keys_of(
            self._columns, self.query, group_by, new, self._reports, self._times["values"]
        )
        self._keys |= keys
        self._join(asked)
        if asked:
            answered = list(asked.values())
            coverage = coverage_of(answered, len(answered))
            raise_if_unanswered(coverage, answered, allow_partial=self.query.allow_partial)

    async def _groups(self, group_by: GroupBy, legs: Legs, rows: Sequence[Fused]) -> list[Grouped]:
        """The groups of the page, as full as they can be made."""
        query = self.query
        found = grouped(rows, self._keys, group_by.size, query.offset + query.k)[query.offset :]
        if legs.exhausted:
            for group in found:
                group.full = True
        else:
            filled = await filling.fill(
                found,
                self._stages,
                query,
                self.composition,
                self._settings.max_group_searches,
                self._times["fill"],
            )
            for reports in filled.reports:
                self._join(reports)
            legs.unsettled = tuple(dict.fromkeys((*legs.unsettled, *filled.unsettled)))
            self.settled &= filled.settled
        if legs.missing or any(one.state is not ShardState.OK for one in self._reports.values()):
            # What is missing might have been among the best of any group.
            for group in found:
                group.full = False
        return found

    def _took(self, step: steps.Step) -> list[Fused]:
        self._join(step.asked)
        self.settled &= step.account.done
        return step.rows

    def _join(self, reports: Mapping[str, ShardReport]) -> None:
        for shard, report in reports.items():
            before = self._reports.get(shard)
            self._reports[shard] = report if before is None else joined(before, report)

    def _answer(
        self,
        legs: Legs,
        rows: Sequence[Fused],
        groups: Sequence[Grouped] | None,
        rerank: StepAccount | None,
        diversity: StepAccount | None,
    ) -> RankedAnswer:
        query = self.query
        coverage = coverage_of(list(self._reports.values()), legs.total)
        if not query.allow_partial:
            raise_if_unanswered(coverage, list(self._reports.values()), allow_partial=False)
        limited: Literal["candidates", "legs"] | None = None
        if legs.missing:
            limited = "legs"
            coverage = msgspec.structs.replace(coverage, full=False)
        elif groups is not None and not legs.exhausted:
            limited = "candidates"
        return RankedAnswer(
            rows=[_row(row) for row in rows],
            layout=_NO_COLUMNS,
            coverage=coverage,
            reports=self._reports,
            too_far=legs.too_far,
            unsettled=legs.unsettled,
            notes=self._notes(rows, groups, reranked=rerank is not None and rerank.done),
            account=Account(
                legs.accounts,
                rerank,
                diversity,
                None if groups is None else tuple([group.account for group in groups]),
            ),
            settled=self.settled and not legs.missing,
            limited=limited,
            wordless=legs.wordless,
        )

    def _notes(
        self, rows: Sequence[Fused], groups: Sequence[Grouped] | None, *, reranked: bool
    ) -> list[bytes] | None:
        composition = self.composition
        if len(composition.legs) == 1 and groups is None and not reranked:
            if composition.legs[0].mode is Mode.VECTOR:
                return None  # a distance is all there is
        of_group = {row.id: group.key.json for group in groups or () for row in group.rows}
        note = partial(_note, composition, reranked=reranked)
        return [note(row, of_group.get(row.id)) for row in rows]


def _times(query: SearchQuery, composition: Composition, deadline: float) -> dict[str, float]:
    """When each step has to end."""
    shares = {"lists": _LISTS}
    if composition.group_by is not None:
        shares["values"] = _VALUES
    if composition.rerank is not None:
        shares["rerank"] = _RERANK
    if composition.diversity is not None:
        shares["diversity"] = _DIVERSITY
    if composition.group_by is not None:
        shares["fill"] = _FILL
    if query.include:
        shares["columns"] = _COLUMNS
    if len(shares) == 1:
        # Lists stop a little before their deadline by themselves.
        return {"lists": deadline}
    now = asyncio.get_running_loop().time()
    return dict(zip(shares, ends_of(list(shares.values()), deadline, now), strict=True))


def _row(row: Fused) -> Ranked:
    """With what the only list ranks it by, or the negated score of several."""
    if len(row.distances) == 1:
        return (row.id, row.distances[0]), row.shard
    return (row.id, -row.score), row.shard


def _note(composition: Composition, row: Fused, group: bytes | None, *, reranked: bool) -> bytes:
    """What a hit shows in place of a distance, as JSON without braces."""
    shown: dict[str, object] = {}
    by_mode: dict[Mode, dict[str, float]] = {Mode.VECTOR: {}, Mode.FULLTEXT: {}}
    for leg, distance in zip(composition.legs, row.distances, strict=True):
        if distance is not None:
            by_mode[leg.mode][leg.name] = distance
    distances, words = by_mode[Mode.VECTOR], by_mode[Mode.FULLTEXT]
    several = len(composition.legs) > 1
    ranks = {
        leg.name: rank for leg, rank in zip(composition.legs, row.ranks, strict=True) if rank is not None
    }
    # A row that only fills its group has no place in the lists.
    if several and ranks:
        shown["score"] = row.score
    elif words and not several:
        shown["score"] = words_score(min(words.values()))
    if distances:
        shown["distance"] = json_number(min(distances.values()))
    if several:
        if ranks:
            shown["ranks"] = ranks
        if len(distances) > 1:
            shown["distances"] = {name: json_number(value) for name, value in distances.items()}
        if words:
            shown["scores"] = {name: words_score(value) for name, value in words.items()}
    if reranked:
        shown["rerank_score"] = row.model_score
    if group is not None:
        shown["group"] = msgspec.Raw(group)
    return _encoder.encode(shown)[1:-1]
