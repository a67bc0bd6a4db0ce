"""Refusals that HTTP itself knows, next to the router's own errors.

They are `RequestError`s, so that whoever handles errors has one tree to look at; each brings its kind
with it, where the kind of the others follows from their class.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from router.query.errors import RequestError

__all__ = ["HttpError", "Kind", "Refusal"]


class Kind(msgspec.Struct, frozen=True):
    """A class of problems: its status, the last part of its `type`, and its `title`."""

    status: int
    slug: str
    title: str


class Refusal:
    """The kinds that only the edge uses."""

    UNAUTHENTICATED = Kind(401, "unauthenticated", "No valid key")
    FORBIDDEN = Kind(403, "forbidden", "Key lacks the scope")
    NO_ROUTE = Kind(404, "not-found", "Not found")
    METHOD = Kind(405, "method-not-allowed", "Method not allowed")
    NOT_ACCEPTABLE = Kind(406, "not-acceptable", "Not acceptable")
    SLOW = Kind(408, "slow-request", "Request came too slowly")
    TARGET = Kind(414, "target-too-long", "Request target too long")
    MEDIA_TYPE = Kind(415, "unsupported-media-type", "Unsupported media type")
    HEAD = Kind(431, "head-too-large", "Request head too large")
    NOT_IMPLEMENTED = Kind(501, "not-implemented", "Not implemented")
    VERSION = Kind(505, "version-not-supported", "HTTP version not supported")


class HttpError(RequestError):
    """A request refused for its route, its method, its key, its pace or its content type."""

    def __init__(self, kind: Kind, detail: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(detail)
        self.kind = kind
        self.headers = tuple(headers)
