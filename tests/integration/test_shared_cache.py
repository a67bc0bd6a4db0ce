"""L2 on a real Redis, with logs and searches that a test moves step by step."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from redis.crc import key_slot

from deploy.local import Cluster
from router.freshness.freshness import Freshness
from router.freshness.redis_link import RedisLink
from router.freshness.token import REPLACE_TOKEN, script_args
from router.query.types import Found, Position, SearchQuery, ShardReport, ShardState
from router.stages.shared_cache import SharedCache
from shard_config import model
from tests.integration.worlds import until
from tests.unit.queries import answer, collection, query, shard_map

KEY = "pgscatter:token:documents"
SHARDS = ("s0", "s1", "s2", "s3")


class Shard:
    """A shard as one router knows it: its primary's log, and the node that answers."""

    def __init__(self) -> None:
        self.timeline = 1
        self.ended: Position | None = Position(1, 50)  # as probes find it
        self.read = 50  # how far the node that is read has come
        self.probes = 0

    def head(self, since: float) -> Position | None:
        return self.ended


class Router:
    """One router's part of L2; its inner stage reads every shard, or those in `reads`."""

    def __init__(self, url: str, namespace: str = "map") -> None:
        self.map = shard_map()
        self.shards = {name: Shard() for name in SHARDS}
        self.reads = SHARDS
        self.content = "?"
        self.during: Callable[[], object] = lambda: None  # while a search is under way
        self.link = RedisLink(url, budget=10.0, pause=0.1)
        self.freshness = Freshness(self.map, self.link)
        self.cache = SharedCache(
            self, self.link, self.freshness, self.map, namespace, self.shards, self.probe, 1 << 20
        )

    def probe(self, shard: str) -> None:
        self.shards[shard].probes += 1

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        reports = tuple(
            ShardReport(
                shard, ShardState.OK, lsn=max(self.shards[shard].read, self.freshness.position(shard))
            )
            for shard in self.reads
        )
        content = self.content
        coming = self.during()
        if asyncio.iscoroutine(coming):
            await coming
        found = answer(json.dumps([content]), cacheable=True)
        return Found(msgspec.structs.replace(found, reports=reports), "miss")

    async def asks(self, **changes: object) -> tuple[str, str]:
        found = await self.cache.search(query(**changes), asyncio.get_running_loop().time() + 5)
        await asyncio.gather(*self.cache._stores)
        return json.loads(bytes(found.answer.hits))[0], found.tier

    async def writes(self, lsn: int, content: str, shard: str = "s0", timeline: int = 1) -> None:
        self.content = content
        self.commits(lsn, shard, timeline)
        await self.freshness.publish("documents")

    def commits(self, lsn: int, shard: str = "s0", timeline: int = 1) -> None:
        self.freshness.committed("documents", shard, Position(timeline, lsn))
        self.freshness.wrote("documents")

    def sees(self, ended: int | None, read: int, shard: str = "s0", timeline: int = 1) -> None:
        known = self.shards[shard]
        known.timeline, known.read = timeline, read
        known.ended = None if ended is None else Position(timeline, ended)

    async def close(self) -> None:
        await self.cache.close()
        await self.freshness.close()
        await self.link.close()


@asynccontextmanager
async def routers(cluster: Cluster, count: int = 3) -> AsyncIterator[list[Router]]:
    """So many on an empty Redis; all have read the token."""
    made = [Router(cluster.redis_url) for _ in range(count)]
    try:
        await made[0].link.client.flushdb()
        for one in made:
            await one.cache.read_tokens()
        yield made
    finally:
        for one in made:
            await one.close()


async def test_what_was_read_before_a_write_is_not_kept_behind_it(cluster: Cluster) -> None:
    async with routers(cluster) as (a, b, restarted):
        await a.writes(100, "new")
        b.content = "old"
        b.sees(50, read=90)
        assert await b.asks() == ("old", "miss")
        restarted.content = "new"
        assert await restarted.asks() == ("new", "miss")
        # As soon as the replica has the write, what it says is kept for all.
        b.content = "new"
        b.sees(50, read=100)
        assert await b.asks() == ("new", "miss")
        assert await restarted.asks() == ("new", "l2")
        assert await a.asks() == ("new", "l2")


async def test_what_one_router_was_told_is_committed_the_others_know_from_their_next_search_on(
    cluster: Cluster,
) -> None:
    async with routers(cluster) as (a, b, _):
        await a.writes(100, "new")
        assert b.freshness.acknowledged.newest("s0") is None
        await b.asks()
        assert b.freshness.acknowledged.newest("s0") == Position(1, 100)
        assert b.freshness.acknowledged.newest("s1") is None
        # It has found that to be lost, and looks at the same token once more: that says nothing new.
        b.freshness.acknowledged.forget("s0")
        await b.asks()
        assert b.freshness.acknowledged.newest("s0") is None


async def test_a_writer_keeps_what_it_reads_right_after_its_write(cluster: Cluster) -> None:
    async with routers(cluster) as (a, b, _):
        for number in range(3):
            await a.writes(100 + number, f"n{number}")
            assert await a.asks() == (f"n{number}", "miss")
            assert await b.asks() == (f"n{number}", "l2")


async def test_a_search_that_a_write_overtakes_keeps_nothing(cluster: Cluster) -> None:
    async with routers(cluster) as (a, b, restarted):
        b.content, b.during = "old", lambda: a.writes(100, "new")
        b.sees(50, read=500)  # even if it thinks itself ahead
        assert await b.asks() == ("old", "miss")
        restarted.content = "new"
        assert await restarted.asks() == ("new", "miss")


@pytest.mark.parametrize("loss", ["evicted", "emptied"])
async def test_without_the_positions_nothing_is_kept_before_probes_have_found_the_ends_of_logs(
    cluster: Cluster, loss: str
) -> None:
    async with routers(cluster) as (a, b, restarted):
        await a.writes(100, "new")
        await (a.link.client.delete(KEY) if loss == "evicted" else a.link.client.flushdb())
        b.content = "old"
        b.sees(None, read=90)
        assert await b.asks() == ("old", "miss")
        assert b.shards["s0"].probes
        restarted.content = "new"
        for shard in SHARDS:
            restarted.sees(None, read=0, shard=shard)
        assert await restarted.asks() == ("new", "miss")
        b.sees(100, read=90)
        assert await b.asks() == ("old", "miss")
        assert await restarted.asks() == ("new", "miss")
        b.content = "new"
        b.sees(100, read=100)
        assert await b.asks() == ("new", "miss")
        # It stores nothing itself yet, and takes what others stored.
        assert await restarted.asks() == ("new", "l2")


async def test_a_lower_position_ends_a_lineage_so_that_a_restored_shard_is_not_refused_for_ever(
    cluster: Cluster,
) -> None:
    async with routers(cluster) as (a, b, _):
        await a.writes(5000, "before", timeline=5)
        b.content = "restored"
        b.sees(60, read=60)
        assert [await b.asks() for _ in range(2)] == [("restored", "miss")] * 2
        c = Router(cluster.redis_url)
        try:
            await c.writes(60, "restored")
            assert await b.asks() == ("restored", "miss")
            assert await b.asks() == ("restored", "l2")
        finally:
            await c.close()


async def test_writes_told_of_in_the_wrong_order_let_nothing_older_through(cluster: Cluster) -> None:
    async with routers(cluster) as (a, b, restarted):
        other = Router(cluster.redis_url)
        try:
            await b.asks()
            await a.writes(120, "newer")
            await other.writes(100, "new")
            b.content = "new"
            b.sees(None, read=110)
            assert await b.asks() == ("new", "miss")
            b.sees(120, read=110)
            assert await b.asks() == ("new", "miss")
            restarted.content = "newer"
            assert await restarted.asks() == ("newer", "miss")
        finally:
            await other.close()


async def test_after_a_promotion_the_later_timeline_counts(cluster: Cluster) -> None:
    async with routers(cluster) as (a, b, restarted):
        await a.writes(500, "lost")
        # The replica had 480 of it, and is the primary now, which b does not know.
        await a.writes(490, "new", timeline=2)
        b.content = "lost"
        b.sees(500, read=600)
        assert await b.asks() == ("lost", "miss")
        restarted.content = "new"
        restarted.sees(490, read=490, timeline=2)
        assert await restarted.asks() == ("new", "miss")
        assert await restarted.asks() == ("new", "l2")


async def test_what_a_promotion_lost_is_not_waited_for(cluster: Cluster) -> None:
    async with routers(cluster) as (a, b, restarted):
        await a.writes(500, "lost")
        b.content = "now"
        b.sees(480, read=480)
        assert [await b.asks() for _ in range(2)] == [("now", "miss")] * 2
        b.sees(480, read=470, timeline=2)  # a replica that has not come to the promotion
        assert await b.asks() == ("now", "miss")
        assert await restarted.asks() == ("?", "miss")
        b.sees(480, read=480, timeline=2)
        assert await b.asks() == ("now", "miss")
        restarted.sees(480, read=480, timeline=2)
        assert await restarted.asks() == ("now", "l2")


async def test_a_promotion_during_a_search_leaves_its_answer_on_the_earlier_timeline(
    cluster: Cluster,
) -> None:
    async with routers(cluster) as (_, b, restarted):
        b.content = "old"
        b.sees(50, read=600)
        b.during = lambda: b.sees(490, read=490, timeline=2)
        await b.asks()
        b.during = lambda: None
        # Under the same token, which another router has found the promotion behind.
        restarted.sees(490, read=490, timeline=2)
        a = Router(cluster.redis_url)
        try:
            await a.writes(490, "new", timeline=2)
            restarted.content = "new"
            assert await restarted.asks() == ("new", "miss")
        finally:
            await a.close()


async def test_only_the_shards_that_a_search_asks_have_to_hold_the_write(cluster: Cluster) -> None:
    async with routers(cluster) as (a, b, restarted):
        await a.writes(100, "new", shard="s0")
        b.content, b.reads = "elsewhere", ("s1",)
        assert await b.asks(k=5) == ("elsewhere", "miss")
        assert await restarted.asks(k=5) == ("elsewhere", "l2")
        b.content, b.reads = "old", ("s0", "s1")
        assert await b.asks() == ("old", "miss")
        assert (await restarted.asks())[1] == "miss"


async def test_an_entry_that_rests_on_less_than_was_told_does_not_count_whoever_stored_it(
    cluster: Cluster,
) -> None:
    async with routers(cluster) as (a, b, restarted):
        await a.writes(100, "new")
        value = json.loads(await a.link.client.get(KEY))
        b.content = "old"
        b.sees(50, read=90)
        b.cache._store(
            await entry_key(b),
            value["token"],
            3_600_000,
            (await b.search(query(), 0)).answer,
            {shard: (1, 90) for shard in SHARDS},
            60.0,
        )
        await asyncio.gather(*b.cache._stores)
        restarted.content = "new"
        assert await restarted.asks() == ("new", "miss")


async def entry_key(router: Router) -> str:
    """The key of the one entry that `router` makes."""
    client = router.link.client
    before = set(await client.keys("pgscatter:{*"))
    router.sees(50, read=1000)
    await router.asks()
    (key,) = set(await client.keys("pgscatter:{*")) - before
    await client.delete(key)
    return str(key.decode())


async def test_a_write_that_redis_could_not_be_told_of_is_told_with_its_position(cluster: Cluster) -> None:
    async with routers(cluster) as (a, b, restarted):
        cluster.pause("redis")
        a.link.budget = 0.05
        try:
            await a.writes(100, "new")
            await a.writes(110, "newer")
            assert await a.asks() == ("newer", "miss")
        finally:
            cluster.resume("redis")
        a.link.budget = 10.0
        await until(lambda: a.link.on)
        assert await a.freshness.publish("documents")
        written = json.loads(await b.link.client.get(KEY))["written"]
        assert written == dict([script_args({"s0": Position(1, 110)})])
        b.content = "new"
        b.sees(50, read=105)
        assert await b.asks() == ("new", "miss")
        restarted.content = "newer"
        assert await restarted.asks() == ("newer", "miss")


async def test_what_a_worker_that_died_left_pending_is_published_without_positions(cluster: Cluster) -> None:
    async with routers(cluster) as (a, b, _):
        await b.asks()
        assert (await a.asks())[1] == "l2"
        a.freshness.wrote("documents")  # without a position, as its successor finds it
        assert (await a.asks())[1] == "miss"


async def test_two_writers_at_once_lose_no_position(cluster: Cluster) -> None:
    async with routers(cluster, 8) as writers:
        order = list(range(1, 9))
        await asyncio.gather(
            *(w.writes(100 * n, "x", shard=f"s{n % 4}") for n, w in zip(order, writers, strict=True))
        )
        written = json.loads(await writers[0].link.client.get(KEY))["written"]
        # Of two writes to one shard, the one told last stands; if that was the lower one, the lineage ended.
        assert set(written) == set(SHARDS)


async def test_the_script_keeps_the_newest_and_ends_the_lineage_where_one_is_older(cluster: Cluster) -> None:
    async with routers(cluster, 1) as (a,):
        client = a.link.client

        async def tells(name: str, *args: str) -> dict[str, object]:
            await client.eval(REPLACE_TOKEN, 1, KEY, name, "5000", *args)  # type: ignore[misc]
            assert 0 < await client.pttl(KEY) <= 5000
            found: dict[str, object] = json.loads(await client.get(KEY))
            return found

        await client.delete(KEY)
        first = await tells("t1", "s0", "05")
        assert first == {"token": "t1", "lineage": "t1", "written": {"s0": "05"}}
        assert await tells("t2", "s1", "01", "s0", "06") == {
            "token": "t2",
            "lineage": "t1",
            "written": {"s0": "06", "s1": "01"},
        }
        assert await tells("t3") == {"token": "t3", "lineage": "t1", "written": {"s0": "06", "s1": "01"}}
        assert await tells("t4", "s0", "06") == {
            "token": "t4",
            "lineage": "t1",
            "written": {"s0": "06", "s1": "01"},
        }
        assert await tells("t5", "s0", "04") == {
            "token": "t5",
            "lineage": "t5",
            "written": {"s0": "04", "s1": "01"},
        }
        for strange in (b"\x00\xff raw", b"7", b"[1]", b'{"written": 7}'):
            await client.set(KEY, strange)
            assert await tells("t6", "s0", "04") == {"token": "t6", "lineage": "t6", "written": {"s0": "04"}}
        await client.set(KEY, b'{"token": "t", "lineage": "l", "written": {}}')
        assert await tells("t7") == {"token": "t7", "lineage": "l", "written": {}}


async def test_a_user_who_may_not_run_scripts_still_makes_entries_worthless(cluster: Cluster) -> None:
    async with routers(cluster) as (a, b, restarted):
        await a.link.client.execute_command(
            "ACL", "SETUSER", "plain", "on", "nopass", "~*", "+@all", "-@scripting"
        )
        plain = Router(cluster.redis_url.replace("redis://", "redis://plain:x@"))
        try:
            await b.asks()
            assert (await restarted.asks())[1] == "l2"
            await plain.writes(100, "new")
            b.content = "old"
            b.sees(None, read=90)
            assert await b.asks() == ("old", "miss")
            b.sees(100, read=90)
            assert await b.asks() == ("old", "miss")
            assert (await restarted.asks())[1] == "miss"
        finally:
            await plain.close()
            await a.link.client.execute_command("ACL", "DELUSER", "plain")


@pytest.mark.parametrize("ahead", [60.0, -60.0])
async def test_ages_are_right_whatever_the_clocks_of_the_routers_say(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    async with routers(cluster) as (a, b, _):
        with monkeypatch.context() as clock:
            shifted = time.time() + ahead
            clock.setattr(time, "time", lambda: shifted)
            await a.asks()
        await asyncio.sleep(0.3)
        found = await b.cache.search(query(), asyncio.get_running_loop().time() + 5)
        assert found.tier == "l2"
        assert 0.3 <= found.age < 30


async def test_an_answer_whose_age_nobody_can_tell_is_not_kept_in_memory(cluster: Cluster) -> None:
    async with routers(cluster) as (a, b, _):
        client, ttl = a.link.client, query().collection.cache.ttl
        await client.persist(KEY)  # as earlier versions have left it
        await a.asks()
        found = await b.cache.search(query(), asyncio.get_running_loop().time() + 5)
        assert (found.tier, found.age) == ("l2", ttl)
        # The next router to start sees to it that there is an age again.
        restarted = Router(cluster.redis_url)
        try:
            await restarted.cache.read_tokens()
            assert 0 < await client.pttl(KEY) <= 3_600_000
        finally:
            await restarted.close()


async def test_one_who_may_not_ask_for_ages_is_served_all_the_same(cluster: Cluster) -> None:
    async with routers(cluster) as (a, b, _):
        acl = a.link.client.execute_command
        await acl("ACL", "SETUSER", "old", "on", ">x", "~pgscatter:*", "+@all", "-pttl")
        try:
            old = Router(cluster.redis_url.replace("redis://", "redis://old:x@"))
            try:
                await b.asks()
                found = await old.cache.search(query(), asyncio.get_running_loop().time() + 5)
                assert (found.tier, found.age) == ("l2", query().collection.cache.ttl)
            finally:
                await old.close()
        finally:
            await acl("ACL", "DELUSER", "old")


async def test_entries_and_tokens_of_earlier_versions_are_no_obstacle(cluster: Cluster) -> None:
    async with routers(cluster) as (a, b, _):
        await a.link.client.set(KEY, b"\x01\x02\xff\xfe\x00raw12345")
        await b.asks()
        assert (await a.asks())[1] == "l2"
        (key,) = [key async for key in a.link.client.scan_iter("pgscatter:{*")]
        for strange in (
            b"",
            b"\xff",
            msgspec.msgpack.encode([b"token", b"[]", 1, None, None, {"s0": 1}, 0.0]),
        ):
            await a.link.client.set(key, strange)
            assert (await a.asks())[1] == "miss"


async def test_all_keys_of_a_collection_are_in_one_slot_of_redis_cluster(cluster: Cluster) -> None:
    async with routers(cluster, 1) as (a,):
        await a.asks()
        keys = [key.decode() async for key in a.link.client.scan_iter("pgscatter:*")]
        assert len(keys) == 2
        assert len({key_slot(key.encode()) for key in keys}) == 1


async def test_a_token_lives_for_many_times_its_entries(cluster: Cluster) -> None:
    async with routers(cluster, 1) as (a,):
        assert 3_500_000 < await a.link.client.pttl(KEY) <= 3_600_000  # one that no write has made
    long = collection(cache=model.Cache(7200.0))
    async with routers(cluster, 1) as (a,):
        await a.writes(1, "x")
        assert 3_500_000 < await a.link.client.pttl(KEY) <= 3_600_000
        lasting = Freshness(shard_map(long), a.link)
        lasting.wrote("documents")
        assert await lasting.publish("documents")
        assert 71_000_000 < await a.link.client.pttl(KEY) <= 72_000_000


async def test_a_redis_that_refuses_writes_is_not_asked_again_by_each_search(cluster: Cluster) -> None:
    async with routers(cluster) as (a, _, admin):
        redis = admin.link.client
        await a.asks()
        a.link.pause = 0.5
        a.freshness.wrote("documents")
        await redis.config_set("replica-serve-stale-data", "yes")
        await redis.replicaof("127.0.0.1", 1)
        try:
            began = asyncio.get_running_loop().time()
            await redis.config_resetstat()
            for _ in range(50):
                assert (await a.asks())[1] == "miss"
            pauses = (asyncio.get_running_loop().time() - began) / a.link.pause
            calls = (await redis.info("commandstats"))["cmdstat_eval"]["calls"]
            assert 1 <= calls <= 1 + pauses and calls < 25
        finally:
            await redis.replicaof("NO", "ONE")
        # What was pending is told when it takes writes again, before anything is taken from it.
        async with asyncio.timeout(20):
            while not await a.freshness.publish("documents"):
                await asyncio.sleep(0.01)


async def test_a_write_that_found_every_connection_in_use_is_told_as_soon_as_one_is_free(
    cluster: Cluster,
) -> None:
    async with routers(cluster) as (a, _, _):
        a.link.pause = 60.0
        a.freshness.wrote("documents")
        blocking = [a.link.call(lambda client: client.blpop(["nothing"], timeout=0.05)) for _ in range(32)]  # type: ignore[arg-type, return-value]
        calls = asyncio.gather(*blocking)
        await until(lambda: a.link._under_way == len(blocking))
        assert not await a.freshness.publish("documents")
        await calls
        assert a.link.on and await a.freshness.publish("documents")
