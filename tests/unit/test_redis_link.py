from __future__ import annotations

import asyncio

import pytest

from router.freshness.redis_errors import described
from router.freshness.redis_link import RedisLink, check_url
from tests.unit.listening import listening


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://h",
        "redis://h/",
        "rediss://user:pass%2Fword@h:6380/15?ssl_cert_reqs=none",
        "redis://[::1]:6379/2",
        "unix:///run/redis.sock?db=2",
    ],
)
def test_urls_of_redis_pass(url: str) -> None:
    check_url(url)


def test_what_is_said_of_a_bad_url_shows_no_password() -> None:
    for url in ("redis://:sec#ret@h/0", "redis://:se/cret@h/0", "redis://h/secret", "redis://h?password"):
        try:
            check_url(url)
        except ValueError as exc:
            assert "sec" not in str(exc)
            assert "cret" not in str(exc)


async def test_a_server_of_a_redis_cluster_is_called_that() -> None:
    async def moved(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if (word := line.strip().upper()) in (b"PING", b"CLIENT", b"HELLO"):
                writer.write(b"+PONG\r\n" if word == b"PING" else b"+OK\r\n")
            elif word == b"MGET":
                writer.write(b"-MOVED 866 127.0.0.1:6381\r\n")

    async with listening(moved) as port:
        link = RedisLink(f"redis://127.0.0.1:{port}/0", budget=30.0, pause=30.0)
        try:
            await link.check()
            assert (link.on, link.cause) == (False, "other")
            assert link.reason == (
                "it is one server of a Redis Cluster, and another one holds the key (866 127.0.0.1:6381)"
            )
        finally:
            await link.close()


async def test_whatever_goes_wrong_while_it_is_off_it_comes_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    link = RedisLink("redis://127.0.0.1:1/0", budget=0.2, pause=0.01)
    assert await link.call(lambda client: client.get("x")) is None and not link.on
    faults = [RuntimeError("not foreseen"), ValueError("nor this")]

    async def try_again() -> None:
        if faults:
            raise faults.pop()

    monkeypatch.setattr(link, "_try_again", try_again)
    async with asyncio.timeout(20):
        while not link.on:
            await asyncio.sleep(0.01)
    await link.close()


def test_a_redis_that_says_nothing_is_described_by_the_setting_that_bounds_it() -> None:
    assert described(TimeoutError()) == "no answer in time (l2_timeout)"
