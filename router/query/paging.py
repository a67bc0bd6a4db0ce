"""Cursors: which ranking a page is cut from, and where. Pure.

A ranking is computed once and kept under a random id (`router.query.ranking`); a cursor is that id and a
position in it, in a form for clients. Invariants: ids have 128 random bits, so that nobody finds another's by
trying; a cursor that was shortened or changed on its way is not taken for another one, as its digest tells.
The digest keeps off accidents and not attackers, who would win nothing: whose ranking it is, is checked when
the ranking is read, and any place in it may be asked for.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import NamedTuple

import msgspec

__all__ = ["FIRST", "MAX_CURSOR", "Cursor", "Paging", "decode", "encode"]

# The cursor of a search that wants its ranking kept, as in Solr.
FIRST = "*"

_VERSION = b"\x01"
_ID_BYTES, _POSITION_BYTES, _DIGEST_BYTES = 16, 4, 4
_BYTES = len(_VERSION) + _ID_BYTES + _POSITION_BYTES + _DIGEST_BYTES
MAX_CURSOR = -(-_BYTES * 4 // 3)


class Cursor(NamedTuple):
    """The id of a ranking, and how many of its rows come before the page."""

    ranking: bytes
    position: int


class Paging(msgspec.Struct, frozen=True):
    """That a search is for a page of a kept ranking: the one behind `cursor`, or the first of a new one.

    Attributes:
        owner: who may go on with the ranking: the name of an API key, empty where there are none.
        filter: of a new one, the search's filter as JSON, by which rows are looked at again on every page.
    """

    owner: str = ""
    cursor: Cursor | None = None
    filter: bytes | None = None


def encode(cursor: Cursor) -> str:
    """A text of `MAX_CURSOR` letters, digits, `-` and `_`."""
    data = _VERSION + cursor.ranking + cursor.position.to_bytes(_POSITION_BYTES)
    return urlsafe_b64encode(data + _digest(data)).rstrip(b"=").decode()


def decode(text: str) -> Cursor | None:
    """What `encode` has made `text` of; None if it was another."""
    if len(text) != MAX_CURSOR or not text.isascii():
        return None
    try:
        # It reads past what is no base64, so what comes out need not be what went in.
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    if len(data) != _BYTES or data[:1] != _VERSION or data[-_DIGEST_BYTES:] != _digest(data[:-_DIGEST_BYTES]):
        return None
    found = Cursor(data[1 : 1 + _ID_BYTES], int.from_bytes(data[1 + _ID_BYTES : -_DIGEST_BYTES]))
    return found if encode(found) == text else None


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()
