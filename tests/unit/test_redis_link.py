from __future__ import annotations

import asyncio

import pytest

from router.freshness.redis_errors import described
from router.freshness.redis_link import RedisLink, check_url


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


async def test_whatever_goes_wrong_while_it_is_off_it_comes_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    link = RedisLink("redis://127.0.0.1:1/0", budget=0.2, pause=0.01)
    assert await link.call(lambda client: client.get("x")) is None and not link.on
    faults = [RuntimeError("not foreseen"), ValueError("nor this")]

    async def try_again() -> None:
        if faults:
            raise faults.pop()

    monkeypatch.setattr(link, "_try_again", try_again)
    async with asyncio.timeout(5):
        while not link.on:
            await asyncio.sleep(0.01)
    await link.close()


def test_a_redis_that_says_nothing_is_described_by_the_setting_that_bounds_it() -> None:
    assert described(TimeoutError()) == "no answer in time (l2_timeout)"
