"""What a URL says: the path as it was meant, and the parameters that the operation knows. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from router.http.routes import Operation
from router.query.errors import MalformedError, Problem, invalid

__all__ = ["path_of", "query_of", "segment"]

_MOST_PARAMETERS = 100
_KEPT = re.compile(rb"%(2[Ff5])")


def path_of(scope: Mapping[str, Any]) -> str:
    """The path, decoded strictly: uvicorn's own has U+FFFD for what is no UTF-8, and an id must not change.

    Two escapes remain, and `segment` decodes them: `%2F`, because an escaped slash is part of a name and does
    not separate two, and `%25`, so that the text `%2F` in a name is not taken for such an escape.

    Raises:
        MalformedError
    """
    raw: bytes | None = scope.get("raw_path")
    if raw is None or b"%" not in raw:
        path: str = scope["path"]
        return path.replace("%", "%25")
    try:
        return unquote_to_bytes(_KEPT.sub(rb"%25\1", raw)).decode()
    except UnicodeDecodeError as exc:
        raise MalformedError("the path is not UTF-8, percent-encoded") from exc


def segment(text: str) -> str:
    """Decode what `path_of` has left of a part of a path."""
    return text.replace("%2F", "/").replace("%2f", "/").replace("%25", "%") if "%" in text else text


def query_of(query: bytes, operation: Operation) -> dict[str, str]:
    """The query string's parameters, each known to `operation` and given once.

    Probes and scrapers add parameters of their own, so open operations take no notice of any.

    Raises:
        InvalidError, MalformedError
    """
    if operation.scope != "open":
        values = _parsed(query, {parameter.name for parameter in operation.query}) if query else {}
        missing = [p.name for p in operation.query if p.required and p.name not in values]
        if missing:
            raise invalid([Problem(name, "required, but missing") for name in missing])
        return values
    return {}


def _parsed(query: bytes, known: set[str]) -> dict[str, str]:
    try:
        text = query.decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS)
    except ValueError as exc:
        raise MalformedError(f"the query string cannot be read: {exc}") from exc
    values: dict[str, str] = {}
    problems = []
    for name, value in pairs:
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            problems.append(Problem(name[:80], f"unknown query parameter; known are {names}"))
        elif name in values:
            problems.append(Problem(name, "given more than once"))
        values[name] = value
    if problems:
        raise invalid(problems)
    return values
