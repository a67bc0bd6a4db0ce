"""Which content coding a client gets, and gzip that keeps the event loop free.

RFC 9110, section 12.5.3. Bodies from 1 KiB are compressed, by zlib's fastest level.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable
from functools import lru_cache
from typing import Literal

__all__ = ["LEAST_BYTES", "Coding", "gzipped", "gzipped_pieces", "negotiate"]

# `must`: gzip, however small the body is, since the client accepts nothing else. `none`: neither of the two.
Coding = Literal["identity", "gzip", "must", "none"]

LEAST_BYTES = 1024
_LEVEL = 1
_GZIP_WINDOW = 31
# Compressing up to this size takes less time than handing the body to a thread.
_HERE_BYTES = 1 << 13
_NAMES = {b"gzip": "gzip", b"x-gzip": "gzip", b"identity": "identity", b"*": "*"}


@lru_cache(256)
def negotiate(header: bytes) -> Coding:
    """What an Accept-Encoding header that is there asks for."""
    weights: dict[str, float] = {}
    for part in header.split(b","):
        token, _, parameters = part.partition(b";")
        name = _NAMES.get(token.strip().lower())
        if name is not None:
            weights[name] = max(_weight(parameters), weights.get(name, 0.0))
    gzip = weights.get("gzip", weights.get("*", 0.0))
    # RFC 9110: identity is acceptable unless it is excluded; here it comes after all that is listed.
    identity = weights.get("identity", 0.0 if weights.get("*") == 0.0 else 1e-4)
    if not gzip:
        return "identity" if identity else "none"
    if not identity:
        return "must"
    return "gzip" if gzip >= identity else "identity"


def _weight(parameters: bytes) -> float:
    for parameter in parameters.split(b";"):
        name, _, value = parameter.partition(b"=")
        if name.strip().lower() == b"q":
            try:
                weight = float(value)
            except ValueError:
                return 0.0
            return weight if 0.0 <= weight <= 1.0 else 0.0
    return 1.0


async def gzipped(body: bytes) -> bytes:
    if len(body) <= _HERE_BYTES:
        return _gzip(body)
    return await asyncio.to_thread(_gzip, body)


async def gzipped_pieces(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    """One gzip stream, as it grows."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    for piece in pieces:
        if data := await asyncio.to_thread(compressor.compress, piece):
            yield data
    yield compressor.flush()


def _gzip(body: bytes) -> bytes:
    return zlib.compress(body, _LEVEL, _GZIP_WINDOW)
