"""The values that travel along the search path, all frozen.

`SearchQuery` goes down to the scatter stage, a `Probe` from there to each shard, `ShardRows` come
back up, become one `router.query.ranked.RankedAnswer`, and leave as one `Answer`. An answer carries its
own account (`reports`), so that coverage, metrics, headers and `explain` are all projections of the same
facts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import IntEnum, StrEnum
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from router.query.composition import Account, Composition, Match
from router.query.filter import Filter
from router.query.paging import Paging
from router.query.way import Choice
from shard_config.model import Collection

__all__ = [
    "Answer",
    "CacheTier",
    "Consistency",
    "Coverage",
    "Failure",
    "Found",
    "Hit",
    "Page",
    "Position",
    "Probe",
    "Reason",
    "Room",
    "Row",
    "Scan",
    "SearchQuery",
    "Shape",
    "ShardCounts",
    "ShardReport",
    "ShardRows",
    "ShardState",
    "Shortfall",
    "Unsettled",
    "VectorFormat",
    "Work",
]

CacheTier: TypeAlias = Literal["l1", "l2", "miss", "bypass"]
Hit: TypeAlias = dict[str, Any]
Row: TypeAlias = tuple[Any, ...]
# How an answer writes vectors: numbers, or base64 of little-endian float32.
VectorFormat: TypeAlias = Literal["float", "base64"]


# Why fewer than k hits came back; see `Shortfall`.
Reason: TypeAlias = Literal[
    "exhausted", "max_distance", "scan_limit", "candidates", "legs", "coverage", "no_words", "depth"
]


class Room(Protocol):
    """What the answers of one batch may take together; large ones are made one after the other."""

    @property
    def left(self) -> int:
        """In bytes."""
        ...

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *exc: object) -> None: ...


class Position(NamedTuple):
    """A place in a shard's write-ahead log; the timeline counts the promotions before it."""

    timeline: int
    lsn: int


class Consistency(StrEnum):
    """Whose answer is good enough.

    `EVENTUAL` reads from any node that has replayed what this router wrote; `STRONG` from primaries
    only, past all caches.
    """

    EVENTUAL = "eventual"
    STRONG = "strong"


class ShardState(StrEnum):
    OK = "ok"
    TIMED_OUT = "timed_out"
    FAILED = "failed"


class SearchQuery(msgspec.Struct, frozen=True, dict=True):
    """A checked search: every value in it may be used as it stands.

    Attributes:
        vector: `dimensions` float32 components as little-endian bytes.
        include: names out of content, metadata, vector and the collection's columns.
        ef_search: candidates per HNSW scan, 1..1000, before the plan raises it for large k; None for as
            many as the collection says.
        caller: equal for the searches of one batch, which let others go between them.
        by_index: a filtered search may not choose another way than the vector index; one that comes up
            short is followed by an exact read all the same.
        room: shared by the searches of one batch.
        words: what to search for in the collection's text, as `websearch_to_tsquery` reads it, instead of the
            nearest rows to `vector`, which is empty then.
        match: of a search for `words`, whether a row holds all of them or at least one.
        composition: the lists that the search is made of, and what is done with them, instead of one list
            by `vector` or `words`.
        paging: it is for a page of a kept ranking; of any page but the first, all that is said of how to
            search is empty then.
    """

    collection: Collection
    vector: bytes
    k: int
    offset: int = 0
    filter: Filter | None = None
    include: frozenset[str] = frozenset()
    max_distance: float | None = None
    ef_search: int | None = None
    exact: bool = False
    consistency: Consistency = Consistency.EVENTUAL
    cache: bool = True
    allow_partial: bool = True
    explain: bool = False
    plan: bool = False  # also bring each shard's statement plan
    caller: Hashable | None = None
    vector_format: VectorFormat = "float"
    room: Room | None = None
    by_index: bool = False
    words: str | None = None
    match: Match = Match.ALL
    composition: Composition | None = None
    paging: Paging | None = None

    @property
    def cached(self) -> bool:
        """Whether caches may answer: not for primaries' word, nor for an account of this very run.

        Nor for pages of a kept ranking, each of which is another's.
        """
        return (
            self.cache
            and not self.explain
            and not self.plan
            and self.consistency is Consistency.EVENTUAL
            and self.paging is None
        )

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that stand for everything that changes the answer on a given map."""
        rest = (
            self.collection.name,
            self.k,
            self.offset,
            self.filter,
            sorted(self.include),
            self.max_distance,
            self.ef_search,
            self.exact,
            self.vector_format,
            self.words,
            self.match,
            self.composition,
        )
        state = blake2b(self.vector, digest_size=16)
        try:
            state.update(msgspec.msgpack.encode(rest))
        except OverflowError:
            # MessagePack ends at 64 bits, where numbers in metadata do not. Python's own notation has no
            # end, keeps kinds apart as well, NaN and infinities among them, and begins with a byte that
            # MessagePack would not have here.
            state.update(repr(rest).encode())
        return state.digest()


class Shape(msgspec.Struct, frozen=True):
    """A statement's text, equal for equal shapes, so that it names a prepared statement.

    Attributes:
        together: the text for several searches at once, if there is one: each argument an array with one
            element per search, but for those at the positions `shared`, which they have in common.
        reads_once: that statement reads the matching rows once for all its searches.
    """

    single: str
    together: str | None = None
    shared: tuple[int, ...] = ()
    reads_once: bool = False


class Scan(IntEnum):
    """How a search's statement finds a shard's nearest rows.

    `INDEX`: as the index brings them; which ones of equally near rows are the last is left to it. `TIES`:
    the same, but the scan goes on through rows as near as the last, so that these go by their ids.
    `EXACT`: every row is compared.
    """

    INDEX = 0
    TIES = 1
    EXACT = 2


class Work(IntEnum):
    """What a statement does, as far as that tells how long it usually takes."""

    NEAREST = 0  # by the index
    SCAN = 1
    COUNT = 2
    LOOKUP = 3
    COLUMNS = 4  # of many rows, by their ids
    FILTER = 5  # rows that an index of the filter brings
    WORDS = 6  # by a full-text index
    PAGE = 7  # of documents in the order of their ids
    FACETS = 8


class Probe(msgspec.Struct, frozen=True):
    """One shard's part of a search: a statement's shape and its arguments.

    Attributes:
        asked: the `asked` of its plan, for the report; of other statements, the rows wanted.
        wanted: how many rows the statement returns at most.
        key: equal for probes that one statement may answer; None for one that goes alone.
        ef_search: the width of index scans, None where none is meant.
        caller: equal for the searches of one batch.
        sharers: how many are expected to share its read in twice the time that it takes for one.
        min_lsn: WAL position that a replica must have replayed to be fresh for this router's callers.
        renewed: on a connection that is newer than the node's last one that was lost.
    """

    shape: Shape
    args: tuple[object, ...]
    asked: int
    wanted: int
    key: Hashable | None = None
    ef_search: int | None = None
    caller: Hashable | None = None
    sharers: int = 1
    primary_only: bool = False
    min_lsn: int = 0
    plan: bool = False
    work: Work = Work.NEAREST
    renewed: bool = False


class Hedge(StrEnum):
    WON = "won"
    LOST = "lost"
    DENIED = "denied"


class ShardReport(msgspec.Struct, frozen=True):
    """What happened on one shard, in milliseconds and rows.

    `hedged`: a second node was asked as well; `hedge` says what came of that, or that the budget forbade it.
    `together` counts the searches that one statement answered. `asked` is that of `router.query.plan.Plan`.
    `lsn` is a write-ahead log position up to which the rows are known to be complete. `fault`: it has failed
    for a reason that lasts, which lies with the request or with its servers; `cause` is the reason in a word.
    `lost`: the shard's log lacks what was acknowledged.

    Of a search with a filter: `choice` is the way that it was to take, `matched` how many rows matched where
    they were counted, `visited` how many a scan of the vector index visited, and `again` the reason for
    asking the shard once more.
    """

    shard: str
    state: ShardState
    node: str | None = None
    role: str | None = None
    attempts: int = 0
    hedged: bool = False
    hedge: Hedge | None = None
    stale: bool = False
    lost: bool = False
    lsn: int = 0
    queue_ms: float = 0.0
    execute_ms: float = 0.0
    total_ms: float = 0.0
    together: int = 1
    asked: int = 0
    returned: int = 0
    kept: int = 0
    error: str | None = None
    cause: str | None = None
    fault: Literal["request", "server"] | None = None
    choice: Choice | None = None
    matched: int | None = None
    visited: int | None = None
    again: Literal["short", "ties"] | None = None
    plan: str | None = None


class ShardRows(msgspec.Struct, frozen=True):
    """A shard's rows in ascending (distance, id) order, and its report."""

    rows: Sequence[Row]
    report: ShardReport


class Failure(msgspec.Struct, frozen=True):
    """`cause` is a word out of few, for callers who may not read `error`; see `router.query.redaction`."""

    shard: str
    state: ShardState
    error: str
    cause: str = "unavailable"


class ShardCounts(msgspec.Struct, frozen=True):
    total: int
    queried: int
    ok: int
    skipped: int
    timed_out: int
    failed: int


class Coverage(msgspec.Struct, frozen=True):
    """Which shards an answer rests on; `stale` names those read from a node behind our own writes.

    `lost` names those that have lost writes that were acknowledged: what is missing there is nowhere else.
    """

    full: bool
    shards: ShardCounts
    failures: tuple[Failure, ...] = ()
    stale: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class Shortfall(msgspec.Struct, frozen=True):
    """Why fewer than k hits came back, or fewer than k groups.

    `exhausted`: no further row matches. `no_words`: the text holds nothing to search for, but words that are
    in nearly every text of its language. `max_distance`: further rows lie beyond it. `scan_limit`:
    the approximate scan gave up and no time was left for an exact one. `candidates`: lists were ranked as
    deep as they may be, which was not enough for k groups. `legs`: a ranked list is missing. `coverage`:
    shards are missing. `depth`: a kept ranking goes no deeper.
    """

    asked: int
    returned: int
    reason: Reason


class Unsettled(msgspec.Struct, frozen=True):
    """A shard that was to be asked again, because its rows may not be the right ones, and did not answer.

    `ties`: it may have rows as near as the answer's last, of lower ids, in the place of those shown.
    `scan_limit`: its index scan gave up early, so that it may have nearer rows than those shown.
    """

    shard: str
    reason: Literal["ties", "scan_limit"]


class Page(msgspec.Struct, frozen=True):
    """What a page says of its ranking.

    Attributes:
        cursor: of the next page; None at the ranking's end.
        position: how many of the ranking's rows come before the page.
        ranked: how many rows the ranking has.
        gone: rows that were passed over, since they were deleted or no longer match the filter.
        kept: where the ranking is: in this process's memory alone (`l1`), or in Redis too, for every router
            that shares it (`l2`); None where it has no other page and is not kept.
        ended: why there is no next page.
    """

    cursor: str | None
    position: int
    ranked: int
    gone: int = 0
    kept: Literal["l1", "l2"] | None = None
    ended: Reason | None = None


class Answer(msgspec.Struct, frozen=True):
    """An answer as it is sent and kept: hits in ascending (distance, id) order as JSON, and their account.

    Attributes:
        hits: an array of objects; of a large answer only the beginning.
        cacheable: complete, settled and fresh, so that it may be kept.
        more: the rest of the array, in pieces, so that nothing has to hold or copy it in one.
        reservation: keeps the memory of a large answer reserved for as long as anybody holds the answer.
        account: what was done beside one plain search.
        page: what it says of its ranking, where it is a page of a kept one.
    """

    hits: msgspec.Raw
    count: int
    coverage: Coverage
    short: Shortfall | None = None
    reports: tuple[ShardReport, ...] = ()
    cacheable: bool = False
    more: tuple[bytes, ...] = ()
    reservation: object = None
    unsettled: tuple[Unsettled, ...] = ()
    account: Account | None = None
    page: Page | None = None

    @property
    def whole(self) -> msgspec.Raw:
        """All hits in one."""
        return msgspec.Raw(b"".join((self.hits, *self.more))) if self.more else self.hits

    @property
    def size_bytes(self) -> int:
        """Of the hits, and of the values of their groups."""
        size = len(self.hits) + sum(map(len, self.more))
        if self.account is not None and self.account.groups:
            size += sum([len(group.value) for group in self.account.groups])
        return size


class Found(msgspec.Struct, frozen=True):
    """`age` is for how many seconds the answer has been in a cache that others share."""

    answer: Answer
    tier: CacheTier
    age: float = 0.0
