"""One shard's replica set: picks a node, asks a second one if it is slow, and another if it cannot answer.

Invariant: whoever asks gets one report, unless it leaves first; a shard without an answer is data, not
an exception. Only full queues everywhere are one.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Literal

import msgspec

from router.nodes.dispatcher import Fetched, Ticket
from router.nodes.node import Node
from router.policy.budget import Budget
from router.policy.ejection import TRIAL_SECONDS, has_room
from router.policy.selection import Health, Reads, Role, rank
from router.postgres.connection import LASTING, ErrorKind, NodeError
from router.query.errors import OverloadedError
from router.query.types import Hedge, Position, Probe, ShardReport, ShardRows, ShardState, Work

__all__ = ["Ask", "ReplicaSet"]

_RETRIED = (ErrorKind.UNREACHABLE, ErrorKind.LOST, ErrorKind.TRANSIENT, ErrorKind.CONFLICT)
_ANY = Reads()
# What fails on one node for good may still be that node's own fault: a library that is missing there.
_TRIED_ELSEWHERE = (*_RETRIED, *LASTING)
# A node that cannot be reached is taken down at once.
_STRUCK = (ErrorKind.LOST, ErrorKind.TRANSIENT, ErrorKind.CONFLICT)
# Seconds before a second node is asked while it is not known what is usual; and at least.
_HEDGE_DELAY, _HEDGE_DELAY_LEAST = 0.1, 0.002
_TICK = 0.001  # of the loop's clock
# Times as long until it is asked for again, after a hedge was refused.
_HEDGE_DELAY_GROWTH = 3
# Times as long as is usual that an ejected node has for its trial.
_TRIAL_FACTOR = 4


class ReplicaSet:
    """The nodes of one shard; holds no state of its own beyond them.

    `hedges` is what may be asked twice, and `retries` again; None for nothing and for everything. `suspect`
    is told the shard when a statement fails for a reason that lasts; `behind`, each position that a search
    wants and a node is not known to have: another worker may have written, of which this worker's prober has
    not heard. `clock` is in seconds, for durations.
    """

    def __init__(
        self,
        shard: str,
        nodes: Sequence[Node],
        *,
        reads: Reads = _ANY,
        hedges: Budget | None = None,
        retries: Budget | None = None,
        suspect: Callable[[str], None] = lambda _: None,
        behind: Callable[[str, int], None] = lambda shard, lsn: None,
        rng: Callable[[], float] = random.random,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.shard = shard
        self.nodes = tuple(nodes)
        self.several = len(self.nodes) > 1
        self.hedges = hedges if self.several else None
        self.retries = retries
        self.clock = clock
        self._suspect = suspect
        self._reads = reads
        self._behind = behind
        self._told = 0  # the last position that `behind` was told of
        self._rng = rng
        self._waiting: set[asyncio.Future[Node]] = set()
        self._relying: dict[Callable[[], None], Node] = {}
        for node in self.nodes:
            node.sets.append(self)

    def __repr__(self) -> str:
        return f"<ReplicaSet {self.shard} {list(self.nodes)}>"

    def close(self) -> None:
        """Be told nothing more by the nodes, which may outlive this set."""
        for node in self.nodes:
            if self in node.sets:
                node.sets.remove(self)

    @property
    def readable(self) -> bool:
        return any(node.state.health is Health.UP and node.state.searchable for node in self.nodes)

    def primary(self) -> Node | None:
        """The node that takes writes, if one is known and up."""
        for node in self.nodes:
            state = node.state
            if state.health is Health.UP and state.role is Role.PRIMARY and not state.deposed:
                return node
        return None

    @property
    def timeline(self) -> int:
        """The latest that a primary of the set is known to have been on; 0 if none was seen."""
        return max([node.state.timeline for node in self._own()], default=0)

    def head(self, since: float) -> Position | None:
        """Where the log ended when probes that began after `since`, by the loop's clock, found out.

        None if they have not, or if the primary is away: its successor may have written more. Where a map
        names replicas alone, it is the furthest of them.
        """
        up = [node for node in self.nodes if node.state.health is Health.UP]
        # A node that has been promoted says so when it is asked again.
        if not up or any(node.probed < since for node in up):
            return None
        if (primary := self.primary()) is not None:
            return Position(primary.state.timeline, primary.state.lsn)
        if any(node.state.role is Role.PRIMARY for node in self._own()):
            return None
        return Position(0, max(node.state.lsn for node in up))

    def _own(self) -> list[Node]:
        """Those that are the shard's."""
        return [node for node in self.nodes if node.state.health is not Health.FOREIGN]

    async def primary_within(self, seconds: float) -> Node | None:
        """`primary`, as soon as there is one; None if there is none in that time."""
        if (node := self.primary()) is not None or seconds <= 0:
            return node
        future: asyncio.Future[Node] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            return None
        finally:
            self._waiting.discard(future)

    @contextmanager
    def relying_on(self, primary: Node, lost: Callable[[], None]) -> Iterator[None]:
        """`lost` is called, once, when `primary` stops being the primary within the block."""
        self._relying[lost] = primary
        try:
            yield
        finally:
            self._relying.pop(lost, None)

    def ask(self, probe: Probe, deadline: float, done: Callable[[str, ShardRows | Exception], None]) -> Ask:
        """Fetch the probe's rows from the best node, or from the next ones if it fails or is late.

        Each node is tried once, and once more after the others, on a new connection, if it only lost its
        connection. An error that would repeat elsewhere ends the attempts. `done` is called once with the
        shard's name and its rows, or an OverloadedError when every node that could answer has a full queue;
        it may be called before this returns. Past the deadline the caller is expected to leave.
        """
        if self.retries is not None:
            self.retries.earn()
        if self.several:
            if self.hedges is not None:
                self.hedges.earn()
            if any([node.ejected for node in self.nodes]):
                self._try_ejected(probe)
        ask = Ask(self, probe, deadline, done)
        ask.try_next()
        return ask

    def order(self, probe: Probe, now: float) -> list[tuple[int, bool]]:
        """Nodes to try, best first, as (index, whether its rows may be stale)."""
        order = rank(
            self.nodes,
            self._reads,
            work=probe.work,
            primary_only=probe.primary_only,
            min_lsn=probe.min_lsn,
            now=now,
            random=self._rng,
        )
        if probe.min_lsn > self._told and any([stale for _, stale in order]):
            self._told = probe.min_lsn
            self._behind(self.shard, probe.min_lsn)
        return order

    def expected(self, probe: Probe) -> tuple[float, float]:
        """Seconds that a single search would wait here, and that each of many like `probe` takes the set."""
        up = [node.dispatcher for node in self.nodes if node.state.health is Health.UP and not node.ejected]
        if not up:
            return 0.0, 0.0
        usual = max([dispatcher.expected(probe) for dispatcher in up])
        return min([dispatcher.ahead for dispatcher in up]), usual / len(up)

    def hedge_delay(self, work: Work) -> float:
        """Seconds after which a second node is worth asking: what is usual for the fastest of the set."""
        usual = [
            quantile
            for node in self.nodes
            if node.state.health is Health.UP and (quantile := node.latencies[work].quantile) is not None
        ]
        return max(min(usual, default=_HEDGE_DELAY), _HEDGE_DELAY_LEAST)

    def _try_ejected(self, probe: Probe) -> None:
        """Ask ejected nodes whose time has come, beside the one that the caller waits for."""
        for node in self.nodes:
            if node.ejected and node.ejection.due(self.clock()):
                node.try_again(probe, max(TRIAL_SECONDS, _TRIAL_FACTOR * self.hedge_delay(probe.work)))

    def failed_for_good(self) -> None:
        """A statement has failed there as it will again, until somebody mends the tables or the rights."""
        self._suspect(self.shard)

    def has_room(self) -> bool:
        """Whether one node more may be left out."""
        ejected = sum(node.ejected for node in self.nodes)
        return has_room(ejected, len(self.nodes), self._reads.max_ejected)

    def observed(self) -> None:
        """Tell who waits for a primary, and who relies on one that is none any more."""
        if not (self._waiting or self._relying):
            return
        node = self.primary()
        for lost, primary in list(self._relying.items()):
            if primary is not node:
                del self._relying[lost]
                lost()
        if node is not None:
            for future in self._waiting:
                if not future.done():
                    future.set_result(node)


class _Attempt:
    """One node's turn: whether it is behind, and how far its log was known to reach when it was asked."""

    __slots__ = ("lsn", "node", "since", "stale", "ticket")

    def __init__(self, node: Node, stale: bool, lsn: int, since: float) -> None:
        self.node = node
        self.stale = stale
        self.lsn = lsn
        self.since = since
        self.ticket: Ticket | None = None


class Ask:
    """One probe on its way through a replica set.

    No task of its own: a step is taken when a node has answered, or is late, which spares a search one task
    and two turns of the event loop per shard.
    """

    __slots__ = (
        "_attempts",
        "_blamed",
        "_cause",
        "_deadline",
        "_done",
        "_flying",
        "_kinds",
        "_late_at",
        "_lost",
        "_order",
        "_overloaded",
        "_probe",
        "_problems",
        "_refusals",
        "_replicas",
        "_second",
        "_started",
        "_timer",
    )

    def __init__(
        self,
        replicas: ReplicaSet,
        probe: Probe,
        deadline: float,
        done: Callable[[str, ShardRows | Exception], None],
    ) -> None:
        self._replicas = replicas
        self._probe = probe
        self._deadline = deadline
        self._done = done
        self._started = replicas.clock()
        self._order = deque(replicas.order(probe, self._started))
        self._attempts = 0
        self._blamed: tuple[tuple[Node, NodeError], ...] = ()  # who failed for good, unless the others do too
        self._kinds: frozenset[ErrorKind] = frozenset()  # of what went wrong
        self._flying: list[_Attempt] = []
        self._lost: set[int] = set()
        self._problems: list[str] = []
        self._cause = ""  # of the last of them
        self._overloaded: OverloadedError | None = None
        self._second: _Attempt | None = None  # beside the first
        self._refusals = 0
        self._late_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def leave(self) -> ShardReport:
        """The rows are not wanted any more, and `done` will not be called; returns how far it came."""
        now = self._replicas.clock()
        report = ShardReport(
            self._replicas.shard,
            ShardState.TIMED_OUT,
            attempts=self._attempts,
            hedged=self._second is not None,
            hedge=self._hedge_outcome(None),
            total_ms=(now - self._started) * 1000,
            asked=self._probe.asked,
        )
        if self._flying:
            # Who was asked first has had the longest time.
            first = self._flying[0]
            waits = first.ticket is not None and first.ticket.statement is None
            had_ms = (now - first.since) * 1000
            report = msgspec.structs.replace(
                report,
                node=first.node.config.name,
                role=first.node.state.role,
                queue_ms=had_ms if waits else 0.0,
                execute_ms=0.0 if waits else had_ms,
            )
        self._stop()
        return report

    def try_next(self) -> None:
        """Try the next node, or report that none is left."""
        if self._send() is not None:
            if self._replicas.hedges is not None and self._order and self._second is None:
                self._wait_for_hedge()
            return
        self._stop()
        # Kept here, it would hold the frames that it passes next, which hold this object.
        overloaded, self._overloaded = self._overloaded, None
        if overloaded is not None and not self._problems:
            self._done(self._replicas.shard, overloaded)
        else:
            self._done(self._replicas.shard, ShardRows([], self._failure()))

    def _send(self) -> _Attempt | None:
        """Ask the next node that takes it."""
        while self._order:
            index, stale = self._order.popleft()
            node = self._replicas.nodes[index]
            if node.state.health in (Health.DOWN, Health.FOREIGN):
                continue  # since the order was made
            self._attempts += 1
            # Known before the statement starts, so that its rows hold at least this much.
            lsn = node.state.lsn if stale else max(node.state.lsn, self._probe.min_lsn)
            attempt = _Attempt(node, stale, lsn, self._replicas.clock())
            probe = self._probe
            if index in self._lost:
                # What has ended one connection often ends all of them, one after the other.
                probe = msgspec.structs.replace(probe, key=None, renewed=True)
            try:
                attempt.ticket = node.submit(probe, self._deadline, partial(self._received, attempt, index))
            except OverloadedError as exc:
                self._overloaded = exc.with_traceback(None)  # which holds this frame, and so this object
                continue
            self._flying.append(attempt)
            return attempt
        return None

    def _wait_for_hedge(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay = self._replicas.hedge_delay(self._probe.work) * _HEDGE_DELAY_GROWTH**self._refusals
        self._late_at = self._replicas.clock() + delay
        self._timer = asyncio.get_running_loop().call_later(delay, self._hedge)

    def _hedge(self) -> None:
        """It takes longer than is usual: a second node may be faster, and whichever is first counts."""
        early = self._late_at - self._replicas.clock()
        if early > _TICK / 10:
            # uvloop counts whole milliseconds from the beginning of its turn, and what is usual is a few of
            # them: of searches that take 3 ms, a third would be called late.
            self._timer = asyncio.get_running_loop().call_later(max(early, _TICK), self._hedge)
            return
        self._timer = None
        hedges = self._replicas.hedges
        # A fresh answer is worth more than a fast one.
        if hedges is None or not self._flying or not self._order or self._order[0][1]:
            return
        (first, *_), second = self._flying, self._replicas.nodes[self._order[0][0]]
        # Where searches wait, one more is no faster; but a node that keeps silent may be gone.
        useless = second.dispatcher.waiting and first.node.heard >= first.since
        # Some share is always later than is usual, and would leave nothing for those that are very late.
        if not useless and hedges.try_spend(urgent=self._refusals > 0):
            self._second = self._send()
        else:
            self._refusals += 1
            self._wait_for_hedge()

    def _received(self, attempt: _Attempt, index: int, outcome: Fetched | Exception) -> None:
        attempt.ticket = None
        self._flying.remove(attempt)
        if isinstance(outcome, Fetched):
            self._won(attempt, outcome)
        elif isinstance(outcome, NodeError):
            self._failed(attempt, index, outcome)
        elif isinstance(outcome, OverloadedError):
            self._overloaded = outcome
            if not self._flying:
                self.try_next()
        else:
            self._stop()
            self._done(self._replicas.shard, outcome)

    def _won(self, attempt: _Attempt, fetched: Fetched) -> None:
        now = self._replicas.clock()
        if self._replicas.several:
            attempt.node.answered(self._probe.work, now - attempt.since, now)
        for node, error in self._blamed:
            node.refused(error, now)
        late = self._flying
        self._stop()
        for other in late:
            if other.since < attempt.since:
                other.node.unanswered(other.since, now)
        self._done(self._replicas.shard, ShardRows(fetched.rows, self._report(attempt, fetched)))

    def _failed(self, attempt: _Attempt, index: int, error: NodeError) -> None:
        attempt.node.failed(error)
        retries = self._replicas.retries
        # Of the caller's own values the caller is told in the server's words, and nothing else.
        named = "" if error.kind is ErrorKind.DATA else f"{attempt.node.config.name}: "
        self._problems.append(f"{named}{error}")
        self._cause = error.cause
        self._kinds |= {error.kind}
        if error.kind in LASTING:
            self._blamed = (*self._blamed, (attempt.node, error))
            self._replicas.failed_for_good()
        if error.kind not in _TRIED_ELSEWHERE:
            self._order.clear()
        elif error.kind in LASTING:
            # Requests that are wrong everywhere leave half of what may be tried again to those that are not.
            if self._order and retries is not None and not retries.try_spend(urgent=False):
                self._order.clear()
        elif not self._flying and retries is not None and not retries.try_spend():
            self._problems.append("too many searches are tried again")
            self._order.clear()
        elif error.kind is ErrorKind.LOST and index not in self._lost:
            self._lost.add(index)
            self._order.append((index, attempt.stale))
        if error.kind in _STRUCK and self._replicas.several:
            attempt.node.refused(error, self._replicas.clock())
        if not self._flying:
            self.try_next()

    def _stop(self) -> None:
        """Nothing more will be wanted: what is under way is cancelled by its node."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._order.clear()
        if self._flying:
            flying, self._flying = self._flying, []
            for attempt in flying:
                if attempt.ticket is not None:
                    attempt.node.leave(attempt.ticket)

    def _report(self, attempt: _Attempt, fetched: Fetched) -> ShardReport:
        node = attempt.node
        return ShardReport(
            self._replicas.shard,
            ShardState.OK,
            node=node.config.name,
            role=node.state.role,
            attempts=self._attempts,
            hedged=self._second is not None,
            hedge=self._hedge_outcome(attempt),
            stale=attempt.stale,
            lost=node.state.lost > 0,
            lsn=attempt.lsn,
            queue_ms=fetched.queue_ms,
            execute_ms=fetched.execute_ms,
            total_ms=(self._replicas.clock() - self._started) * 1000,
            together=fetched.together,
            asked=self._probe.asked,
            returned=len(fetched.rows),
            plan=fetched.plan,
        )

    def _hedge_outcome(self, winner: _Attempt | None) -> Hedge | None:
        if self._second is None:
            return Hedge.DENIED if self._refusals else None
        return Hedge.WON if self._second is winner else Hedge.LOST

    def _failure(self) -> ShardReport:
        return ShardReport(
            self._replicas.shard,
            ShardState.FAILED,
            attempts=self._attempts,
            hedged=self._second is not None,
            hedge=self._hedge_outcome(None),
            total_ms=(self._replicas.clock() - self._started) * 1000,
            asked=self._probe.asked,
            error="; ".join(self._problems) or self._why_nobody(),
            cause=self._why_in_a_word(),
            fault=self._fault(),
        )

    def _fault(self) -> Literal["request", "server"] | None:
        """Whose it is that nothing came, if that will be so again."""
        if not self._problems:
            return "server" if all(node.state.permanent for node in self._replicas.nodes) else None
        if self._kinds == {ErrorKind.DATA}:
            return "request"
        return "server" if self._kinds <= {ErrorKind.DATA, *LASTING} else None

    def _why_in_a_word(self) -> str:
        if not self._problems:
            return "no_primary" if self._probe.primary_only else "no_node"
        # Beside what lies with the caller's values, another node has failed otherwise.
        return "misconfigured" if self._cause == "invalid" and len(self._kinds) > 1 else self._cause

    def _why_nobody(self) -> str:
        wanted = "primary" if self._probe.primary_only else "node"
        states = (f"{node.config.name} is {_described(node)}" for node in self._replicas.nodes)
        return f"no {wanted} can be read: {', '.join(states)}"


def _described(node: Node) -> str:
    state = node.state
    role = f" as {state.role}" if state.role else ""
    behind = f", {state.lag:.1f} s behind" if state.lag else ""
    return f"{state.health}{role}{behind}" + (f" ({state.reason})" if state.reason else "")
