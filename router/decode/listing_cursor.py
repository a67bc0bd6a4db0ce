"""The cursor of a listing of all documents: where the last page ended, and of what.

It is base64url of a small JSON object, and opaque to callers. Invariant: a cursor is taken only for the
collection and the filter that it was made for, because with another filter the pages would not make one list.
It holds nothing that the caller has not seen, so that it needs no signature.
"""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from decimal import Decimal
from hashlib import blake2b

import msgspec

from router.query.errors import InvalidError
from shard_config.model import Collection
from shard_config.values import coerce

__all__ = ["after", "cursor"]

_VERSION = 1
_FOREIGN = "it is no cursor of this router; take one as it stands in the page before, or leave it out"


class _Cursor(msgspec.Struct, forbid_unknown_fields=True):
    """Version, collection, last id and the digest of the filter."""

    v: int
    c: str
    i: int | str
    f: str


_decoder = msgspec.json.Decoder(_Cursor)


def cursor(collection: Collection, last: object, filter: dict[str, object] | None) -> str:
    """The cursor of a page that ends with the id `last`."""
    id_ = last if isinstance(last, int) else str(last)
    made = msgspec.json.encode(_Cursor(_VERSION, collection.name, id_, _digest(filter)))
    return urlsafe_b64encode(made).rstrip(b"=").decode()


def after(text: str, collection: Collection, filter: dict[str, object] | None) -> object:
    """The id with which the page before ended.

    Raises:
        InvalidError: it is none, or of another collection or filter.
    """
    try:
        data = text.encode("ascii")
        found = _decoder.decode(urlsafe_b64decode(data + b"=" * (-len(data) % 4)))
        # Characters that base64 does not have are skipped when it is read.
        if urlsafe_b64encode(msgspec.json.encode(found)).rstrip(b"=") != data or found.v != _VERSION:
            raise InvalidError.at("cursor", _FOREIGN)
        id_ = coerce(collection.id.type, found.i) if found.c == collection.name else None
    except (ValueError, binascii.Error, msgspec.DecodeError) as exc:
        raise InvalidError.at("cursor", _FOREIGN) from exc
    if id_ is None:
        raise InvalidError.at("cursor", f"it is of collection {found.c[:80]!r}, not of {collection.name}")
    if found.f != _digest(filter):
        raise InvalidError.at("cursor", "it is of another filter; all pages of an export have the same one")
    return id_


def _digest(filter: dict[str, object] | None) -> str:
    """Equal for filters that are written with other spaces, or their fields in another order."""
    text = json.dumps(filter or {}, sort_keys=True, default=_number)
    return blake2b(text.encode(), digest_size=9).hexdigest()


def _number(value: object) -> object:
    assert isinstance(value, Decimal)
    return {"": str(value)}
