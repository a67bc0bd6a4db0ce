"""The recall of real searches: a small share of them is repeated exactly, off the request path.

A search that was chosen is put into a bounded queue once its rows are ranked; whoever asked waits for
nothing. Searches that a cache answers are not among them. One task takes from the queue, repeats the
search exactly, on the least loaded node of each shard, and compares. Between two repetitions it rests, so
that they take a tenth of its time at most, however long they are.

Invariant: what is compared saw the same rows, as far as this router's workers wrote them. If the
collection's write version moved between the beginning of the search and the end of its repetition, the
pair is dropped, and counted as such. What others write past the router is not known here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

import msgspec

from router.query.errors import DeadlineError, OverloadedError, RouterError
from router.query.ranked import RankedAnswer
from router.query.types import Consistency, SearchQuery
from router.recall.measure import recall
from router.recall.sampling import RecallSampler, RecallSeen, RecallWindow
from router.stages.stage import Figures, Stage

__all__ = ["DropReason", "LiveRecall", "RecallListener", "Sampled"]

DropReason: TypeAlias = Literal[
    "queue", "budget", "written", "late", "busy", "failed", "stale", "empty", "error"
]

_QUEUE = 16
_SECONDS = 10.0  # for one repetition
_SHARE = 0.1  # of the time, for repetitions

_logger = logging.getLogger(__name__)


class RecallListener(Protocol):
    """Is told of every sample; the metrics are one."""

    def recall_sampled(self, collection: str, seen: RecallSeen) -> None: ...

    def recall_dropped(self, reason: DropReason) -> None: ...


class _Job(msgspec.Struct, frozen=True):
    stage: Stage[SearchQuery, RankedAnswer]
    query: SearchQuery
    distances: list[float]
    version: int


class LiveRecall:
    """Samples of every shard map that serves; `start` and `close` bound the life of its only task.

    Args:
        version: a collection's write version.
        share: of the time that repetitions may take.
    """

    def __init__(
        self,
        sampler: RecallSampler,
        version: Callable[[str], int],
        listener: RecallListener | None = None,
        *,
        share: float = _SHARE,
    ) -> None:
        self.chooses = sampler.chooses
        self.version = version
        self.dropped: Counter[DropReason] = Counter()
        self.samples = 0
        self._sampler = sampler
        self._listener = listener
        self._share = share
        self._seen: dict[str, RecallSeen] = {}
        self._windows: dict[str, RecallWindow] = {}
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue(_QUEUE)
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        counts = f"{self.samples} samples, {self.dropped.total()} dropped, {self._jobs.qsize()} waiting"
        return f"<LiveRecall {self._sampler!r}, {counts}>"

    def start(self) -> None:
        if self._sampler.rate > 0 and self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Leave what waits, and the repetition under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def seen(self, collection: str) -> RecallSeen | None:
        """What the last samples showed, None while there are none."""
        return self._seen.get(collection)

    def offer(
        self,
        stage: Stage[SearchQuery, RankedAnswer],
        query: SearchQuery,
        answer: RankedAnswer,
        version: int,
    ) -> None:
        """Take a search that was chosen, if its answer is one to compare with. Never waits.

        Args:
            stage: what repeats it, past all caches.
            version: the collection's write version before the search began.
        """
        if query.exact or not answer.cacheable:
            return
        if self._jobs.full():
            self._drop("queue")
        elif not self._sampler.try_spend():
            self._drop("budget")
        else:
            self._jobs.put_nowait(_Job(stage, _exactly(query), answer.distances, version))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            job = await self._jobs.get()
            started = loop.time()
            try:
                reason = await self._compare(job)
            except Exception:
                # The task outlives a fault of ours, which must not end the measurement in silence.
                _logger.exception("recall not measured", extra={"collection": job.query.collection.name})
                reason = "error"
            if reason is not None:
                self._drop(reason)
            del job  # and what it holds, while the next is waited for
            await asyncio.sleep((loop.time() - started) * (1 / self._share - 1))

    async def _compare(self, job: _Job) -> DropReason | None:
        """Repeat one search and count what it shows, or say why that shows nothing."""
        collection = job.query.collection.name
        if self.version(collection) != job.version:
            return "written"
        deadline = asyncio.get_running_loop().time() + _SECONDS
        try:
            exact = await job.stage.search(job.query, deadline)
        except DeadlineError:
            return "late"
        except OverloadedError:
            return "busy"
        except RouterError:
            return "failed"
        if self.version(collection) != job.version:
            return "written"
        if not exact.cacheable:
            return "stale"
        value = recall(job.distances, exact.distances)
        if value is None:
            return "empty"
        seen = self._windows.setdefault(collection, RecallWindow()).add(value)
        self._seen[collection] = seen
        self.samples += 1
        if self._listener is not None:
            self._listener.recall_sampled(collection, seen)
        return None

    def _drop(self, reason: DropReason) -> None:
        self.dropped[reason] += 1
        if self._listener is not None:
            self._listener.recall_dropped(reason)


def _exactly(query: SearchQuery) -> SearchQuery:
    """The same search for ids and distances alone, all of them, from any node that is up to date."""
    return msgspec.structs.replace(
        query,
        exact=True,
        include=frozenset(),
        consistency=Consistency.EVENTUAL,
        cache=False,
        allow_partial=False,
        explain=False,
        plan=False,
        caller=None,
        # Whose memory would stay reserved for as long as the job waits.
        room=None,
    )


class Sampled:
    """Hands some of its inner stage's answers over to be measured; else it is the inner stage."""

    def __init__(self, inner: Stage[SearchQuery, RankedAnswer], recall: LiveRecall) -> None:
        self._inner = inner
        self._recall = recall

    def __repr__(self) -> str:
        return f"<Sampled by {self._recall!r}>"

    async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
        if not self._recall.chooses():
            return await self._inner.search(query, deadline)
        # Read before the search starts: a write that lands meanwhile makes the two answers incomparable.
        version = self._recall.version(query.collection.name)
        answer = await self._inner.search(query, deadline)
        self._recall.offer(self._inner, query, answer, version)
        return answer

    def describe(self) -> Figures:
        return self._inner.describe()
