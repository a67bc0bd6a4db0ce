"""Which way a filtered search takes on one shard, and what each is expected to cost. Pure.

There are three: along the vector index with the filter behind it, through an index of the filter's fields and
exactly among what matches, and exactly over all rows. The first costs by how few rows match, the others by
how many rows there are to read; so which is cheapest is a matter of the filter's values and the shard.

An index scan is given a number of rows that it may visit, about twice as many as it needs where the matching
rows lie about the query as all others do. One that finds too few has shown that they lie elsewhere: among
what it would find later, the nearest rows are no longer the first, and an exact read is the way.

Invariants: the way that is chosen is never expected to cost more than another. No scan visits more rows than
`MOST_VISITS`.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Literal, NamedTuple

import msgspec

from router.query.selectivity import Estimate
from router.query.statistics import TableStatistics

__all__ = [
    "MOST_VISITS",
    "USUALLY_SHORT",
    "Choice",
    "Costs",
    "Need",
    "Remembered",
    "Way",
    "choose",
    "countable",
    "most_visits",
    "rounded",
    "scan_ms",
    "shareable",
]

# hnsw.max_scan_tuples of the router's sessions allows for about 1.5 to 2 distances for each row visited:
# with 40,000 of them, scans of 125,000 rows of 128 dimensions began to return what they had merely touched
# after 19,000 to 26,000 rows.
MOST_VISITS = 16_000
# Of how many visits a scan is expected to need. Rows that lie about the query as all do need 1.0 +- 0.22
# for 20 candidates. Measured on 60,000 rows in 64 clusters far apart, the filter being 1 to 12 of them and
# the query in another: recall@10 0.98 to 1.0 at 2, 0.97 at 5, 0.38 to 0.6 where the scan ended by itself.
_PATIENCE = 2.0
# A scan is not given up before: 0.5 ms.
_LEAST_VISITS = 200

# Milliseconds of PostgreSQL 18.4 and pgvector 0.8.5 on two cores that were also busy otherwise, with 128
# dimensions of 4 bytes and shards of 2,450, 15,000 and 125,000 rows. Only what they are to each other counts,
# and what is measured corrects them. Of the vector index: 0.10, 0.13 and 0.20 for the ef_search rows that it
# visits in any case, and 1.4, 2.5 to 4 and 4 to 9 us for each that it visits beyond.
_SCAN, _VISIT, _VISIT_BYTE = 0.03, 1.9e-3, 1.2e-6
# Any exact read: 0.07 to 0.08, planned for its values.
_READ = 0.08
# All rows: 0.16, 0.72 and 41 to 68; 24 on an idle machine. Pages of tables that are larger than a quarter
# of shared_buffers, 4096 at its default of 128 MB, are not kept there: the system is asked for each.
_ROW, _PAGE, _FAR_PAGE = 0.05e-3, 0.2e-3, 2.5e-3
_KEPT_PAGES = 4096
# There, what an index scan touches lies far apart, too.
_FAR = 2.0
# Rows through an index of the filter: 0.25, 0.35 and 0.5 to 0.7 us each with their distances.
_LOOKUP = 0.3e-3
_DISTANCE, _DISTANCE_BYTE = 0.03e-3, 0.1e-6
_LEAST_MS = 0.01  # of any search
_DETOAST = 2.0e-3  # of a vector that is kept beside its row

# What is assumed of a condition that nothing is known of, as the planner does (DEFAULT_EQ_SEL).
_GUESS = 0.005
# A scan that ends before its time is followed by an exact read. So often, before anything was seen.
USUALLY_SHORT = 0.05
# Rows that an exact read may keep, for counting them or for several searches: in work_mem's 4 MB, where they
# are expected to be few; and where nobody knows how many they are, so that it is known then. Counting in
# memory takes 1.2 times as long, on disk up to 1.7 times.
_KEPT_BYTES, _KEPT_UNKNOWN_BYTES = 2_000_000, 128_000_000
_KEPT_ROW = 64


class Way(StrEnum):
    """How the nearest of a shard's matching rows are found."""

    VECTOR_INDEX = "vector_index"
    FILTER_INDEX = "filter_index"
    ALL_ROWS = "all_rows"


class Costs(NamedTuple):
    """Of each way."""

    vector_index: float
    filter_index: float
    all_rows: float


class Need(NamedTuple):
    """What a search asks of a shard by its index; `inline`: columns come with its rows."""

    candidates: int
    ef_search: int
    vector_bytes: int
    inline: bool = False


class Remembered(NamedTuple):
    """What earlier searches have found: the share that matches, and whether it was counted.

    `short` is how often a scan of the vector index ended before its time.
    """

    share: float | None = None
    counted: bool = False
    short: float = USUALLY_SHORT


class Choice(msgspec.Struct, frozen=True):
    """The way, and why.

    Attributes:
        rows: of the shard, about.
        matching: how many of them the filter is expected to keep; None where nothing is known of the shard.
        basis: what says so.
        indexes: of the filter's fields, through which the matching rows can be found.
        vector_index_ms, filter_index_ms, all_rows_ms: what each way is expected to take. The first counts
            the exact read that may have to follow it.
        visits: rows that a scan of the vector index may visit, at most.
        sharing: searches with this very filter that are expected to share each exact read; what it is
            expected to take is counted for one of them.
        most_sharing: how many can share it in twice the time that it takes for one.
    """

    way: Way
    rows: float | None = None
    matching: float | None = None
    basis: Literal["statistics", "searches", "guess"] = "guess"
    indexes: tuple[str, ...] = ()
    vector_index_ms: float | None = None
    filter_index_ms: float | None = None
    all_rows_ms: float | None = None
    visits: int = MOST_VISITS
    sharing: int = 1
    most_sharing: int = 1


# Of a shard whose statistics have not been read.
_BLIND = Choice(Way.VECTOR_INDEX)


def choose(
    table: TableStatistics | None,
    estimate: Estimate | None,
    need: Need,
    remembered: Remembered,
    scale: Costs,
    *,
    exact: bool = False,
    by_index: bool = False,
    sharing: int = 1,
) -> Choice:
    """The cheapest way.

    Args:
        scale: how much longer each way takes than the figures here say.
        sharing: searches that an exact read would answer at once, if what matches is little enough for that.
        exact: the vector index may not be used.
        by_index: it must be.
    """
    if table is None or estimate is None:
        return msgspec.structs.replace(_BLIND, way=Way.ALL_ROWS) if exact else _BLIND
    share, basis = _share(estimate, remembered)
    rows = max(table.rows, 1.0)
    matching = share * rows
    visits = need.candidates / share if share else math.inf
    most = _bounded(visits, need.candidates)
    # A filter with fewer rows than candidates, or so few that the scan will not get that far.
    short = 1.0 if visits > most else remembered.short
    scan = scale.vector_index * scan_ms(min(visits, most), need, table.pages)
    # Of the exact ways, what is done once for all searches that share it; each then compares the vectors.
    brought = _brought(estimate, share)
    found_ms = math.inf if brought is None else _READ + brought * rows * _LOOKUP
    read_ms = _READ + rows * _ROW + table.pages * _PAGE + max(table.pages - _KEPT_PAGES, 0) * _FAR_PAGE
    distance = _DISTANCE + _DISTANCE_BYTE * need.vector_bytes
    if table.toast_pages > table.pages:
        distance += _DETOAST
    compared_ms = matching * distance
    most_sharing = 1
    if _shareable(matching, basis, table):
        most_sharing += int(min(found_ms, read_ms) / max(compared_ms, _LEAST_MS))
    sharing = min(sharing, most_sharing)
    filter_index = scale.filter_index * (found_ms / sharing + compared_ms)
    all_rows = scale.all_rows * (read_ms / sharing + compared_ms)
    exactly = min(filter_index, all_rows)
    vector_index = scan + short * exactly
    if by_index or (not exact and vector_index < exactly):
        way = Way.VECTOR_INDEX
    else:
        way = Way.FILTER_INDEX if filter_index < all_rows else Way.ALL_ROWS
    return Choice(
        way,
        rows,
        matching,
        basis,
        estimate.indexes,
        None if exact else vector_index,
        None if brought is None else filter_index,
        all_rows,
        most,
        sharing,
        most_sharing,
    )


def rounded(choice: Choice) -> Choice:
    """To be read."""
    digits = {"rows": 0, "matching": 1, "vector_index_ms": 3, "filter_index_ms": 3, "all_rows_ms": 3}
    values = {name: getattr(choice, name) for name in digits}
    return msgspec.structs.replace(
        choice, **{name: round(value, digits[name]) for name, value in values.items() if value is not None}
    )


def scan_ms(visits: float, need: Need, pages: int) -> float:
    """Of the vector index of a table of so many pages; ef_search rows are visited in any case."""
    far = _FAR if pages > _KEPT_PAGES else 1.0
    beyond = max(visits - need.ef_search, 0.0)
    return _SCAN + (need.ef_search + beyond * far) * (_VISIT + _VISIT_BYTE * need.vector_bytes)


def most_visits(choice: Choice, candidates: int) -> int:
    """How many rows a scan for so many candidates may visit."""
    if choice.matching is None or choice.rows is None:
        return _bounded(candidates / _GUESS, candidates)
    return _bounded(candidates * choice.rows / choice.matching if choice.matching else math.inf, candidates)


def countable(choice: Choice, table: TableStatistics | None, *, inline: bool, doubtful: bool = False) -> bool:
    """Whether an exact read can count what matches; `doubtful` where the choice has just proved wrong."""
    if table is None or choice.matching is None:
        return not inline
    doubtful = doubtful or choice.basis == "guess"
    kept = max(table.rows, 1.0) if doubtful else choice.matching
    width = _row_bytes(table) if inline else _KEPT_ROW
    return kept * width <= (_KEPT_UNKNOWN_BYTES if doubtful else _KEPT_BYTES)


def shareable(choice: Choice, table: TableStatistics | None, *, doubtful: bool = False) -> bool:
    """Whether an exact read may keep what matches, with its vectors, for several searches to look through."""
    if table is None or choice.matching is None:
        return False
    return _shareable(choice.matching, choice.basis, table, doubtful=doubtful)


def _shareable(matching: float, basis: str, table: TableStatistics, *, doubtful: bool = False) -> bool:
    if doubtful or basis == "guess":
        return table.rows * _row_bytes(table) <= _KEPT_UNKNOWN_BYTES
    return matching * _row_bytes(table) <= _KEPT_BYTES


def _row_bytes(table: TableStatistics) -> float:
    """Of a whole row but for its large values, which PostgreSQL reads from beside the table when needed."""
    return _KEPT_ROW + 8192 * table.pages / max(table.rows, 1.0)


def _share(
    estimate: Estimate, remembered: Remembered
) -> tuple[float, Literal["statistics", "searches", "guess"]]:
    """Of the rows that match: a count of this very filter, statistics, other searches, or a guess."""
    if remembered.share is not None and remembered.counted:
        return remembered.share, "searches"
    if estimate.known:
        return estimate.share, "statistics"
    known = remembered.share
    share = min(max(_GUESS if known is None else known, estimate.least), estimate.most)
    return share, "guess" if known is None else "searches"


def _bounded(expected: float, candidates: int) -> int:
    wanted = min(max(_PATIENCE * expected, expected + _LEAST_VISITS), MOST_VISITS)
    return max(math.ceil(wanted), candidates)


def _brought(estimate: Estimate, share: float) -> float | None:
    """The share of the rows that an index of the filter brings."""
    if not estimate.indexes:
        return None
    if estimate.indexed is None:
        return share
    # Statistics that are wrong about what matches are as wrong about what the index brings.
    wrong = share / estimate.most if estimate.known and estimate.most else 1.0
    return min(max(estimate.indexed * wrong, share), 1.0)
