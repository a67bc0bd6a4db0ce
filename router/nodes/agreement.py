"""Whether the shards hold what a map says, as far as they say so themselves (`shard_config.identity`).

Looked at when a probe brings a shard's word for the first time, and when that word has changed; requests only
ask whether their collection is in dispute. Invariant: no row of a collection is read or written through a map
by which a reachable shard should hold other rows than it says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from router.nodes.node import Node
from router.policy.selection import Health, NodeState, Role
from router.query.errors import Problem, UnavailableError
from shard_config.identity import Disagreement, Identity, disagreements, identities
from shard_config.model import ShardMap

__all__ = ["Agreement", "refusal"]

_logger = logging.getLogger(__name__)

# A router of the right map may answer by then; this one never will.
_RETRY_AFTER = 5.0
# What is said of a disputed shard to those who may not see what it holds.
_OUTSIDE = "it holds other rows than this router's map says"

_ADVICE = {
    "shard": "list that node under its own shard",
    "older": "serve the newest version of the map; to go back to what an older one said, give it a higher"
    " version and run `pgscatter schema apply`",
    "content": "give the changed map a higher version, and run `pgscatter schema apply` with it",
    "placement": "take the placement back to what the shards hold, or move the rows first;"
    " `pgscatter map check` counts them",
}


class Agreement:
    """Compares one map with its shards; `close` it with the snapshot that it belongs to."""

    def __init__(self, shard_map: ShardMap, nodes: Mapping[str, Sequence[Node]]) -> None:
        self._map = shard_map
        self._expected: dict[str, Identity] = {}  # by shard; made for the first one that says anything
        self._disputed: dict[str, list[Problem]] = {}  # by collection
        self._shards = {
            name: _Shard(name, members, self._differing, self._untold, self._changed)
            for name, members in nodes.items()
        }
        for shard in self._shards.values():
            shard.observed()

    def __repr__(self) -> str:
        return f"<Agreement {len(self.points())} points open>"

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()

    def points(self) -> list[tuple[str, Disagreement]]:
        """In what the map and its shards differ, with the shards' names."""
        return [(name, point) for name, shard in self._shards.items() for point in shard.points]

    def unknown(self) -> list[str]:
        """The shards that have a node up, and do not say who they are, or what they hold of a collection."""
        return [name for name, shard in self._shards.items() if shard.is_silent()]

    def require(self, collection: str) -> None:
        """
        Raises:
            UnavailableError: the collection's rows lie otherwise than this map says. That is this router's
                fault: one that has the right map can answer.
        """
        if self._disputed and collection in self._disputed:
            raise UnavailableError(
                f"the shard map of this router does not say where the rows of {collection} are",
                self._disputed[collection],
                retry_after=_RETRY_AFTER,
            ).hidden(problems=[Problem(one.path, _OUTSIDE) for one in self._disputed[collection]])

    def _differing(self, shard: str, word: Identity) -> list[Disagreement]:
        return disagreements(self._map, self._mine(shard), word)

    def _untold(self, shard: str, word: Identity) -> bool:
        """Whether a collection was never applied there: its table may be older, with rows placed anyhow."""
        return not self._mine(shard).holds.keys() <= word.holds.keys()

    def _mine(self, shard: str) -> Identity:
        if not self._expected:
            self._expected = identities(self._map)
        return self._expected[shard]

    def _changed(self) -> None:
        disputed: dict[str, list[Problem]] = {}
        for name, point in self.points():
            if point.collection is not None:
                disputed.setdefault(point.collection, []).append(Problem(f"shards.{name}", point.text))
        self._disputed = disputed


class _Shard:
    """One shard's word; nodes tell it when their states are new."""

    def __init__(
        self,
        name: str,
        nodes: Sequence[Node],
        differing: Callable[[str, Identity], list[Disagreement]],
        untold: Callable[[str, Identity], bool],
        changed: Callable[[], None],
    ) -> None:
        self.points: list[Disagreement] = []
        self._silent = True  # says nothing, or not all that is wanted
        self._name = name
        self._nodes = nodes
        self._differing = differing
        self._untold = untold
        self._changed = changed
        self._word: Identity | None = None
        for node in nodes:
            node.listeners.append(self.observed)

    def close(self) -> None:
        for node in self._nodes:
            if self.observed in node.listeners:
                node.listeners.remove(self.observed)

    def is_silent(self) -> bool:
        return self._silent and any(node.state.health is Health.UP for node in self._nodes)

    def observed(self) -> None:
        states = [node.state for node in self._nodes]
        word = _word(states)
        # While nobody answers, the last word stands; not when it was taken back, by dropping the table.
        if word is self._word or (word is None and not any(state.health is Health.UP for state in states)):
            return
        self._word = word
        self._silent = word is None or self._untold(self._name, word)
        points = [] if word is None else self._differing(self._name, word)
        if points == self.points:
            return
        self.points = points
        self._changed()
        if not points:
            _logger.info("shard agrees with the map", extra={"shard": self._name})
        for point in points:
            severe = point.kind in ("shard", "placement")
            _logger.log(
                logging.ERROR if severe else logging.WARNING,
                "shard disagrees with the map",
                extra={"shard": self._name, "kind": point.kind, "reason": f"it {point.text}"},
            )


def _word(states: Sequence[NodeState]) -> Identity | None:
    """The primary's, or else that of the replica which knows of the newest map."""
    up = [state for state in states if state.health is Health.UP]
    for state in up:
        if state.role is Role.PRIMARY and not state.deposed:
            return state.identity
    words = [state.identity for state in up if state.identity is not None]
    return max(words, key=lambda word: word.version, default=None)


def refusal(path: str, points: Sequence[tuple[str, Disagreement]]) -> list[str]:
    """The lines that say why the map at `path` is not served."""
    kinds = dict.fromkeys(point.kind for _, point in points)
    return [
        f"{path} is not served, because it disagrees with its shards:",
        *(f"  {name} {point.text}" for name, point in points),
        *(f"to mend that: {_ADVICE[kind]}" for kind in kinds),
    ]
