"""Connection strings of nodes: which server they mean, and how to show them without the password.

What a connection would be made without, though the DSN asks for it, is a fault of the DSN: parameters of
libpq that the driver does not have, that the router sets itself, or that others make void.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

__all__ = ["Server", "complaints", "parameters", "redact", "server"]

_SCHEMES = ("postgresql", "postgres")
_PORTS = (1, 65535)
# Of each node that is down, one is parsed for each attempt to reach it.
_PARSED = 4096
_TLS = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
# What the driver takes, and the values of those that have few.
_KNOWN: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("host", "port", "user", "password", "passfile", "dbname", "database"), ()),
    **dict.fromkeys(("sslrootcert", "sslcrl", "sslcert", "sslkey", "sslpassword", "krbsrvname"), ()),
    "sslmode": _TLS,
    "sslnegotiation": ("postgres", "direct"),
    "ssl_min_protocol_version": _VERSIONS,
    "ssl_max_protocol_version": _VERSIONS,
    "gsslib": ("gssapi",),
    "target_session_attrs": ("any",),
}
# What would be right instead of a parameter that other clients have.
_INSTEAD: Mapping[str, str] = {
    "application_name": "pgscatter names its sessions itself: leave it out",
    "client_encoding": "texts are always sent as UTF-8: leave it out",
    "connect_timeout": "`pgscatter serve --connect-timeout` bounds that: leave it out",
    "hostaddr": "give the address as the host",
    "channel_binding": "the driver has none: leave it out, and use sslmode=verify-full",
    "options": "settings of sessions belong to the role: ALTER ROLE ... SET ...",
    **dict.fromkeys(
        ("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
        "the router's own settings decide that, not the DSN: leave it out",
    ),
    **dict.fromkeys(
        (
            *(
                "fallback_application_name",
                "gssdelegation",
                "gssencmode",
                "load_balance_hosts",
                "replication",
            ),
            *("require_auth", "requirepeer", "requiressl", "sslcertmode", "sslcompression", "sslcrldir"),
            *("sslkeylogfile", "sslsni", "min_protocol_version", "max_protocol_version"),
        ),
        "the driver does not have it: leave it out",
    ),
}
_TLS_PARAMETERS = ("sslrootcert", "sslcrl", "sslcert", "sslkey", "sslpassword", "sslnegotiation")
# Greedy up to the last @, as urlsplit reads it: a password may hold an @ that nobody escaped. Without
# any @, what stands in the place of a port and is none may be a password all the same.
_PASSWORD = re.compile(r"(://[^:/?#@]*:)(?:.*(?=@)|(?![0-9]{1,5}(?:[/?#]|$))[^@]*$)", re.DOTALL)
_SEVERAL = "a DSN with several hosts; a node is one server, so list each as a node"
_PARAMETER = re.compile(r"(password\s*=\s*)(?:'[^']*'|[^&\s]*)", re.IGNORECASE)


class Server(msgspec.Struct, frozen=True):
    """The server and database that a DSN means; `database` is empty where the server chooses it."""

    host: str
    port: int
    database: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.database}"


@lru_cache(maxsize=_PARSED)
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
        raise ValueError(_SEVERAL)
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


def parameters(dsn: str) -> dict[str, str]:
    """What stands behind the `?`; of one that comes twice, the last.

    Raises:
        ValueError: as `server`.
    """
    return dict(parse_qsl(_split(dsn).query))


def complaints(dsn: str) -> list[str]:
    """Everything that is wrong with a DSN, and what would be right; never with a value of it."""
    try:
        server(dsn)
        parts = _split(dsn)
    except ValueError as exc:
        return [str(exc)]
    query = dict(parse_qsl(parts.query))
    return [*_of_form(parts), *_of_parameters(query), *_of_tls(parts, query)]


def _of_form(parts: SplitResult) -> Iterator[str]:
    if parts.netloc.count("@") > 1 or parts.fragment:
        yield "an @ or # in a user or password must be percent-encoded, as %40 or %23"
    given = [part.partition("=") for part in parts.query.split("&") if part]
    names = [unquote(name) for name, _, _ in given]
    for name in sorted({_shown(name) for name, _, value in given if not value}):
        yield f"{name} has no value: leave it out"
    for name in sorted({_shown(name) for name in names if names.count(name) > 1}):
        yield f"{name} stands twice: leave one out"
    host, user, database = parts.hostname, parts.username, parts.path[1:]
    places = (("host", host), ("port", parts.port), ("user", user), ("password", parts.password))
    for name, before in (*places, ("dbname", database), ("database", database)):
        if before and name in names:
            yield f"{name} stands before the ? already: leave it out behind it"
    if "dbname" in names and "database" in names:
        yield "dbname and database are the same: leave one out"


def _of_parameters(query: Mapping[str, str]) -> Iterator[str]:
    for name, value in query.items():
        if name in _INSTEAD:
            yield f"{name} has no effect here: {_INSTEAD[name]}"
        elif name == "target_session_attrs" and value != "any":
            yield (
                "target_session_attrs would refuse the node whenever its role changes; the router finds roles"
                " itself: leave it out"
            )
        elif name not in _KNOWN:
            near = difflib.get_close_matches(name[:60], _KNOWN, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            yield (
                f"unknown parameter {_shown(name)}{meant or '; settings of sessions belong to the role:'}"
                f"{'' if near else ' ALTER ROLE ... SET ...'}"
            )
        elif _KNOWN[name] and value.replace("_", "-") not in _KNOWN[name]:
            yield f"{name} must be {'one of ' if len(_KNOWN[name]) > 1 else ''}{', '.join(_KNOWN[name])}"
    if "password" in query and "passfile" in query:
        yield "password makes passfile void: leave one out"


def _of_tls(parts: SplitResult, query: Mapping[str, str]) -> Iterator[str]:
    mode = query.get("sslmode", "prefer").replace("_", "-")
    secure = mode in _TLS[3:]
    host = unquote(parts.hostname or "") or query.get("host", "")
    given = [name for name in _TLS_PARAMETERS if name in query]
    if host.startswith("/"):
        if given or secure:
            yield f"{given[0] if given else 'sslmode'} has no effect: a Unix socket has no TLS; leave it out"
        return
    for name in given:
        if mode == "disable" or (not secure and name in ("sslrootcert", "sslcrl")):
            yield f"{name} has no effect under sslmode={mode}; right would be sslmode=verify-full"
    if "sslnegotiation" in given and query["sslnegotiation"] == "direct" and not secure:
        yield "sslnegotiation=direct needs sslmode=require, verify-ca or verify-full"
    if "sslcert" not in query and ("sslkey" in given or "sslpassword" in given):
        yield "sslkey and sslpassword have no effect without sslcert=FILE"
    if query.get("sslrootcert") == "system":
        yield "sslrootcert=system is not known to the driver; name the file of the system's authorities"
    least, most = (query.get(f"ssl_{end}_protocol_version") for end in ("min", "max"))
    if least in _VERSIONS and most in _VERSIONS and _VERSIONS.index(least) > _VERSIONS.index(most):
        yield "ssl_min_protocol_version is above ssl_max_protocol_version"


def _shown(name: str) -> str:
    """The name of a parameter, unless it may be a piece of a password."""
    return name if re.fullmatch(r"[a-z_]{1,40}", name) else "behind the ?"


def redact(dsn: str) -> str:
    """Text with `***` for the password of the DSN that it is, or may have been meant to be."""
    return _PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1***", dsn))


def _split(dsn: str) -> SplitResult:
    try:
        parts = urlsplit(dsn)
        _ = parts.port  # the port is parsed, and found wrong, when it is asked for
        int(dict(parse_qsl(parts.query)).get("port", "0"))
    except ValueError:
        if re.search(r"@[^/?#@]*,[^/?#@]*(?:[/?#]|$)", dsn):
            raise ValueError(_SEVERAL) from None
        # urlsplit quotes what it does not understand, which may be the password.
        raise ValueError(
            "a DSN with a malformed host or port; characters such as / # ? @ : % in a password "
            "must be percent-encoded"
        ) from None
    if parts.scheme not in _SCHEMES:
        raise ValueError("expected a DSN such as postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    return parts
