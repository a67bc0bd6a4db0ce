"""How a text is read in which any word may match: what may match, and what must.

It is the syntax of PostgreSQL's `websearch_to_tsquery`, read more leniently, since sentences have hyphens and
inch marks too: "-" excludes what it stands directly in front of, and a quotation mark that none closes means
nothing. Invariants: no part of a text is lost that could hold a word; reading takes time in proportion to the
text's length; and the conditions are no longer than the text and an " or " for each of its words.
"""

from __future__ import annotations

import re

import msgspec

__all__ = ["Loose", "loosened"]

# What parts words in PostgreSQL: space, quotation marks, and what are operators in its other syntax. The
# second alternative takes hyphens that belong to nothing, all at once.
_TERM = re.compile(r'(?P<minus>-*+)(?:"(?P<phrase>[^"]*)"|(?P<word>[^\s"!&|()\-][^\s"!&|()]*))|-+')


class Loose(msgspec.Struct, frozen=True):
    """A text's `words`, one of which a row holds at least, and its `conditions`.

    Attributes:
        words: what is not excluded, each once; a phrase is one.
        conditions: the phrases and what is excluded, for `websearch_to_tsquery`; "" if there are none.
    """

    words: tuple[str, ...]
    conditions: str


class _Part(msgspec.Struct):
    """What stands between two `or`."""

    words: list[str] = msgspec.field(default_factory=list)
    conditions: list[str] = msgspec.field(default_factory=list)


def loosened(text: str) -> Loose:
    """`text` with its words apart from its conditions.

    Where `or` stands beside a condition, it is an alternative to that: of `"read only" or standby -old` rows
    hold the phrase, or do not hold `old`; and at least one of the words, as always.
    """
    terms = [term for term in _TERM.finditer(_closed(text)) if term["word"] or term["phrase"] is not None]
    parts, words, joins = [_Part()], dict[str, None](), False
    for i, term in enumerate(terms):
        # As in PostgreSQL: an operator only between two others, elsewhere a word, which is French for gold.
        joins = not joins and 0 < i < len(terms) - 1 and term[0].lower() == "or"
        if joins:
            parts.append(_Part())
            continue
        said: str = term["word"] or term["phrase"].strip()
        if not said:
            continue
        excluded = len(term["minus"]) % 2 == 1
        if not excluded:
            words[said] = None
        if excluded or not term["word"]:
            shown = said if term["word"] else f'"{said}"'
            parts[-1].conditions.append(f"-{shown}" if excluded else shown)
        else:
            parts[-1].words.append(said)
    return Loose(tuple(words), _joined(parts))


def _closed(text: str) -> str:
    if text.count('"') % 2 == 0:
        return text
    before, _, after = text.rpartition('"')
    # What is excluded must not become what is wanted.
    return f'{text}"' if before.endswith("-") else f"{before} {after}"


def _joined(parts: list[_Part]) -> str:
    if not any(part.conditions for part in parts):
        return ""
    written = [" ".join(part.conditions) or " or ".join(dict.fromkeys(part.words)) for part in parts]
    return " or ".join(one for one in written if one)
