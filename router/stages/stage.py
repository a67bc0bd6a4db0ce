"""What every stage of the search path is."""

from __future__ import annotations

from typing import Protocol

from router.query.types import Found, SearchQuery

__all__ = ["Stage"]


class Stage(Protocol):
    """Answers a search, itself or through an inner stage.

    Invariants: it returns or raises by `deadline` (absolute, of the running loop's clock); when it is
    cancelled it leaves no task behind; it raises only `RouterError`s.
    """

    async def search(self, query: SearchQuery, deadline: float) -> Found: ...
