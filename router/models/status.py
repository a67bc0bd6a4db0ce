"""What is told of services for texts: their state, their requests, and that they take none of one.

Apart from `router.models.service`, whose client of HTTP a router without services does without: it is a tenth
of a start.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

import msgspec

from router.policy.circuit import CircuitState
from router.query.errors import InvalidError

__all__ = ["Kind", "RefusedError", "ServiceListener", "ServiceStatus"]

Kind: TypeAlias = Literal["embedding", "reranking"]


class RefusedError(InvalidError):
    """The service takes none of the request: the text is too long for its model, for instance."""


class ServiceStatus(msgspec.Struct, frozen=True):
    """A service as this process knows it; `reason` is of its last failure, if the last request failed.

    `requests` and `failures` are counted since the process began; `url` and `reason` are for whoever may see
    the inside.
    """

    name: str
    kind: Kind
    model: str
    circuit: CircuitState
    in_flight: int
    waiting: int
    requests: int
    failures: int
    url: str | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET


class ServiceListener(Protocol):
    """Is told of every request to a service."""

    def service_answered(self, kind: str, name: str, seconds: float) -> None: ...

    def service_failed(self, kind: str, name: str, cause: str) -> None: ...
