"""What a body is, by its headers: JSON, newline-delimited JSON, or nothing that we read."""

from __future__ import annotations

from typing import Literal

from router.http.errors import HttpError, Refusal
from router.http.message import Request
from router.settings import Settings

__all__ = ["media_type", "read_json"]

_JSON = b"application/json"
_NDJSON = b"application/x-ndjson"


async def read_json(request: Request, settings: Settings) -> bytes:
    """The body of a request that takes JSON.

    Raises:
        HttpError: another content type, or a body that comes too slowly.
        TooLargeError, ClientDisconnect
    """
    # The usual header needs no parsing.
    if request.headers.get(b"content-type") != _JSON or b"content-encoding" in request.headers:
        media_type(request, ndjson=False)
    return await request.body(settings.max_body_bytes, settings.max_timeout)


def media_type(request: Request, *, ndjson: bool) -> Literal["json", "ndjson"]:
    """Which of the two the body is.

    A missing content type is refused like a wrong one: a browser can be made to send such requests
    anywhere, but not ones that declare JSON.

    Raises:
        HttpError
    """
    header = request.headers.get(b"content-type", b"")
    essence, _, parameters = header.partition(b";")
    essence = essence.strip().lower()
    known = {_JSON: "json", _NDJSON: "ndjson"} if ndjson else {_JSON: "json"}
    accepted = " or ".join(name.decode() for name in known)
    if essence not in known:
        got = essence[:80].decode("latin-1") or "none"
        raise _refused(f"content type {got} is not read here; send {accepted}", accepted)
    charset = parameters.replace(b" ", b"").replace(b'"', b"").lower()
    if charset.startswith(b"charset=") and charset not in (b"charset=utf-8", b"charset=utf8"):
        raise _refused("JSON is read in UTF-8 only", accepted)
    if request.headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise _refused("compressed bodies are not read; send it without Content-Encoding", accepted)
    return "ndjson" if essence == _NDJSON else "json"


def _refused(detail: str, accepted: str) -> HttpError:
    return HttpError(Refusal.MEDIA_TYPE, detail, [(b"accept", accepted.replace(" or ", ", ").encode())])
