"""`${VAR}` in the strings of a shard map, so that no password has to stand in a file."""

from __future__ import annotations

import re
from collections.abc import Mapping

_REFERENCE = re.compile(r"\$(?:\$|\{([^}]*)\}|\{)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Unresolved(Exception):
    """A reference that has no value; the message is for the operator, and names the variable."""


def substitute(text: str, env: Mapping[str, str]) -> str:
    """`text` with every `${VAR}` replaced by the variable's value and every `$$` by one dollar.

    Any other dollar stands for itself. A value that was put in is not looked at again.

    Raises:
        Unresolved: naming the variable that is not set, or the reference that is malformed.
    """
    return _REFERENCE.sub(lambda found: _value(found, env), text)


def _value(found: re.Match[str], env: Mapping[str, str]) -> str:
    if found.group() == "$$":
        return "$"
    name = found.group(1)
    if name is None or not _NAME.fullmatch(name):
        raise Unresolved("a reference has the form ${NAME}; write $$ for a dollar")
    if name not in env:
        raise Unresolved(f"the environment variable {name} is not set; write $$ for a dollar")
    return env[name]
