"""The measurement over a stage that answers what it is told, on the real event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from router.query.errors import DeadlineError, OverloadedError, UnavailableError
from router.query.ranked import RankedAnswer
from router.query.types import Consistency, SearchQuery
from router.recall.live import LiveRecall, Sampled
from router.recall.sampling import RecallSampler, RecallSeen
from router.stages.answer_memory import AnswerMemory, BatchRoom
from tests.unit.queries import query, ranked


class Exact:
    """Answers each repetition with the next outcome, after `before`."""

    def __init__(self, *outcomes: RankedAnswer | Exception) -> None:
        self.outcomes = list(outcomes)
        self.asked: list[SearchQuery] = []
        self.gate: asyncio.Event | None = None

    async def search(self, query: SearchQuery, deadline: float) -> RankedAnswer:
        self.asked.append(query)
        if self.gate is not None:
            await self.gate.wait()
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Heard:
    def __init__(self) -> None:
        self.seen: list[tuple[str, RecallSeen]] = []
        self.reasons: list[str] = []

    def recall_sampled(self, collection: str, seen: RecallSeen) -> None:
        self.seen.append((collection, seen))

    def recall_dropped(self, reason: str) -> None:
        self.reasons.append(reason)


class Bench:
    def __init__(self, budget: float) -> None:
        self.version = 0
        self.heard = Heard()
        self.recall = LiveRecall(RecallSampler(1.0, budget), lambda _: self.version, self.heard, share=0.999)

    async def settled(self, samples: int = 0, dropped: int = 0) -> None:
        async with asyncio.timeout(5):
            while self.recall.samples < samples or self.recall.dropped.total() < dropped:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def bench(budget: float = 1000.0) -> AsyncIterator[Bench]:
    made = Bench(budget)
    made.recall.start()
    try:
        yield made
    finally:
        await made.recall.close()
        assert len(asyncio.all_tasks()) == 1


async def test_a_search_is_repeated_exactly_and_compared() -> None:
    async with bench() as b:
        exact = Exact(ranked(0.1, 0.2), ranked(0.1, 0.2))
        asked = query(
            k=2,
            include=frozenset(["content"]),
            consistency=Consistency.STRONG,
            explain=True,
            caller=1,
            room=BatchRoom(AnswerMemory(1 << 20, 1 << 20)),
        )
        b.recall.offer(exact, asked, ranked(0.1, 0.3), 0)
        await b.settled(samples=1)
        assert b.recall.seen("documents") == RecallSeen(0.5, 1)
        b.recall.offer(exact, asked, ranked(0.1, 0.2), 0)
        await b.settled(samples=2)
        assert b.recall.seen("documents") == RecallSeen(0.75, 2)
        assert [seen.samples for _, seen in b.heard.seen] == [1, 2]
        again = exact.asked[0]
        assert (again.exact, again.allow_partial, again.include) == (True, False, frozenset())
        assert (again.k, again.vector, again.cached) == (2, asked.vector, False)
        assert again.room is None and again.caller is None


async def test_what_is_not_settled_or_exact_is_not_taken() -> None:
    async with bench() as b:
        exact = Exact()
        b.recall.offer(exact, query(), ranked(0.1, settled=False), 0)
        b.recall.offer(exact, query(exact=True), ranked(0.1), 0)
        await asyncio.sleep(0.01)
        assert (exact.asked, b.recall.dropped) == ([], {})


async def test_a_write_before_or_during_the_repetition_drops_it() -> None:
    async with bench() as b:
        exact = Exact(ranked(0.1))
        b.version = 1
        b.recall.offer(exact, query(), ranked(0.1), 0)
        await b.settled(dropped=1)
        assert exact.asked == []
        exact.gate = asyncio.Event()
        b.recall.offer(exact, query(), ranked(0.1), 1)
        while not exact.asked:
            await asyncio.sleep(0)
        b.version = 2
        exact.gate.set()
        await b.settled(dropped=2)
        assert b.recall.dropped == {"written": 2}
        assert b.recall.seen("documents") is None


async def test_what_fails_is_counted_by_its_reason_and_ends_nothing() -> None:
    async with bench() as b:
        exact = Exact(
            DeadlineError("late"),
            OverloadedError("full", retry_after=1.0),
            UnavailableError("gone"),
            ValueError("ours"),
            ranked(),
            ranked(0.1),
        )
        for _ in range(6):
            b.recall.offer(exact, query(), ranked(0.1), 0)
        await b.settled(samples=1, dropped=5)
        assert b.recall.dropped == {"late": 1, "busy": 1, "failed": 1, "error": 1, "empty": 1}
        assert sorted(b.heard.reasons) == ["busy", "empty", "error", "failed", "late"]


async def test_the_queue_and_the_budget_are_bounds() -> None:
    async with bench() as b:
        exact = Exact(*[ranked(0.1)] * 17)
        exact.gate = asyncio.Event()
        b.recall.offer(exact, query(), ranked(0.1), 0)
        while not exact.asked:
            await asyncio.sleep(0)
        for _ in range(20):
            b.recall.offer(exact, query(), ranked(0.1), 0)
        assert b.recall.dropped == {"queue": 4}
        assert "16 waiting" in repr(b.recall)
        exact.gate.set()
        await b.settled(samples=17)
    async with bench(budget=0.001) as b:
        for _ in range(3):
            b.recall.offer(Exact(ranked(0.1)), query(), ranked(0.1), 0)
        await b.settled(samples=1)
        assert b.recall.dropped == {"budget": 2}


async def test_closing_ends_a_repetition_under_way() -> None:
    async with bench() as b:
        exact = Exact()
        exact.gate = asyncio.Event()
        b.recall.offer(exact, query(), ranked(0.1), 0)
        while not exact.asked:
            await asyncio.sleep(0)


async def test_a_chosen_search_is_answered_by_the_stage_that_repeats_it_and_measured() -> None:
    async with bench() as b:
        exact = Exact(ranked(0.1, 0.3), ranked(0.1, 0.2))
        answer = await Sampled(exact, b.recall).search(query(k=2), 0.0)
        assert answer.distances == [0.1, 0.3]
        await b.settled(samples=1)
        assert [one.exact for one in exact.asked] == [False, True]
        assert b.recall.seen("documents") == RecallSeen(0.5, 1)


async def test_a_write_while_a_chosen_search_is_under_way_drops_its_sample() -> None:
    async with bench() as b:
        exact = Exact(ranked(0.1))
        exact.gate = asyncio.Event()
        searching = asyncio.create_task(Sampled(exact, b.recall).search(query(), 0.0))
        while not exact.asked:
            await asyncio.sleep(0)
        b.version += 1
        exact.gate.set()
        await searching
        await b.settled(dropped=1)
        assert b.recall.dropped == {"written": 1}
