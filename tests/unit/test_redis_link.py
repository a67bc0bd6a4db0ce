from __future__ import annotations

import pytest

from router.redis_link import check_url


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
