"""Which words a text consists of: English prose and the dotted, snake and camel names within it. Pure."""

from __future__ import annotations

import re
from collections.abc import Container

__all__ = ["words"]

_RUN = re.compile(r"[^\W\d_]+|\d+")
# As they are spoken: `lruCache` and `HTTPServer` are two words each.
_CAMEL = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_LONGEST = 64


def words(text: str, ignored: Container[str] = ()) -> list[str]:
    """The words of `text` in order, in lower case and the singular, without the `ignored` ones.

    Single letters say nothing; of a word that is longer than anybody types only the start counts.
    """
    parts = (part for run in _RUN.findall(text) for part in (_CAMEL.findall(run) if run.isascii() else [run]))
    found = (part.lower()[:_LONGEST] for part in parts if len(part) > 1)
    return [_singular(word) for word in found if word not in ignored]


def _singular(word: str) -> str:
    """As far as it can be had without a dictionary."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
