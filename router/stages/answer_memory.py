"""Memory of the answers that are too large to take no notice of.

Each reserves what it will probably take before its rows are read, and keeps that until nobody holds the
answer any more: until it is sent, as a rule. Invariants: answers that wait for memory hold none, so that none
waits for another that waits; nobody waits beyond its deadline, and no more than a bounded number at all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from router.query.errors import AnswerTooLargeError, OverloadedError

__all__ = ["AnswerMemory", "BatchRoom", "MemoryFullError", "Reservation", "too_large"]

_WAITING = 64


class MemoryFullError(OverloadedError):
    """There is no memory for one more large answer."""


class Reservation:
    """A reservation; given back by `release`, or when the last reference to it goes."""

    def __init__(self, memory: AnswerMemory, size_bytes: int) -> None:
        self._memory = memory
        self.size_bytes = size_bytes

    def __repr__(self) -> str:
        return f"<Reservation {self.size_bytes} bytes of {self._memory!r}>"

    def __del__(self) -> None:
        self.release()

    def resize(self, size_bytes: int) -> None:
        """To what it turned out to be; more than expected is never refused, for the rows are here."""
        before, self.size_bytes = self.size_bytes, size_bytes
        self._memory.changed(size_bytes - before)

    def release(self) -> None:
        self.resize(0)


class AnswerMemory:
    """What the large answers of a process may take together. Changed by `Reservation` and `take` only."""

    def __init__(self, most_each: int, most: int) -> None:
        self.used = 0
        self.most_each = most_each  # that one answer may have
        self.most = most
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def __repr__(self) -> str:
        return f"<AnswerMemory {self.used}/{self.most} bytes, {len(self._waiting)} waiting>"

    async def take(self, size_bytes: int, deadline: float) -> Reservation:
        """Reserve `size_bytes`, or all there is if that is less; first come, first served.

        Raises:
            OverloadedError: there was none until the deadline, or too many wait already.
        """
        size_bytes = min(size_bytes, self.most)
        if self._waiting or not self._fits(size_bytes):
            if len(self._waiting) >= _WAITING:
                raise self._full(f"and {_WAITING} wait for that already")
            await self._wait(size_bytes, deadline)
        else:
            self.used += size_bytes
        return Reservation(self, size_bytes)

    def extend(self, reservation: Reservation, size_bytes: int) -> None:
        """Add to a reservation, at once or not at all: who holds memory must not wait for more.

        Raises:
            OverloadedError
        """
        if not self._fits(size_bytes):
            raise self._full("so there is no room for one more")
        reservation.resize(reservation.size_bytes + size_bytes)

    def changed(self, by: int) -> None:
        self.used += by
        if by < 0:
            self._admit()

    async def _wait(self, size_bytes: int, deadline: float) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size_bytes, place)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout_at(deadline):
                await place
        except BaseException as exc:
            # Cancelled in the turn in which it was let in, it has the memory already.
            if place.done() and not place.cancelled():
                self.changed(-size_bytes)
            with suppress(ValueError):
                self._waiting.remove(entry)
            self._admit()
            if isinstance(exc, TimeoutError):
                raise self._full("and none of them ended in time") from exc
            raise

    def _admit(self) -> None:
        while self._waiting:
            size_bytes, place = self._waiting[0]
            if not self._fits(size_bytes):
                return
            self._waiting.popleft()
            if not place.done():
                self.used += size_bytes
                place.set_result(None)

    def _fits(self, size_bytes: int) -> bool:
        return self.used + size_bytes <= self.most

    def _full(self, why: str) -> MemoryFullError:
        what = f"the large answers being made and sent take {self.used} of {self.most} bytes"
        return MemoryFullError(f"{what} (--answer-memory-bytes), {why}")


class BatchRoom:
    """What the results of one batch may take together; satisfies `router.query.types.Room`."""

    def __init__(self, memory: AnswerMemory) -> None:
        self._most = memory.most_each
        self._memory = memory
        self._used = 0
        self._reservation = Reservation(memory, 0)
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<BatchRoom {self._used}/{self._most} bytes>"

    @property
    def left(self) -> int:
        return self._most - self._used

    async def __aenter__(self) -> None:
        await self._turn.acquire()

    async def __aexit__(self, *exc: object) -> None:
        self._turn.release()

    def add(self, size_bytes: int, *, counted: bool) -> None:
        """A result; `counted` says that it has a reservation of its own.

        Raises:
            AnswerTooLargeError: the batch has no room for it.
            OverloadedError: nor has the process.
        """
        if size_bytes > self.left:
            raise too_large(size_bytes, self.left, self._most)
        if not counted:
            self._memory.extend(self._reservation, size_bytes)
        self._used += size_bytes


def too_large(size_bytes: int, left: int, most: int) -> AnswerTooLargeError:
    """The error of an answer of about `size_bytes`, where `left` of `most` bytes are left."""
    has = (
        f"the {most} bytes that an answer may have"
        if left >= most
        else (
            f"what the batch's other results leave of the {most} bytes that an answer may have ({left} bytes)"
        )
    )
    advice = "ask for fewer hits, include less, or take vectors as base64"
    return AnswerTooLargeError(f"about {size_bytes} bytes exceed {has} (--max-answer-bytes): {advice}")
