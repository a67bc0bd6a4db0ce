"""A decoded search body that is more than a vector becomes a checked query: texts, examples, lists, steps.

It is checked before any model or shard is asked, so that a request which is wrong costs neither, and all
that is wrong with it is said at once. What is left is a draft that lacks vectors: of texts, which a model
makes, and of examples, which shards hold. Invariant: a draft whose vectors are found becomes a query without
further checks but those of the vectors themselves.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Mapping
from types import MappingProxyType

import msgspec
import numpy as np
from msgspec import UNSET

from router.decode import vectors
from router.decode.bodies import SearchBody
from router.decode.lists import Examples, ListReader, Wanted
from router.decode.queries import checked_query, vector_of
from router.decode.steps import StepReader
from router.query.errors import Problem, invalid
from router.query.examples import like_vector
from router.query.types import Room, SearchQuery
from router.settings import Settings
from shard_config.model import Collection
from shard_config.values import shown

__all__ = ["Draft", "Examples", "Wanted", "draft", "finished", "is_plain", "of_examples"]


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
        and body.candidates is UNSET
        and body.match is UNSET
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
    reader = ListReader(body, collection, limits, prefix)
    legs = reader.legs(path)
    reader.check_distances(legs)
    steps = StepReader(body, collection, limits, prefix, reader.problems)
    composition = steps.composition(legs, rerankers)
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
