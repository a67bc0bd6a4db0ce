"""A bounded set of connections to one node.

Invariants: at most `size` connections exist or are being opened, however callers are cancelled; at
most `queue` callers wait; nobody ever waits on a node that does not answer beyond its own deadline.
A connection whose statement was cancelled keeps its slot until PostgreSQL has confirmed the cancel,
or is terminated after `cancel_timeout`, and one whose caller left while it was opened until it is open:
only then may another statement start, so that cancelled work cannot pile up on the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from math import inf
from time import monotonic
from typing import TypeVar

import asyncpg

from router.postgres.connection import LASTING, POSTGRES_ERRORS, Connection, ErrorKind, NodeError, node_error
from router.postgres.renewal import Renewal
from router.query.errors import OverloadedError

__all__ = ["Pool"]

T = TypeVar("T")

# For an idle connection to show that it lives: a node that is well takes a millisecond and the network's
# time.
_CHECK_SECONDS = 0.5


class _Session:
    """What `Pool.session` returns; a generator would cost each statement of a search 10 us more."""

    __slots__ = ("_connection", "_ef_search", "_pool", "_renewed")

    def __init__(self, pool: Pool, ef_search: int | None, renewed: bool) -> None:
        self._pool = pool
        self._ef_search = ef_search
        self._renewed = renewed

    async def __aenter__(self) -> Connection:
        self._connection = await self._pool._begin(self._ef_search, self._renewed)
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: object
    ) -> None:
        error = self._pool._end(self._connection, exc)
        if error is None:
            return
        try:
            raise error from exc
        finally:
            del error  # else it would hold the frame that holds it, until a garbage collection


class Pool:
    """Connections of one kind to one node.

    Changed only by `session` and the tasks it leaves behind, all on one event loop.
    """

    def __init__(
        self,
        name: str,
        open_connection: Callable[[], Coroutine[None, None, Connection]],
        *,
        size: int,
        queue: int,
        cancel_timeout: float,
        check_after: float = inf,
        max_idle: float = inf,
        freed: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            check_after: how long a connection may idle, in seconds, and be used without a question.
            max_idle: after how long `tend` closes it.
            freed: is called whenever a connection that had lost its caller gives its place back.
        """
        self.name = name
        self.waiting = 0
        self.in_flight = 0
        self._open = open_connection
        self._size = size
        self._queue = queue
        self._cancel_timeout = cancel_timeout
        self._slots = asyncio.Semaphore(size)
        self._check_after = check_after
        self._max_idle = max_idle
        self._now = monotonic()  # at the last `tend`: no statement reads the clock
        self._idle: list[Connection] = []  # in the order in which they were used last
        self._known: set[Connection] = set()  # those that are open, and some that are not any more
        self._closing: set[asyncio.Task[None]] = set()
        self._mending: set[asyncio.Task[None]] = set()
        self._closed = False
        self._renewal = Renewal()
        self._freed = freed

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.in_flight}/{self._size} in flight"
        return f"<Pool {self.name} {state}, {len(self._idle)} idle, {self.waiting} waiting>"

    @property
    def connections(self) -> int:
        return len(self._idle) + self.in_flight

    @property
    def mending(self) -> int:
        """Places of connections that have lost their caller, and are opened or cancelled still."""
        return len(self._mending)

    async def run(
        self,
        work: Callable[[Connection], Awaitable[T]],
        ef_search: int | None = None,
        *,
        renewed: bool = False,
    ) -> T:
        """Run `work`, which changes nothing, in a session; if that may be at fault, again in a new one.

        Raises:
            OverloadedError, NodeError: as `session`.
        """
        try:
            async with self.session(ef_search, renewed=renewed) as connection:
                return await work(connection)
        except NodeError as exc:
            if not exc.renewable:
                raise
        async with self.session(ef_search, renewed=True) as connection:
            return await work(connection)

    def session(self, ef_search: int | None = None, *, renewed: bool = False) -> _Session:
        """A connection for as long as the block runs; rather one that scans indexes this wide already.

        The block may run statements one after the other. If it is cancelled, or left by an error
        that is not PostgreSQL's own answer, the connection is mended or terminated behind it. `renewed`: one
        that is newer than the last error that was `renewable`, and than the last connection that was lost.

        Raises:
            OverloadedError: at once, when `queue` callers wait already.
            NodeError: the node cannot be reached, or a statement of the block failed.
        """
        return _Session(self, ef_search, renewed)

    async def _begin(self, ef_search: int | None, renewed: bool) -> Connection:
        await self._take_slot()
        return await self._connection(ef_search, self._renewal.since if renewed else None)

    def _end(self, connection: Connection, exc: BaseException | None) -> NodeError | None:
        """Take it back from a block that `exc` has left; returns what that means, if PostgreSQL said it."""
        if exc is None or isinstance(exc, NodeError):
            self._settle(connection)
            return None
        if not isinstance(exc, POSTGRES_ERRORS):
            self._mend_later(self._mend(connection))
            return None
        error = self.error(connection, exc)
        if error.kind is ErrorKind.LOST:
            # What ended it may be ending those that idle as well, and of that nothing has been read yet.
            self._renewal.since = monotonic()
        if error.renewable or isinstance(exc, asyncpg.InternalClientError):
            connection.terminate()
        self._settle(connection)
        return error

    def error(self, connection: Connection, exc: BaseException) -> NodeError:
        """What one of `POSTGRES_ERRORS` on `connection` means; if `renewable`, it should be terminated."""
        error = node_error(exc)
        if error.kind in LASTING and self._renewal.due(connection.opened, monotonic()):
            error.renewable = True
        return error

    async def warm(
        self, open_connection: Callable[[], Coroutine[None, None, Connection]] | None = None
    ) -> None:
        """Open one connection ahead of the first search, unless there is one.

        Raises:
            OverloadedError, NodeError: as `session`.
        """
        if not self._idle:
            await self._take_slot()
            self._settle(await self._opened(open_connection or self._open))

    def tend(self, now: float) -> None:
        """Close what is too old, leads to where its name does not any more, or has idled for too long.

        One of each kind but the second at a time, so that what was opened together is not closed together.
        What is in use is closed when it comes back.
        """
        self._now = now
        for connection in self._known:
            if not connection.is_closed() and connection.way.moved:
                connection.expires = -inf
        gone = [connection for connection in self._idle if connection.expires == -inf]
        old = [connection for connection in self._idle if -inf < connection.expires < now][:1]
        idle = [connection for connection in self._idle if connection.used < now - self._max_idle][:1]
        for connection in dict.fromkeys([*gone, *old, *idle]):
            self._idle.remove(connection)
            self._close_later(connection)

    async def mended(self) -> None:
        """Return when the connections that have lost their callers by now are mended, or terminated."""
        if self._mending:
            await asyncio.wait(self._mending)

    def discard_idle(self) -> None:
        """Drop connections that a restart of the node has made useless."""
        while self._idle:
            self._idle.pop().terminate()

    def retire(self) -> None:
        """Use no connection again that is open now: they lead to another server than they should."""
        self.discard_idle()
        for connection in self._known:
            connection.expires = -inf

    async def close(self) -> None:
        """Terminate what is idle and wait for what is being mended; bounded by `cancel_timeout`."""
        self._closed = True
        self.discard_idle()
        if self._mending:
            _, late = await asyncio.wait(self._mending, timeout=self._cancel_timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self.discard_idle()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _take_slot(self) -> None:
        if self.waiting >= self._queue and self._slots.locked():
            error = OverloadedError(f"{self.waiting} statements wait for node {self.name} already")
            raise error.hidden(f"{self.waiting} statements wait for a shard already")
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.in_flight += 1

    def _give_slot(self) -> None:
        self.in_flight -= 1
        self._slots.release()

    async def _connection(self, ef_search: int | None, since: float | None) -> Connection:
        """For the slot that the caller has; which is given back if there is none.

        Opened after `since`, if that is given: an older one that would be taken makes room for a new one.
        """
        if self._closed:
            self._give_slot()
            raise NodeError(ErrorKind.UNREACHABLE, "the router is closing its connections")
        while self._idle and not self._closed:
            # The one used last: its server process has what it needs in the processor's caches.
            at = -1
            if self._idle[at].ef_search != ef_search:
                latest = range(len(self._idle) - 1, -1, -1)
                at = next((i for i in latest if self._idle[i].ef_search == ef_search), at)
            connection = self._idle.pop(at)
            if since is not None and connection.opened < since:
                connection.terminate()
                break
            if connection.is_closed():
                continue
            if self._now - connection.used <= self._check_after or await self._lives(connection):
                return connection
        return await self._opened(self._open)

    async def _lives(self, connection: Connection) -> bool:
        """Whether it answers; if not, it was lost without a word, and so may be what has idled beside it."""
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await connection.execute("SELECT 1")
        except POSTGRES_ERRORS:
            connection.terminate()
            while self._idle and self._now - self._idle[0].used > self._check_after:
                self._idle.pop(0).terminate()
            return False
        except BaseException:
            connection.terminate()
            self._give_slot()
            raise
        return True

    async def _opened(self, open_connection: Callable[[], Coroutine[None, None, Connection]]) -> Connection:
        """A new one, for the slot that the caller has; which is given back if there is none."""
        task = asyncio.ensure_future(open_connection())
        try:
            await asyncio.wait([task])
        except BaseException:
            # To open one costs the server more than most searches: the next caller has it.
            self._mend_later(self._keep(task))
            raise
        if task.exception() is not None:
            self._give_slot()
        else:
            self._remember(task.result())
        return task.result()

    def _remember(self, connection: Connection) -> None:
        self._known = {one for one in self._known if not one.is_closed()} | {connection}

    def _settle(self, connection: Connection) -> None:
        """Back to idle if it is between statements and outside a transaction, terminated if not."""
        if self._closed or connection.is_closed() or connection.is_in_transaction():
            connection.terminate()
        elif connection.expires < self._now:
            self._close_later(connection)
        else:
            connection.used = self._now
            self._idle.append(connection)
        self._give_slot()

    def _close_later(self, connection: Connection) -> None:
        """With a goodbye, which a server that is well does not log as a loss."""
        task = asyncio.create_task(self._close(connection), name=f"close {self.name}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self._cancel_timeout):
                await connection.close()
        except POSTGRES_ERRORS:
            connection.terminate()
        except BaseException:
            connection.terminate()
            raise

    def _mend_later(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name=f"mend {self.name}")
        self._mending.add(task)

        def mended(task: asyncio.Task[None]) -> None:
            self._mending.discard(task)
            self._freed()

        task.add_done_callback(mended)

    async def _keep(self, opening: asyncio.Task[Connection]) -> None:
        """Wait for a connection that whoever asked for it has left; bounded by its own time limit."""
        try:
            await asyncio.wait([opening])
        except BaseException:
            opening.cancel()
            (opened,) = await asyncio.gather(opening, return_exceptions=True)
            if not isinstance(opened, BaseException):
                opened.terminate()
            self._give_slot()
            raise
        if opening.cancelled() or opening.exception() is not None:
            self._give_slot()
        else:
            self._remember(opening.result())
            self._settle(opening.result())

    async def _mend(self, connection: Connection) -> None:
        # asyncpg has sent the cancel request; the next statement waits for its confirmation.
        try:
            async with asyncio.timeout(self._cancel_timeout):
                if not connection.is_closed() and connection.is_in_transaction():
                    await connection.execute("ROLLBACK")
                await connection.execute("SELECT pg_advisory_unlock_all()")
        except POSTGRES_ERRORS:
            connection.terminate()
        except BaseException:
            connection.terminate()
            self._give_slot()
            raise
        self._settle(connection)
