"""The ranked lists of a search, asked for at once and fused into one.

Each is a search of its own, over all shards, so that what is fused does not depend on how rows lie on them.
A shard that is missing in one list is missing in the answer. A list that is missing altogether is an error,
or data in the answer if the query allows a partial one.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import msgspec

from router.query.answer import joined
from router.query.composition import Composition, Leg, LegAccount, Mode
from router.query.errors import DeadlineError, MisconfiguredError, RouterError, UnavailableError
from router.query.filter import And, Filter
from router.query.fusion import Fused, fuse
from router.query.ranked import Ranked, RankedAnswer
from router.query.types import SearchQuery, ShardReport, ShardState, Unsettled
from router.stages.all_of import all_of
from router.stages.stage import Stage

__all__ = ["LegStages", "Legs", "run_legs", "searches_of"]

LegStages = Mapping[Mode, Stage[SearchQuery, RankedAnswer]]

# What keeps one list from the answer and lets the others stand. A full queue is not among them: the whole
# search is better repeated later.
_LENIENT = (DeadlineError, MisconfiguredError, UnavailableError)


class Legs(msgspec.Struct):
    """What came of the lists.

    Attributes:
        fused: all their rows, best first.
        total: how many shards the collection has.
        exhausted: whether no further row can be found: no list was cut off, and none lacks a shard.
        missing: whether a list is missing altogether.
        wordless: whether no list had anything to search for.
    """

    fused: list[Fused]
    reports: dict[str, ShardReport]
    total: int
    accounts: tuple[LegAccount, ...]
    exhausted: bool
    too_far: bool
    unsettled: tuple[Unsettled, ...]
    missing: bool
    wordless: bool


def searches_of(
    query: SearchQuery, composition: Composition, depth: int | None = None, filter: Filter | None = None
) -> list[SearchQuery]:
    """The searches that `query` is composed of, `depth` rows deep, of rows that match `filter` as well."""
    legs = [leg for leg in composition.legs if leg.missing is None]
    depth = composition.candidates if depth is None else depth
    # Others go between the lists of a search, as between the searches of a batch.
    caller = object() if query.caller is None and len(legs) > 1 else query.caller
    return [_search_of(query, leg, depth, caller, filter) for leg in legs]


def _search_of(
    query: SearchQuery, leg: Leg, depth: int, caller: Hashable, filter: Filter | None
) -> SearchQuery:
    """One list of `query`, `depth` deep without the rows that it leaves out."""
    filters = tuple(one for one in (query.filter, leg.filter, filter) if one is not None)
    by_vector = leg.mode is Mode.VECTOR
    return msgspec.structs.replace(
        query,
        vector=leg.vector,
        words=leg.words,
        match=leg.match,
        k=depth + len(leg.without),
        offset=0,
        filter=filters[0] if len(filters) == 1 else And(filters) if filters else None,
        include=frozenset(),
        max_distance=query.max_distance if by_vector else None,
        exact=query.exact and by_vector,
        ef_search=query.ef_search if by_vector else None,
        caller=caller,
        composition=None,
        room=None,
    )


async def run_legs(
    stages: LegStages,
    query: SearchQuery,
    composition: Composition,
    depth: int,
    deadline: float,
    filter: Filter | None = None,
) -> Legs:
    """Ask for all lists, each `depth` rows deep, of rows that match `filter` as well.

    Raises:
        RouterError: of the list that failed, if it is the only one or the query wants all.
    """
    legs = [leg for leg in composition.legs if leg.missing is None]
    searches = searches_of(query, composition, depth, filter)
    if len(legs) == 1:
        outcomes: list[RankedAnswer | RouterError] = [
            await stages[legs[0].mode].search(searches[0], deadline)
        ]
    else:
        outcomes = await all_of(
            _outcome(stages[leg.mode], search, deadline, lenient=query.allow_partial)
            for leg, search in zip(legs, searches, strict=True)
        )
        errors = [one for one in outcomes if isinstance(one, RouterError)]
        if len(errors) == len(legs):
            outcomes.clear()
            try:
                raise errors[0]
            finally:
                errors.clear()  # an error holds the frames that it passes, and this one would hold it in turn
    found = iter(outcomes)
    return _joined(
        composition,
        depth,
        [
            UnavailableError(leg.missing) if leg.missing is not None else next(found)
            for leg in composition.legs
        ],
    )


async def _outcome(
    stage: Stage[SearchQuery, RankedAnswer], search: SearchQuery, deadline: float, *, lenient: bool
) -> RankedAnswer | RouterError:
    if not lenient:
        return await stage.search(search, deadline)
    try:
        return await stage.search(search, deadline)
    except _LENIENT as exc:
        return exc.with_traceback(None)


def _joined(composition: Composition, depth: int, outcomes: Sequence[RankedAnswer | RouterError]) -> Legs:
    lists: list[Sequence[Ranked]] = []
    reports: list[Mapping[str, ShardReport]] = []
    accounts: list[LegAccount] = []
    exhausted, missing = True, False
    for leg, outcome in zip(composition.legs, outcomes, strict=True):
        account = LegAccount(leg.name, leg.mode, leg.weight, depth, 0)
        if isinstance(outcome, RouterError):
            detail = outcome.told(inside=False)[0]
            accounts.append(msgspec.structs.replace(account, error=detail))
            reports.append(_reports_of(outcome))
            lists.append([])
            exhausted, missing = False, True
            continue
        rows = outcome.rows
        if len(rows) >= depth + len(leg.without) or not outcome.coverage.full or outcome.unsettled:
            exhausted = False
        if leg.without:
            rows = [pair for pair in rows if pair[0][0] not in leg.without]
        lists.append(rows[:depth])
        accounts.append(msgspec.structs.replace(account, returned=len(lists[-1]), no_words=outcome.wordless))
        reports.append(outcome.reports)
    answers = [one for one in outcomes if isinstance(one, RankedAnswer)]
    return Legs(
        fuse(lists, [leg.weight for leg in composition.legs], composition.fusion),
        _joined_reports(*reports),
        max([one.coverage.shards.total for one in answers]),
        tuple(accounts),
        exhausted,
        any([one.too_far for one in answers]),
        tuple(dict.fromkeys([shard for one in answers for shard in one.unsettled])),
        missing,
        all([one.wordless for one in answers]),
    )


def _joined_reports(*parts: Mapping[str, ShardReport]) -> dict[str, ShardReport]:
    """One account of each shard, of searches that ran at once."""
    if len(parts) == 1:
        return dict(parts[0])
    by_shard: dict[str, list[ShardReport]] = {}
    for part in parts:
        for shard, report in part.items():
            by_shard.setdefault(shard, []).append(report)
    return {shard: joined(*reports, at_once=True) for shard, reports in by_shard.items()}


def _reports_of(error: RouterError) -> dict[str, ShardReport]:
    """Of the shards by whose fault a list is missing, as far as it says."""
    return {
        fault.shard: ShardReport(
            fault.shard,
            ShardState.TIMED_OUT if fault.state == ShardState.TIMED_OUT else ShardState.FAILED,
            error=fault.reason or fault.cause,
            cause=fault.cause,
        )
        for fault in error.faults
    }
