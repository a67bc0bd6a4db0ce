"""Texts of one search become vectors, and the answer says by which model and what that took.

Invariant: a vector that leaves here is one that the collection's metric takes; a problem with a text names
its place in the request.
"""

from __future__ import annotations

from time import perf_counter

import msgspec
import numpy as np

from router.decode import vectors
from router.http.backend import Embed
from router.query.errors import InvalidError, Problem
from shard_config.model import Collection

__all__ = ["EmbeddingView", "SearchTexts"]


class EmbeddingView(msgspec.Struct, frozen=True):
    """The `model` of the map that turned the search's text into a vector, whether that was `cached`, and the
    milliseconds that it took; of several texts, whether all were, and of the slowest."""

    model: str
    cached: bool
    ms: float


class SearchTexts:
    """Of one search; `view` is None until one of its texts has become a vector."""

    def __init__(self, embed: Embed) -> None:
        self.view: EmbeddingView | None = None
        self._embed = embed

    def __repr__(self) -> str:
        return f"<SearchTexts {self.view}>"

    async def vector(self, collection: Collection, text: str, deadline: float, path: str) -> bytes:
        """The vector of the `text` that stands at `path`.

        Raises:
            RouterError: as `Embed` does.
        """
        started = perf_counter()
        try:
            found = await self._embed(collection, text, deadline)
        except InvalidError as exc:
            raise _placed(exc, path) from exc
        ms = round((perf_counter() - started) * 1000, 3)
        before = self.view or EmbeddingView(found.model, True, 0.0)
        self.view = EmbeddingView(found.model, before.cached and found.cached, max(before.ms, ms))
        return vectors.from_components(np.frombuffer(found.vector, "<f4"), collection.vector, path)


def _placed(error: InvalidError, path: str) -> InvalidError:
    """The error about a `text`, with the place where that text stands."""

    def moved(problems: tuple[Problem, ...]) -> list[Problem]:
        return [Problem(path, problem.message) for problem in problems]

    def detail(problems: list[Problem], otherwise: str) -> str:
        return f"{path}: {problems[0].message}" if problems else otherwise

    told, hidden = error.told(inside=True), error.told(inside=False)
    inside, outside = moved(told[1]), moved(hidden[1])
    placed = InvalidError(detail(inside, told[0]), inside)
    return placed if error.outside is None else placed.hidden(detail(outside, hidden[0]), outside)
