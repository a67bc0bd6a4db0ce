"""Paths into the metadata document, as filters and a map's indexes write them.

    author.name      the member `name` of the object `author`
    "author.name"    the member `author.name`: a quoted step is a JSON string, and may be empty
    tags.0           the first element where `tags` is an array, the member `0` where it is an object

Invariant: every member that a document can hold has a path, and `spelled` is read back by `steps`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from shard_config.values import ValueType, coerce

__all__ = ["MOST_STEPS", "spelled", "steps"]

MOST_STEPS = 32  # levels of the metadata of a document
_STEP = re.compile(r'"(?:[^"\\]|\\.)*"|[^".][^.]*', re.DOTALL)


def steps(text: str) -> tuple[str, ...]:
    """The steps of `text`.

    Raises:
        ValueError: with a message that says what is wrong.
    """
    found: list[str] = []
    at = 0
    while at <= len(text):
        match = _STEP.match(text, at)
        if match is None:
            raise ValueError(_complaint(text[at:]))
        found.append(_step(match[0]))
        if len(found) > MOST_STEPS:
            raise ValueError(f"a metadata path has at most {MOST_STEPS} steps")
        at = match.end() + 1
        if text[match.end() : at] not in ("", "."):
            raise ValueError("a dot or nothing follows the closing quote of a step of a metadata path")
    return tuple(found)


def spelled(path: Sequence[str]) -> str:
    """The text of `path`, with quotes around the steps that need them."""
    return ".".join(map(_spelled, path))


def _spelled(step: str) -> str:
    plain = step and not step.startswith('"') and "." not in step
    return step if plain else json.dumps(step, ensure_ascii=False)


def _step(text: str) -> str:
    if text.startswith('"'):
        try:
            text = json.loads(text, strict=False)
        except ValueError:
            raise ValueError("a quoted step of a metadata path is a JSON string, with its escapes") from None
    return str(coerce(ValueType.TEXT, text))


def _complaint(rest: str) -> str:
    if rest.startswith('"'):
        return "a quoted step of a metadata path lacks its closing quote"
    return 'a metadata path is non-empty names joined by dots; the empty name is written ""'
