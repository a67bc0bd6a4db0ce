"""A ranking as it is kept for its pages: ids in order and how they came about, without columns. Pure.

It is kept as bytes, in memory and in Redis alike: what is kept is then as large as it says, and 1,000 rows
take 20 kB. Invariant: what `decode` returns is what `encode` was given, and never anything that another
collection's ranking, or another version of this module, has left under the same name.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import msgspec

from router.query import filter as filters
from router.query.answer import shortfall
from router.query.composition import Account
from router.query.filter import Filter
from router.query.ranked import Ranked, RankedAnswer
from router.query.types import Reason, SearchQuery, ShardReport, ShardState, Unsettled
from router.settings import Settings
from shard_config.model import Collection
from shard_config.values import ValueType

__all__ = ["Ranking", "decode", "encode", "filter_of", "ranking_of"]


class _Asked(msgspec.Struct, frozen=True, array_like=True):
    """What of a shard's report tells of rows that are read later."""

    shard: str
    state: ShardState
    lsn: int
    stale: bool
    lost: bool
    error: str | None
    cause: str | None


class Ranking(msgspec.Struct, frozen=True, array_like=True):
    """Ranked rows, best first.

    Attributes:
        owner: who may go on with it; see `router.query.paging.Paging`.
        filter: as JSON, of the search that it comes from.
        ids: those of type uuid as text.
        shards: the place in `asked` of the shard of each row.
        asked: the shards that were searched.
        total: shards of the collection.
        notes, account, unsettled, limited: as of `router.query.ranked.RankedAnswer`.
        ended: why it has no further rows.
    """

    collection: str
    owner: str
    filter: bytes | None
    ids: list[Any]
    distances: list[float]
    shards: list[int]
    asked: tuple[_Asked, ...]
    total: int
    ended: Reason
    notes: list[bytes] | None = None
    account: Account | None = None
    unsettled: tuple[Unsettled, ...] = ()
    limited: Literal["candidates", "legs"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def reports(self) -> dict[str, ShardReport]:
        """Of the shards searched, as of a search that has not begun to read from them again."""
        return {
            one.shard: ShardReport(
                one.shard,
                one.state,
                lsn=one.lsn,
                stale=one.stale,
                lost=one.lost,
                error=one.error,
                cause=one.cause,
            )
            for one in self.asked
        }

    def shards_of(self, start: int) -> set[str]:
        """Of the rows from `start` on."""
        return {self.asked[shard].shard for shard in set(self.shards[start:])}

    def rows(self, start: int, end: int, id_type: ValueType) -> list[Ranked]:
        """Those from `start` to before `end`, as (id, distance) with the shard's name."""
        part = slice(start, end)
        ids = [UUID(id_) for id_ in self.ids[part]] if id_type is ValueType.UUID else self.ids[part]
        return [
            ((id_, distance), self.asked[shard].shard)
            for id_, distance, shard in zip(ids, self.distances[part], self.shards[part], strict=True)
        ]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Ranking)
# As bodies are decoded: a number with a fraction may be for a column of decimals.
_filters = msgspec.json.Decoder(dict[str, object], float_hook=Decimal)


def ranking_of(query: SearchQuery, answer: RankedAnswer) -> Ranking:
    """What is kept of `answer` to `query`, whose k is how deep it was to go."""
    assert query.paging is not None
    places = {name: place for place, name in enumerate(answer.reports)}
    ids = [row[0] for row, _ in answer.rows]
    short = shortfall(query, len(ids), answer)
    return Ranking(
        collection=query.collection.name,
        owner=query.paging.owner,
        filter=query.paging.filter,
        ids=[str(id_) for id_ in ids] if query.collection.id.type is ValueType.UUID else ids,
        distances=answer.distances,
        shards=[places[shard] for _, shard in answer.rows],
        asked=tuple(map(_asked, answer.reports.values())),
        total=answer.coverage.shards.total,
        ended="depth" if short is None else short.reason,
        notes=None if answer.notes is None else list(answer.notes),
        account=answer.account,
        unsettled=answer.unsettled,
        limited=answer.limited,
    )


def encode(ranking: Ranking) -> bytes:
    return _encoder.encode(ranking)


def decode(data: bytes) -> Ranking | None:
    """The ranking; None where the bytes are none."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError:
        return None


def filter_of(ranking: Ranking, collection: Collection, limits: Settings) -> Filter | None:
    """The filter that its rows matched.

    Raises:
        InvalidError: it cannot be understood, which it could when the ranking was made.
    """
    if ranking.filter is None:
        return None
    return filters.parse(collection, _filters.decode(ranking.filter), limits)


def _asked(report: ShardReport) -> _Asked:
    return _Asked(
        report.shard, report.state, report.lsn, report.stale, report.lost, report.error, report.cause
    )
