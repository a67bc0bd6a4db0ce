"""What a LIKE pattern says of how a text begins, as a range in the order of code points. Pure."""

from __future__ import annotations

__all__ = ["after", "literal_prefix"]

_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)  # no text holds one


def literal_prefix(pattern: str) -> tuple[str, bool]:
    """The text that every match of `pattern` begins with, and whether every text that does so matches."""
    prefix: list[str] = []
    characters = iter(enumerate(pattern))
    for at, character in characters:
        if character in "%_":
            return "".join(prefix), set(pattern[at:]) == {"%"}
        if character == "\\":
            # Nothing follows a last one, which PostgreSQL refuses.
            _, character = next(characters, (at, ""))
        prefix.append(character)
    return "".join(prefix), False


def after(prefix: str) -> str | None:
    """The least text that is greater than all that begin with `prefix`; None if none is.

    UTF-8 keeps the order of code points, which is why "C" compares bytes.
    """
    kept = prefix.rstrip(chr(_LAST))
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    if _SURROGATES[0] <= following <= _SURROGATES[1]:
        following = _SURROGATES[1] + 1
    return kept[:-1] + chr(following)
