"""Two sets of judged queries from the documentation of Python's standard library.

Nobody has judged anything: an entry's summary and its name say what it is about, and are taken away from what
is searched. Invariant: one version of Python gives one set, and no document has the summary that it answers.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from bench.judged.types import Judged, Query
from deploy.corpus.documents import Entry, entries

__all__ = ["names", "split", "spoken", "summaries"]

# A summary of fewer words, or a rest of fewer characters, says too little to be found by.
_LEAST_WORDS = 4
_LEAST_REST = 80
# A name that more entries share ("close") is no question with an answer.
_MOST_OF_A_NAME = 3

_SENTENCE = re.compile(r"(.+?[.!?])(?:\s+|$)", re.DOTALL)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def summaries(queries: int, seed: int = 0, corpus: Sequence[Entry] | None = None) -> Judged:
    """The first sentence of a docstring as query; its entry, without that sentence, as the answer.

    Entries whose docstring is no more than that sentence stay in the collection, to be in the way.
    """
    corpus = entries() if corpus is None else corpus
    parts = [split(entry.text) for entry in corpus]
    often = Counter(sentence for sentence, _ in parts)
    documents, found = [], []
    for place, (entry, (sentence, rest)) in enumerate(zip(corpus, parts, strict=True)):
        if asks := len(rest) >= _LEAST_REST and len(sentence.split()) >= _LEAST_WORDS:
            documents.append(f"{entry.name}\n{rest}")
        else:
            documents.append(f"{entry.name}\n{entry.text}")
        if asks and often[sentence] == 1 and sentence not in rest:
            found.append(Query(sentence, frozenset([place])))
    about = "first sentence of a docstring -> name and the rest of it"
    return Judged("library summaries", about, documents, _some(found, queries, seed))


def names(queries: int, seed: int = 0, corpus: Sequence[Entry] | None = None) -> Judged:
    """The last part of a name in words as query ("redirect stderr"); docstrings without names to find."""
    corpus = entries() if corpus is None else corpus
    called: defaultdict[str, list[int]] = defaultdict(list)
    for place, entry in enumerate(corpus):
        called[spoken(entry.name.rpartition(".")[2])].append(place)
    found = [
        Query(name, frozenset(places))
        for name, places in called.items()
        if len(name) > 2 and len(places) <= _MOST_OF_A_NAME
    ]
    documents = [entry.text for entry in corpus]
    about = "name of an entry in words -> its docstring"
    return Judged("library names", about, documents, _some(found, queries, seed))


def split(text: str) -> tuple[str, str]:
    """The first sentence of a docstring, in one line, and what follows."""
    paragraph, _, rest = text.partition("\n\n")
    flat = " ".join(paragraph.split())
    sentence = _SENTENCE.match(flat)
    if sentence is None:
        return flat, rest.strip()
    return sentence[1], f"{flat[sentence.end() :]}\n\n{rest}".strip()


def spoken(name: str) -> str:
    """In words: `HTTPErrorProcessor` and `lru_cache` are "http error processor" and "lru cache"."""
    return " ".join(_WORD.findall(name)).lower()


def _some(found: list[Query], count: int, seed: int) -> list[Query]:
    return found if len(found) <= count else random.Random(seed).sample(found, count)
