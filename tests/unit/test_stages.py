"""Caches and coalescing over an inner stage of three lines."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import msgspec
import pytest

from router.query.errors import DeadlineError, UnavailableError
from router.query.filter import parse
from router.query.types import Consistency, Found, SearchQuery
from router.settings import Settings
from router.stages.answer_memory import AnswerMemory, BatchRoom
from router.stages.coalesce import Coalesced
from router.stages.local_cache import LocalCache, Store
from router.stages.stage import Figures, Stage
from tests.unit.queries import answer, collection, query


class Inner:
    """Answers after `delay` seconds, or raises; counts."""

    def __init__(self, delay: float = 0.0, error: Exception | None = None, *, cacheable: bool = True) -> None:
        self.started = self.cancelled = 0
        self.delay, self.error, self.cacheable = delay, error, cacheable

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        self.started += 1
        number = self.started
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return Found(answer(f'[{{"id":{number}}}]', cacheable=self.cacheable), "miss")

    def describe(self) -> Figures:
        return {"inner": self.started}


class Versions:
    def __init__(self) -> None:
        self.value = 0

    def __call__(self, name: str) -> int:
        return self.value


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def no_tasks_left() -> bool:
    return asyncio.all_tasks() == {asyncio.current_task()}


def local(inner: Stage, versions: Versions, clock: Callable[[], float], size: int = 1 << 20) -> LocalCache:
    return LocalCache(inner, Store(size, clock), "map", versions)


async def test_an_equal_search_is_answered_from_memory() -> None:
    inner = Inner()
    cache = local(inner, Versions(), lambda: 0.0)
    first = await cache.search(query(), soon())
    second = await cache.search(query(), soon())
    assert (first.tier, second.tier, inner.started) == ("miss", "l1", 1)
    assert bytes(second.answer.hits) == bytes(first.answer.hits)


@pytest.mark.parametrize(
    "change",
    [
        {"k": 11},
        {"offset": 1},
        {"include": frozenset(["content"])},
        {"max_distance": 1.0},
        {"ef_search": 41},
        {"exact": True},
        {"vector": b"\0" * 16},
    ],
)
async def test_whatever_changes_the_answer_is_another_entry(change: dict[str, object]) -> None:
    inner = Inner()
    cache = local(inner, Versions(), lambda: 0.0)
    await cache.search(query(), soon())
    await cache.search(query(**change), soon())
    assert inner.started == 2


async def test_numbers_of_any_size_and_their_likes_are_entries_of_their_own() -> None:
    inner = Inner()
    cache = local(inner, Versions(), lambda: 0.0)
    values = [n for exact in (10**30, 2**64) for n in (exact, exact + 1, -exact, str(exact), float(exact))]
    values += [2**64 - 1, -(2**63), -(2**63) - 1, 2**4096 - 1]
    for _ in range(2):
        for value in values:
            filter_ = parse(collection(), {"metadata.n": {"$lt": value}}, Settings())
            await cache.search(query(filter=filter_), soon())
    assert inner.started == len(values)


async def test_a_write_makes_entries_unreachable_at_once() -> None:
    inner, versions = Inner(), Versions()
    cache = local(inner, versions, lambda: 0.0)
    await cache.search(query(), soon())
    versions.value += 1
    assert (await cache.search(query(), soon())).tier == "miss"


async def test_a_write_during_a_search_keeps_its_answer_out_of_the_cache() -> None:
    inner, versions = Inner(delay=0.02), Versions()
    cache = local(inner, versions, lambda: 0.0)
    searching = asyncio.create_task(cache.search(query(), soon()))
    await asyncio.sleep(0.005)
    versions.value += 1
    await searching
    assert (await cache.search(query(), soon())).tier == "miss"


async def test_entries_end_with_their_time() -> None:
    now = 0.0
    inner = Inner()
    cache = local(inner, Versions(), lambda: now)
    await cache.search(query(), soon())
    now = 59.9
    assert (await cache.search(query(), soon())).tier == "l1"
    now = 60.1
    assert (await cache.search(query(), soon())).tier == "miss"


async def test_what_is_not_cacheable_or_not_wanted_from_caches_is_not_kept() -> None:
    partial = local(Inner(cacheable=False), Versions(), lambda: 0.0)
    await partial.search(query(), soon())
    assert (await partial.search(query(), soon())).tier == "miss"
    inner = Inner()
    cache = local(inner, Versions(), lambda: 0.0)
    for change in ({"cache": False}, {"explain": True}, {"consistency": Consistency.STRONG}):
        await cache.search(query(**change), soon())
        await cache.search(query(**change), soon())
    no_time = collection(cache=query().collection.cache.__class__(0.0))
    await cache.search(query(no_time), soon())
    await cache.search(query(no_time), soon())
    assert inner.started == 8


async def test_the_store_never_exceeds_its_bytes() -> None:
    store = Store(20_000)
    for i in range(100):
        store.put(("c", "map", 0, bytes([i])), answer("[" + "1" * 900 + "]"), 60.0)
        assert store.size_bytes <= 20_000
    assert 0 < len(store) < 100
    store.put(("c", "map", 0, b"big"), answer("[" + "1" * 19_000 + "]"), 60.0)
    assert store.get(("c", "map", 0, b"big")) is None


async def test_equal_searches_in_flight_share_one_execution() -> None:
    inner = Inner(delay=0.02)
    coalesced = Coalesced(inner, Versions())
    found = await asyncio.gather(*(coalesced.search(query(), soon()) for _ in range(20)))
    assert inner.started == 1
    assert len({bytes(one.answer.hits) for one in found}) == 1
    assert no_tasks_left()
    assert "0 in flight, 19 joined" in repr(coalesced)


async def test_searches_of_a_batch_share_its_room_with_nobody_else() -> None:
    inner = Inner(delay=0.02)
    coalesced = Coalesced(inner, Versions())
    memory = AnswerMemory(100, 100)
    one, other = BatchRoom(memory), BatchRoom(memory)
    rooms = [None, None, one, one, other]
    await asyncio.gather(
        *(coalesced.search(msgspec.structs.replace(query(), room=room), soon()) for room in rooms)
    )
    assert inner.started == 3


async def test_one_caller_leaving_does_not_touch_the_others() -> None:
    inner = Inner(delay=0.05)
    coalesced = Coalesced(inner, Versions())
    first, second = (asyncio.create_task(coalesced.search(query(), soon())) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    assert (await second).tier == "miss"
    assert (inner.started, inner.cancelled) == (1, 0)


async def test_the_last_caller_to_leave_cancels_the_flight() -> None:
    inner = Inner(delay=5)
    coalesced = Coalesced(inner, Versions())
    callers = [asyncio.create_task(coalesced.search(query(), soon())) for _ in range(3)]
    await asyncio.sleep(0.01)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    assert inner.cancelled == 1
    assert no_tasks_left()


async def test_a_failure_reaches_everyone_who_shares_it() -> None:
    coalesced = Coalesced(Inner(0.01, UnavailableError("no shard")), Versions())
    outcomes = await asyncio.gather(
        *(coalesced.search(query(), soon()) for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(outcome, UnavailableError) for outcome in outcomes)


async def test_a_failure_whose_last_caller_leaves_in_the_same_turn_is_seen() -> None:
    unseen: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    inner = Inner(0.01, UnavailableError("no shard"))
    coalesced = Coalesced(inner, Versions())
    caller = asyncio.create_task(coalesced.search(query(), soon()))
    await asyncio.sleep(0)
    (flight,) = asyncio.all_tasks() - {asyncio.current_task(), caller}
    flight.add_done_callback(lambda _, last=caller: last.cancel())
    await asyncio.wait([caller])
    assert caller.cancelled() and flight.done() and not flight.cancelled()
    del caller, flight
    gc.collect()
    assert unseen == []


async def test_what_another_cache_has_kept_is_not_kept_for_as_long_again() -> None:
    class Shared:
        async def search(self, query: SearchQuery, deadline: float) -> Found:
            return Found(answer("[]"), "l2", age=query.collection.cache.ttl - 10)

        def describe(self) -> Figures:
            return {}

    now = 100.0
    cache = local(Shared(), Versions(), lambda: now)
    assert (await cache.search(query(), soon())).tier == "l2"
    now += 9
    assert (await cache.search(query(), soon())).tier == "l1"
    now += 2
    assert (await cache.search(query(), soon())).tier == "l2"


async def test_a_stage_describes_itself_and_those_inside_it() -> None:
    cache = local(Coalesced(Inner(delay=0.01), Versions()), Versions(), lambda: 0.0)
    await asyncio.gather(*(cache.search(query(), soon()) for _ in range(3)))
    await cache.search(query(), soon())
    described = cache.describe()
    assert described.pop("l1_bytes")
    assert described == {"l1_entries": 1, "l1_hits": 1, "l1_misses": 3, "coalesced": 2, "inner": 1}


async def test_nobody_joins_a_flight_from_before_a_write() -> None:
    inner, versions = Inner(delay=0.02), Versions()
    coalesced = Coalesced(inner, versions)
    first = asyncio.create_task(coalesced.search(query(), soon()))
    await asyncio.sleep(0.005)
    versions.value += 1
    second = await coalesced.search(query(), soon())
    assert bytes(second.answer.hits) != bytes((await first).answer.hits)


async def test_a_flight_with_too_little_or_too_much_time_is_not_joined() -> None:
    inner = Inner(delay=0.05)
    coalesced = Coalesced(inner, Versions())
    short = asyncio.create_task(coalesced.search(query(), soon(40)))
    await asyncio.sleep(0)
    await asyncio.gather(coalesced.search(query(), soon(1000)), coalesced.search(query(), soon(20)), short)
    assert inner.started == 3


async def test_a_caller_does_not_wait_beyond_its_deadline() -> None:
    inner = Inner(delay=5)
    coalesced = Coalesced(inner, Versions())
    with pytest.raises(DeadlineError):
        await coalesced.search(query(), soon(0.02))
    assert inner.cancelled == 1
    assert no_tasks_left()
