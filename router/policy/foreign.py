"""Which of the nodes listed for a shard are none of it. Pure.

Three things tell: what the node says of itself (`shard_config.identity`), its origin (PostgreSQL's system
identifier and the database, which a primary and all its copies share, and nobody else), and whether two names
lead to one server.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from router.policy.replication import claims
from router.policy.selection import Health, NodeState

__all__ = ["UNKNOWN", "Origin", "Servers", "Verdict", "judge"]

K = TypeVar("K", bound=Hashable)


class Origin(NamedTuple):
    """What a primary and all its copies share: the system identifier, and the database's name."""

    system: int
    database: str


UNKNOWN = Origin(0, "")


class Verdict(NamedTuple):
    """`foreign`: why, by index, a node is none of the shard's. `origin`: the shard's own, if it is known."""

    foreign: dict[int, str]
    origin: Origin


def judge(
    shard: str,
    states: Sequence[NodeState],
    *,
    known: Origin = UNKNOWN,
    members: Collection[int] = (),
    identified: bool = False,
    twice: Mapping[int, str] | None = None,
) -> Verdict:
    """Tell strangers among the nodes of `shard` that answer.

    1. A node that says it is another shard is one, and so is what leads to a server that is listed before.
    2. All others should be of one origin. If they are not, the shard's own is the one that it was `known` to
       have, or else that of the only primary, or of the only primary that says it is this shard.
    3. Where nobody can tell, nobody is read: half of the answers would be wrong.
    4. If all that answer are of an origin that is not the `known` one, the shard may have been built anew: it
       was, if they say they are this shard. Where it never said so before, it also was if they were `members`
       of it under their names; where it did, a server that says nothing is more likely an empty one.

    Args:
        known: the origin that the shard's primary was last seen to have.
        members: indexes of nodes that were found to be the shard's before.
        identified: the shard has said before which it is.
        twice: by index, why a node is another one under a second name.
    """
    foreign = dict(twice or {})
    answering = [index for index, state in enumerate(states) if state.health is Health.UP and state.system]
    for index in answering:
        identity = states[index].identity
        if identity is not None and identity.shard != shard:
            foreign[index] = f"it says that it is the shard {identity.shard}"
    answering = [index for index in answering if index not in foreign]
    origins = {_origin(states[index]) for index in answering}
    own = _own([states[index] for index in answering], origins, known)
    if len(origins) == 1 and known != UNKNOWN and own != known:
        says = any(states[index].identity is not None for index in answering)
        if not says and (identified or not any(index in members for index in answering)):
            own = known
    for index in answering:
        if own is None:
            foreign[index] = _nobody_can_tell(shard, origins)
        elif _origin(states[index]) != own:
            foreign[index] = _no_copy(shard, _origin(states[index]), own)
    sure = own is not None and any(
        claims(states[index]) for index in answering if _origin(states[index]) == own
    )
    return Verdict(foreign, own if own is not None and sure else known)


def _origin(state: NodeState) -> Origin:
    return Origin(state.system, state.database)


def _own(states: Sequence[NodeState], origins: set[Origin], known: Origin) -> Origin | None:
    if len(origins) <= 1:
        return next(iter(origins), known)
    if known in origins:
        return known
    leading = [state for state in states if claims(state)]
    for candidates in (leading, [state for state in leading or states if state.identity is not None]):
        found = {_origin(state) for state in candidates}
        if len(found) == 1:
            return found.pop()
    return None


def _nobody_can_tell(shard: str, origins: set[Origin]) -> str:
    what, names = "systems", {str(origin.system) for origin in origins}
    if len(names) == 1:
        what, names = "databases", {origin.database for origin in origins}
    return (
        f"nodes of different {what}, {' and '.join(sorted(names))}, are listed for {shard}, and nothing says"
        " which is right: take the wrong one out of the map"
    )


def _no_copy(shard: str, origin: Origin, own: Origin) -> str:
    if origin.system != own.system:
        return f"its system identifier is {origin.system}, and that of {shard} is {own.system}: it is no copy"
    return f"its database is {origin.database}, and that of {shard} is {own.database}"


class _Name(NamedTuple):
    order: int
    node: str
    shard: str
    says: str | None  # the shard that the server says it is


class Servers(Generic[K]):
    """Which names lead to which running server, over all shards; `K` stands for a listed node.

    Two names mean one server if it is of one system, was started at one moment and holds one database.

    Attributes:
        version: is another whenever a verdict may be.
    """

    def __init__(self) -> None:
        self.version = 0
        self._names: dict[tuple[int, float, str], dict[K, _Name]] = {}
        self._server: dict[K, tuple[int, float, str]] = {}

    def __repr__(self) -> str:
        return f"<Servers {len(self._names)} under {len(self._server)} names>"

    def saw(self, key: K, order: int, node: str, shard: str, state: NodeState) -> set[K]:
        """Take in what `node` answered; returns the other nodes on whose server the verdict may be new."""
        before, now = self._server.get(key), None
        name = _Name(order, node, shard, None if state.identity is None else state.identity.shard)
        if state.health is Health.UP and state.system:
            now = (state.system, state.started, state.database)
        if now == before and (now is None or self._names[now][key] == name):
            return set()
        self.version += 1
        changed: set[K] = set()
        if before is not None:
            names = self._names[before]
            del names[key], self._server[key]
            changed |= names.keys()
            if not names:
                del self._names[before]
        if now is not None:
            names = self._names.setdefault(now, {})
            changed |= names.keys()
            names[key] = name
            self._server[key] = now
        return changed

    def twice(self, key: K) -> str | None:
        """Why `key` is another listed node under a second name, if it is."""
        server = self._server.get(key)
        if server is None or len(self._names[server]) == 1:
            return None
        names = self._names[server]
        # The shard that the server says it is knows it by its right name.
        first = min(names, key=lambda one: (names[one].says != names[one].shard, names[one].order))
        if first == key:
            return None
        return f"it is the server that is listed as {names[first].node} of {names[first].shard} already"
