"""For how long this process was kept from running: what has to be done in time may take so much longer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

__all__ = ["Lateness", "lateness"]

_TICK = 0.02


class Lateness:
    """`seconds` of this process's event loop that passed without a turn, and without work of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._before = 0.0
        self._begin()

    @property
    def seconds(self) -> float:
        late, worked = self._loop.time() - self._expected, time.process_time() - self._worked
        return self._before + max(0.0, late - worked)

    def _begin(self) -> None:
        self._expected = self._loop.time() + _TICK
        self._worked = time.process_time()

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self._before = self.seconds
            self._begin()


@contextlib.asynccontextmanager
async def lateness() -> AsyncIterator[Lateness]:
    """Counted during the block."""
    found = Lateness()
    watching = asyncio.create_task(found.watch())
    try:
        yield found
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
