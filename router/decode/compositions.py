"""A decoded search body that is more than a vector becomes a checked query: texts, examples, lists, steps.

It is checked before any model or shard is asked, so that a request which is wrong costs neither, and all
that is wrong with it is said at once. What is left is a draft that lacks vectors: of texts, which a model
makes, and of examples, which shards hold. Invariant: a draft whose vectors are found becomes a query without
further checks but those of the vectors themselves.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Mapping, Sequence
from types import MappingProxyType

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from router.decode import vectors
from router.decode.bodies import GroupByBody, LikeBody, QueryBody, SearchBody
from router.decode.queries import check_text, checked_query, filter_of, vector_of
from router.query.composition import (
    Composition,
    Diversity,
    Fusion,
    FusionMethod,
    GroupBy,
    Leg,
    Match,
    Mode,
    Rerank,
)
from router.query.errors import InvalidError, Problem, invalid
from router.query.examples import like_vector
from router.query.filter import field_of
from router.query.types import Room, SearchQuery
from router.settings import Settings
from shard_config.model import Collection
from shard_config.values import coerce, shown

__all__ = ["Draft", "Examples", "Wanted", "draft", "finished", "is_plain", "of_examples"]

_CANDIDATES = 50
_MOST_WEIGHT = 1e6
_MOST_FUSION_K = 10_000.0
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


class Draft(msgspec.Struct, frozen=True):
    """A checked search without the vectors that are still to be found, each for the leg of its number."""

    query: SearchQuery
    texts: Mapping[int, Wanted]
    likes: Mapping[int, Examples]

    @property
    def divisible(self) -> bool:
        """Whether it is worth something without one of its legs."""
        composition = self.query.composition
        return self.query.allow_partial and composition is not None and len(composition.legs) > 1

    @property
    def complete(self) -> bool:
        return not self.texts and not self.likes


def is_plain(body: SearchBody) -> bool:
    """Whether it is a search by one vector, with nothing to do beside."""
    return (
        body.vector is not UNSET
        and body.text is UNSET
        and body.like is UNSET
        and body.queries is UNSET
        and body.mode == "vector"
        and body.match is UNSET
        and body.candidates is UNSET
        and body.fusion is UNSET
        and body.rerank is UNSET
        and body.diversity is UNSET
        and body.group_by is UNSET
    )


def draft(
    body: SearchBody,
    collection: Collection,
    limits: Settings,
    rerankers: Container[str],
    path: str = "",
    caller: Hashable | None = None,
    room: Room | None = None,
) -> Draft:
    """The query that `body` asks for, as far as it can be made without asking anybody.

    Args:
        rerankers: names of the map's re-ranking services.
        path: goes in front of the paths in errors.
        caller, room: as of `router.decode.queries.search_query`.

    Raises:
        InvalidError: with every problem found.
    """
    prefix = f"{path}." if path else ""
    reader = _Reader(body, collection, limits, prefix)
    legs = reader.legs(path)
    reader.check_distances(legs)
    composition = reader.composition(legs, rerankers)
    query = checked_query(body, collection, limits, b"", prefix, reader.problems, caller, room)
    if composition is None and legs:
        leg = legs[0]
        query = msgspec.structs.replace(query, vector=leg.vector, words=leg.words, match=leg.match)
    else:
        query = msgspec.structs.replace(query, composition=composition)
    return Draft(query, reader.texts, reader.likes)


def finished(
    draft: Draft, found: Mapping[int, bytes], missing: Mapping[int, str] = MappingProxyType({})
) -> SearchQuery:
    """The query with the vectors of its texts and examples, by the number of their leg.

    Args:
        missing: of legs that cannot be asked for, why not.

    Raises:
        InvalidError: a vector is none that the collection can be searched for.
    """
    query, problems = draft.query, list[Problem]()
    checked: dict[int, bytes] = {}
    for number, data in found.items():
        path = draft.texts[number].path if number in draft.texts else draft.likes[number].path
        checked[number] = vector_of(data, query.exact, query.collection, path, problems)
    if problems:
        raise invalid(problems)
    if query.composition is None:
        return msgspec.structs.replace(query, vector=checked.get(0, query.vector))
    legs = tuple(
        msgspec.structs.replace(leg, vector=checked.get(number, leg.vector), missing=missing.get(number))
        for number, leg in enumerate(query.composition.legs)
    )
    return msgspec.structs.replace(query, composition=msgspec.structs.replace(query.composition, legs=legs))


def of_examples(examples: Examples, stored: Mapping[object, bytes | None], collection: Collection) -> bytes:
    """The vector that stands for `examples`; `stored` are the vectors of the documents that exist.

    Raises:
        InvalidError: naming each document that does not exist or has no vector.
    """
    problems: list[Problem] = []
    found: list[list[bytes]] = []
    for name, ids in (("ids", examples.ids), ("not", examples.others)):
        group: list[bytes] = []
        for i, id_ in enumerate(ids):
            data = stored.get(id_)
            if data is None:
                what = "has no vector" if id_ in stored else "does not exist"
                problems.append(Problem(f"{examples.path}.{name}[{i}]", f"the document {shown(id_)} {what}"))
            else:
                group.append(data)
        found.append(group)
    if problems:
        raise invalid(problems)
    vector = like_vector(found[0], found[1], collection.vector.metric)
    return vectors.from_components(np.asarray(vector), collection.vector, examples.path)


class _Reader:
    """One reading of a body; collects problems, and the vectors that are wanted."""

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
                Problem(path, "a search needs a vector, a text, examples (`like`) or `queries`")
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
                self._wrong(name, "speaks of nearness of vectors, by which nothing is searched for here")

    def composition(self, legs: Sequence[Leg], rerankers: Container[str]) -> Composition | None:
        """What is to be done beside one plain search, if anything is."""
        body, end = self._body, self._body.offset + self._body.k
        fusion = self._fusion(legs)
        rerank = self._rerank(legs, rerankers)
        diversity = self._diversity()
        group_by = None if body.group_by is UNSET else self._group_by(body.group_by)
        several = len(legs) > 1
        if several or rerank or diversity or group_by:
            wanted = _CANDIDATES if body.candidates is UNSET else body.candidates
            depth = max(wanted, end)
            for step in (rerank, diversity):
                depth = max(depth, 0 if step is None else step.candidates)
            self._check_count("candidates", wanted, self._limits.max_candidates, "max_candidates")
        else:
            depth = end
            if body.candidates is not UNSET:
                self._wrong("candidates", "nothing is fused, re-ranked, diversified or grouped")
            if not any(leg.without for leg in legs):
                return None
        if end > self._limits.max_candidates:
            self._wrong(
                "offset" if body.offset else "k",
                f"offset + k = {_digits(end)} exceeds {self._limits.max_candidates} (max_candidates), the"
                " most rows of a list that is fused, re-ranked, diversified, grouped, or lacks examples",
            )
        return Composition(tuple(legs), depth, fusion, rerank, diversity, group_by)

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
                return msgspec.structs.replace(leg, words=words, match=_match_of(query.match, Match.ALL))
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
        # A question in words would lose this list for one of them that no document has beside the others.
        match = _match_of(body.match, Match.ANY if hybrid else Match.ALL)
        fulltext = Leg("fulltext", Mode.FULLTEXT, words=words, match=match)
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

    def _fusion(self, legs: Sequence[Leg]) -> Fusion:
        given = self._body.fusion
        if given is UNSET:
            return Fusion()
        if len(legs) == 1:
            self._wrong("fusion", "a search of one list has nothing to fuse")
        if not 0 <= given.k <= _MOST_FUSION_K:
            self._wrong("fusion.k", f"k={given.k:g} is not between 0 and {_MOST_FUSION_K:g}")
        if given.weights and self._body.queries is not UNSET:
            self._wrong("fusion.weights", "each of `queries` has a weight of its own")
        elif given.weights and legs:
            names = [leg.name for leg in legs]
            for name, weight in given.weights.items():
                if name in names:
                    self._check_weight(weight, f"fusion.weights.{name}")
                else:
                    self._wrong(f"fusion.weights.{name[:80]}", f"unknown list; there are {', '.join(names)}")
            if not any(leg.weight > 0 for leg in legs):
                self._wrong("fusion.weights", "no weight is above 0")
        return Fusion(FusionMethod(given.method), given.k)

    def _rerank(self, legs: Sequence[Leg], rerankers: Container[str]) -> Rerank | None:
        given = self._body.rerank
        if given is UNSET:
            return None
        if given.model not in rerankers:
            names = ", ".join(sorted(rerankers)) if isinstance(rerankers, Mapping) else ""
            there = f"it has {names}" if names else "it has none"
            self._wrong("rerank.model", f"no re-ranker {shown(given.model)} in the shard map; {there}")
        if self._collection.content is None and self._collection.template is None:
            self._wrong("rerank", f"documents of {self._collection.name} have no content to compare with")
        self._check_count("rerank.candidates", given.candidates, self._limits.max_rerank, "max_rerank")
        return Rerank(given.model, self._compared_with(given.text), given.candidates)

    def _compared_with(self, text: str | UnsetType) -> str:
        """What re-ranking compares documents with."""
        body = self._body
        if text is not UNSET:
            return check_text(text, f"{self._prefix}rerank.text", self.problems)
        if body.text is not UNSET:
            return body.text
        queries = [] if body.queries is UNSET else body.queries
        texts = {query.text for query in queries if query.text is not UNSET}
        if len(texts) == 1:
            return str(texts.pop())
        which = "several texts" if texts else "no text"
        self._wrong("rerank.text", f"required, since the search has {which}")
        return ""

    def _diversity(self) -> Diversity | None:
        given = self._body.diversity
        if given is UNSET:
            return None
        if not 0 <= given.weight <= 1:
            self._wrong("diversity.lambda", f"lambda={given.weight:g} is not between 0 and 1")
        most = self._limits.max_candidates
        self._check_count("diversity.candidates", given.candidates, most, "max_candidates")
        return Diversity(given.weight, given.candidates)

    def _group_by(self, given: GroupByBody) -> GroupBy | None:
        most = self._collection.search.max_k
        if given.size < 1:
            self._wrong("group_by.size", f"size={_digits(given.size)} is below 1")
        elif given.size * max(self._body.k, 1) > most:
            self._wrong(
                "group_by.size",
                f"k groups of {_digits(given.size)} exceed {most} hits for {self._collection.name}",
            )
        path = f"{self._prefix}group_by.field"
        if given.field in ("id", "content"):
            self._wrong("group_by.field", f"{given.field} is no field that documents share")
            return None
        try:
            return GroupBy(field_of(self._collection, given.field, self._limits, path), given.size)
        except InvalidError as exc:
            self.problems.extend(exc.problems)
            return None

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
            self._wrong(path, "speaks of words, for which nothing is searched here")

    def _check_count(self, path: str, value: int, most: int, setting: str) -> None:
        if not 1 <= value <= most:
            name = path.rpartition(".")[2]
            self._wrong(path, f"{name}={_digits(value)} is not between 1 and {most} ({setting})")

    def _check_weight(self, weight: float, path: str) -> None:
        # Written so that NaN fails it.
        if not 0 <= weight <= _MOST_WEIGHT:
            self._wrong(path, f"weight={weight:g} is not between 0 and {_MOST_WEIGHT:g}")

    def _wrong(self, path: str, message: str) -> None:
        self.problems.append(Problem(f"{self._prefix}{path}", message))


def _match_of(given: str | UnsetType, otherwise: Match) -> Match:
    return otherwise if given is UNSET else Match(given)


def _digits(value: int) -> str:
    """Python refuses to write out integers of more than 4300 digits."""
    return str(value) if value.bit_length() < 128 else f"a number of {value.bit_length()} bits"
