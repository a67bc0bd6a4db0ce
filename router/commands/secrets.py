"""Secrets that a command needs, from where no list of processes shows them: the environment, or a file.

No message holds any part of a secret, nor of what may turn out to be one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, quote, urlsplit, urlunsplit

from shard_config.file.environment import Unresolved, substitute

__all__ = ["holds_password", "read_secret", "redis_url"]

_MAX_BYTES = 4096
_SCHEMES = ("redis://", "rediss://", "unix://")


def read_secret(path: Path) -> str:
    """The one line of a file.

    Raises:
        ValueError: the file cannot be read, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1).decode()
    except OSError as exc:
        raise ValueError(f"{path}: {exc.strerror}") from exc
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8") from None
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret or len(text) > _MAX_BYTES or "\n" in secret:
        raise ValueError(f"{path}: expected one line of at most {_MAX_BYTES} bytes, and not nothing")
    return secret


def redis_url(flag: str | None, password_file: str | None, env: Mapping[str, str]) -> str | None:
    """The URL of `--redis`, with `${VAR}` from the environment, or else of PGSCATTER_REDIS.

    Raises:
        ValueError: naming the flag or variable, and what it takes.
    """
    url, source = flag, "--redis"
    if url is None:
        url, source = env.get("PGSCATTER_REDIS") or None, "PGSCATTER_REDIS"
    else:
        try:
            url = substitute(url, env)
        except Unresolved as exc:
            raise ValueError(f"--redis: {exc}") from exc
    file = password_file or env.get("PGSCATTER_REDIS_PASSWORD_FILE") or None
    if url is None:
        if password_file is not None:
            raise ValueError("--redis-password-file: there is no --redis that it is for")
        return None
    if not url.startswith(_SCHEMES):
        raise ValueError(f"{source}: expected a URL that begins with {', '.join(_SCHEMES)}")
    # Imported here, because only routers with a Redis need its client.
    from router.freshness.redis_link import check_url

    try:
        check_url(url)
        if file is not None:
            url = _with_password(url, read_secret(Path(file)))
    except ValueError as exc:
        raise ValueError(f"{source}: {exc}") from exc
    return url


def holds_password(url: str) -> bool:
    """Whether a password stands in a URL as it was given, and is no reference to the environment."""
    try:
        passwords = _passwords(urlsplit(url))
    except ValueError:
        return False
    return any("${" not in password for password in passwords)


def _passwords(parts: SplitResult) -> list[str]:
    """Before the host, or as a parameter, which Redis's client takes as well."""
    return [*filter(None, [parts.password]), *parse_qs(parts.query).get("password", [])]


def _with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    if parts.password is not None or _passwords(parts):
        raise ValueError("it holds a password, and so does the file; give one of the two")
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))
