"""A model, its thread, and the requests that wait for it.

No timer gathers a batch: the thread takes what has come by the time it is free, so that a lone request is
computed at once, and requests that come meanwhile leave together.

Invariants: only the thread calls the model, and it makes the answers too: the event loop computes nothing.
The texts that wait are bounded, except for those of one request that finds none waiting. A request that was
dropped takes part in no further batch. When a call fails that had texts of several requests, each request's
are tried alone, so that only the one that is to blame fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from router.model_service.backend import Model, Output
from router.model_service.batches import Turns, take_batch
from router.model_service.errors import BusyError, ModelFailedError, NotServingError
from router.model_service.limits import Limits

__all__ = ["Job", "Watcher", "Worker"]

_logger = logging.getLogger(__name__)

Item = TypeVar("Item")

# Seconds: bounds of Retry-After.
_LEAST_RETRY, _MOST_RETRY = 1, 60
# The weight of the last call in the mean rate by which Retry-After is estimated.
_LAST_WEIGHT = 0.2


class Watcher(Protocol):
    """What a worker tells of: in its thread, and that a request was abandoned in the event loop's."""

    def computed(self, items: int, tokens: int, truncated: int, seconds: float) -> None: ...

    def failed(self) -> None: ...

    def abandoned(self) -> None: ...


class Job(Turns[Item]):
    """One request's items, and what has been made of them so far.

    Attributes:
        finish: makes the answer of the whole output; it may raise a `ServiceError`.
        answer: done when it is made, or cannot be.
    """

    __slots__ = ("_left", "_output", "answer", "dropped", "finish")

    def __init__(
        self, items: Sequence[Item], sizes: Sequence[int], finish: Callable[[Output], bytes]
    ) -> None:
        super().__init__(items, sizes)
        self.finish = finish
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.dropped = False  # changed under the worker's lock
        self._left = len(items)
        self._output: Output | None = None

    def put(self, indices: Sequence[int], rows: Sequence[int], made: Output) -> bytes | None:
        """Keep `rows` of `made`, which are of the items at `indices`; the answer if they were the last."""
        if self._output is None:
            count = len(self.items)
            self._output = Output(
                np.empty((count, *made.values.shape[1:]), made.values.dtype),
                np.empty(count, np.int64),
                np.empty(count, bool),
            )
        self._output.values[indices] = made.values[rows]
        self._output.tokens[indices] = made.tokens[rows]
        self._output.truncated[indices] = made.truncated[rows]
        self._left -= len(indices)
        return None if self._left else self.finish(self._output)


class Worker(Generic[Item]):
    """Runs `model` for jobs; made, used and stopped in the event loop's thread.

    Attributes:
        ended: whether the thread has; that of a stopped worker does after the call under way.
    """

    def __init__(
        self,
        name: str,
        model: Model[Item],
        limits: Limits,
        watcher: Watcher,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.model = model
        self._limits = limits
        self._watcher = watcher
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()
        self._rate = 0.0  # items per second, of the last calls; changed by the thread alone
        self._changed = threading.Condition()
        # All of these are changed under `_changed`.
        self._waiting: deque[Job[Item]] = deque()
        self._waiting_items = 0
        self._waiting_chars = 0
        self._since: float | None = None  # when the call under way began
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name=f"model {name}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Worker {self.name!r}, {self._waiting_items} items of {len(self._waiting)} requests wait>"

    @property
    def waiting(self) -> int:
        """Items that have not been taken into a call."""
        return self._waiting_items

    def stuck(self, seconds: float) -> bool:
        """Whether the call under way has taken more than `seconds`, or no call can come any more."""
        since = self._since
        return self.ended.is_set() or (since is not None and self._clock() - since > seconds)

    async def answer(self, job: Job[Item], seconds: float) -> bytes:
        """What `job.finish` makes of the model's output, within `seconds`; who leaves drops the job.

        Raises:
            BusyError: too many items wait already.
            ModelFailedError
            NotServingError: it was not in time, or the service ends.
            ServiceError: from `job.finish`.
        """
        self._submit(job)
        try:
            async with asyncio.timeout(seconds):
                return await job.answer
        except TimeoutError as exc:
            raise NotServingError(
                f"model {self.name!r} did not answer {len(job.items)} texts within {seconds:g} s",
                retry_after=self._retry_after(),
            ) from exc
        finally:
            if not job.answer.done() or job.answer.cancelled():
                self._forget(job)
                self._watcher.abandoned()
            else:
                # Read here in case this task was cancelled in the very turn that brought it.
                job.answer.exception()

    def stop(self) -> None:
        """Take no more jobs, and fail those that wait. The thread ends after the call under way."""
        with self._changed:
            self._stopped = True
            left, self._waiting = self._waiting, deque()
            self._waiting_items = self._waiting_chars = 0
            self._changed.notify()
        _settle([(job, self._ending()) for job in left])

    def _submit(self, job: Job[Item]) -> None:
        items, chars = len(job.items), sum(job.sizes)
        limits = self._limits
        with self._changed:
            if self._stopped:
                raise self._ending()
            all_items, all_chars = self._waiting_items + items, self._waiting_chars + chars
            if self._waiting_items and (all_items > limits.queue_texts or all_chars > limits.queue_chars):
                raise BusyError(
                    f"with these, {all_items} texts of {all_chars} characters would wait for model "
                    f"{self.name!r}; at most {limits.queue_texts} of {limits.queue_chars} may",
                    retry_after=self._retry_after(),
                )
            self._waiting.append(job)
            self._waiting_items, self._waiting_chars = all_items, all_chars
            self._changed.notify()

    def _ending(self) -> NotServingError:
        return NotServingError(f"the service ends, and with it model {self.name!r}", retry_after=_LEAST_RETRY)

    def _forget(self, job: Job[Item]) -> None:
        """Let nothing more be computed for `job`."""
        with self._changed:
            job.dropped = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._waiting_items -= job.waiting
                self._waiting_chars -= job.waiting_chars

    def _retry_after(self) -> int:
        seconds = self._waiting_items / self._rate if self._rate else _LEAST_RETRY
        return max(_LEAST_RETRY, min(_MOST_RETRY, math.ceil(seconds)))

    def _work(self) -> None:
        try:
            while batch := self._next_batch():
                ended = self._compute(batch)
                with self._changed:
                    self._since = None
                if ended:
                    self._call(partial(_settle, ended))
        finally:
            self._call(self.ended.set)

    def _call(self, function: Callable[[], None]) -> None:
        """Let the event loop call it."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(function)

    def _next_batch(self) -> _Batch[Item]:
        """Waits for it; empty when the worker has been stopped."""
        with self._changed:
            while not self._waiting and not self._stopped:
                self._changed.wait()
            batch = take_batch(self._waiting, self._limits.batch_texts, self._limits.batch_chars)
            for job, indices in batch:
                self._waiting_items -= len(indices)
                self._waiting_chars -= sum(job.sizes[index] for index in indices)
            self._since = self._clock()
            return batch

    def _compute(self, batch: _Batch[Item]) -> list[_Ended]:
        """The jobs that end with this batch."""
        # Shortest first, as within each job: a model that pads pads little.
        places = sorted(
            (job.sizes[index], part, index) for part, (job, indices) in enumerate(batch) for index in indices
        )
        began = self._clock()
        try:
            made = self.model.run([batch[part][0].items[index] for _, part, index in places])
            if not len(made.values) == len(made.tokens) == len(made.truncated) == len(places):
                raise RuntimeError(f"{len(places)} items went in, and {len(made.values)} came out")
        except Exception as exc:
            if len(batch) > 1:
                return [end for part in batch for end in self._compute([part])]
            return self._failed(batch[0][0], exc)
        seconds = max(1e-6, self._clock() - began)
        self._rate += (len(places) / seconds - self._rate) * (_LAST_WEIGHT if self._rate else 1)
        self._watcher.computed(len(places), int(made.tokens.sum()), int(made.truncated.sum()), seconds)
        rows_of: list[list[int]] = [[] for _ in batch]
        for row, (_, part, _) in enumerate(places):
            rows_of[part].append(row)
        ended: list[_Ended] = []
        for (job, _), rows in zip(batch, rows_of, strict=True):
            if not job.dropped:
                ended += _put(job, [places[row][2] for row in rows], rows, made)
        return ended

    def _failed(self, job: Job[Item], error: Exception) -> list[_Ended]:
        if job.dropped:
            return []
        _logger.error("model failed", exc_info=error, extra={"model": self.name, "texts": len(job.items)})
        self._watcher.failed()
        self._forget(job)
        name = type(error).__name__
        return [
            (job, ModelFailedError(f"model {self.name!r} failed with {name}; the service's log says more"))
        ]


_Batch: TypeAlias = "list[tuple[Job[Item], list[int]]]"
_Ended: TypeAlias = "tuple[Job[Any], bytes | Exception]"


def _put(job: Job[Item], indices: list[int], rows: list[int], made: Output) -> list[_Ended]:
    try:
        answer = job.put(indices, rows, made)
    except Exception as exc:
        return [(job, exc)]
    return [] if answer is None else [(job, answer)]


def _settle(ended: Sequence[_Ended]) -> None:
    """Runs in the event loop."""
    for job, result in ended:
        if job.answer.done():
            continue
        if isinstance(result, Exception):
            job.answer.set_exception(result)
        else:
            job.answer.set_result(result)
