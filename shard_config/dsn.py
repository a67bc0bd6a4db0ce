"""Connection strings of nodes: which server they mean, and how to show them without the password."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

_SCHEMES = ("postgresql", "postgres")
_PORTS = (1, 65535)
_TLS = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# Greedy up to the last @, as urlsplit reads it: a password may hold an @ that nobody escaped. Without
# any @, what stands in the place of a port and is none may be a password all the same.
_PASSWORD = re.compile(r"(://[^:/?#@]*:)(?:.*(?=@)|(?![0-9]{1,5}(?:[/?#]|$))[^@]*$)", re.DOTALL)
_PARAMETER = re.compile(r"(password\s*=\s*)(?:'[^']*'|[^&\s]*)", re.IGNORECASE)


class Server(msgspec.Struct, frozen=True):
    """The server and database that a DSN means; `database` is empty where the server chooses it."""

    host: str
    port: int
    database: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.database}"


def server(dsn: str) -> Server:
    """The one server that a DSN names, with libpq's defaults for what it leaves out.

    A DSN says all that a connection is made from: what would send a driver to files or variables that the
    map does not name is refused.

    Raises:
        ValueError: saying what is wrong, never with the DSN's text.
    """
    parts = _split(dsn)
    query = dict(parse_qsl(parts.query))
    host = unquote(parts.hostname or "") or query.get("host", "")
    if not host:
        raise ValueError("a DSN without a host; expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    if "," in host:
        raise ValueError("a DSN with several hosts; a node is one server, so list each as a node")
    port = parts.port if parts.port is not None else int(query.get("port", "5432"))
    if not _PORTS[0] <= port <= _PORTS[1]:
        raise ValueError(f"the port must be from {_PORTS[0]} to {_PORTS[1]}")
    _check_sources(query)
    user = unquote(parts.username or "") or query.get("user", "")
    database = unquote(parts.path[1:]) or query.get("dbname", query.get("database", user))
    return Server(host.lower(), port, database)


def _check_sources(query: Mapping[str, str]) -> None:
    if "service" in query:
        raise ValueError("a DSN with service=, which reads a file of its own; give host, port and database")
    mode = query.get("sslmode", "prefer").replace("_", "-")
    if mode not in _TLS:
        raise ValueError(f"sslmode must be one of {', '.join(_TLS)}")
    if mode.startswith("verify") and "sslrootcert" not in query:
        raise ValueError(f"sslmode={mode} needs sslrootcert=FILE")


def redact(dsn: str) -> str:
    """Text with `***` for the password of the DSN that it is, or may have been meant to be."""
    return _PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1***", dsn))


def _split(dsn: str) -> SplitResult:
    try:
        parts = urlsplit(dsn)
        _ = parts.port  # the port is parsed, and found wrong, when it is asked for
        int(dict(parse_qsl(parts.query)).get("port", "0"))
    except ValueError:
        # urlsplit quotes what it does not understand, which may be the password.
        raise ValueError(
            "a DSN with a malformed host or port; characters such as / # ? @ : % in a password "
            "must be percent-encoded"
        ) from None
    if parts.scheme not in _SCHEMES:
        raise ValueError("expected a DSN such as postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    return parts
