"""How far each shard's log reached when a write to it was known to be committed.

A primary whose log ends before that has lost it; the prober compares. Positions count that this process was
told by primaries, and those that Redis was told by other routers, or before this process was started.
"""

from __future__ import annotations

from router.query.types import Position

__all__ = ["Acknowledged"]


class Acknowledged:
    """The newest position of each shard; writers and the shared cache tell it, the prober asks."""

    def __init__(self) -> None:
        self._newest: dict[str, Position] = {}

    def __repr__(self) -> str:
        return f"<Acknowledged {self._newest}>"

    def note(self, shard: str, position: Position) -> None:
        """A write to `shard` is in its log up to `position`."""
        if position.timeline:
            self._newest[shard] = max(position, self._newest.get(shard, position))

    def newest(self, shard: str) -> Position | None:
        return self._newest.get(shard)

    def forget(self, shard: str) -> None:
        """What was written there is known to be lost; what is written from now on is another log."""
        self._newest.pop(shard, None)
