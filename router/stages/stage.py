"""What every stage of the search path is."""

from __future__ import annotations

from typing import Protocol, TypeAlias

from router.query.types import Found, SearchQuery

__all__ = ["Figures", "Stage"]

# What a stage says of itself, for operators: counts, and whether it is on.
Figures: TypeAlias = dict[str, int | float | bool]


class Stage(Protocol):
    """Answers a search, itself or through an inner stage.

    Invariants: it returns or raises by `deadline` (absolute, of the running loop's clock); when it is
    cancelled it leaves no task behind; it raises only `RouterError`s.
    """

    async def search(self, query: SearchQuery, deadline: float) -> Found: ...

    def describe(self) -> Figures:
        """Its own figures now, and those of the stages inside it."""
        ...
