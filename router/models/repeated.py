"""Texts of documents become vectors, sent again while their service may recover.

`Embeddings.documents` repeats by itself what fails for moments. Here is what lasts longer: a service that
restarts or asks for time, and a circuit that lets one request through while the rest of a large batch fails.

Invariant: it ends by the deadline, and when `patience` seconds have brought no vector but failures. A vector
that was made is never asked for again, nor is a text that the model refuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from router.query.errors import (
    DeadlineError,
    MisconfiguredError,
    OverloadedError,
    RequestError,
    RouterError,
    UnavailableError,
)
from shard_config.model import EmbeddingService

__all__ = ["EmbedTexts", "embed_repeatedly"]

# Has a service make a vector of each text by a deadline: little-endian float32 of its dimensions, or why not.
EmbedTexts: TypeAlias = Callable[
    [EmbeddingService, Sequence[str], float], Awaitable[Sequence[bytes | RouterError]]
]

# Seconds before what failed is sent again; doubled up to the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0


async def embed_repeatedly(
    embed: EmbedTexts,
    service: EmbeddingService,
    texts: Sequence[str],
    deadline: float,
    patience: float,
    failing: Callable[[RouterError], None] = lambda _: None,
) -> list[bytes | RouterError]:
    """Of each text its vector, or why it has none.

    Args:
        patience: seconds without a single vector after which the service is given up.
        failing: is told before texts are sent again.
    """
    loop = asyncio.get_running_loop()
    outcomes: list[bytes | RouterError] = [DeadlineError("there was no time left")] * len(texts)
    left = list(range(len(texts)))
    last, pause = loop.time(), _FIRST_PAUSE
    while left:
        answers = await embed(service, [texts[i] for i in left], deadline)
        for i, answer in zip(left, answers, strict=True):
            outcomes[i] = answer
        faults = {i: fault for i in left if (fault := _passing(outcomes[i])) is not None}
        if any(isinstance(outcomes[i], MisconfiguredError) for i in left):
            break  # the others would meet the same
        if len(faults) < len(left):
            last, pause = loop.time(), _FIRST_PAUSE
        left = list(faults)
        wait = max((pause, *map(_retry_after, faults.values())))
        if not left or loop.time() + wait >= min(deadline, last + patience):
            break
        failing(faults[left[0]])
        await asyncio.sleep(wait)
        pause = min(2 * pause, _LONGEST_PAUSE)
    return outcomes


def _passing(outcome: bytes | RouterError) -> RouterError | None:
    """The fault, if it may pass."""
    lasting = isinstance(outcome, bytes | RequestError | MisconfiguredError)
    return None if lasting else outcome  # type: ignore[return-value]


def _retry_after(fault: RouterError) -> float:
    return fault.retry_after if isinstance(fault, OverloadedError | UnavailableError) else 0.0
