"""Between the searches and one node: few statements at once, and many searches in one statement.

PostgreSQL is fastest with about as many statements at once as it has cores. So a bounded number is in
flight, adapted by `router.policy.limit`, and what comes meanwhile waits. Waiting searches that differ
in their arguments alone leave together, as one statement with a row of answers for each. A search that
finds the node free leaves at once; nothing is ever delayed in the hope of company.

Invariants: a search is answered exactly once, or has left; what fails or leaves touches nobody who
shares its statement; at most `queue` single searches wait beside those that are tried again, none longer than
`wait` seconds and `_EXPIRY_SHARE` of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from time import perf_counter
from typing import Protocol

import msgspec

from router.policy.backlog import Backlog
from router.policy.batches import AdmittedBatch
from router.policy.limit import Limit
from router.policy.search_cost import SearchCost
from router.policy.shared_reads import SharedReads
from router.postgres.connection import ErrorKind, NodeError
from router.query.errors import OverloadedError
from router.query.types import Probe, Row

__all__ = ["Dispatcher", "Execute", "Fetched", "Ticket"]

# Of the time that a search may wait: between two looks for those that have waited too long.
_EXPIRY_SHARE = 1 / 32
# A statement of several searches is expected to take no longer than this: all wait for the last of them, as
# does whoever comes next. What leaving together saves is some tenths of a millisecond a search, which is
# nothing to searches that take as long as this.
_STATEMENT_SECONDS = 0.05
# The node, not one search of several, is what these are about.
_NODE_FAULTS = (ErrorKind.UNREACHABLE, ErrorKind.LOST)


class Fetched(msgspec.Struct, frozen=True):
    """One search's rows; `together` counts the searches that its statement carried."""

    rows: Sequence[Row]
    queue_ms: float
    execute_ms: float
    together: int = 1
    plan: str | None = None


class Execute(Protocol):
    """Runs probes of one key as one statement: the rows of each, in their order.

    Raises:
        NodeError
    """

    def __call__(self, probes: Sequence[Probe]) -> Awaitable[list[tuple[Sequence[Row], str | None]]]: ...


class Ticket:
    """A search's place with one node, from `Dispatcher.submit` until `done` is called or it leaves.

    Then it lets go of both `done` and `statement`: cycles of references between what asks and what
    answers cost a garbage collection of 50 ms for every thousand searches.

    One that is `in_batch` is not refused for the length of the queue, because its batch was admitted as a
    whole, and only its deadline ends its wait.
    """

    __slots__ = (
        "caller",
        "cost",
        "deadline",
        "done",
        "in_batch",
        "key",
        "kind",
        "probe",
        "since",
        "statement",
    )

    def __init__(
        self, probe: Probe, deadline: float, done: Callable[[Fetched | Exception], None], since: float
    ) -> None:
        self.probe = probe
        self.deadline = deadline
        self.done: Callable[[Fetched | Exception], None] | None = done
        self.key: Hashable = object() if probe.key is None else probe.key
        self.caller = probe.caller
        self.in_batch = isinstance(probe.caller, AdmittedBatch)
        self.since = since
        self.kind = _kind(probe)
        self.cost = 0.0  # seconds that it is expected to take the node
        self.statement: _Statement | None = None  # None while it waits

    @property
    def left(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.done is None


class _Statement:
    """What is in flight, and who waits for it."""

    __slots__ = ("task", "tickets")

    def __init__(self, tickets: list[Ticket]) -> None:
        self.tickets = tickets
        self.task: asyncio.Task[None] | None = None


class Dispatcher:
    """The way to one node; `pump` must be called when `busy` has gone down otherwise than by it.

    Args:
        execute: runs a statement.
        busy: connections that are neither free nor in a statement of ours.
        queue, wait: how many may wait, and for how many seconds.
        together: searches in one statement, at most; four times as many if it reads its rows once for all.
        clock: seconds, for durations; the loop's own clock counts whole milliseconds under uvloop.
    """

    def __init__(
        self,
        name: str,
        execute: Execute,
        limit: Limit,
        *,
        queue: int,
        wait: float,
        together: int,
        busy: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.name = name
        self.waiting = 0
        self.limit = limit
        self._execute = execute
        self._busy = busy
        self._queue = queue
        self._wait = wait
        self._together = together
        self._clock = clock
        self._backlog: Backlog[Ticket] = Backlog()
        self._statements: set[_Statement] = set()
        self._searches = 0  # that the statements carry
        self._costs = SearchCost()
        self._shared_reads = SharedReads(together, _STATEMENT_SECONDS)
        self._waiting_in_batches = 0  # of `waiting`
        # Seconds that what waits is expected to take the node: single searches, and those of batches.
        self._ahead, self._ahead_in_batches = 0.0, 0.0
        self._timer: asyncio.TimerHandle | None = None
        limit.pumps.append(self.pump)

    def __repr__(self) -> str:
        counts = f"{len(self._statements)} in flight, {self.waiting} waiting"
        return f"<Dispatcher {self.name} {counts}, {self.limit!r}>"

    @property
    def in_flight(self) -> int:
        """Statements."""
        return len(self._statements)

    @property
    def load(self) -> int:
        """Searches that a newcomer would share the node with."""
        return self.waiting + self._searches

    def submit(self, probe: Probe, deadline: float, done: Callable[[Fetched | Exception], None]) -> Ticket:
        """Take a place; `done` is called later, once, with rows or with a NodeError or OverloadedError.

        Raises:
            OverloadedError: as many wait as may, or it would wait too long.
        """
        ticket = Ticket(probe, deadline, done, self._clock())
        free = self._free()
        if free and not self.waiting:
            self._send([ticket])
            return ticket
        if not ticket.in_batch:
            self._check_queue()
        self._enqueue(ticket, ticket.since)
        if free:
            self.pump()
        return ticket

    @property
    def ahead(self) -> float:
        """Seconds that a single search would wait for its turn, as far as is known."""
        # The backlog leaves half of the node to single searches: before this one, batches take no more time
        # than they.
        return self._ahead + min(self._ahead_in_batches, self._ahead)

    def expected(self, probe: Probe) -> float:
        """Seconds that such a search has lately taken the node in the mean; 0 where nothing is known."""
        return self._costs.usual(_kind(probe), self._clock())

    def leave(self, ticket: Ticket) -> None:
        """The answer is not wanted any more; `done` will not be called."""
        if ticket.left:
            return
        statement = ticket.statement
        ticket.done = ticket.statement = None
        if statement is None:
            self._dequeued([ticket])
        elif statement.task is not None and all(other.left for other in statement.tickets):
            statement.task.cancel()

    def pump(self) -> None:
        """Send what waits, as far as the node has room."""
        while self.waiting and self._free():
            tickets = self._backlog.take(self._fitting)
            self._dequeued(tickets)
            tickets = self._in_time(tickets)
            if tickets:
                self._send(tickets)

    def abandon(self, error: NodeError) -> list[asyncio.Task[None]]:
        """The node does not answer: whoever waits, for its turn or for an answer, may try elsewhere.

        Returns the statements that were under way, which are cancelled.
        """
        tickets, statements = self._backlog.clear(), list(self._statements)
        self._dequeued(tickets)
        tasks = [statement.task for statement in statements if statement.task is not None]
        for task in tasks:
            task.cancel()
        for ticket in (*tickets, *(ticket for statement in statements for ticket in statement.tickets)):
            _tell(ticket, error)
        return tasks

    async def close(self) -> None:
        """Cancel everything; what waits is told so."""
        if self.pump in self.limit.pumps:
            self.limit.pumps.remove(self.pump)
        if self._timer is not None:
            self._timer.cancel()
        error = NodeError(ErrorKind.UNREACHABLE, "the router is closing its connections")
        await asyncio.gather(*self.abandon(error), return_exceptions=True)

    def _check_queue(self) -> None:
        """
        Raises:
            OverloadedError: as many single searches wait as may, or one more would wait too long.
        """
        waiting, ahead = self.waiting - self._waiting_in_batches, self.ahead
        if waiting >= self._queue or (ahead > self._wait and waiting > self._together):
            raise OverloadedError(
                f"{waiting} searches wait for node {self.name} already, about {ahead * 1000:.0f} ms",
                retry_after=max(ahead, 1.0),
            ).hidden(f"{waiting} searches wait for a shard already, about {ahead * 1000:.0f} ms")

    def _fitting(self, ticket: Ticket) -> int:
        """How many searches like this one a statement may carry."""
        if ticket.probe.shape.reads_once:
            return self._shared_reads.most(ticket.kind, ticket.probe.sharers)
        usual = self._costs.usual(ticket.kind, self._clock())
        return min(int(max(_STATEMENT_SECONDS / usual, 1.0)), self._together) if usual else self._together

    def _enqueue(self, ticket: Ticket, turn: float) -> None:
        ticket.cost = self._costs.of(ticket.kind, ticket.since)
        self._queued(ticket, turn)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait, self._expire)

    def _queued(self, ticket: Ticket, turn: float) -> None:
        self._backlog.add(ticket, turn, self.expected(ticket.probe) if ticket.in_batch else ticket.cost)
        self.waiting += 1
        if ticket.in_batch:
            self._waiting_in_batches += 1
            self._ahead_in_batches += ticket.cost
        else:
            self._ahead += ticket.cost

    def _dequeued(self, tickets: Sequence[Ticket]) -> None:
        self.waiting -= len(tickets)
        for ticket in tickets:
            if ticket.in_batch:
                self._waiting_in_batches -= 1
                self._ahead_in_batches -= ticket.cost
            else:
                self._ahead -= ticket.cost
        if not self.waiting:
            # What additions and subtractions of floats leave over.
            self._ahead = self._ahead_in_batches = 0.0

    def _free(self) -> bool:
        return self.limit.admits(len(self._statements) + self._busy())

    def _in_time(self, tickets: list[Ticket]) -> list[Ticket]:
        """Those that can still be answered; the others' callers are about to notice."""
        now = asyncio.get_running_loop().time()
        late = [ticket for ticket in tickets if ticket.deadline <= now]
        for ticket in late:
            ticket.done = None
        return [ticket for ticket in tickets if not ticket.left] if late else tickets

    def _send(self, tickets: list[Ticket]) -> None:
        statement = _Statement(tickets)
        for ticket in tickets:
            ticket.statement = statement
        self.limit.start(len(self._statements))
        self._statements.add(statement)
        self._searches += len(tickets)
        statement.task = asyncio.get_running_loop().create_task(self._run(statement))
        statement.task.add_done_callback(lambda _: self._ended(statement))

    async def _run(self, statement: _Statement) -> None:
        tickets = statement.tickets
        in_flight = len(self._statements)
        started = self._clock()
        try:
            answers = await self._execute([ticket.probe for ticket in tickets])
        except Exception as exc:
            self._failed(tickets, exc)
            return
        now = self._clock()
        probe, seconds, searches = tickets[0].probe, now - started, len(tickets)
        kind = tickets[0].kind
        if probe.shape.reads_once:
            # A full statement would have taken about as long.
            searches = self._shared_reads.took(kind, searches, seconds, probe.sharers)
        self._costs.took(kind, seconds / (searches * in_flight), now)
        for ticket, (rows, plan) in zip(tickets, answers, strict=True):
            queue_ms = (started - ticket.since) * 1000
            _tell(ticket, Fetched(rows, queue_ms, (now - started) * 1000, len(tickets), plan))
        self.limit.observe(len(tickets), now, waiting=self.waiting > 0)

    def _failed(self, tickets: list[Ticket], error: Exception) -> None:
        """Tell who asked; of several, each is tried again alone unless the node itself is at fault."""
        if isinstance(error, NodeError) and error.kind is ErrorKind.TRANSIENT:
            self.limit.refused()
        if len(tickets) == 1 or not isinstance(error, NodeError) or error.kind in _NODE_FAULTS:
            for ticket in tickets:
                _tell(ticket, error)
            return
        now = self._clock()
        for ticket in tickets:
            if not ticket.left:
                ticket.statement = None
                ticket.key = object()
                # It keeps its turn; but what it may wait now is not spent by the statement that failed.
                turn, ticket.since = ticket.since, now
                self._enqueue(ticket, turn)

    def _ended(self, statement: _Statement) -> None:
        self._statements.discard(statement)
        self._searches -= len(statement.tickets)
        self.limit.end(len(self._statements))
        statement.task = None  # which holds this statement in turn
        self.pump()
        if self.limit.room:
            # Nodes that share the limit may have waited for just this one.
            for pump in list(self.limit.pumps):
                pump()

    def _expire(self) -> None:
        """Refuse what has waited too long, and come again when the next may have."""
        self._timer = None
        now = self._clock()
        waited = f"waited {self._wait * 1000:.0f} ms"
        error = OverloadedError(f"{waited} for node {self.name} in vain").hidden(
            f"{waited} for a shard in vain"
        )
        oldest = now

        def late(ticket: Ticket) -> bool:
            nonlocal oldest
            if ticket.in_batch:
                return False
            if now - ticket.since >= self._wait:
                return True
            oldest = min(oldest, ticket.since)
            return False

        expired = self._backlog.remove(late)
        self._dequeued(expired)
        for ticket in expired:
            _tell(ticket, error)
        if self.waiting:
            # All are looked through each time, so that is not done for every single one.
            delay = max(oldest + self._wait - now, self._wait * _EXPIRY_SHARE)
            self._timer = asyncio.get_running_loop().call_later(delay, self._expire)


def _kind(probe: Probe) -> Hashable:
    """By which the cost of searches is known: not by a filter's values, of which there are many."""
    return probe.shape.single, probe.ef_search


def _tell(ticket: Ticket, outcome: Fetched | Exception) -> None:
    done = ticket.done
    if done is not None:
        ticket.done = ticket.statement = None
        done(outcome)
