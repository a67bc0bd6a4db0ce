"""Picks the stage that a search is for: its words, or its vector."""

from __future__ import annotations

from router.query.ranked import RankedAnswer
from router.query.types import SearchQuery
from router.stages.stage import Figures, Stage

__all__ = ["Composed"]


class Composed:
    """Passes each search on to the one inner stage that answers its kind."""

    def __init__(
        self, *, vector: Stage[SearchQuery, RankedAnswer], fulltext: Stage[SearchQuery, RankedAnswer]
    ) -> None:
        self._vector = vector
        self._fulltext = fulltext

    def __repr__(self) -> str:
        return f"<Composed of {self._vector!r} and {self._fulltext!r}>"

    async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
        """
        Raises:
            what the inner stage raises.
        """
        inner = self._vector if query.words is None else self._fulltext
        return await inner.search(query, deadline)

    def describe(self) -> Figures:
        return self._vector.describe() | self._fulltext.describe()
