"""The connection to Redis: every use of it is bounded in time, and none of them ever fails a request.

A call that errs or exceeds its budget counts as no answer and switches Redis off, until a PING in the
background is answered in time: a slow or dead Redis costs the calls that are under way their budget, and
later ones nothing. One that answers but takes no writes (a replica, a full one, a user without the right) is
used for what it has, and known to be so: `refusal`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qs, urlsplit

import redis.asyncio as redis
from redis.exceptions import RedisError, ResponseError

from router.freshness.redis_errors import RedisCause, cause_of, described
from router.network.dial import Network
from router.network.names import Names

__all__ = ["RedisLink", "check_url", "exchange"]

_logger = logging.getLogger(__name__)

T = TypeVar("T")

# Calls that are under way, or wait for a connection.
_CALLS = 32
# All are opened before the first call: with a millisecond to Redis, to open one takes some 10 ms. When calls
# had to do that within their budget, two at once switched Redis off again and again, for half of all calls.
_CONNECTIONS = 8
# The resolution of uvloop's clock: a timer set this far ahead fires only after the loop has read its
# sockets once more.
_LOOP_TICK = 0.001
_SHORTEST_PAUSE = 0.01
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
# At the start nobody waits for it yet, and the first connection takes longer than a command.
_CHECK_SECONDS = 1.0
_CHECK_KEY = "pgscatter:check"
_CHECK_MS = 1000
# To open a connection takes several round trips and, perhaps, a name's look-up. Only the PING in the
# background ever has that long: a call has its budget.
_CONNECT_SECONDS = 1.0
_NAME_INTERVAL = 10.0


def check_url(url: str) -> None:
    """Find fault with a URL before anything rests on it.

    No part of it is shown: where the password holds a delimiter, any part may be the password's.

    Raises:
        ValueError: no connection could be made from it, or only one to another database than it names.
    """
    try:
        parts = urlsplit(url)
        database = parts.path[1:]
        parts.port  # noqa: B018  it is parsed when it is asked for
    except ValueError as exc:
        raise ValueError("its host or port is none; a port is a number up to 65535") from exc
    if parts.scheme == "unix":
        if not parts.path:
            raise ValueError("it has no path of a socket, as unix:///run/redis.sock has")
    elif database and not (database.isascii() and database.isdigit()):
        # The client would take one that it cannot read for number 0.
        raise ValueError("its database is none; it is a number, as in redis://127.0.0.1:6379/0")
    try:
        redis.ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, RedisError) as exc:
        raise ValueError("a parameter behind its ? is unknown, or has a value that it cannot have") from exc
    for name, values in parse_qs(parts.query).items():
        if name in _FILES:
            _check_readable(name, values[-1])


def _check_readable(name: str, path: str) -> None:
    try:
        open(path, "rb").close()
    except OSError as exc:
        raise ValueError(f"the file of {name} cannot be read: {exc.strerror}") from exc


class _Dialled(redis.Connection):
    """Connects by the router's own names: with the loop's, a silent one would hold up every other name."""

    network: Network

    async def _connect(self) -> None:
        arguments = dict(self._connection_arguments())
        host, port = arguments.pop("host"), arguments.pop("port")
        if "ssl" in arguments:
            arguments["server_hostname"] = host
        async with asyncio.timeout(self.socket_connect_timeout):
            sock, _ = await self.network.dial(host, port)
            try:
                self._reader, self._writer = await asyncio.open_connection(sock=sock, **arguments)
            except BaseException:
                sock.close()
                raise


class _DialledWithTls(_Dialled, redis.SSLConnection):
    pass


def _dialled(client: redis.Redis, network: Network) -> redis.Redis:
    """`client`, with connections of our own where it would make them by name."""
    pool = client.connection_pool
    for theirs, ours in ((redis.Connection, _Dialled), (redis.SSLConnection, _DialledWithTls)):
        if pool.connection_class is theirs:
            pool.connection_class = type(ours.__name__, (ours,), {"network": network})
            break
    return client


class RedisLink:
    """`call` runs one command, or a pipeline, or says None.

    Attributes:
        errors: calls that failed, by cause.
        reason, cause: why it is off, or was last.
        refusal, refusal_cause: why it takes no writes; None while it does.
    """

    def __init__(
        self,
        url: str,
        *,
        budget: float,
        pause: float,
        network: Network | None = None,
        changed: Callable[[RedisLink], None] = lambda _: None,
        took: Callable[[float], None] = lambda _: None,
    ) -> None:
        """`budget` of a call, and `pause` between two PINGs to a Redis that is off, both in seconds.

        `network` should share its names with nothing else: without an answer for Redis's name, all else goes
        on, and the other way round. `changed` is told when Redis goes off or on, or stops or begins to take
        writes; `took`, of each call that was answered, the seconds.

        Raises:
            ValueError: the URL is none of Redis.
        """
        self.errors: Counter[RedisCause] = Counter()
        self.reason: str | None = None
        self.cause: RedisCause | None = None
        self.refusal: str | None = None
        self.refusal_cause: RedisCause | None = None
        self.budget = budget
        self._changed = changed
        self._took = took
        self.pause = max(pause, _SHORTEST_PAUSE)
        self._recovery: asyncio.Task[None] | None = None  # while it is off
        self._under_way = 0
        self._free = asyncio.Semaphore(_CONNECTIONS)
        self._closed = False
        self.client = _dialled(
            redis.Redis.from_url(
                url,
                max_connections=_CONNECTIONS,
                socket_connect_timeout=max(budget, _CONNECT_SECONDS),
                retry=None,
                decode_responses=False,
            ),
            network or Network(Names(_NAME_INTERVAL)),
        )

    def __repr__(self) -> str:
        state = "on" if self.on else f"off ({self.reason})"
        if self.refusal is not None:
            state += f", no writes ({self.refusal})"
        return f"<RedisLink {state}, {self._under_way} under way, {self.failures} failures>"

    @property
    def on(self) -> bool:
        return self._recovery is None

    @property
    def slow(self) -> bool:
        """Whether it is off for no more than not having answered in time."""
        return not self.on and self.cause == "timeout"

    @property
    def failures(self) -> int:
        return self.errors.total()

    async def check(self) -> None:
        """Find out at the start whether it can be used, and say so if not; later calls find out anyway."""
        try:
            async with asyncio.timeout(max(self.budget, _CHECK_SECONDS)):
                await self._verify()
                await self._open_all()
        except (RedisError, OSError, TimeoutError) as exc:
            self._failed(exc)
        self._changed(self)

    async def call(
        self,
        command: Callable[[redis.Redis], Awaitable[T]],
        budget: float | None = None,
        *,
        kind: Literal["read", "write", "script", "optional"] = "write",
        patient: bool = False,
    ) -> T | None:
        """What `command` returns; None if Redis is off, busy, late or wrong.

        `budget` in seconds, if it is not the link's own. One that is off for having been slow is asked all
        the same by a caller who is `patient`, since nothing can be done without it. A `read` that Redis
        refuses switches it off: what cannot be read is of no use. That it refuses a `script`, or what is
        `optional`, says nothing of other writes.
        """
        if not (self.on or (patient and self.slow)) or self._under_way >= _CALLS:
            return None
        self._under_way += 1
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None, "it is awaited"
        cancelled = task.cancelling()
        timer: asyncio.TimerHandle | None = None
        try:
            async with asyncio.timeout(None) as limit:
                # A loop that comes late finds the answer and the end of the budget in the same turn, and the
                # end would win. So time is up only when the loop has looked once more.
                timer = loop.call_later(
                    self.budget if budget is None else max(0.0, budget),
                    lambda: limit.reschedule(loop.time() + _LOOP_TICK),
                )
                async with self._free:
                    started = perf_counter()
                    answer = await command(self.client)
                    self._took(perf_counter() - started)
                if kind == "write" and self.refusal is not None:
                    self._writes(None)
                return answer
        except ResponseError as exc:
            # It answered, in time, that it cannot: out of memory, say. Others may still be able to read.
            if kind == "read":
                self._failed(exc)
            else:
                self.errors[cause_of(exc, script=kind == "script")] += 1
                if kind == "write":
                    self._writes(exc)
            return None
        except (RedisError, OSError, TimeoutError) as exc:
            self._failed(exc)
            return None
        finally:
            if timer is not None:
                timer.cancel()
            self._under_way -= 1
            # redis-py sends by `asyncio.wait_for`, which up to Python 3.11 loses a cancellation that comes
            # when all is sent. Whoever has cancelled this call waits for its task to end.
            if task.cancelling() > cancelled:
                raise asyncio.CancelledError

    def _failed(self, error: BaseException) -> None:
        """It cannot be used until it has answered in the background."""
        self.errors[cause_of(error)] += 1
        self.reason, self.cause = described(error), cause_of(error)
        if self._recovery is None and not self._closed:
            recovery = self._recover()
            self._recovery = asyncio.get_running_loop().create_task(recovery, name="redis recovery")
            self._changed(self)

    def _writes(self, refused: ResponseError | None) -> None:
        before = self.refusal
        self.refusal = None if refused is None else described(refused)
        self.refusal_cause = None if refused is None else cause_of(refused)
        if (before is None) != (refused is None):
            self._changed(self)

    async def _verify(self) -> None:
        """Ask what searches will ask, and find out whether it takes writes.

        Raises:
            RedisError, OSError: it cannot be used.
        """
        await self.client.ping()
        await self.client.mget([_CHECK_KEY])
        try:
            await self.client.set(_CHECK_KEY, b"", px=_CHECK_MS)
        except ResponseError as exc:
            self.errors[cause_of(exc)] += 1
            self._writes(exc)
        else:
            self._writes(None)

    async def _recover(self) -> None:
        # Not for ever: the cancellation by `close` may be lost, as in `call`.
        while not self._closed:
            await asyncio.sleep(self.pause)
            try:
                await self._try_again()
            except (RedisError, OSError, TimeoutError) as exc:
                self.reason, self.cause = described(exc), cause_of(exc)
            except Exception:
                # Whatever it is: a loop that ended here would leave Redis unused for ever.
                _logger.exception("recovery of Redis")
                self.reason, self.cause = "an unexpected error; the log has it", "other"
            else:
                self._recovery = None
                self._changed(self)
                return

    async def _try_again(self) -> None:
        """
        Raises:
            RedisError, OSError, TimeoutError: it cannot be used yet.
        """
        # Connections that have been lost without a word would each cost a turn.
        await self.client.connection_pool.disconnect(inuse_connections=False)
        async with asyncio.timeout(_CONNECT_SECONDS + self.budget):
            await self.client.ping()
            await self._open_all()
        async with asyncio.timeout(self.budget):
            await self._verify()

    async def _open_all(self) -> None:
        """Connections for as many calls at once as there may be."""
        pings = [self.client.ping() for _ in range(_CONNECTIONS)]
        await asyncio.gather(*pings, return_exceptions=True)  # a call finds out what is wrong

    async def close(self) -> None:
        self._closed = True
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
        try:
            async with asyncio.timeout(1.0):
                await self.client.aclose()
        except (RedisError, OSError, TimeoutError):
            return


async def exchange(client: redis.Redis, commands: Sequence[Sequence[str]]) -> list[Any]:
    """The replies to several commands that leave at once; an error of the first is raised, others returned.

    redis-py's own pipeline takes 40 µs more, and even one command through `execute_command` 10 µs more.

    Raises:
        RedisError, OSError
    """
    pool = client.connection_pool
    connection = await pool.get_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.send_packed_command(connection.pack_commands(commands))
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await connection.read_response())
            except ResponseError as exc:
                replies.append(exc)
    except BaseException:
        # The rest of its replies would be taken for those of the next command.
        await connection.disconnect(nowait=True)
        raise
    finally:
        await pool.release(connection)
    if isinstance(replies[0], ResponseError):
        raise replies[0]
    return replies
