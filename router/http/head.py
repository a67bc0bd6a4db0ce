"""Refuses heads whose end, body or host a proxy in front of the router could understand differently.

Such a difference lets a request be smuggled past a proxy. Checked is what RFC 9112 demands and the parser
does not refuse by itself. Pure; nothing here waits.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from router.http.errors import HttpError, Refusal
from router.query.errors import MalformedError

__all__ = ["HEAD_BYTES", "check_fields", "check_version", "origin_form", "too_large"]

HEAD_BYTES = 64 * 1024
# A host and a port as in RFC 3986, without the comma, which some proxies put between two Host headers that
# they join. The parser leaves blanks behind a value.
_HOST = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]+)\]|((?:[A-Za-z0-9._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})*))(?::(\d*))?[ \t]*"
)
_MOST_PORT = 65535
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)([^#]*)", re.IGNORECASE)


def check_version(version: str) -> None:
    """Refuse all but HTTP/1; of which a later minor version is read like 1.1.

    Raises:
        HttpError: 505
    """
    if not version.startswith("1."):
        raise HttpError(Refusal.VERSION, f"HTTP/{version} is not spoken here, but HTTP/1.1")


def check_fields(version: str, fields: Iterable[tuple[bytes, bytes]]) -> None:
    """Check the fields of a head, by their names in lower case.

    Raises:
        MalformedError: the end of the body or the host is missing, ambiguous or given twice.
        HttpError: 501, for codings of the body that are not read here.
    """
    hosts = 0
    codings: list[bytes] = []
    for name, value in fields:
        if name == b"host":
            hosts += 1
            if not _is_host(value):
                raise _malformed("its Host is not that of a URL")
        elif name == b"transfer-encoding":
            codings += [coding.strip(b" \t").lower() for coding in value.split(b",")]
    if hosts > 1:
        raise _malformed(f"it has {hosts} Host headers, and one is allowed")
    if not hosts and version != "1.0":
        raise _malformed("it has no Host header")
    if codings:
        _check_codings(version, codings)


def _check_codings(version: str, codings: list[bytes]) -> None:
    if version == "1.0":
        raise _malformed("HTTP/1.0 has no Transfer-Encoding")
    if codings[-1] != b"chunked":
        raise _malformed("its Transfer-Encoding does not end with chunked, so its end is not known")
    if len(codings) > 1:
        raise HttpError(Refusal.NOT_IMPLEMENTED, "of transfer codings only chunked is read here, once")


def origin_form(method: bytes, target: bytes) -> bytes:
    """The path and query of a request's target, which may be a whole URL: its host is then not looked at.

    Raises:
        MalformedError: it is neither a path nor a URL of HTTP. It is not shown, since it may hold what no
            log should.
    """
    if b"#" in target:
        raise _malformed("its target has a fragment")
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return target
    url = _ABSOLUTE.fullmatch(target)
    # Unlike the header, the host of a URL must not be empty.
    if url is None or url[1].startswith(b":") or not _is_host(url[1]):
        raise _malformed("its target is neither a path nor a URL of HTTP")
    rest = url[2]
    return rest if rest.startswith(b"/") else b"/" + rest


def _is_host(value: bytes) -> bool:
    """Whether it is a host, which may be empty, and perhaps a port, which may be empty too."""
    parts = _HOST.fullmatch(value)
    if parts is None:
        return False
    address, _, port = parts.groups()
    if address is not None:
        try:
            ipaddress.IPv6Address(address.decode())
        except ValueError:
            return False
    return not port or (len(port) <= 10 and int(port) <= _MOST_PORT)


def too_large(target: bytes) -> HttpError:
    """The refusal of a head above `HEAD_BYTES`, of which `target` is the request's."""
    if len(target) > HEAD_BYTES:
        return HttpError(Refusal.TARGET, f"the target of the request is longer than {HEAD_BYTES} bytes")
    return HttpError(Refusal.HEAD, f"the head of the request is larger than {HEAD_BYTES} bytes")


def _malformed(reason: str) -> MalformedError:
    return MalformedError(f"no valid HTTP request: {reason}")
