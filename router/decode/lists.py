"""The ranked lists that a search asks for: by a vector, a text, words, examples, or several of these."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from router.decode.bodies import LikeBody, QueryBody, SearchBody
from router.decode.queries import check_text, filter_of, vector_of
from router.query.composition import Leg, Match, Mode
from router.query.errors import Problem
from router.settings import Settings
from shard_config.model import Collection
from shard_config.values import coerce, shown

__all__ = ["Examples", "ListReader", "Wanted", "weight_problem"]

_MOST_WEIGHT = 1e6
_MOST_NAME = 64


class Wanted(msgspec.Struct, frozen=True):
    """A text whose vector a model is to make; `path` is its place in the request."""

    path: str
    text: str


class Examples(msgspec.Struct, frozen=True):
    """Documents whose stored vectors make one; `path` is the place of `like` in the request."""

    path: str
    ids: tuple[object, ...]
    others: tuple[object, ...]


class ListReader:
    """Reads the lists of one body; collects problems, and the vectors wanted, by the number of the list."""

    def __init__(self, body: SearchBody, collection: Collection, limits: Settings, prefix: str) -> None:
        self.problems: list[Problem] = []
        self.texts: dict[int, Wanted] = {}
        self.likes: dict[int, Examples] = {}
        self._body = body
        self._collection = collection
        self._limits = limits
        self._prefix = prefix

    def legs(self, path: str) -> list[Leg]:
        body = self._body
        named = {"vector": body.vector, "text": body.text, "like": body.like, "queries": body.queries}
        given = [name for name, value in named.items() if value is not UNSET]
        hybrid = body.mode == "hybrid"
        if not given and body.mode != "vector":
            return self._by_words(hybrid=hybrid)
        if not given:
            self.problems.append(
                Problem(path, "a search needs a vector or a text, examples (`like`) or `queries`")
            )
            return []
        if len(given) > 1 and not (hybrid and given == ["vector", "text"]):
            self._wrong(
                given[1],
                f"a search takes a vector, a text, examples (`like`) or `queries`, not both {given[0]} and"
                f" {given[1]}; a vector beside a text takes `mode` hybrid",
            )
            return []
        if body.queries is not UNSET:
            return self._queries(body.queries)
        if body.mode != "vector":
            return self._by_words(hybrid=hybrid)
        self._refuse_match(body.match, "match")
        leg = Leg("vector", Mode.VECTOR)
        if body.text is not UNSET:
            self._text(0, body.text, f"{self._prefix}text")
            return [leg]
        if body.like is not UNSET:
            return [self._like(0, body.like, leg, f"{self._prefix}like")]
        vector = self._vector(body.vector, f"{self._prefix}vector")
        return [msgspec.structs.replace(leg, vector=vector)]

    def check_distances(self, legs: Sequence[Leg]) -> None:
        """Refuse what would be ignored; a ranking by words is exact in any case."""
        if not legs or any(leg.mode is Mode.VECTOR for leg in legs):
            return
        body = self._body
        given = {
            "max_distance": body.max_distance is not None,
            "ef_search": body.ef_search is not None,
        }
        for name, there in given.items():
            if there:
                self._wrong(name, "is for searches by vector, and this one is by words alone")

    def _queries(self, queries: Sequence[QueryBody]) -> list[Leg]:
        if self._body.mode != "vector":
            self._wrong("mode", "each of `queries` has a mode of its own")
        if self._body.match is not UNSET:
            self._wrong("match", "each of `queries` has a match of its own")
        if not 1 <= len(queries) <= self._limits.max_queries:
            self._wrong("queries", f"{len(queries)} queries are not between 1 and {self._limits.max_queries}")
            return []
        names = self._names(queries)
        legs = [self._query(i, query, names[i]) for i, query in enumerate(queries)]
        if not any(leg.weight > 0 for leg in legs):
            self._wrong("queries", "no weight is above 0")
        return legs

    def _query(self, number: int, query: QueryBody, name: str) -> Leg:
        place = f"queries[{number}]"
        path = f"{self._prefix}{place}"
        self._check_weight(query.weight, f"{place}.weight")
        filter_ = filter_of(query.filter, self._collection, self._limits, f"{path}.filter", self.problems)
        leg = Leg(name, Mode(query.mode), weight=query.weight, filter=filter_)
        if query.mode == "vector":
            self._refuse_match(query.match, f"{place}.match")
        named = {"vector": query.vector, "text": query.text, "like": query.like}
        given = [name for name, value in named.items() if value is not UNSET]
        if len(given) != 1:
            self._wrong(place, "takes one of text, vector and like")
        elif query.mode == "fulltext":
            if query.text is UNSET:
                self._wrong(f"{place}.mode", "fulltext searches for a text")
            else:
                self._check_fulltext(f"{place}.mode")
                words = self._words(query.text, f"{path}.text")
                return msgspec.structs.replace(leg, words=words, match=_match_of(query.match))
        elif query.text is not UNSET:
            self._text(number, query.text, f"{path}.text")
        elif query.like is not UNSET:
            return self._like(number, query.like, leg, f"{path}.like")
        else:
            return msgspec.structs.replace(leg, vector=self._vector(query.vector, f"{path}.vector"))
        return leg

    def _names(self, queries: Sequence[QueryBody]) -> list[str]:
        names = [None if query.name is UNSET else query.name for query in queries]
        taken: set[str] = set()
        for i, name in enumerate(names):
            if name is None:
                continue
            if not 1 <= len(name) <= _MOST_NAME:
                self._wrong(
                    f"queries[{i}].name", f"{len(name)} characters are not between 1 and {_MOST_NAME}"
                )
            elif name in taken:
                self._wrong(f"queries[{i}].name", f"{shown(name)} is another query's name already")
            taken.add(name)
        given: list[str] = []
        for query, name in zip(queries, names, strict=True):
            chosen, number = name or str(query.mode), 1
            while name is None and chosen in taken:
                number += 1
                chosen = f"{query.mode}{number}"
            taken.add(chosen)
            given.append(chosen)
        return given

    def _by_words(self, *, hybrid: bool) -> list[Leg]:
        body, prefix = self._body, self._prefix
        if body.text is UNSET:
            self._wrong("text", f"required, but missing: mode {body.mode} searches for a text")
            return []
        self._check_fulltext("mode")
        words = self._words(body.text, f"{prefix}text")
        fulltext = Leg("fulltext", Mode.FULLTEXT, words=words, match=_match_of(body.match))
        if not hybrid:
            return [fulltext]
        vector = b""
        if body.vector is UNSET:
            self.texts[0] = Wanted(f"{prefix}text", words)
        else:
            vector = self._vector(body.vector, f"{prefix}vector")
        weights = {} if body.fusion is UNSET else body.fusion.weights
        legs = [Leg("vector", Mode.VECTOR, vector=vector), fulltext]
        return [msgspec.structs.replace(leg, weight=weights.get(leg.name, 1.0)) for leg in legs]

    def _words(self, text: str, path: str) -> str:
        if "\0" in text:
            self.problems.append(Problem(path, "holds a NUL character, which no stored text can hold"))
        return check_text(text, path, self.problems)

    def _text(self, number: int, text: str, path: str) -> None:
        self.texts[number] = Wanted(path, check_text(text, path, self.problems))

    def _vector(self, raw: list[float] | bytes | UnsetType, path: str) -> bytes:
        return vector_of(raw, self._body.exact, self._collection, path, self.problems)

    def _like(self, number: int, like: LikeBody, leg: Leg, path: str) -> Leg:
        ids, others = self._ids(like.ids, f"{path}.ids"), self._ids(like.not_, f"{path}.not")
        count = len(like.ids) + len(like.not_)
        if not like.ids:
            self.problems.append(Problem(f"{path}.ids", "there is no document in it"))
        if count > self._limits.max_examples:
            self.problems.append(Problem(path, f"{count} documents exceed {self._limits.max_examples}"))
        self.likes[number] = Examples(path, ids, others)
        return msgspec.structs.replace(leg, without=tuple(dict.fromkeys((*ids, *others))))

    def _ids(self, raw: Sequence[object], path: str) -> tuple[object, ...]:
        ids: list[object] = []
        for i, value in enumerate(raw[: self._limits.max_examples]):
            try:
                ids.append(coerce(self._collection.id.type, value))
            except ValueError as exc:
                self.problems.append(Problem(f"{path}[{i}]", str(exc)))
        return tuple(ids)

    def _check_fulltext(self, path: str) -> None:
        if self._collection.fulltext is None:
            self._wrong(path, f"collection {self._collection.name} has no full text")

    def _refuse_match(self, given: str | UnsetType, path: str) -> None:
        if given is not UNSET:
            self._wrong(path, "is for searches by words, those with `mode` fulltext or hybrid")

    def _check_weight(self, weight: float, path: str) -> None:
        if (problem := weight_problem(weight)) is not None:
            self._wrong(path, problem)

    def _wrong(self, path: str, message: str) -> None:
        self.problems.append(Problem(f"{self._prefix}{path}", message))


def _match_of(given: str | UnsetType) -> Match:
    return Match.ALL if given is UNSET else Match(given)


def weight_problem(weight: float) -> str | None:
    """What is wrong with the weight of a list, if anything is."""
    # Written so that NaN fails it.
    if 0 <= weight <= _MOST_WEIGHT:
        return None
    return f"weight={weight:g} is not between 0 and {_MOST_WEIGHT:g}"
