"""What the nodes of one shard are taken for: what one of them says is judged by what the others do.

Invariants: of several primaries at most one takes writes; a node that is none of the shard's is neither read
nor written; a replica is read as fresh only if nothing that it has replayed is known to be of another log.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from router.freshness.freshness import Freshness
from router.nodes.node import Node
from router.policy.foreign import UNKNOWN, Servers, judge
from router.policy.lost_log import lost_bytes
from router.policy.replication import Heads, claims, elect
from router.policy.selection import Health, NodeState, Role
from router.query.types import Position

__all__ = ["Before", "Group", "Registry"]

_logger = logging.getLogger(__name__)


class Before(NamedTuple):
    """What was known of a shard when a probe began."""

    replicas: Sequence[tuple[Node, NodeState]] = ()
    acknowledged: Position | None = None


class Registry:
    """Every node with its group, to find servers that are listed twice."""

    def __init__(self) -> None:
        self.servers: Servers[Node] = Servers()
        self.groups: dict[Node, Group] = {}


class Group:
    """The nodes of one shard: what one of them says is judged by what the others do."""

    def __init__(
        self,
        nodes: Sequence[Node],
        registry: Registry | None = None,
        freshness: Freshness | None = None,
    ) -> None:
        self.nodes = nodes
        self.tried: set[Node] = set()  # those that a connection for probes is being opened to
        self._shard = nodes[0].shard
        self._registry = registry or Registry()
        self._order = len(self._registry.groups)
        self._registry.groups.update(dict.fromkeys(nodes, self))
        self._freshness = freshness
        self._heads = Heads()
        self._clock: float | None = None  # of the primary that was probed last
        self._timeline = 0  # the latest that any of them was on
        self._diverged: dict[Node, float] = {}  # when the server was started that has diverged
        # Replicas that were no further than their primary, and when their servers were started: what such a
        # one replays from then on, it gets from that primary.
        self._followed: dict[Node, float] = {}
        self._origin = UNKNOWN  # that of the shard's primary
        self._members: set[Node] = set()  # found to be the shard's
        self._identified = False  # whether one of them has said which shard it is
        # The last verdict on strangers, and all that it was made from: nearly every probe finds the same.
        self._foreign: dict[int, str] = {}
        self._judged_by: tuple[object, ...] = ()
        self._head: Position | None = None  # where the primary's log ended when it was last probed
        self._acknowledged: Position | None = None  # up to where writes were, at that time
        self._synchronous = False  # whether its commits waited for replicas, at that time
        self._lost = 0
        self._away = False  # what is lost may be on a later primary

    @property
    def lacking(self) -> bool:
        """Whether no node is up, or no primary: then each of the others may be the one that is needed."""
        return not any(claims(node.state) and not node.state.deposed for node in self.nodes)

    def before(self) -> Before:
        """What the answer to a probe that begins now is to be judged by.

        What a replica has replayed by now, and what was acknowledged, is in the primary's log by the time of
        its answer; what comes meanwhile says nothing.
        """
        freshness = self._freshness
        acknowledged = None if freshness is None else freshness.acknowledged.newest(self._shard)
        return Before(self.replayed(), acknowledged)

    def replayed(self) -> list[tuple[Node, NodeState]]:
        """The replicas, as they are known now."""
        states = ((node, node.state) for node in self.nodes)
        return [pair for pair in states if pair[1].health is Health.UP and pair[1].role is Role.REPLICA]

    def is_doubted(self, primary: Node) -> bool:
        """Whether a replica is taken for deposed only until `primary` has been probed again."""
        return (
            claims(primary.state)
            and not primary.state.deposed
            and any(node.state.deposed and node not in self._diverged for node, _ in self.replayed())
        )

    def observe(self, node: Node, state: NodeState, now: float, before: Before) -> None:
        """Take over what a probe of `node` has found; `before` is from when it began."""
        order = self._order + self.nodes.index(node)
        others = self._registry.servers.saw(node, order, node.config.name, node.shard, state)
        self._judge(node, state, now, before)
        for other in others:
            if other is not node and other not in self.nodes:
                self._registry.groups[other].reconsider(other, now)

    def reconsider(self, node: Node, now: float) -> None:
        """Judge `node` by what is known by now."""
        self._judge(node, _answered(node.state), now, None)

    def _judge(self, node: Node, state: NodeState, now: float, before: Before | None) -> None:
        answered = [state if other is node else _answered(other.state) for other in self.nodes]
        system = self._origin.system
        foreign = self._strangers(answered)
        if before is not None and system not in (0, self._origin.system):
            before = Before()  # that was known of another log
        states = [
            msgspec.structs.replace(known, health=Health.FOREIGN) if index in foreign else known
            for index, known in enumerate(answered)
        ]
        latest = max(self._timeline, *(known.timeline for known in states if claims(known)), 0)
        if latest > self._timeline:
            # On a new timeline earlier verdicts are void: a replica that was ahead of the old primary may
            # follow the new one.
            self._timeline = latest
            self._diverged.clear()
            self._followed.clear()
        elected = elect(states, self._timeline)
        first = False  # whether this is the first known end of the log, which all lags are told by
        if before is not None and elected is not None and self.nodes[elected] is node:
            first = not self._heads.known
            self._clock = state.clock
            self._heads.saw(state.lsn, now)
            self._find_diverged(before.replicas, state.lsn)
            self._find_lost(node, state, before.acknowledged)
        lost = self._lost if self._freshness is None else self._freshness.counters.lost(self._shard)
        for index, (other, known) in enumerate(zip(self.nodes, states, strict=True)):
            health = other.state.health
            replica = known.health is Health.UP and known.role is Role.REPLICA
            deposed = self._strayed(other, known) if replica else claims(known) and index != elected
            lag = self._heads.lag(known.lsn, now, self._age(known)) if replica else 0.0
            up = known.health is Health.UP and known.searchable
            behind = _behind(known, lag, other.max_lag)
            reason = known.reason if not up else self._why(other, known) if deposed else behind
            if index in foreign:
                reason, deposed = foreign[index], False
            same = (deposed, reason) == (other.state.deposed, other.state.reason)
            same &= (known.health is Health.FOREIGN) == (health is Health.FOREIGN)
            if other is not node and same and not (first and replica):
                continue
            other.observe(msgspec.structs.replace(known, deposed=deposed, lag=lag, reason=reason, lost=lost))
        if state.health is Health.DOWN and any(other.state.health is Health.UP for other in self.nodes):
            # Its searches move on: somebody else can answer them.
            node.abandon()

    def _age(self, replica: NodeState) -> float:
        """Since the commit of what it has replayed last, by one clock as far as the primary's is known."""
        ahead = 0.0 if self._clock is None else replica.clock - self._clock
        return max(replica.age - ahead, 0.0)

    def _strangers(self, states: Sequence[NodeState]) -> dict[int, str]:
        """Which of the nodes are none of the shard's, and why."""
        judged_by = (
            *(self._registry.servers.version, self._origin, len(self._members), self._identified),
            *[(state.health, state.role, state.system, state.database, state.identity) for state in states],
        )
        if judged_by == self._judged_by:
            return self._foreign
        self._judged_by = judged_by
        twice = {
            index: reason
            for index, node in enumerate(self.nodes)
            if (reason := self._registry.servers.twice(node)) is not None
        }
        members = [index for index, node in enumerate(self.nodes) if node in self._members]
        verdict = judge(
            self._shard,
            states,
            known=self._origin,
            members=members,
            identified=self._identified,
            twice=twice,
        )
        own = [
            (node, state)
            for index, (node, state) in enumerate(zip(self.nodes, states, strict=True))
            if (state.system, state.database) == verdict.origin != UNKNOWN and index not in verdict.foreign
        ]
        if self._origin.system not in (0, verdict.origin.system):
            self._begin_anew(verdict.origin.system, [state for _, state in own if claims(state)])
        self._origin = verdict.origin
        self._members |= {node for node, _ in own}
        self._identified = self._identified or any(state.identity is not None for _, state in own)
        self._foreign = verdict.foreign
        return self._foreign

    def _begin_anew(self, system: int, primaries: Sequence[NodeState]) -> None:
        """The shard was built anew: timelines and positions are those of another log."""
        _logger.error(
            "shard was built anew",
            extra={
                "shard": self._shard,
                "from": self._origin.system,
                "to": system,
                "reason": "its primary has another system identifier: whether acknowledged writes are there"
                " cannot be told by its log",
            },
        )
        self._heads = Heads()
        self._timeline = 0
        self._diverged.clear()
        self._followed.clear()
        self._members.clear()
        self._head = self._acknowledged = None
        if self._freshness is not None:
            for state in primaries:
                self._freshness.lost(self._shard, Position(state.timeline, state.written))

    def _find_diverged(self, replicas: Sequence[tuple[Node, NodeState]], head: int) -> None:
        """Remember replicas that have replayed more than the primary wrote: they followed another one.

        It cannot find its way back but by pg_rewind or from a new copy, and with a restart either way;
        until then its log's positions mean nothing, also when the primary's have overtaken them.
        """
        for replica, known in replicas:
            if known.lsn > head:
                self._diverged[replica] = known.started
            else:
                self._followed[replica] = known.started

    def _strayed(self, replica: Node, state: NodeState) -> bool:
        """Whether a replica has rows that the primary lacks, or may have until the primary is asked again."""
        if self._diverged.get(replica) == state.started:
            return True
        if self._followed.get(replica) == state.started:
            return False
        if self._head is None or self._head.timeline != self._timeline:
            return False  # nothing is known of the primary
        if state.lsn <= self._head.lsn:
            self._followed[replica] = state.started
            return False
        return True

    def _find_lost(self, node: Node, state: NodeState, acknowledged: Position | None) -> None:
        """See whether the primary's log holds what was written to the shard; say so once if it does not."""
        # Where commits waited for replicas, what the log had beyond the last one may have come to them later.
        # A successor that is left alone waits for nobody: it is the earlier primary's word that counts.
        waited = state.synchronous if self._head is None else self._synchronous
        mark = self._acknowledged if waited else acknowledged
        lost = lost_bytes(state, mark, self._head)
        # Redis knows of a successor that this process never saw; what it had is there again when it is.
        away = mark is not None and mark.timeline > state.timeline
        if self._away and not away:
            self._note_lost(0)
        self._away = away
        if lost > self._lost or (lost and not away):
            self._note_lost(max(self._lost, lost))
            recovered = None if state.recovered is None else Position(state.timeline, state.recovered)
            _logger.error(
                "shard has lost log",
                extra={
                    "shard": self._shard,
                    "node": node.config.name,
                    "lost_bytes": lost,
                    "acknowledged": _shown(mark),
                    "seen": _shown(self._head),
                    "log_ends": _shown(Position(state.timeline, state.written)),
                    "replay_ended": _shown(recovered),
                },
            )
            if self._freshness is not None and not away:
                self._freshness.lost(self._shard, Position(state.timeline, state.written))
                acknowledged = None
        self._head = Position(state.timeline, state.lsn)
        self._acknowledged, self._synchronous = acknowledged, state.synchronous

    def _note_lost(self, size_bytes: int) -> None:
        self._lost = size_bytes
        if self._freshness is not None:
            self._freshness.counters.note_lost(self._shard, size_bytes)

    def _why(self, node: Node, state: NodeState) -> str:
        if state.role is Role.REPLICA:
            if node not in self._diverged:
                return "it has replayed more than its primary had written; the primary's next probe will tell"
            return "it has replayed what the primary never wrote: it followed another one"
        if state.leads is False:
            return "its Patroni says that it does not lead"
        if state.timeline < self._timeline:
            return f"its timeline is {state.timeline}, but a primary was on {self._timeline} since"
        return f"another node claims to be the primary on timeline {state.timeline} too"


def _answered(state: NodeState) -> NodeState:
    """What a node said before it was judged."""
    return msgspec.structs.replace(state, health=Health.UP) if state.health is Health.FOREIGN else state


def _behind(state: NodeState, lag: float, most: float) -> str | None:
    """Why a replica that is up will not catch up, or is further behind than is read."""
    if state.role is Role.REPLICA and lag and not state.receiving:
        return "it lacks log that its primary has written, and nothing is sending it any"
    if lag > most:
        return f"it has lacked for more than {most:g} s (max_lag) what its primary wrote"
    return None


def _shown(position: Position | None) -> str | None:
    if position is None:
        return None
    return f"{position.lsn >> 32:X}/{position.lsn & 0xFFFFFFFF:X} on timeline {position.timeline}"
