"""Where rankings are kept: how much of them, for how long, and for whom."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from router.freshness.redis_link import RedisLink
from router.query.composition import Account, LegAccount, Mode, StepAccount
from router.query.errors import (
    AnswerTooLargeError,
    ExpiredError,
    InvalidError,
    RouterError,
    UnavailableError,
)
from router.query.filter import parse
from router.query.paging import Paging
from router.query.ranking import Ranking, decode, encode, filter_of, ranking_of
from router.query.types import Coverage, ShardCounts, ShardReport, ShardState, Unsettled
from router.settings import Settings
from router.stages.rankings import Rankings, RankingStore
from shard_config import model
from shard_config.values import ValueType
from tests.unit.queries import collection, query, ranked

DOCUMENTS = collection()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def made(count: int = 20, owner: str = "a") -> Ranking:
    asked = query(DOCUMENTS, k=count, paging=Paging(owner))
    return ranking_of(asked, ranked(*[n / 8 for n in range(count)]))


def rankings(store: RankingStore, link: RedisLink | None = None, **changes: Any) -> Rankings:
    settings = {"ttl": 60.0, "max_shared_bytes": 1 << 20, "several": False, **changes}
    return Rankings(store, link, "map", **settings)


@asynccontextmanager
async def away() -> AsyncIterator[RedisLink]:
    """A link to a Redis that is not there."""
    link = RedisLink("unix:///nowhere/redis.sock", budget=0.05, pause=10.0)
    try:
        yield link
    finally:
        await link.close()


def test_memory_holds_no_more_bytes_than_it_may_and_drops_the_least_recently_used() -> None:
    store = RankingStore(10_000)
    for n in range(20):
        assert store.put(("map", b"%d" % n), bytes(500), 60.0, shared=False)
        assert store.get(("map", b"0")) is not None
        assert store.size_bytes <= 10_000
    assert len(store) == 10
    assert store.get(("map", b"1")) is None
    assert store.get(("map", b"19")) == (bytes(500), False)
    assert store.get(("other map", b"19")) is None
    # One would push out all others.
    assert not store.put(("map", b"large"), bytes(1250), 60.0, shared=False)
    assert "10 entries, 10000/10000 bytes" in repr(store)


def test_memory_keeps_nothing_longer_than_its_time() -> None:
    clock = Clock()
    store = RankingStore(10_000, clock)
    store.put(("map", b"a"), b"data", 10.0, shared=True)
    store.put(("map", b"b"), b"data", 20.0, shared=False)
    clock.now += 9.9
    assert store.get(("map", b"a")) == (b"data", True)
    clock.now += 0.2
    assert store.get(("map", b"a")) is None and store.get(("map", b"b")) is not None
    assert not store.put(("map", b"c"), b"data", 0.0, shared=False)
    clock.now += 10.0
    store.expire()
    assert (len(store), store.size_bytes) == (0, 0)


async def test_a_ranking_is_found_by_its_owner_on_its_collection_and_map_alone() -> None:
    store = RankingStore(1 << 20)
    here = rankings(store)
    kept = await here.keep(made())
    assert (kept.kept, kept.tier) == ("l1", "bypass")
    assert await here.find(kept.id, DOCUMENTS, "a") == kept._replace(tier="l1")
    others = collection(name="others")
    told = set()
    for where, id_, of, owner in [
        (here, kept.id, DOCUMENTS, "b"),
        (here, kept.id, DOCUMENTS, ""),
        (here, kept.id, others, "a"),
        (here, bytes(16), DOCUMENTS, "a"),
        (
            Rankings(store, None, "new map", ttl=60.0, max_shared_bytes=0, several=False),
            kept.id,
            DOCUMENTS,
            "a",
        ),
    ]:
        with pytest.raises(ExpiredError) as raised:
            await where.find(id_, of, owner)
        told.add(raised.value.detail)
    assert len(told) == 1 and '"cursor": "*"' in told.pop()
    assert here.found == {"l1": 1, "l2": 0, "none": 4, "unanswered": 0}
    assert here.describe()["rankings"] == 1


async def test_ids_are_never_the_same() -> None:
    here = rankings(RankingStore(1 << 20))
    ids = {(await here.keep(made())).id for _ in range(50)}
    assert len(ids) == 50 and {len(id_) for id_ in ids} == {16}


async def refused(where: Rankings, ranking: Ranking | None = None) -> RouterError:
    with pytest.raises(RouterError) as raised:
        where.require()
        await where.keep(ranking or made())
    return raised.value


async def test_no_cursor_is_given_out_that_could_not_be_followed() -> None:
    memory, none = RankingStore(1 << 20), RankingStore(0)
    error = await refused(rankings(memory, several=True))
    assert isinstance(error, InvalidError) and "--redis" in error.detail
    error = await refused(rankings(none))
    assert isinstance(error, InvalidError) and "--ranking-bytes 0" in error.detail
    error = await refused(rankings(RankingStore(8000)), made(300))
    assert isinstance(error, AnswerTooLargeError)
    async with away() as link:
        # Found out by this very call, and known afterwards.
        for _ in range(2):
            error = await refused(rankings(memory, link, several=True))
            assert isinstance(error, UnavailableError) and "Redis" in error.detail
        error = await refused(rankings(none, link))
        assert isinstance(error, UnavailableError)
        assert "nowhere" not in error.told(inside=False)[0]
        # What is too large for Redis stays so, whether it is there or not.
        error = await refused(rankings(none, link, max_shared_bytes=10))
        assert isinstance(error, AnswerTooLargeError)
        kept = await rankings(memory, link).keep(made())
        assert kept.kept == "l1"
        with pytest.raises(UnavailableError):
            await rankings(memory, link).find(bytes(16), DOCUMENTS, "a")
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize(
    ("type_", "ids"),
    [
        (ValueType.BIGINT, [-(2**63), 0, 2**63 - 1]),
        (ValueType.UUID, [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), uuid.UUID(int=7)]),
        (ValueType.TEXT, ["", "é𝄞", "a" * 1000]),
    ],
)
def test_a_ranking_comes_back_from_its_bytes(type_: ValueType, ids: list[Any]) -> None:
    documents = collection(id=model.Column("id", "id", type_))
    reports = {
        "s1": ShardReport("s1", ShardState.OK, "s1-a", lsn=7, attempts=2, stale=True, total_ms=3.5),
        "s0": ShardReport("s0", ShardState.FAILED, error="no node is up", cause="no_node"),
        "s2": ShardReport("s2", ShardState.OK, lost=True),
    }
    account = Account(
        legs=(LegAccount("words", Mode.FULLTEXT, 0.5, 50, 9),), rerank=StepAccount(False, 50, "late")
    )
    answer = msgspec.structs.replace(
        ranked(),
        rows=[((ids[0], -math.inf, 5), "s1"), ((ids[1], 0.25, 5), "s2"), ((ids[2], math.inf, 5), "s1")],
        coverage=Coverage(False, ShardCounts(4, 3, 2, 1, 0, 1)),
        reports=reports,
        notes=[b'"score":1', b'"score":0.5', b'"score":0.25'],
        account=account,
        unsettled=(Unsettled("s2", "ties"),),
    )
    wanted = {"price": {"$lt": 10.25, "$gte": 1}, "tenant": {"$in": ["é", "b"]}}
    paging = Paging("a", filter=msgspec.json.encode(wanted))
    found = decode(encode(ranking_of(query(documents, k=10, paging=paging), answer)))
    assert found is not None and len(found) == 3
    assert found.rows(0, 9, type_) == [((row[0], row[1]), shard) for row, shard in answer.rows]
    assert found.rows(1, 2, type_) == [((ids[1], 0.25), "s2")]
    assert list(found.reports) == ["s1", "s0", "s2"]
    assert found.reports["s1"] == ShardReport("s1", ShardState.OK, lsn=7, stale=True)
    assert found.reports["s0"] == reports["s0"] and found.reports["s2"].lost
    assert (found.notes, found.account, found.unsettled) == (answer.notes, account, answer.unsettled)
    assert (found.total, found.ended, found.owner) == (4, "coverage", "a")
    assert filter_of(found, documents, Settings()) == parse(documents, wanted, Settings())


@pytest.mark.parametrize("data", [b"", b"\x93\x01\x02\x03", b"x" * 100, b"\xff" * 40])
def test_bytes_of_something_else_are_no_ranking(data: bytes) -> None:
    assert decode(data) is None


def test_a_ranking_takes_some_twenty_bytes_a_row() -> None:
    assert 10_000 < len(encode(made(1000))) < 20_000


def test_a_ranking_that_has_all_the_rows_of_its_depth_has_ended_for_that() -> None:
    assert made(20).ended == "depth"
    short = ranking_of(query(DOCUMENTS, k=21, paging=Paging()), ranked(*[0.5] * 20))
    assert short.ended == "exhausted"
    near = msgspec.structs.replace(ranked(0.5), too_far=True)
    assert ranking_of(query(DOCUMENTS, k=21, paging=Paging()), near).ended == "max_distance"
