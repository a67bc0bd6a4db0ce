"""One shape for every error: RFC 9457's `application/problem+json`.

Invariant: what a caller reads here was written for callers. Anything that is not one of our own
errors becomes a bare 500, and only the log has the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from router.http.errors import HttpError, Kind
from router.http.message import Reply
from router.query.errors import (
    AnswerTooLargeError,
    ConflictError,
    DeadlineError,
    DeniedError,
    ExpiredError,
    InvalidError,
    MalformedError,
    MisconfiguredError,
    NotFoundError,
    OverloadedError,
    Problem,
    RequestError,
    RouterError,
    TooLargeError,
    UnavailableError,
)

__all__ = ["INTERNAL", "MOST_PROBLEMS", "ProblemBody", "error_reply", "problem_body"]

INTERNAL = Kind(500, "internal", "Internal error")

# A request can be wrong in ten thousand places; nobody reads more than these.
MOST_PROBLEMS = 1000

_KINDS: dict[type[RouterError], Kind] = {
    MalformedError: Kind(400, "malformed", "Malformed request"),
    DeniedError: Kind(403, "write-denied", "The shards do not let this router write"),
    NotFoundError: Kind(404, "not-found", "Not found"),
    ConflictError: Kind(409, "conflict", "Conflict"),
    ExpiredError: Kind(410, "expired", "Kept no longer"),
    TooLargeError: Kind(413, "too-large", "Request too large"),
    InvalidError: Kind(422, "invalid", "Invalid request"),
    AnswerTooLargeError: Kind(422, "answer-too-large", "Answer too large"),
    RequestError: Kind(400, "malformed", "Malformed request"),
    OverloadedError: Kind(429, "overloaded", "Too many requests"),
    MisconfiguredError: Kind(500, "misconfigured", "Not set up for this"),
    UnavailableError: Kind(503, "unavailable", "Not available"),
    DeadlineError: Kind(504, "deadline", "Deadline exceeded"),
    RouterError: INTERNAL,
}


class ProblemBody(msgspec.Struct, frozen=True):
    """What went wrong; `errors` says where in the request, or on which shard, as far as that is known."""

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[Problem, ...]
    request_id: str


def problem_body(
    error: RouterError, request_id: str, problems: Sequence[Problem] = (), *, inside: bool = True
) -> ProblemBody:
    """What a caller is told of `error` who may see the `inside`, or not; `problems` follow its own."""
    kind = _kind_of(error)
    detail, errors = error.told(inside=inside)
    errors = (*errors, *problems)
    return ProblemBody(
        type=f"urn:pgscatter:problem:{kind.slug}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        errors=tuple(errors[:MOST_PROBLEMS]),
        request_id=request_id,
    )


def error_reply(
    error: RouterError, request_id: str, body: msgspec.Struct | None = None, *, inside: bool = True
) -> Reply:
    """The reply to `error`, with the headers that it calls for; `body` if it says more than a problem."""
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(error, HttpError):
        headers.extend(error.headers)
    if isinstance(error, OverloadedError | UnavailableError):
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
    encoded = msgspec.json.encode(body or problem_body(error, request_id, inside=inside))
    reply = Reply(encoded, _kind_of(error).status, b"application/problem+json", headers)
    reply.faults = error.faults
    return reply


def _kind_of(error: RouterError) -> Kind:
    if isinstance(error, HttpError):
        return error.kind
    return next(_KINDS[cls] for cls in type(error).__mro__ if cls in _KINDS)
