"""Who a request says it is: its id and its place in a trace. Pure.

Both come back in the answer and stand in the log, so what a caller sends is taken over only in its
strict form: printable, bounded, and well-formed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import getrandbits

import msgspec

__all__ = ["Trace", "request_id", "trace_of"]

_REQUEST_ID = re.compile(rb"[ -~]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header-field-values; only version 00 ends here.
_TRACEPARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?"
)


class Trace(msgspec.Struct, frozen=True):
    """The trace that a request belongs to, and the span that answers it."""

    id: str
    span: str
    flags: str

    @property
    def header(self) -> bytes:
        return f"00-{self.id}-{self.span}-{self.flags}".encode()


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """The caller's X-Request-ID if it is 1 to 128 characters of printable ASCII, or a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    return f"{getrandbits(128):032x}"


def trace_of(headers: Mapping[bytes, bytes]) -> Trace | None:
    """The caller's trace with a span of ours; None without a valid traceparent."""
    given = headers.get(b"traceparent")
    if given is None:
        return None
    match = _TRACEPARENT.fullmatch(given)
    if match is None or (match[1] == b"00" and match[4] is not None):
        return None
    return Trace(match[2].decode(), f"{getrandbits(64):016x}", match[3].decode())
