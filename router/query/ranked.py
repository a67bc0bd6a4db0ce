"""An answer as every stage below the caches sees it: ranked rows, and the account of how they came about.

No format of a response is known here, so that what compares, fuses or re-ranks answers works on rows. A row
may still lack columns that the query includes; `RankedAnswer.complete` tells, and
`router.stages.columns` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

from router.query.composition import Account
from router.query.sizes import Layout
from router.query.types import Coverage, Row, ShardReport, Unsettled

__all__ = ["Ranked", "RankedAnswer"]

Ranked: TypeAlias = tuple[Row, str]  # and the name of its shard


class RankedAnswer(msgspec.Struct, frozen=True):
    """The rows of one page in ascending (distance, id) order.

    Attributes:
        rows: each as (id, distance, *columns of `layout`, …), and the name of its shard.
        reports: of every shard that was asked, by its name.
        too_far: whether rows were left out because they lie beyond the query's `max_distance`.
        unsettled: shards whose rows may not be the right ones.
        wordless: whether a full-text search had no word to search for.
        notes: for each row the JSON members, without braces, that its hit shows in place of the distance;
            None where it shows that.
        account: what was done beside one plain search.
        settled: whether all that was to be done beside the search was done; if not, the same search might
            give another answer soon.
        limited: why rows may be missing beside what shards and distances say of that.
    """

    rows: Sequence[Ranked]
    layout: Layout
    coverage: Coverage
    reports: Mapping[str, ShardReport]
    too_far: bool = False
    unsettled: tuple[Unsettled, ...] = ()
    notes: Sequence[bytes] | None = None
    account: Account | None = None
    settled: bool = True
    wordless: bool = False
    limited: Literal["candidates", "legs"] | None = None

    @property
    def cacheable(self) -> bool:
        """Whether the same search would give the same rows until somebody writes."""
        return self.coverage.full and not self.coverage.stale and not self.unsettled and self.settled

    @property
    def distances(self) -> list[float]:
        return [row[1] for row, _ in self.rows]

    def complete(self, include: frozenset[str]) -> bool:
        """Whether every row has all columns of `include`."""
        if not include or not self.rows:
            return True
        layout = self.layout
        if include != layout.inline:
            return False
        fits = layout.fits_at
        return fits is None or all([row[fits] for row, _ in self.rows])
