"""Lets connections be opened in turn; `router.policy.openings` says whose it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import TypeVar

from router.policy.openings import Opening, Openings, Urgency

__all__ = ["Turns"]

T = TypeVar("T")


class Turns:
    """For all nodes of a router, on one event loop.

    Nodes that took their time when they were tried last have turns of their own, since each may hold its
    place until its time is up: however many there are, they keep no other waiting.

    Whoever waits for a turn is bounded by what it opens for: a pool has a place for each, a probe waits
    alone.
    """

    def __init__(self, at_once: int) -> None:
        self._well, self._doubtful = self._lanes = Openings(at_once), Openings(at_once)
        self._turns: dict[Opening, tuple[asyncio.Future[None], Callable[[], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Turns {self._well!r}, doubtful {self._doubtful!r}>"

    async def run(
        self,
        urgency: Callable[[], Urgency],
        open_connection: Callable[[], Awaitable[T]],
        begun: Callable[[], None] = lambda: None,
        *,
        doubtful: bool = False,
    ) -> T:
        """What `open_connection` returns, called when its turn has come.

        `begun` is called before anybody else's turn comes, so that it may change how urgent others are.
        """
        loop = asyncio.get_running_loop()
        opening = Opening(urgency, loop.time())
        openings = self._doubtful if doubtful else self._well
        openings.ask(opening)
        turn = loop.create_future()
        self._turns[opening] = turn, begun
        self._pump()
        try:
            await turn
            return await open_connection()
        finally:
            self._turns.pop(opening, None)
            openings.end(opening)
            self._pump()

    def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        for openings in self._lanes:
            while (opening := openings.begin(loop.time())) is not None:
                turn, begun = self._turns.pop(opening)
                if not turn.done():
                    turn.set_result(None)
                    begun()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = min(openings.room_at() for openings in self._lanes)
        if at < inf:
            # No sooner than the next turn of the loop, or it would turn without end.
            self._timer = loop.call_at(max(at, loop.time() + 0.001), self._pump)
