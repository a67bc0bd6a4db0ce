"""Several waits at once, as one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

__all__ = ["all_of"]

T = TypeVar("T")


async def all_of(waits: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What each of `waits` returns, in their order.

    The first that fails, or a cancellation, cancels the others, and nothing is left running.
    """
    tasks = [asyncio.create_task(one) for one in waits]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        tasks.clear()  # an error holds the frames that it passes, and this one would hold it in turn
