"""What an error of Redis means, in a word for metrics, the log and operators: by its class, not its text."""

from __future__ import annotations

from typing import Literal, TypeAlias

from redis import exceptions

__all__ = ["RedisCause", "cause_of", "described"]

RedisCause: TypeAlias = Literal[
    "timeout", "connection", "authentication", "permission", "readonly", "oom", "script", "other"
]

_CAUSES: tuple[tuple[type[BaseException], RedisCause], ...] = (
    (TimeoutError, "timeout"),
    (exceptions.TimeoutError, "timeout"),
    (exceptions.AuthenticationError, "authentication"),
    (exceptions.AuthenticationWrongNumberOfArgsError, "authentication"),
    (exceptions.AuthorizationError, "authentication"),
    (exceptions.NoPermissionError, "permission"),
    (exceptions.ReadOnlyError, "readonly"),
    (exceptions.OutOfMemoryError, "oom"),
    (exceptions.ConnectionError, "connection"),
    (OSError, "connection"),
)


def cause_of(error: BaseException, *, script: bool = False) -> RedisCause:
    """`script` says that the command was one; what is wrong with the script itself has no class."""
    for kind, cause in _CAUSES:
        if isinstance(error, kind):
            return cause
    return "script" if script and isinstance(error, exceptions.ResponseError) else "other"


def described(error: BaseException) -> str:
    """In Redis's words, or ours; none of them holds a password."""
    if isinstance(error, exceptions.AskError):  # MOVED, too: its words are a slot and an address
        return f"it is one server of a Redis Cluster, and another one holds the key ({error})"
    return str(error) or "no answer in time (l2_timeout)"
