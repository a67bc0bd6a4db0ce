"""Which real searches are repeated exactly, how many of them a second allows, and what they showed.

Pure: random numbers and the clock are parameters.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable

import msgspec

__all__ = ["RecallSampler", "RecallSeen", "RecallWindow"]

# At a recall of 0.95 and some 0.1 from query to query, 300 samples give the mean to within 0.01.
_WINDOW = 300


class RecallSampler:
    """Chooses searches at random; a token bucket bounds how many of them are repeated.

    The bucket holds what one second brings, but one token at least, and is full at the beginning.

    Args:
        rate: share of searches to choose, 0 to 1.
        budget: repetitions per second, on average, at most.
        rng: uniform in [0, 1).
        clock: seconds.
    """

    def __init__(
        self,
        rate: float,
        budget: float,
        *,
        rng: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate = rate
        self._budget = budget
        self._most = max(1.0, budget)
        self._tokens = self._most
        self._rng = rng
        self._clock = clock
        self._filled = clock()

    def __repr__(self) -> str:
        return f"<RecallSampler {self.rate:g} of searches, {self._budget:g} a second at most>"

    def chooses(self) -> bool:
        """Whether the search at hand is one to repeat; costs what a random number does."""
        return self._rng() < self.rate

    def try_spend(self) -> bool:
        """Take one repetition out of the budget; False if it allows none now."""
        now = self._clock()
        self._tokens = min(self._most, self._tokens + max(0.0, now - self._filled) * self._budget)
        self._filled = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class RecallSeen(msgspec.Struct, frozen=True):
    """`recall` is the mean over the last `samples` repeated searches, each at its own k."""

    recall: float
    samples: int


class RecallWindow:
    """The last samples of a collection; changed by `add` alone."""

    def __init__(self, most: int = _WINDOW) -> None:
        self._values: deque[float] = deque(maxlen=most)

    def __repr__(self) -> str:
        return f"<RecallWindow {self.total:g} of {len(self)}>"

    def __len__(self) -> int:
        return len(self._values)

    @property
    def total(self) -> float:
        return sum(self._values)

    def add(self, value: float) -> RecallSeen:
        self._values.append(value)
        return RecallSeen(self.total / len(self), len(self))
