from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from router.commands.secrets import holds_password, read_secret, redis_url

HARD = "p@ss/w:or#d?%"


def test_the_url_of_redis_takes_its_password_from_the_environment() -> None:
    env = {"SECRET": "s3cret"}
    assert redis_url("redis://:${SECRET}@h/0", None, env) == "redis://:s3cret@h/0"
    assert redis_url(None, None, {"PGSCATTER_REDIS": "redis://:s3cret@h/0"}) == "redis://:s3cret@h/0"
    # A flag wins.
    assert redis_url("redis://h/1", None, {"PGSCATTER_REDIS": "redis://h/0"}) == "redis://h/1"
    assert redis_url(None, None, {}) is None


@pytest.mark.parametrize("url", ["redis://h:6379/0", "rediss://user@h/0", "unix:///run/r.sock", "redis://h"])
def test_a_file_may_hold_any_password(tmp_path: Path, url: str) -> None:
    file = tmp_path / "password"
    file.write_text(HARD + "\n")
    for flag, env in ((str(file), {}), (None, {"PGSCATTER_REDIS_PASSWORD_FILE": str(file)})):
        found = urlsplit(redis_url(url, flag, env) or "")
        assert unquote(found.password or "") == HARD
        assert (found.hostname, found.username or None) == (urlsplit(url).hostname, urlsplit(url).username)
        assert found.path == urlsplit(url).path


def test_what_is_wrong_is_named_with_its_source_and_shows_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(HARD)
    empty = tmp_path / "empty"
    empty.write_text("\n")
    two = tmp_path / "two"
    two.write_text("s3cret\ns3cret\n")
    cases: list[tuple[str | None, str | None, dict[str, str], str]] = [
        ("redis://:${NOPE}@h/0", None, {}, "--redis: the environment variable NOPE is not set"),
        (None, None, {"PGSCATTER_REDIS": "s3cret"}, "PGSCATTER_REDIS: expected a URL that begins with"),
        ("redis://:s3cret@h/x", None, {}, "--redis: its database is none"),
        ("redis://:s3cret@h/0", str(file), {}, "--redis: it holds a password, and so does the file"),
        ("redis://h/0?password=s3cret", str(file), {}, "--redis: it holds a password, and so does the file"),
        ("redis://h/0", str(tmp_path / "none"), {}, "No such file"),
        ("redis://h/0", str(empty), {}, "expected one line"),
        ("redis://h/0", str(two), {}, "expected one line"),
        (None, str(file), {}, "--redis-password-file: there is no --redis that it is for"),
        ("rediss://h/0?ssl_ca_certs=/nowhere", None, {}, "the file of ssl_ca_certs cannot be read: No such"),
    ]
    for flag, password_file, env, message in cases:
        with pytest.raises(ValueError) as caught:
            redis_url(flag, password_file, env)
        assert message in str(caught.value)
        assert "s3cret" not in str(caught.value) and HARD not in str(caught.value)


def test_a_password_in_a_flag_is_noticed() -> None:
    assert holds_password("redis://:x@h/0") and holds_password("rediss://u:x@h")
    assert holds_password("redis://h/0?password=x") and not holds_password("redis://h/0?password=${SECRET}")
    for url in ("redis://h/0", "redis://u@h/0", "redis://:${SECRET}@h/0", "redis://[::1/0"):
        assert not holds_password(url)


def test_a_secret_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "key"
    for text in ("secret", "secret\n", "secret\r\n"):
        file.write_bytes(text.encode())
        assert read_secret(file) == "secret"
