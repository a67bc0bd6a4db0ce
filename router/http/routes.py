"""Routes as data: one table drives dispatch, authorisation, metrics' labels and OpenAPI.

Invariant: what is not in the table cannot be called, and what is in it is documented.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from router.http.errors import HttpError, Refusal
from router.http.keys import Scope
from router.http.message import Reply, Request

__all__ = ["Answer", "Handler", "Match", "Operation", "Parameter", "Routes"]

Handler: TypeAlias = Callable[[Request], Awaitable[Reply]]
# The type of a JSON body, or the media type of any other.
Answer: TypeAlias = type[msgspec.Struct] | str

_PARAMETER = re.compile(r"\{(\w+)(:path)?\}")


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of the query string."""

    name: str
    description: str
    example: str
    required: bool = False


class Operation(msgspec.Struct, frozen=True):
    """One method of one path.

    Attributes:
        id: what generated clients call it; never changed.
        tag: the group that it is of.
        path: with parameters as `{name}`, or `{name:path}` for one that may hold slashes.
        answers: by status.
        stream: whether it takes newline-delimited JSON as well.
        headers: that its answers may have, with what they say.
        errors: statuses of problems, beside those that any operation of its kind can have.
    """

    method: str
    path: str
    scope: Scope
    handler: Handler
    id: str
    tag: str
    summary: str
    answers: Mapping[int, Answer]
    body: type[msgspec.Struct] | None = None
    stream: bool = False
    query: Sequence[Parameter] = ()
    errors: frozenset[int] = frozenset()
    headers: Mapping[str, str] = {}

    @property
    def template(self) -> str:
        """The path as OpenAPI and metrics write it."""
        return self.path.replace(":path}", "}")

    @property
    def limited(self) -> bool:
        """Whether it counts against the limit on concurrent requests; probes must get through."""
        return self.path.startswith("/v1/")

    def problem_statuses(self, *, keys: bool) -> frozenset[int]:
        """Statuses that it can have with a problem for a body."""
        statuses = {406, 500}
        if self.limited:
            statuses.add(429)
        if self.scope != "open":
            statuses |= {400, 422} | ({401, 403} if keys else set())
        if self.body is not None:
            statuses |= {408, 413, 415}
        if "{collection}" in self.path:
            statuses.add(404)
        return self.errors.union(statuses)


class Match(NamedTuple):
    operation: Operation
    params: Mapping[str, str]


class Routes:
    """Finds the operation of a request."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self.operations = tuple(operations)
        self._patterns: list[tuple[re.Pattern[str], dict[str, Operation]]] = []
        for operation in self.operations:
            self._add(operation)

    def __repr__(self) -> str:
        return f"<Routes {len(self.operations)} operations>"

    def find(self, method: str, path: str) -> Match:
        """
        Raises:
            HttpError: 404, or 405 with the methods that there are.
        """
        wanted = "GET" if method == "HEAD" else method
        allowed: list[str] = []
        for pattern, by_method in self._patterns:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            operation = by_method.get(wanted)
            if operation is not None:
                return Match(operation, match.groupdict())
            allowed.extend(by_method)
        if not allowed:
            raise HttpError(Refusal.NO_ROUTE, "there is no such path; see /docs")
        if "GET" in allowed:
            allowed.append("HEAD")
        names = ", ".join(sorted(allowed))
        raise HttpError(Refusal.METHOD, f"this path takes {names}", [(b"allow", names.encode())])

    def _add(self, operation: Operation) -> None:
        pattern = re.compile(_regex(operation.path), re.DOTALL)
        for known, by_method in self._patterns:
            if known.pattern == pattern.pattern:
                by_method[operation.method] = operation
                return
        self._patterns.append((pattern, {operation.method: operation}))


def _regex(path: str) -> str:
    parts: list[str] = _PARAMETER.split(path)
    # split() alternates: text, name, ":path" or None, text, ...
    regex = re.escape(parts[0])
    for name, whole, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        regex += f"(?P<{name}>{'.*' if whole else '[^/]+'}){re.escape(text)}"
    return regex
