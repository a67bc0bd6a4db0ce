"""What is said and counted of a real Redis that cannot be used, or not for writes."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from deploy.local import Cluster
from router.freshness.redis_link import RedisLink, exchange
from router.stages.rankings import Rankings, RankingStore
from tests.unit.test_rankings import DOCUMENTS, made


class Watched:
    """A link, and what it has told of itself: (on, why not, why no writes)."""

    def __init__(self, url: str, *, budget: float = 10.0, pause: float = 0.02) -> None:
        self.told: list[tuple[bool, str | None, str | None]] = []
        self.seconds: list[float] = []
        self.link = RedisLink(
            url,
            budget=budget,
            pause=pause,
            changed=lambda link: self.told.append(
                (link.on, None if link.on else link.cause, link.refusal_cause)
            ),
            took=self.seconds.append,
        )

    async def until(self, state: tuple[bool, str | None, str | None]) -> None:
        async with asyncio.timeout(20):
            while not self.told or self.told[-1] != state:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def watched(url: str, **settings: float) -> AsyncIterator[Watched]:
    one = Watched(url, **settings)
    try:
        yield one
    finally:
        await one.link.close()


async def test_a_redis_that_can_be_used_is_known_to_be_when_the_router_starts(cluster: Cluster) -> None:
    async with watched(cluster.redis_url) as one:
        await one.link.check()
        assert one.told[-1] == (True, None, None)
        await one.link.call(lambda client: client.get("x"), kind="read")
        assert len(one.seconds) == 1 and 0 < one.seconds[0] < 10
        assert not one.link.errors


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda url: url.replace("redis://", "redis://nobody:wrong-password@"), "authentication"),
        (lambda url: url.rpartition("/")[0] + "/99", "other"),
        (lambda url: "redis://127.0.0.1:1/0", "connection"),
    ],
    ids=["wrong password", "wrong database", "nobody there"],
)
async def test_a_redis_that_cannot_be_used_is_known_at_the_start_and_why(
    cluster: Cluster, change: object, cause: str
) -> None:
    async with watched(change(cluster.redis_url)) as one:  # type: ignore[operator]
        await one.link.check()
        assert one.told[-1] == (False, cause, None)
        assert one.link.errors == {cause: 1}
        assert one.link.reason and "wrong-password" not in one.link.reason


async def test_one_that_does_not_answer_is_off_and_on_again_with_its_cause(cluster: Cluster) -> None:
    async with watched(cluster.redis_url, budget=1.0) as one:
        await one.link.check()
        cluster.pause("redis")
        try:
            assert await one.link.call(lambda client: client.get("x"), kind="read") is None
            assert one.told[-1] == (False, "timeout", None)
            assert one.link.errors["timeout"] == 1
        finally:
            cluster.resume("redis")
        await one.until((True, None, None))


async def test_a_redis_that_was_slow_is_asked_all_the_same_by_who_cannot_do_without_it(
    cluster: Cluster,
) -> None:
    async with watched(cluster.redis_url, budget=0.2, pause=60.0) as one:
        await one.link.check()
        limits: Any = {"ttl": 60.0, "max_shared_bytes": 1 << 20, "several": True, "patience": 20.0}
        here, beside = (Rankings(RankingStore(1 << 20), one.link, "m", **limits) for _ in range(2))
        cluster.pause("redis")
        try:
            assert await one.link.call(lambda client: client.get("x"), kind="read") is None
            assert not one.link.on and one.link.slow
            here.require()
            keeping = asyncio.ensure_future(here.keep(made()))
            await asyncio.sleep(0)
            assert not keeping.done()
        finally:
            cluster.resume("redis")
        kept = await keeping
        assert kept.kept == "l2"
        assert (await beside.find(kept.id, DOCUMENTS, "a")).tier == "l2"
        # What is there for speed alone still does without it.
        assert not one.link.on
        assert await one.link.call(lambda client: client.get("x"), kind="read") is None


async def test_commands_that_were_given_up_half_way_leave_no_reply_to_the_next(cluster: Cluster) -> None:
    async with watched(cluster.redis_url, budget=1.0) as one:
        await one.link.check()
        cluster.pause("redis")
        try:
            given_up = [("MGET", "a", "b"), ("PTTL", "a")]
            assert await one.link.call(lambda client: exchange(client, given_up), kind="read") is None
        finally:
            cluster.resume("redis")
        await one.until((True, None, None))
        for key in "xyz":
            asked = [("MGET", key), ("PTTL", key)]
            replies = await one.link.call(lambda client, asked=asked: exchange(client, asked), kind="read")
            assert replies == [[None], -2]


async def test_a_command_whose_caller_has_left_leaves_no_reply_to_the_next(cluster: Cluster) -> None:
    async with watched(cluster.redis_url) as one:
        await one.link.check()
        cluster.pause("redis")
        try:
            left = [("MGET", "a", "b"), ("PTTL", "a")]
            call = asyncio.create_task(one.link.call(lambda client: exchange(client, left), kind="read"))
            await asyncio.sleep(0.05)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            asked = [("MGET", "x"), ("PTTL", "x")]
            following = asyncio.create_task(
                one.link.call(lambda client: exchange(client, asked), kind="read")
            )
            await asyncio.sleep(0.05)
        finally:
            cluster.resume("redis")
        # A connection that is opened meanwhile may take too long.
        assert await following in ([[None], -2], None)


@asynccontextmanager
async def far_away(address: tuple[str, int], seconds: float) -> AsyncIterator[tuple[int, list[object]]]:
    """The port of a proxy that passes everything on so much later, in both directions, and who has come."""
    loop = asyncio.get_running_loop()
    came: list[object] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            loop.call_later(seconds, writer.write, data)
        loop.call_later(seconds, writer.close)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(writer)
        there, back = await asyncio.open_connection(*address)
        await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], came
    finally:
        server.close()
        await asyncio.sleep(3 * seconds)


async def test_calls_at_once_do_not_have_to_open_connections_within_their_budget(cluster: Cluster) -> None:
    there = urlsplit(cluster.redis_url)
    assert there.hostname is not None and there.port is not None
    async with far_away((there.hostname, there.port), 0.01) as (port, came):
        async with watched(f"redis://127.0.0.1:{port}/0") as one:
            await one.link.check()
            opened = len(came)
            for _ in range(5):
                calls = [one.link.call(lambda client: client.mget(["x"]), kind="read") for _ in range(4)]
                assert await asyncio.gather(*calls) == [[None]] * 4
            assert len(came) == opened


async def test_one_that_is_full_is_read_and_known_to_take_no_writes(cluster: Cluster) -> None:
    async with watched(cluster.redis_url) as one:
        await one.link.check()
        admin = one.link.client
        await admin.config_set("maxmemory-policy", "noeviction")
        await admin.config_set("maxmemory", "1")
        try:
            assert await one.link.call(lambda client: client.set("x", "1")) is None
            assert one.told[-1] == (True, None, "oom")
            assert await one.link.call(lambda client: client.mget(["x"]), kind="read") == [None]
            async with watched(cluster.redis_url) as late:
                await late.link.check()
                assert late.told[-1] == (True, None, "oom")
        finally:
            await admin.config_set("maxmemory", "256mb")
            await admin.config_set("maxmemory-policy", "allkeys-lru")
        assert await one.link.call(lambda client: client.set("x", "1", px=10))
        assert one.told[-1] == (True, None, None)


async def test_a_replica_is_read_and_known_to_take_no_writes(cluster: Cluster) -> None:
    async with watched(cluster.redis_url) as one:
        await one.link.check()
        admin = one.link.client
        await admin.config_set("replica-serve-stale-data", "yes")
        await admin.replicaof("127.0.0.1", 1)
        try:
            assert await one.link.call(lambda client: client.set("x", "1")) is None
            assert one.told[-1] == (True, None, "readonly")
            assert one.link.errors["readonly"] == 1
        finally:
            await admin.replicaof("NO", "ONE")
        assert await one.link.call(lambda client: client.set("x", "1", px=10))
        assert one.told[-1] == (True, None, None)


async def test_a_user_without_rights_is_told_apart_by_what_is_missing(cluster: Cluster) -> None:
    host = urlsplit(cluster.redis_url).netloc.rpartition("@")[2]
    async with watched(cluster.redis_url) as admin:
        acl = admin.link.client.execute_command
        await acl("ACL", "SETUSER", "looker", "on", ">x", "~pgscatter:*", "+@all", "-@write", "-@scripting")
        await acl("ACL", "SETUSER", "blind", "on", ">x", "~pgscatter:*", "+ping", "+set")
        try:
            async with watched(f"redis://looker:x@{host}/0") as looker:
                await looker.link.check()
                assert looker.told[-1] == (True, None, "permission")
            async with watched(f"redis://blind:x@{host}/0") as blind:
                await blind.link.check()
                assert blind.told[-1] == (False, "permission", None)
                await asyncio.sleep(0.2)  # it answers PING
                assert not blind.link.on and len(blind.told) == 2
            async with watched(f"redis://looker:x@{host}/0") as looker:
                await looker.link.check()
                await acl("ACL", "SETUSER", "looker", "-mget")
                assert await looker.link.call(lambda client: client.mget(["x"]), kind="read") is None
                assert looker.told[-1] == (False, "permission", "permission")
        finally:
            await acl("ACL", "DELUSER", "looker", "blind")


async def test_a_call_that_is_cancelled_ends_so_whatever_it_is_at(cluster: Cluster) -> None:
    async with watched(cluster.redis_url) as one:
        await one.link.check()
        for turns in range(40):
            call = asyncio.create_task(one.link.call(lambda client: client.get("x"), kind="read"))
            for _ in range(turns):
                await asyncio.sleep(0)
            cancelled = call.cancel()
            await asyncio.wait({call}, timeout=20)
            assert call.cancelled() is cancelled, turns


async def test_a_link_is_closed_whatever_its_recovery_is_at(cluster: Cluster) -> None:
    """Up to Python 3.11 a cancellation that comes as a command has just been sent is lost in redis-py."""
    host = urlsplit(cluster.redis_url).netloc.rpartition("@")[2]
    async with watched(cluster.redis_url) as admin:
        acl = admin.link.client.execute_command
        await acl("ACL", "SETUSER", "blind", "on", ">x", "~pgscatter:*", "+ping", "+set")
        try:
            for turns in range(60):
                async with watched(f"redis://blind:x@{host}/0") as one:
                    await one.link.check()
                    recovery = one.link._recovery
                    assert recovery is not None
                    await asyncio.sleep(one.link.pause)
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    async with asyncio.timeout(20):
                        await one.link.close()
                    assert recovery.done()
        finally:
            await acl("ACL", "DELUSER", "blind")


async def test_a_script_that_fails_says_nothing_of_other_writes(cluster: Cluster) -> None:
    async with watched(cluster.redis_url) as one:
        await one.link.check()
        call = one.link.call(lambda client: client.eval("return nonsense()", 0), kind="script")  # type: ignore[arg-type, return-value]
        assert await call is None
        assert one.link.errors == {"script": 1} and one.link.refusal is None


@asynccontextmanager
async def tls_in_front(address: tuple[str, int], folder: Path) -> AsyncIterator[tuple[int, Path]]:
    """The port of a proxy that speaks TLS, and the file of its certificate."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subject = ["-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    await asyncio.to_thread(
        subprocess.run,
        [*make, "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*address)
        await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], certificate


async def test_tls_is_used_and_a_certificate_that_nobody_vouches_for_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    there = urlsplit(cluster.redis_url)
    assert there.hostname is not None and there.port is not None
    async with tls_in_front((there.hostname, there.port), tmp_path) as (port, certificate):
        url = f"rediss://127.0.0.1:{port}/0"
        async with watched(f"{url}?ssl_ca_certs={certificate}") as trusted:
            await trusted.link.check()
            assert trusted.told[-1] == (True, None, None)
            assert await trusted.link.call(lambda client: client.set("x", "1", px=10))
        async with watched(url) as stranger:
            await stranger.link.check()
            assert stranger.told[-1] == (False, "connection", None)
            assert "certificate" in (stranger.link.reason or "")
