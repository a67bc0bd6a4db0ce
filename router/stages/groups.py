"""Rows that share a value are found group by group: how deep the lists must go, and what fills the groups.

Lists that hold too few groups go deeper, up to a bound. A group that then lacks rows is filled by a search of
its own for rows of that value, which stand behind those it had: no list had them within its depth. Invariant:
what could not be filled says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import msgspec

from router.postgres import sql
from router.query.composition import Composition, GroupBy
from router.query.errors import InvalidError, RouterError
from router.query.fusion import Fused
from router.query.grouping import Grouped, GroupKey, filter_for, key_of_json, key_of_value
from router.query.types import Row, SearchQuery, ShardReport, ShardState, Unsettled
from router.stages.all_of import all_of
from router.stages.columns import ColumnReader
from router.stages.legs import LegStages, run_legs
from shard_config.values import shown

__all__ = ["Filled", "fill", "keys_of"]

# Of a value that groups go by; each stands in the hits and in the groups of an answer.
MOST_VALUE_BYTES = 1024
# Searches for single groups that are under way at a time, of one search.
_AT_ONCE = 8


class Filled(msgspec.Struct):
    """What came of filling groups: the reports of the shards that answered, and what is not settled."""

    reports: list[Mapping[str, ShardReport]]
    unsettled: list[Unsettled]
    settled: bool = True


async def keys_of(
    columns: ColumnReader,
    query: SearchQuery,
    group_by: GroupBy,
    rows: Iterable[Fused],
    reports: Mapping[str, ShardReport],
    end: float,
) -> tuple[dict[object, GroupKey], dict[str, ShardReport]]:
    """What each of `rows` is grouped by, by its id, and what became of the shards asked.

    Rows that are gone, and those of shards that do not answer, have none.

    Raises:
        InvalidError: a value is too large to group by.
        OverloadedError
    """
    statement = partial(sql.values_by_ids, query.collection, group_by.field, MOST_VALUE_BYTES)
    places = [(row.id, row.shard) for row in rows]
    found, asked = await columns.look_up(statement, query, places, reports, end)
    return {id_: _key(group_by, row) for id_, row in found.items()}, asked


async def fill(
    groups: Sequence[Grouped],
    stages: LegStages,
    query: SearchQuery,
    composition: Composition,
    most_searches: int,
    end: float,
) -> Filled:
    """Add to each of `groups`, up to its size, what lies beyond the lists' depth.

    Args:
        most_searches: groups for which there is none left stay as they are.
    """
    filled = Filled([], [])
    turns = asyncio.Semaphore(_AT_ONCE)
    lacking = [group for group in groups if not group.full]
    affordable = lacking[: most_searches // len(composition.legs)]

    async def one(group: Grouped) -> None:
        async with turns:
            await _fill_one(group, stages, query, composition, end, filled)

    await all_of(one(group) for group in affordable)
    return filled


async def _fill_one(
    group: Grouped,
    stages: LegStages,
    query: SearchQuery,
    composition: Composition,
    end: float,
    filled: Filled,
) -> None:
    group_by = composition.group_by
    assert group_by is not None
    filter_ = filter_for(group_by.field, group.key)
    if filter_ is None:
        return
    try:
        legs = await run_legs(stages, query, composition, group_by.size, end, filter_)
        filled.unsettled.extend(legs.unsettled)
        filled.reports.append(_of_answers(legs.reports))
        if legs.missing or len(_of_answers(legs.reports)) < len(legs.reports):
            filled.settled = False
    except RouterError:
        filled.settled = False
        return
    have = {row.id for row in group.rows}
    new = [row for row in legs.fused if row.id not in have]
    # Their ranks are among the rows of this value, and not those of the lists.
    group.rows += [
        row._replace(ranks=(None,) * len(row.ranks)) for row in new[: group_by.size - len(group.rows)]
    ]
    group.full = len(group.rows) == group_by.size or legs.exhausted


def _key(group_by: GroupBy, row: Row) -> GroupKey:
    id_, value, size = row
    if size is not None and size > MOST_VALUE_BYTES:
        raise InvalidError.at(
            "group_by.field",
            f"the document {shown(id_)} has a value of {size} bytes, which exceeds {MOST_VALUE_BYTES}",
        )
    field = group_by.field
    return key_of_json(value) if field.column is None else key_of_value(field, value)


def _of_answers(reports: Mapping[str, ShardReport]) -> dict[str, ShardReport]:
    return {shard: report for shard, report in reports.items() if report.state is ShardState.OK}
