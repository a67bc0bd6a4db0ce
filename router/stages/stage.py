"""What every stage of the search path is."""

from __future__ import annotations

from typing import Protocol, TypeAlias, TypeVar

__all__ = ["Figures", "Stage"]

# What a stage says of itself, for operators: counts, and whether it is on.
Figures: TypeAlias = dict[str, int | float | str]

Q = TypeVar("Q", contravariant=True)
R = TypeVar("R", covariant=True)


class Stage(Protocol[Q, R]):
    """Answers a search, itself or through an inner stage.

    What it takes and what it answers with are its type, so that the type checker refuses a stage below one
    that speaks of something else: rows below `router.stages.encode`, their JSON above.

    Invariants: it returns or raises by `deadline` (absolute, of the running loop's clock); when it is
    cancelled it leaves no task behind; it raises only `RouterError`s.
    """

    async def search(self, query: Q, deadline: float) -> R: ...

    def describe(self) -> Figures:
        """Its own figures now, and those of the stages inside it."""
        ...
