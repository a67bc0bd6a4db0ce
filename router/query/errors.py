"""Everything that can go wrong with a request, as one tree.

    RouterError
    ├── RequestError              the request is at fault; trying again unchanged cannot help
    │   ├── MalformedError        not decodable at all
    │   ├── InvalidError          decodable, but wrong: dimension, NaN, unknown column
    │   ├── NotFoundError         no such collection, document, shard or key's place
    │   ├── ConflictError         contradicts what is stored
    │   ├── ExpiredError          rests on what is kept no longer
    │   ├── TooLargeError         over a size limit
    │   └── AnswerTooLargeError   what it asks for is
    ├── OverloadedError           a bounded queue is full; try again after `retry_after`
    ├── DeniedError               the shards do not let this router write; trying again cannot help
    ├── MisconfiguredError        a server or this router is not set up for it; trying again cannot help
    ├── UnavailableError          no shard, or not every required shard, could answer
    └── DeadlineError             time ran out first

`StartRefusedError` is of no request: the router does not start, and has said why.

Problems of single shards are data in an answer (`router.query.types.ShardReport`), not exceptions;
only when they leave nothing to answer with do they become one of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import msgspec

from router.query.redaction import ShardFault

__all__ = [
    "AnswerTooLargeError",
    "ConflictError",
    "DeadlineError",
    "DeniedError",
    "ExpiredError",
    "InvalidError",
    "MalformedError",
    "MisconfiguredError",
    "NotFoundError",
    "OverloadedError",
    "Problem",
    "RequestError",
    "RouterError",
    "StartRefusedError",
    "TooLargeError",
    "UnavailableError",
]


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong, and where in the request; always text that can be sent."""

    path: str
    message: str

    def __post_init__(self) -> None:
        if not (self.path.isascii() and self.message.isascii()):
            msgspec.structs.force_setattr(self, "path", _encodable(self.path))
            msgspec.structs.force_setattr(self, "message", _encodable(self.message))


class RouterError(Exception):
    """Base of all; `detail` is written for the caller, `problems` point into the request.

    Attributes:
        outside: detail and problems for callers who may not see the inside of the cluster, where they differ.
        faults: of the shards that it is about, for the log.
    """

    def __init__(self, detail: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(_encodable(detail))
        self.detail = _encodable(detail)
        self.problems = tuple(problems)
        self.outside: tuple[str, tuple[Problem, ...]] | None = None
        self.faults: tuple[ShardFault, ...] = ()

    def told(self, *, inside: bool) -> tuple[str, tuple[Problem, ...]]:
        """Detail and problems for a caller who may see the `inside`, or not."""
        return (self.detail, self.problems) if inside or self.outside is None else self.outside

    def hidden(
        self, detail: str | None = None, problems: Sequence[Problem] = (), faults: Sequence[ShardFault] = ()
    ) -> Self:
        """This error, with what others are told."""
        self.outside = (self.detail if detail is None else detail, tuple(problems))
        self.faults = tuple(faults)
        return self


class StartRefusedError(Exception):
    """The router cannot be started as it is configured; whoever raises this has said why."""


class RequestError(RouterError):
    pass


class MalformedError(RequestError):
    pass


class InvalidError(RequestError):
    @classmethod
    def at(cls, path: str, message: str) -> InvalidError:
        """One problem, which is the detail as well."""
        return cls(f"{path}: {message}" if path else message, [Problem(path, message)])


class NotFoundError(RequestError):
    pass


class ConflictError(RequestError):
    pass


class ExpiredError(RequestError):
    pass


class TooLargeError(RequestError):
    pass


class AnswerTooLargeError(RequestError):
    pass


class OverloadedError(RouterError):
    """`retry_after` is in seconds."""

    def __init__(self, detail: str, retry_after: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class DeniedError(RouterError):
    """Lasts until the router's role is given the rights to write."""


class MisconfiguredError(RouterError):
    """Lasts until an operator mends it: a table or a right that is missing, for instance."""


class UnavailableError(RouterError):
    """`retry_after` is in seconds."""

    def __init__(self, detail: str, problems: Sequence[Problem] = (), retry_after: float = 1.0) -> None:
        super().__init__(detail, problems)
        self.retry_after = retry_after


class DeadlineError(RouterError):
    pass


def invalid(problems: Sequence[Problem]) -> InvalidError:
    """One error for all `problems`; its detail is the first."""
    first = problems[0]
    return InvalidError(f"{first.path}: {first.message}" if first.path else first.message, problems)


def _encodable(text: str) -> str:
    """`text` with lone surrogates escaped: JSON can bring them, and UTF-8 has no bytes for them."""
    return text.encode("utf-8", "backslashreplace").decode()
