"""Connections for work on the servers themselves.

The router's own connections need the vector extension, know its types and leave nothing behind; these
create the extension, run for hours and hold locks. What asyncpg raises becomes a `NodeError` here too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import asyncpg

from router.postgres import driver
from router.postgres.connection import POSTGRES_ERRORS, ErrorKind, NodeError, node_error
from router.postgres.pooler import PoolerError
from router.postgres.session_settings import SettingsRefusedError, apply_settings
from shard_config.model import Node

__all__ = [
    "CONNECT_TIMEOUT",
    "Connection",
    "bound_to",
    "connect",
    "node_errors",
]

T = TypeVar("T")

CONNECT_TIMEOUT = 5.0
# How long a statement may take to notice that its connection is gone.
_LAST_WORDS = 1.0


class _Session(asyncpg.Connection):
    """A connection that ends when a statement on it is cancelled.

    asyncpg would open another connection to ask the server for the cancel, and wait for it: with a frozen
    server for ever. What a session was about is undone when it ends, and that needs no answer.
    """

    def _cancel_current_command(self, *_: object) -> None:
        self.terminate()


Connection: TypeAlias = _Session


@contextmanager
def node_errors() -> Iterator[None]:
    """
    Raises:
        NodeError: in the place of whatever asyncpg or the socket raised.
    """
    try:
        yield
    except POSTGRES_ERRORS as exc:
        raise node_error(exc) from exc


async def connect(node: Node, name: str, **settings: str) -> Connection:
    """A connection whose statements have no bound of their own: each caller gives its own.

    Commits wait for this server's disk but not for synchronous replicas, which may be down: whoever
    needs rows on replicas waits for their replay and can say which one is late. Rows that a policy hides
    from the role are an error: a check of a table must not pass over them.

    Raises:
        NodeError
    """
    options = {"application_name": name, "synchronous_commit": "local", "row_security": "off", **settings}

    async def another() -> _Session:
        return await driver.connect(
            node.dsn,
            timeout=CONNECT_TIMEOUT,
            connection_class=_Session,
            server_settings={"application_name": name},
            statement_cache_size=0,
        )

    try:
        connection = await another()
    except POSTGRES_ERRORS as exc:
        error = node_error(exc)
        raise NodeError(error.kind, f"{node.name}: {error}") from exc
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await apply_settings(connection, options, another)
    except (*POSTGRES_ERRORS, SettingsRefusedError, PoolerError) as exc:
        connection.terminate()
        error = node_error(exc)
        raise NodeError(error.kind, f"{node.name}: {error}") from exc
    except BaseException:
        connection.terminate()
        raise
    return connection


async def bound_to(connection: Connection, work: Coroutine[None, None, T]) -> T:
    """Await `work` on `connection`, and end it when the connection is lost.

    A COPY that waits for room in the socket is not told of the loss: asyncpg 0.32 leaves its
    `writing_allowed` unset then.

    Raises:
        NodeError: the connection was lost, and the work did not say so itself.
    """
    lost = asyncio.get_running_loop().create_future()

    def listen(_: object) -> None:
        if not lost.done():
            lost.set_result(None)

    connection.add_termination_listener(listen)
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task, lost}, return_when=asyncio.FIRST_COMPLETED)
        error = await _settle(connection, task)
        if lost.done() and error is not None and not isinstance(error, POSTGRES_ERRORS):
            raise NodeError(ErrorKind.LOST, "the connection was lost") from error
        return task.result()
    finally:
        await _settle(connection, task)
        connection.remove_termination_listener(listen)


async def _settle(connection: Connection, task: asyncio.Task[T]) -> BaseException | None:
    """See the task end, and what it failed of.

    One that is about to hear of the loss is not cancelled: asyncio would then complain that nobody has
    read what it was about to hear.
    """
    if not task.done() and connection.is_closed():
        await asyncio.wait({task}, timeout=_LAST_WORDS)
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_LAST_WORDS)
    if not task.done() or task.cancelled():
        return asyncio.CancelledError()
    return task.exception()
