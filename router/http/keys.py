"""API keys: who may call what.

Invariant: how long a check takes depends on the number of keys only, not on what was sent nor on which
key matched. Keys are held as SHA-256 digests; a key is long random text, so no salt is needed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

import msgspec

from router.http.errors import HttpError, Refusal

__all__ = ["Key", "Keys", "Scope"]

Scope: TypeAlias = Literal["open", "read", "write", "admin"]

_CHALLENGE = [(b"www-authenticate", b'Bearer realm="pgscatter"')]


class Key(msgspec.Struct, frozen=True):
    """A key's name, the digest of the key itself, and what it opens."""

    name: str
    digest: bytes
    scopes: frozenset[Scope]

    def __repr__(self) -> str:
        return f"<Key {self.name} for {', '.join(sorted(self.scopes))}>"


class Keys:
    """All keys that are valid now. Changed by `router.http.keys_watch` only, from a thread of its own.

    Attributes:
        outdated: whether their file has been changed since to what cannot be used.
    """

    def __init__(self, keys: Iterable[Key], *, outdated: bool = False) -> None:
        self.outdated = outdated
        self._keys = tuple(keys)

    def __repr__(self) -> str:
        return f"<Keys {', '.join(key.name for key in self._keys)}>"

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def replace(self, keys: Keys) -> None:
        """From now on these are valid, and no others."""
        self._keys, self.outdated = keys._keys, keys.outdated

    def authorise(self, headers: Mapping[bytes, bytes], scope: Scope) -> Key:
        """The key that a request brought.

        Raises:
            HttpError: 401 without a valid key, 403 if the key lacks the scope.
        """
        presented = _presented(headers)
        if presented is None:
            detail = "a key is needed: Authorization: Bearer KEY, or X-API-Key: KEY"
            raise HttpError(Refusal.UNAUTHENTICATED, detail, _CHALLENGE)
        key = self._find(presented)
        if key is None:
            raise HttpError(Refusal.UNAUTHENTICATED, "the key is not known", _CHALLENGE)
        if scope not in key.scopes and "admin" not in key.scopes:
            held = ", ".join(sorted(key.scopes))
            raise HttpError(Refusal.FORBIDDEN, f"this needs the scope {scope}; the key has {held}")
        return key

    def _find(self, presented: bytes) -> Key | None:
        digest = hashlib.sha256(presented).digest()
        found = None
        for key in self._keys:
            # No early exit: where the match stands must not show.
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found


def _presented(headers: Mapping[bytes, bytes]) -> bytes | None:
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and credentials.strip():
        return credentials.strip()
    return headers.get(b"x-api-key", b"").strip() or None
